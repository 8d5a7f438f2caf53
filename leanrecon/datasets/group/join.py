"""A new subject and the group that it joins: opened, mapped, and written as one study."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.alignment.grams import scores
from leanrecon.alignment.none import NoAlignment, NoAlignmentSettings
from leanrecon.alignment.ridge import RidgeMap
from leanrecon.context import Context
from leanrecon.datasets.group.chosen import MeanRows, with_rows
from leanrecon.datasets.group.ingest import Ingest, Making, means_of_images, read_state
from leanrecon.datasets.group.joined import MOST_TRIED, JoinedSettings
from leanrecon.datasets.group.members import Member, Members, open_member
from leanrecon.datasets.group.shared import shared_betas
from leanrecon.errors import InputError, StoreError
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import image_shape
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import SPLITS, Rows, SplitRows

Array = np.ndarray[Any, Any]

FEWEST = 3
"""Common images that a ridge into the group's space needs."""


@dataclass(frozen=True)
class Pair:
    """A group's study and that of a new subject, with the rows that are used of each."""

    group: Member
    """With one train row an image, the mean over its subjects, and no test rows."""
    own: Member
    """With the train rows that are used."""
    reader: Member
    """The new subject with its test rows alone."""
    used: list[str]
    """Ids of the new subject's train images that are used, in the order of its store."""
    common: list[str]
    """Those of them that subjects of the group saw."""
    image_shape: tuple[int, int, int]
    tried: list[str]
    """The used images that a route is chosen on."""

    def members(self, route: str) -> Members:
        """What is put together: the group's train rows and the subject's test rows, or the subject's own alone."""
        each = [self.group, self.reader] if route == "group" else [self.own]
        images: dict[str, dict[str, tuple[int, int]]] = {split: {} for split in SPLITS}
        for split in SPLITS:
            for k, member in enumerate(each):
                shown = set(member.rows[split].stimulus.tolist())
                for row, name in enumerate(member.rows.ids[split]):
                    if row in shown:
                        images[split].setdefault(name, (k, row))
        return Members(each, images, self.common if route == "group" else [], self.image_shape)


def open_pair(settings: JoinedSettings, base_dir: Path | None, seed: int) -> Pair:
    """Open both studies and find what they share.

    Raises InputError for what is not a group, for other images, a name that the group has, images trained on and tested,
    and too few common images; StoreError where a dataset stage is not complete.
    """
    group = open_member("the group", settings.joins, base_dir, role="dataset.joins")
    own = open_member(settings.name(), settings.member, base_dir, role="dataset.member")
    subjects = group.rows["train"].subject
    if subjects is None:
        raise InputError(f"dataset.joins: {settings.joins} has one subject", expected="the study of a group")
    if own.name in subjects:
        raise InputError(
            f"the group has a subject {own.name} already", todo="give the new one another name (dataset.subject)"
        )
    shapes = [image_shape(member.stimuli["train"]) for member in (group, own)]
    if shapes[0] != shapes[1]:
        listed = " and ".join("x".join(map(str, shape)) for shape in shapes)
        raise InputError(f"the images of the group and of {own.name} have the shapes {listed}", expected="one shape")
    known = set(group.rows.ids["train"])
    tested = [name for name in own.rows.ids["test"] if name in known]
    if tested and not settings.allow_shared_stimuli and settings.route != "own":
        raise InputError(
            f"the group was trained on {len(tested)} of the test images of {own.name}; the first is {tested[0]}",
            expected="test images that no subject is trained on",
            todo="make the group without them, or set dataset.allow_shared_stimuli = true if this is meant",
        )
    used = _used(settings.rows, own, seed)
    common = [name for name in used if name in known]
    if len(common) < FEWEST and settings.route != "own":
        raise InputError(
            f"{own.name} shares {len(common)} of its {len(used)} train images with the group",
            expected=f"{FEWEST} or more, by stimulus id",
            todo="use more rows (dataset.rows), or a group that saw the same images",
        )
    wanted = set(used)
    rows = np.array([row for row, name in enumerate(own.rows.stimulus_ids("train")) if name in wanted], np.int64)
    test = np.arange(len(own.rows["test"]))
    drawn = _order(len(used), seed)[:MOST_TRIED]
    return Pair(
        averaged(group),
        with_rows(own, {"train": rows, "test": test}),
        with_rows(own, {"train": rows[:0], "test": test}),
        used,
        common,
        shapes[0],
        [used[k] for k in sorted(drawn.tolist())],
    )


def averaged(group: Member) -> Member:
    """A group with one train row an image, the mean of all its subjects' rows, and no test rows."""
    rows, images = group.rows["train"], len(group.rows.ids["train"])
    train = means_of_images(rows, images)
    none = with_rows(group, {"train": np.empty(0, np.int64), "test": np.empty(0, np.int64)})
    means = MeanRows(group.betas["train"], rows.stimulus, images)
    splits = {"train": train, "test": none.rows["test"]}
    return replace(group, rows=Rows(splits, group.rows.ids), betas={"train": means, "test": none.betas["test"]})


def _order(n: int, seed: int) -> Array:
    return np.random.default_rng([seed, n]).permutation(n)


def _used(rows: float | None, own: Member, seed: int) -> list[str]:
    """The train images that are used: fewer ones are among more ones."""
    names = own.rows.ids["train"]
    if rows is None:
        return list(names)
    count = max(round(rows * len(names)), 1) if rows <= 1 else int(rows)
    if count > len(names):
        raise InputError(
            f"dataset.rows = {count} is more than the {len(names)} train images of {own.name}",
            expected="a share up to 1, or a number of them",
        )
    return [names[k] for k in sorted(_order(len(names), seed)[:count].tolist())]


def run_join(settings: JoinedSettings, pair: Pair, study: Study, context: Context) -> None:
    """Choose the route, and write the study."""
    made_of = _made_of(settings, pair, context.seed)
    state = _kept(study, made_of)
    if settings.route != "own" and state is None:
        if _state_path(study).is_file() and study.rows.is_file() and not context.overwrite:
            raise StoreError(
                f"{study.root} was joined with other rows, another route or other members",
                todo="go back to them, choose another --study, or replace what was made with --overwrite",
            )
        state = _fit(settings, pair, study, context) | {"made of": np.array(made_of)}
        _keep(study, state)
    route = settings.route if state is None else str(state["route"])
    decides = {"rows": settings.rows, "route": route, "map": made_of if route == "group" else None}
    if route == "own":
        alignment: Any = NoAlignment(NoAlignmentSettings())
        dims, learns = pair.own.voxels, False
    else:
        assert state is not None
        alignment, dims, learns = IntoGroup(pair.own.name, state), pair.group.voxels, True
    allowed = settings.allow_shared_stimuli
    making = Making("joined", alignment, dims, decides, learns=learns, allow_shared_stimuli=allowed)
    _Joining(making, pair.members(route), study, context).run()


class IntoGroup:
    """Rows of the group as they are, and those of the new subject through its map."""

    def __init__(self, subject: str, state: Mapping[str, Array]) -> None:
        self.subject = subject
        self._state = state

    def left_out(self, subject: str) -> Array | None:
        """What leaving out changes in the new subject's scores for the common images, float32 [common, dims].

        None for the group, whose rows stay as they are.
        """
        return self._state["left out"] if subject == self.subject else None

    def transform(self, subject: str, betas: Array) -> Array:
        """Betas of the group, or of the new subject, in the group's space: float32 [rows, dims]."""
        if subject != self.subject:
            return np.asarray(betas, np.float32)
        state = self._state
        found: Array = scores(np.asarray(betas, np.float32), state["mean"], state["weights"]) + state["offset"]
        return found


class _Joining(Ingest):
    """Rows of a study of one subject: its train rows may be means over the group's subjects."""

    def _rows(self) -> Rows:
        return _plain(super()._rows())

    def _fit(self) -> None:
        """The map was fitted before."""


def _plain(rows: Rows) -> Rows:
    """The rows of one subject, without its name."""
    parts = {split: rows[split] for split in rows.splits}
    return Rows(
        {s: SplitRows(p.stimulus, p.trials, p.repeats, None, p.session, p.run) for s, p in parts.items()}, rows.ids
    )


def _made_of(settings: JoinedSettings, pair: Pair, seed: int) -> str:
    """A hash of all that decides the map and the choice of the route."""
    contents = {m.name: m.betas["train"].content for m in (pair.group, pair.own)}
    images = {m.name: m.stimuli["train"].content for m in (pair.group, pair.own)} if settings.route == "auto" else None
    return fingerprint(
        {"betas": contents, "images": images, "common": pair.common, "tried": pair.tried, "route": settings.route,
         "seed": seed}
    )  # fmt: skip


def _state_path(study: Study) -> Any:
    return study.at("betas/*.npz", "alignment")


def _kept(study: Study, made_of: str) -> dict[str, Array] | None:
    state = read_state(_state_path(study))
    return state if state is not None and str(state.get("made of", "")) == made_of else None


def _keep(study: Study, state: Mapping[str, Any]) -> None:
    from leanrecon.places.files import write_whole

    write_whole(_state_path(study), lambda file: np.savez(file, **state))


def _fit(settings: JoinedSettings, pair: Pair, study: Study, context: Context) -> dict[str, Array]:
    """The ridge from the subject's voxels to the group's mean scores of the common images, and the route."""
    store = _common_betas(pair, study, context)
    targets = group_scores(pair)
    ridge = RidgeMap(budget=context.budget).fit(store, targets)
    left_out = np.empty_like(targets, np.float32)
    for start in range(0, len(targets), 256):
        part = slice(start, start + 256)
        left_out[part] = ridge.held_out_[part] - ridge.transform(store[part])
    state: dict[str, Array] = {
        "mean": ridge.mean_,
        "weights": ridge.weights_.astype(np.float32),
        "offset": ridge.offset_.astype(np.float32),
        "left out": left_out,
        "alpha": np.array(ridge.alpha_),
        "error": np.array(ridge.error_),
    }
    route = settings.route
    if route == "auto":
        from leanrecon.datasets.group.routes import try_routes

        tried = try_routes(pair, IntoGroup(pair.own.name, state), context.seed)
        route = "group" if tried["group"] > tried["own"] else "own"
        state |= {f"{name} predicts": np.array(value) for name, value in tried.items()}
        context.progress.say(
            f"left-out train images: r {tried['group']:.3f} through the group, {tried['own']:.3f} from own voxels; "
            f"{pair.own.name} takes {'the way through the group' if route == 'group' else 'its own voxels'}"
        )
    (study.root / "betas" / "shared").delete_tree()
    return state | {"route": np.array(route)}


def _common_betas(pair: Pair, study: Study, context: Context) -> Store:
    """A store of the subject's train betas of the common images, averaged over an image's rows."""
    betas = pair.own.betas["train"]
    return shared_betas(
        study.root / "betas" / "shared" / "common.zarr",
        betas.store,
        zip(betas.index.tolist(), pair.own.rows.stimulus_ids("train"), strict=True),
        pair.common,
        context.named("betas of common images"),
    )


def group_scores(pair: Pair) -> Array:
    """The group's scores of the common images, averaged over its subjects: float64 [common, dims]; 0 where it has none."""
    number = {name: k for k, name in enumerate(pair.group.rows.ids["train"])}
    means: MeanRows = pair.group.betas["train"]
    found = np.asarray(means.values[[number[name] for name in pair.common]], np.float64)
    found[:, np.isnan(found[0])] = 0  # voxels outside of the mask, in a group that was not aligned
    return found
