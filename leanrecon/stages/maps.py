"""Maps of a study, one number for each voxel: properties of voxels, their accuracy, and weights of a ridge."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.datasets.ceiling import noise_ceiling
from leanrecon.errors import InputError, StoreError, shown
from leanrecon.regression.ridge.directions import Linear, learn_directions, plan_directions
from leanrecon.regression.ridge.limits import MOMENTS, WORKSPACE
from leanrecon.regression.ridge.plan_form import plan_encoding
from leanrecon.stages.directions import LUMINANCE, Direction, read_directions, reading_nbytes
from leanrecon.stages.stage import Run
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import Matrix, as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.record import is_complete, stage_record
from leanrecon.study.rows import Rows
from leanrecon.study.variants import Variant, variants
from leanrecon.study.voxels import read_areas
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]

AREA = "area/"
"""The prefix of the names of maps of areas."""

KNOWN = ("areas", "ncsnr", "noise-ceiling", "reliability", "left-out", "accuracy")
"""The maps that are made by default, if the study has them."""

DIRECTED = ("weights", "pattern")
"""Maps of a direction: of a feature, ``pattern:SPACE:NUMBER``, or of a pixel's luminance, ``pattern:luminance:ROW,COLUMN``."""

IMAGES = "images"
"""The predictors of accuracy in a study without features: the pixels of the images."""

_SHOWS = {
    "weights": "weights of a ridge from betas as measured to the direction",
    "pattern": "covariance, over the train rows, of each voxel with what the ridge predicts (Haufe et al. 2014)",
}


@dataclass(frozen=True)
class Map:
    """A map: one number for each voxel."""

    name: str
    values: Array
    """[voxels]: float32, NaN if not known; bool for sets of voxels."""
    about: dict[str, Any] = field(default_factory=dict)
    """A description of the map, as plain values."""


@dataclass(frozen=True)
class Step:
    """Maps that are made together."""

    label: str
    work: int
    """Bytes of making them, beyond what the process holds."""
    make: Callable[[], Iterator[Map]]


class Maps:
    """The maps of a study, or of a variant: a fold or an area. ``steps`` plans them, and reads only headers."""

    def __init__(self, run: Run, variant: str = "") -> None:
        self.run, self.study = run, run.study
        self.betas = Store.open(self.study.betas("train"))
        self.variant = self._variant(variant)

    def _variant(self, name: str) -> Variant:
        if not name:  # all train rows, those of all folds
            return Variant(self.study, Rows.read(self.study))
        every = {variant.name: variant for variant in variants(self.study, self.run.settings)}
        if name not in every:
            known = ", ".join(filter(None, every)) or "none"
            raise InputError(f"{name} is not a variant of {self.study.root}", expected=f"a fold or an area: {known}")
        return every[name]

    def steps(self, names: Sequence[str] = ()) -> list[Step]:
        """The steps that make the maps of these names; raises InputError for maps that this study does not have."""
        context = self.run.context("maps")
        steps: list[Step] = []
        directed: dict[str, dict[Direction, set[str]]] = {}
        for name in dict.fromkeys(names or self._default()):
            what, _, rest = name.partition(":")
            if what in DIRECTED:
                direction = Direction.parse(rest)
                key = "" if direction.is_pixel else direction.space
                directed.setdefault(key, {}).setdefault(direction, set()).add(what)
            elif what == "accuracy":
                steps.append(self._accuracy(rest, context))
            elif name == "left-out":
                steps.append(Step(name, self._moments_nbytes, self._left_out))
            elif name in KNOWN:
                steps.append(Step(name, WORKSPACE, self._known(name)))
            else:
                raise InputError(
                    f"{shown(name)} is not a map ({nearest(name, [*KNOWN, *DIRECTED])})",
                    expected=f"{', '.join(KNOWN)}, weights:SPACE:NUMBER or pattern:luminance:ROW,COLUMN",
                )
        return steps + [self._directed(space, wanted, context) for space, wanted in directed.items()]

    def _default(self) -> list[str]:
        there = {"areas": self._areas is not None, "left-out": True, "accuracy": self._predicts is not None}
        return [name for name in KNOWN if there.get(name, name in self._numbers)]

    # Properties of voxels

    @cached_property
    def _areas(self) -> dict[str, Array] | None:
        try:
            return read_areas(self.study)
        except InputError:
            return None

    @cached_property
    def _numbers(self) -> dict[str, Array]:
        """The numbers of each voxel in voxels.npz: ncsnr, the noise ceiling that follows from it, and reliability."""
        found: dict[str, Array] = {}
        if self.study.voxels.is_file():
            with self.study.voxels.open() as file, np.load(file, allow_pickle=False) as voxels:
                for name in ("ncsnr", "reliability"):
                    if name in voxels.files and np.isfinite(voxels[name]).any():
                        found[name] = voxels[name].astype(np.float32)
        if "ncsnr" in found:
            found["noise-ceiling"] = noise_ceiling(found["ncsnr"], self._repeats).astype(np.float32)
        return found

    @property
    def _repeats(self) -> Array:
        """Trials of each row that is tested."""
        rows = self.variant.rows
        return np.array(rows["test" if "test" in rows else "train"].repeats)

    def _known(self, name: str) -> Callable[[], Iterator[Map]]:
        if name == "areas" and self._areas is None:
            read_areas(self.study)  # says why there are none
        if name != "areas" and name not in self._numbers:
            raise InputError(
                f"the {name} of these voxels is not known",
                expected="a dataset in which images were shown several times, or one with published values",
            )
        shows = {
            "ncsnr": {"shows": "standard deviation of the signal over that of one trial's noise"},
            "noise-ceiling": {"shows": "percent of the variance of the test rows that the images can explain"},
            "reliability": {"shows": "correlation of responses to the same image"},
        }

        def make() -> Iterator[Map]:
            if name == "areas":
                for area, mask in (self._areas or {}).items():
                    yield Map(f"{AREA}{area}", mask, {"shows": f"voxels of {area}"})
            else:
                yield Map(name, self._numbers[name], shows[name])

        return make

    # Maps from train rows

    @property
    def _moments_nbytes(self) -> int:
        betas = self.variant.train_betas()
        return WORKSPACE + 2 * betas.tile_nbytes + betas.scratch_nbytes + MOMENTS * 8 * betas.shape[1]

    @cached_property
    def train(self) -> Any:
        """The moments of the train betas, of the variant's voxels."""
        from leanrecon.regression.normalise import moments

        return moments(self.variant.train_betas())

    def _left_out(self) -> Iterator[Map]:
        shows = "voxels that do not vary over the train rows, which no regression uses"
        yield Map("left-out", self.placed(~self.train.usable, outside=False), {"shows": shows})

    @cached_property
    def _predicts(self) -> str | None:
        """The predictors of accuracy: the first feature space with train features, or the images."""
        for name, space in self.run.spaces.items():
            if is_complete(self.variant.features(space.learns).features(name, "train")):
                return name
        return IMAGES if is_complete(self.study.stimuli("train")) else None

    def predictors(self, name: str) -> Matrix:
        """The rows [s, dims] of a feature space, or the pixels, of the train images, each image once."""
        if name in self.run.spaces:
            return self.variant.train_features(name, self.run.spaces[name].learns)
        if name != IMAGES:
            known = ", ".join([*self.run.spaces, IMAGES])
            raise InputError(f"accuracy:{name}: there is no feature space {name}", expected=f"one of {known}")
        return gathered(as_matrix(Store.open(self.study.stimuli("train"))), self.variant.train_images)

    def _accuracy(self, name: str, context: Context) -> Step:
        from leanrecon.regression.encoding import encoding

        of = name or self._predicts
        if of is None:
            raise InputError(
                "there are neither features nor images to predict betas from", todo="run the stage features"
            )
        betas, targets, index = self.variant.train_betas(), self.predictors(of), self.variant.target_of_row
        (n, p), (s, t) = betas.shape, targets.shape
        work = plan_encoding(
            n, p, s, t, block=targets.block, x_tile=betas.tile_nbytes, y_tile=targets.tile_nbytes,
            scratch=betas.scratch_nbytes + targets.scratch_nbytes,
        )  # fmt: skip

        def make() -> Iterator[Map]:
            found = encoding(
                targets, betas, stimulus=index, train=self.train, budget=context.budget, seed=context.seed
            )  # fmt: skip
            shows = f"leave-one-out R² of a ridge from {of} to each voxel, over the train rows"
            yield Map(
                "accuracy" + f":{name}" * bool(name), self.placed(found.r2), {"shows": shows, "alpha": found.alpha}
            )

        return Step(f"accuracy from {of}", max(work, self._moments_nbytes), make)

    def _directed(self, space: str, wanted: dict[Direction, set[str]], context: Context) -> Step:
        """Weights and patterns of directions of one feature space, or of luminance; they share one factor."""
        spaces, variant, directions = self.run.spaces, self.variant, list(wanted)
        ridge = self._ridge(space)
        for direction in directions:
            direction.check(variant, spaces)
        betas, index, images = variant.train_betas(), variant.target_of_row, len(variant.train_images)
        work = reading_nbytes(variant, directions, spaces)
        work += plan_directions(ridge, betas, len(directions), index, images, context.budget.free - work)

        def make() -> Iterator[Map]:
            targets = read_directions(variant, directions, spaces)
            patterns = any("pattern" in maps for maps in wanted.values())
            found = learn_directions(ridge, betas, targets, index, context.refreshed(), patterns=patterns)
            for k, (direction, maps) in enumerate(wanted.items()):
                about = {"direction": str(direction), "alpha": float(found.alphas[k])}
                for what in sorted(maps):
                    of = found.weights if what == "weights" or found.patterns is None else found.patterns
                    values = np.where(found.left_out, np.nan, of[k])
                    yield Map(f"{what}:{direction}", self.placed(values), {"shows": _SHOWS[what], **about})

        return Step(f"weights of {space or LUMINANCE}", work, make)

    def _ridge(self, space: str) -> Linear:
        """The ridge of a feature space as its regression chose it; of luminance, by the settings of the first space."""
        settings = self.run.settings.regression
        if space in settings:
            regressor = kinds.kind_of("regressors", settings[space])(settings[space])
            if not hasattr(regressor, "linear"):
                raise InputError(
                    f"{space} is not predicted by a ridge, so its directions have no weights",
                    expected=f"directions of a feature space that a ridge predicts, or of {LUMINANCE}",
                )
            return regressor.linear(self._record_of(space), self.variant.study.predictions(space))  # type: ignore[no-any-return]
        ridges = (one for one in settings.values() if hasattr(kinds.kind_of("regressors", one), "linear"))
        first = next(ridges, None) or kinds.settings_of("regressors", {}, "regression.", default="ridge")
        regressor = kinds.kind_of("regressors", first)(first)
        return regressor.linear(None, self.study.predictions(LUMINANCE))  # type: ignore[no-any-return]

    # Voxels

    def placed(self, values: Array, *, outside: Any = np.nan) -> Array:
        """Values of the variant's voxels among all voxels of the study: float32, or bool where ``outside`` is."""
        dtype = bool if isinstance(outside, bool) else np.float32
        full = np.full(self.betas.columns, outside, dtype)
        full[slice(None) if self.variant.voxels is None else np.asarray(self.variant.voxels)] = values
        return full

    def _record_of(self, space: str) -> dict[str, Any]:
        """The record of the regression of a feature space in run.json; raises StoreError if it has not run."""
        record = stage_record(self.variant.study, f"regression {space}")
        if "alpha" not in record:
            folds = self.run.settings.dataset.folds
            raise StoreError(
                f"{self.variant.study.record} has no alpha of the regression of {space}",
                todo="name a fold, as in --variant fold00"
                if folds and not self.variant.name
                else "run that stage first",
            )
        return record


def make_maps(run: Run, names: Sequence[str], variant: str, *, beside: int = 0) -> Iterator[Map]:
    """Make the maps of these names, or all known maps if none is named, one after the other.

    The caller takes ``beside`` bytes for each. Raises InputError for a map that the study does not have, and
    BudgetError before any work is done.
    """
    context = run.context("maps")
    maps = Maps(run, variant)
    steps = maps.steps(names)
    for step in steps:
        context.require(step.label, step.work + beside)
    with context.task(total=len(steps), unit="steps") as advance:
        for step in steps:
            yield from step.make()
            advance(1)
