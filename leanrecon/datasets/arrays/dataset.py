"""A study from any lab's arrays: betas, images and captions in .npy, .npz, .mat or .h5 files.

Zarr, h5py and SciPy are imported by the functions that need them, so that settings can be checked without.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from leanrecon.datasets.arrays.inputs import Inputs, Split
from leanrecon.datasets.files.open import located_array
from leanrecon.datasets.files.rows import Convert
from leanrecon.datasets.images import stimulus_ids
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.datasets.splits import check_shared, fold_rows, fraction_rows
from leanrecon.errors import InputError, StoreError
from leanrecon.memory import MemoryBudget
from leanrecon.places import Location
from leanrecon.progress import Progress
from leanrecon.study.layout import Study

if TYPE_CHECKING:
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

_SILENT = Progress()
_ROLES = ("betas", "stimuli", "captions")


class ArraysSettings(DatasetSettings):
    """``[dataset] kind = "arrays"``: which arrays hold what, and which rows are for testing.

    Arrays are given as ``FILE``, ``FILE:KEY`` or ``:KEY`` (a key of ``path``).
    """

    kind: Literal["arrays"] = "arrays"
    path: str | None = None
    """The file that ``:KEY`` is in."""

    betas_train: str | None = None
    betas_test: str | None = None
    stimuli_train: str | None = None
    stimuli_test: str | None = None
    captions_train: str | None = None
    captions_test: str | None = None

    betas: str | None = None
    """[rows, voxels], to be split by test_index, test_fraction or folds; so are stimuli and captions."""
    stimuli: str | None = None
    captions: str | None = None

    test_index: str | None = None
    """A file of test row numbers, counted from 0, or of a mask with one entry a row."""
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    folds: int | None = Field(default=None, ge=2)
    """Every row is tested once, in one of so many folds."""

    image_shape: list[int] | None = Field(default=None, min_length=2, max_length=3)
    """[height, width] or [height, width, channels]; needed where images are flat rows."""
    image_order: Literal["C", "F"] = "C"
    """F: flat rows run down the columns of the image, as MATLAB flattens."""
    allow_shared_stimuli: bool = False
    """Let images that are trained on be tested on as well."""

    @property
    def has_images(self) -> bool:
        return bool(self.stimuli or self.stimuli_train)

    def located(self, base_dir: Path | None) -> Self:
        names = ("path", "test_index", *(f"{role}{split}" for role in _ROLES for split in ("", "_train", "_test")))
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        return self.model_copy(update={name: located_array(spec, base_dir) for name, spec in given.items()})

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = [name for role in _ROLES for name in (f"{role}_train", f"{role}_test") if getattr(self, name)]
        singles = [role for role in _ROLES if getattr(self, role)]
        splits = [name for name in ("test_index", "test_fraction", "folds") if getattr(self, name) is not None]
        if pairs and singles:
            raise ValueError(
                f"{pairs[0]} and {singles[0]} are both given: give either arrays for train and test, or one to be split"
            )
        if not self.betas and not (self.betas_train or self.betas_test):
            raise ValueError("no betas are given: set betas_train and betas_test, or betas")
        for role in _ROLES:
            given = [name for name in (f"{role}_train", f"{role}_test") if getattr(self, name)]
            if len(given) == 1:
                other = f"{role}_test" if given[0].endswith("train") else f"{role}_train"
                raise ValueError(f"{given[0]} is given without {other}")
        if pairs and splits and splits != ["folds"]:
            raise ValueError(f"{pairs[0]} already says what is tested, so {splits[0]} can't; only folds can pool both")
        if singles and len(splits) != 1:
            found = f"{' and '.join(splits)} are" if splits else "none is"
            raise ValueError(f"betas are to be split by one of test_index, test_fraction and folds, and {found} given")
        for name in (*pairs, *singles, *(["test_index"] if self.test_index else [])):
            if str(getattr(self, name)).startswith(":") and self.path is None:
                raise ValueError(f'{name} = "{getattr(self, name)}" is a key of `path`, which is not set')
        if self.image_shape and (min(self.image_shape) < 1 or self.image_shape[2:] not in ([], [1], [3])):
            raise ValueError("image_shape is [height, width] or [height, width, channels] with 1 or 3 channels")
        return self


def plan_arrays(
    settings: ArraysSettings, *, base_dir: Path | None = None, chunk: str | int | None = None, free: int
) -> DatasetPlan:
    """Say what ingesting would make and take, from headers alone; ``free`` is the memory it may take in bytes.

    Raises InputError for arrays that are missing, unreadable or don't fit together.
    """
    from leanrecon.stores.layout import chunk_nbytes

    with ExitStack() as opened:
        return _plan(Inputs(settings, base_dir, opened), chunk_nbytes(chunk), free)


def _plan(inputs: Inputs, chunk: int, free: int) -> DatasetPlan:
    n = inputs.n_rows
    n_test = inputs.expected_test_rows()
    plans = [
        inputs.plan_store(role, split.rows(role), len(split.index), chunk, free)
        for split in inputs.splits(np.arange(n_test))
        for role in inputs.roles
    ]
    work, disk = max(plan.work for plan in plans), sum(plan.disk for plan in plans)
    return DatasetPlan(n - n_test, n_test, inputs.voxels, inputs.image_shape, inputs.settings.folds, work, disk)


def ingest_arrays(
    settings: ArraysSettings,
    study: Study,
    *,
    base_dir: Path | None = None,
    chunk: str | int | None = None,
    budget: MemoryBudget | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = _SILENT,
) -> None:
    """Write a study's betas, stimuli and captions from the arrays, continuing where an earlier run stopped.

    With ``folds`` all rows go into the train stores (given test arrays after the train ones) and ``folds.json``
    says which rows each fold tests. ``seed`` decides folds and test_fraction; the memory budget decides nothing
    but speed. Relative paths start at the current folder or, failing that, at ``base_dir``.
    Raises InputError for data that can't be used, StoreError for stores made of something else, BudgetError.
    """
    from leanrecon.datasets.sidecars import forget_other_kind, keep_json, n_voxels, sources_path, sweep
    from leanrecon.places.files import read_json, write_json, write_whole
    from leanrecon.stores.layout import chunk_nbytes

    chunk_bytes = chunk_nbytes(chunk)
    budget = MemoryBudget.of(None) if budget is None else budget
    with ExitStack() as opened:
        inputs = Inputs(settings, base_dir, opened)
        budget.require("reading the arrays", _plan(inputs, chunk_bytes, budget.free).work)
        captions = inputs.captions()
        sweep(study)
        if overwrite:
            forget_other_kind(study, "arrays")
        sources = sources_path(study)
        inputs.prints = read_json(sources) or {}
        filling = _Filling(inputs, study, chunk_bytes, budget.free, progress)
        known = filling.recorded()
        splits = inputs.splits(filling.test_rows(None if overwrite else known, seed))
        stores = filling.create(splits, seed, overwrite=overwrite)
        if overwrite:
            _remove_others(study, {split.name for split in splits}, inputs)
        if read_json(sources) != inputs.prints:
            write_json(sources, inputs.prints)
        if not all(store.complete for role in stores.values() for store in role):
            known = None  # something else was there
        if known is None:
            study.rows.unlink(missing_ok=True)  # written last, so that its presence says that all is done
        filling.betas(splits, stores)
        ids = filling.ids(splits, stores) if known is None else {name: of["stimulus"] for name, of in known.items()}

    if "stimuli" in inputs.roles and len(splits) == 2 and not settings.allow_shared_stimuli:
        check_shared(ids, {split.name: split.locate("stimuli") for split in splits})
    for split in splits if captions is not None else []:
        rows = [row for array in inputs.of_split(captions or [], split.name) for row in array]
        captions_of = [rows[i] for i in split.index]
        keep_json(study.captions(split.name), captions_of, "captions", overwrite=overwrite)
    if n_voxels(study, "index") != inputs.voxels:
        write_whole(study.voxels, lambda file: np.savez(file, index=np.arange(inputs.voxels)))
    if settings.folds:
        tests = fold_rows(ids["train"], settings.folds, seed)
        keep_json(study.folds, {"folds": tests}, "folds or another seed", overwrite=overwrite)
    if known is None:
        records = {
            split.name: {
                "stimulus": ids[split.name],
                "trials": [[int(row)] for row in split.index],
                "repeats": [1] * len(split.index),
            }
            for split in splits
        }
        write_json(study.rows, records)


class _Filling:
    """The steps from opened arrays to complete stores."""

    def __init__(self, inputs: Inputs, study: Study, chunk: int, free: int, progress: Progress) -> None:
        self.inputs = inputs
        self.study = study
        self.chunk = chunk
        self.free = free
        self.progress = progress
        self._convert: Convert | None = None

    def path(self, role: str, split: str) -> Location:
        return self.study.betas(split) if role == "betas" else self.study.stimuli(split)

    def recorded(self) -> dict[str, Any] | None:
        """What rows.json says, if it was written after the stores that are there now were complete; else None."""
        from leanrecon.places.files import read_json
        from leanrecon.stores.store import Store

        splits = ["train"] if self.inputs.settings.folds else ["train", "test"]
        records = read_json(self.study.rows)
        try:
            stores = {split: [Store.open(self.path(role, split)) for role in self.inputs.roles] for split in splits}
            lengths = {split: len(records[split]["stimulus"]) for split in records}
        except (StoreError, TypeError, KeyError):
            return None
        if lengths != {split: stores[split][0].rows for split in splits}:
            return None
        return dict(records)

    def test_rows(self, known: dict[str, Any] | None, seed: int) -> Array:
        """The test rows of a lone array; for test_fraction the images are read, since repeats stay together."""
        settings = self.inputs.settings
        if settings.test_index:
            return self.inputs.test_rows()
        if not settings.test_fraction:
            return np.arange(0)
        if known is not None:
            return np.array([trials[0] for trials in known["test"]["trials"]], np.int64)
        return fraction_rows(self.source_ids(), settings.test_fraction, seed)

    def source_ids(self) -> list[str]:
        """The stimulus id of every row of a lone array, straight from the file."""
        from leanrecon.memory import buffer

        if "stimuli" not in self.inputs.roles:
            return [str(row) for row in range(self.inputs.n_rows)]
        rows = self.inputs.arrays["stimuli"][0]
        plan = self.inputs.plan_store("stimuli", rows, len(rows), self.chunk, self.free)
        step = min(plan.at_once * self.inputs.group_rows("stimuli", len(rows), self.chunk), len(rows))
        memory = buffer((step, *rows.shape[1:]), np.uint8)
        ids: list[str] = []
        with self.progress.task("stimuli, looking for repeats", total=len(rows), unit="rows") as advance:
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                rows.read(np.arange(start, stop), memory[: stop - start], self.convert)
                ids += stimulus_ids(self.inputs.images(memory[: stop - start]))
                advance(stop - start)
        rows.release()
        return ids

    @property
    def convert(self) -> Convert:
        if self._convert is None:
            self._convert = self.inputs.converter()
        return self._convert

    def create(self, splits: Sequence[Split], seed: int, *, overwrite: bool) -> dict[str, list["Store"]]:
        """Open every store for writing, so that one made of something else is refused before anything is written."""
        from leanrecon.stores.store import Store

        def create(role: str, split: Split) -> Store:
            return Store.create(
                self.path(role, split.name),
                self.inputs.store_shape(role, len(split.index)),
                np.float32 if role == "betas" else np.uint8,
                made_of=self.inputs.made_of(role, split.name, seed),
                chunk=self.chunk,
                overwrite=overwrite,
            )

        return {role: [create(role, split) for split in splits] for role in self.inputs.roles}

    def fill(self, role: str, split: Split, store: "Store", **how: Any) -> None:
        from leanrecon.datasets.ingest import fill_store

        rows = split.rows(role)
        at_once = self.inputs.plan_store(role, rows, store.rows, self.chunk, self.free).at_once
        name = f"{role}, {split.name}"
        fill_store(store, rows, split.index, at_once=at_once, progress=self.progress, name=name, **how)

    def betas(self, splits: Sequence[Split], stores: dict[str, list["Store"]]) -> None:
        """Fill the betas of all splits, then judge the NaN in them together: only then are they complete."""
        from leanrecon.datasets.ingest import NanCount

        if all(store.complete for store in stores["betas"]):
            return
        nan = NanCount(self.inputs.voxels)
        locates = [split.locate("betas") for split in splits]
        for split, store, locate in zip(splits, stores["betas"], locates, strict=True):
            self.fill("betas", split, store, look=nan.looker(locate))
        nan.check(list(zip(stores["betas"], locates, strict=True)))
        for store in stores["betas"]:
            store.finish()

    def ids(self, splits: Sequence[Split], stores: dict[str, list["Store"]]) -> dict[str, list[str]]:
        """Fill the stimuli of all splits; returns every row's id: of its image, or its number where there are no images."""
        if "stimuli" not in self.inputs.roles:
            counted = self.inputs.paired
            return {s.name: [str(s.first + k if counted else i) for k, i in enumerate(s.index)] for s in splits}
        ids: dict[str, list[str]] = {}
        brightest = 0
        for split, store in zip(splits, stores["stimuli"], strict=True):
            own = [""] * store.rows

            def look(group: range, block: Array, own: list[str] = own) -> None:
                nonlocal brightest
                own[group.start : group.stop] = stimulus_ids(block)
                brightest = max(brightest, int(block.max()))

            convert = self.convert if store.missing() else None
            self.fill("stimuli", split, store, look=look, convert=convert, shaped=self.inputs.images)
            ids[split.name] = own
        if brightest <= 1:
            raise InputError(
                f"all images are black: no value in them is above {brightest}",
                expected="integers from 0 to 255, floating-point numbers from 0 to 1, or bool",
                todo="save images of 0 and 1 as bool, and run again with --overwrite",
            )
        for store in stores["stimuli"]:
            store.finish()
        return ids


def _remove_others(study: Study, splits: set[str], inputs: Inputs) -> None:
    """Remove what other settings made and these don't: the test stores of a split that is now folded, say."""
    from leanrecon.datasets.sidecars import remove_others
    from leanrecon.stores.store import remove

    for split in ("train", "test"):
        if split not in splits:
            remove(study.betas(split))
        if split not in splits or "stimuli" not in inputs.roles:
            remove(study.stimuli(split))
    captions = getattr(inputs.settings, inputs.names("captions")[0])
    remove_others(study, captions=splits if captions else (), folds=bool(inputs.settings.folds))
