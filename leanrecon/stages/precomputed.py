"""Precomputed features: rows that another program made from the images, in the user's arrays, found by id.

The module is among the stages because it uses both the file readers of datasets and the feature spaces.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from leanrecon.context import Context
from leanrecon.datasets.captions import caption_size
from leanrecon.datasets.files.asked import Asked, known_by_content, read_once, small_files
from leanrecon.datasets.files.captions import read_captions
from leanrecon.datasets.files.open import SUFFIXES, locate, located_array, needed_array, open_array
from leanrecon.datasets.files.picked import Picked
from leanrecon.datasets.files.rows import Pooled, Rows
from leanrecon.datasets.ingest import Source, StorePlan, fill_store, plan_store
from leanrecon.datasets.sidecars import SourceFiles
from leanrecon.errors import InputError
from leanrecon.features.extract import check_rows
from leanrecon.features.plan import Cost
from leanrecon.features.space import Array, FixedSpace, ImageShape, Inputs
from leanrecon.features.space import Rows as Numbers
from leanrecon.places import Location
from leanrecon.places.files import read_json, write_json
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows as StudyRows

OVERHEAD = 32 * 10**6
"""Bytes that h5py, scipy.io and Zarr take when they are loaded."""

_COMPARED = 64
"""The most repeated images whose rows are compared."""

_OPENED = 2  # requests for the headers of an array before it is read
_LISTED = 5  # ids that a message names


class PrecomputedSettings(BaseModel):
    """``[features.NAME]`` with ``kind = "precomputed"``: features that another program made from the images.

    Arrays are given as ``FILE``, ``FILE:KEY`` or ``:KEY`` (a key of ``path``); axes after the first are flattened.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["precomputed"] = "precomputed"
    path: str | None = None
    """The file of arrays that are given as ``:KEY``."""
    train: str | None = None
    """Features of the train images, [images, dims]."""
    test: str | None = None
    """Features of the test images, [images, dims]."""
    array: str | None = None
    """Features of all images in one array; in place of train and test."""
    ids_train: str | None = None
    """The stimulus id of each row of ``train``: a text file with one a line, or an array; absent: one row a trial."""
    ids_test: str | None = None
    """The stimulus id of each row of ``test``."""
    ids: str | None = None
    """The stimulus id of each row of ``array``; absent: a row for each trial, in the order of the dataset's files."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.array is not None and (self.train or self.test):
            raise ValueError("array and train or test are both given: give one array of all images, or train and test")
        if self.array is None and not (self.train and self.test):
            raise ValueError("no features are given: set train and test, or array")
        if self.array is not None and (self.ids_train or self.ids_test):
            raise ValueError("array takes its ids from ids, not from ids_train and ids_test")
        if self.array is None and self.ids:
            raise ValueError("train and test take their ids from ids_train and ids_test, not from ids")
        if bool(self.ids_train) != bool(self.ids_test):
            given, other = ("ids_train", "ids_test") if self.ids_train else ("ids_test", "ids_train")
            raise ValueError(f"{given} is given without {other}")
        for name in _ARRAYS:
            spec = getattr(self, name)
            if spec is not None and spec.startswith(":") and self.path is None:
                raise ValueError(f'{name} = "{spec}" is a key of `path`, which is not set')
        return self

    def located(self, base_dir: Path | None) -> Self:
        """The same settings with absolute paths to files that exist."""
        given = {name: located_array(spec, base_dir) for name in ("path", *_ARRAYS) if (spec := getattr(self, name))}
        return self.model_copy(update=given)

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        """What finds each array that is named here, and raises InputError where it is not there."""
        given = {name: spec for name in ("path", *_ARRAYS) if (spec := getattr(self, name))}
        return [partial(needed_array, spec, self.path, base_dir, name) for name, spec in given.items()]

    def parts(self, split: str, folds: bool) -> list[tuple[str, str]]:
        """The settings with the arrays of a split and their ids. With folds all images are train images."""
        if self.array is not None:
            return [("array", "ids")]
        every = [("train", "ids_train"), ("test", "ids_test")]
        return every if folds else [every[split == "test"]]


_ARRAYS = ("train", "test", "array", "ids_train", "ids_test", "ids")


class Precomputed(FixedSpace):
    """Rows of arrays, by the ids of images; images are not encoded, and can't be decoded."""

    Settings: ClassVar[type[BaseModel]] = PrecomputedSettings
    inputs: ClassVar[Inputs] = "ids"

    @classmethod
    def notes(cls, settings: PrecomputedSettings) -> Iterable[str]:
        files = " and ".join(
            dict.fromkeys(Path(spec).name for name in _ARRAYS[:3] if (spec := getattr(settings, name)))
        )
        yield (
            f"Features were read from {files}, which another program made. leanrecon can't know whether test images "
            "influenced them, as in a mean or components of all images."
        )

    def check(self) -> None:
        """Raise InputError for arrays that are missing, hold no numbers or have different lengths of rows."""
        _ = self._dims

    def dims(self, image_shape: ImageShape) -> int:
        return self._dims

    def cost(self, image_shape: ImageShape) -> Cost:
        return Cost(held=0, per_image=0, batch=1)

    def made_of(self) -> dict[str, Any]:
        """Only the kind: each store records its files and rows."""
        return {"kind": self.settings.kind}

    def encode(self, inputs: Any, rows: Numbers) -> Array:
        raise self._lacks("an encoder")

    # Reading

    @cached_property
    def _dims(self) -> int:
        with ExitStack() as opened:
            every = self._open([name for name in _ARRAYS[:3] if getattr(self.settings, name)], opened)
        widths = {int(np.prod(rows.shape[1:], dtype=np.int64)) for rows in every}
        if len(widths) > 1:
            raise InputError(
                f"{every[0].name} has shape {every[0].shape} and {every[1].name} {every[1].shape}",
                expected="the same number of features per image in train and test",
            )
        return widths.pop()

    def _open(self, names: Sequence[str], opened: ExitStack) -> list[Rows]:
        every = []
        for name in names:
            rows = opened.enter_context(open_array(getattr(self.settings, name), self.settings.path))
            if rows.dtype.kind not in "biuf" or len(rows.shape) < 2 or 0 in rows.shape:
                raise InputError(
                    f"features.{self.name}.{name}: {rows.name} holds {rows.kind} of shape {rows.shape}",
                    expected="features as numbers, [images, dims]",
                )
            every.append(rows)
        return every

    def rows(self, split: str, *, folds: bool, opened: ExitStack) -> Rows:
        """The opened rows in which a split is looked up."""
        parts = self._open([array for array, _ in self.settings.parts(split, folds)], opened)
        return parts[0] if len(parts) == 1 else Pooled(parts)

    def plan_rows(self, split: str, n: int, *, folds: bool, chunk: int, free: int) -> StorePlan:
        """The filling of the store of a split of ``n`` images; raises InputError for arrays that can't be read."""
        with ExitStack() as opened:
            return self._plan(self.rows(split, folds=folds, opened=opened), split, n, folds, chunk, free)

    def _plan(self, rows: Rows, split: str, n: int, folds: bool, chunk: int, free: int) -> StorePlan:
        ids = sum(self._ids_nbytes(name) for _, name in self.settings.parts(split, folds))
        each = 2 * _COMPARED * (rows.row_nbytes + 8)  # two rows of one image, compared
        scratch = rows.scratch + max(2 * rows.row_nbytes + 8 * 2**20, each) + OVERHEAD
        return plan_store(
            (n, self._dims), np.float32, chunk, free=free, together=rows.together, held=rows.held + ids, scratch=scratch
        )

    def asked(self, *, folds: bool, chunk: int) -> Asked:
        """The requests to buckets for the arrays of all splits."""
        settings, asked = self.settings, Asked()
        for split in ("train",) if folds else ("train", "test"):
            with ExitStack() as opened:
                rows = self.rows(split, folds=folds, opened=opened)
                if rows.away:
                    at_once = plan_chunks((len(rows), self._dims), np.float32, chunk)[0]
                    asked += known_by_content([rows], 1) + read_once(rows, at_once) + Asked(_OPENED)
            asked += small_files([getattr(settings, of) for _, of in settings.parts(split, folds)], settings.path)
        return asked

    def _ids_nbytes(self, name: str) -> int:
        spec = getattr(self.settings, name)
        if spec is None:
            return 0
        if _is_array(spec, self.settings.path):
            with open_array(spec, self.settings.path) as rows:
                if rows.dtype.kind in "biuf":
                    return len(rows) * (rows.row_nbytes + 300)
        size = caption_size(spec, self.settings.path, None)
        return size.nbytes + 200 * size.count

    def ids(self, split: str, *, folds: bool) -> list[str] | None:
        """The id of every row in which a split is looked up; None if there is a row for each trial.

        Raises InputError if the numbers of ids and rows differ, or if an id occurs twice.
        """
        parts = self.settings.parts(split, folds)
        if getattr(self.settings, parts[0][1]) is None:
            return None
        found: list[str] = []
        with ExitStack() as opened:
            for (name, of), rows in zip(parts, self._open([array for array, _ in parts], opened), strict=True):
                own = _read_ids(getattr(self.settings, of), self.settings.path)
                if len(own) != len(rows):
                    raise InputError(
                        f"features.{self.name}: {name} has {len(rows)} rows and {of} {len(own)} ids",
                        expected="an id for each row, in the same order",
                    )
                found += own
        if len(set(found)) < len(found):
            seen: set[str] = set()
            twice = [name for name in found if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
            raise InputError(
                f"features.{self.name}: {len(set(twice))} ids occur more than once: {_named(twice)}",
                expected="each image once",
            )
        return found


def place_rows(space: Precomputed, split: str, rows: StudyRows, n: int, *, folds: bool) -> Array:
    """The row, of ``n`` in the arrays, of each image of a split, int64 [images].

    Rows are found by id. Without ids there is a row for each trial, and an image has that of its first trial. Raises
    InputError that names images without features.
    """
    names = rows.ids[split]
    if (ids := space.ids(split, folds=folds)) is not None:
        row_of = {name: row for row, name in enumerate(ids)}
        if missing := [name for name in names if name not in row_of]:
            raise InputError(
                f"features.{space.name}: {len(missing)} of {len(names)} {split} images have no features: {_named(missing)}",
                expected=f"ids as in the dataset, such as {names[0]!r}; the first one given is {ids[0]!r}",
                todo="give features of these images; stimuli/ids.json of the study has the ids of all",
            )
        return np.array([row_of[name] for name in names], np.int64)
    first = _trials_of_images(rows, split)
    every = [trial for of in first for trial in of]
    other = [] if space.settings.array is None or "test" not in rows else _trials_of_images(rows, _OTHER[split])
    every += [trial for of in other for trial in of]
    if sorted(every) != list(range(n)):
        raise InputError(
            f"features.{space.name}: there are {n} rows for the {len(every)} trials of the dataset",
            expected="one row for each trial, in the order of the dataset's files",
            todo="give the stimulus id of each row: ids_train and ids_test, or ids",
        )
    return np.array([of[0] for of in first], np.int64)


_OTHER = {"train": "test", "test": "train"}


def extract_precomputed(
    space: Precomputed, study: Study, split: str, path: Location, context: Context, *, folds: bool
) -> Store:
    """Write the features of a split's images, float32 [images, dims], and return the store complete.

    Continues where an earlier run stopped. Raises InputError for missing or non-finite rows, BudgetError.
    """
    rows = StudyRows.read(study)
    record = study.at("features/*/*.json", space.name, f"sources_{split}")
    known = read_json(record)
    sources = SourceFiles(known.get("files") if isinstance(known, dict) else None)
    with ExitStack() as opened:
        base = space.rows(split, folds=folds, opened=opened)
        index = place_rows(space, split, rows, len(base), folds=folds)
        parts = space.settings.parts(split, folds)
        files = [locate(getattr(space.settings, name), space.settings.path, None) for name, _ in parts]
        made_of = {
            "space": space.made_of(),
            "files": [[sources.content(file), key] for file, key in files],
            "rows": fingerprint({"index": index.tolist()}),
        }
        store = Store.create(
            path,
            (len(index), space.dims((0, 0, 0))),
            np.float32,
            made_of=made_of,
            chunk=context.chunk,
            overwrite=context.overwrite,
        )
        if {"files": sources.seen} != known:
            write_json(record, {"files": sources.seen})
        if not store.complete:
            plan = space._plan(base, split, len(index), folds, context.chunk, context.budget.free)
            context.require(f"features {space.name}", plan.work)
            _compare_repeats(space, base, rows, split, folds)
            _fill(store, Picked(base, index), plan.at_once, context.named(f"{space.name}, {split}"))
            sources.refuse_changes([store])
            store.finish()
    return store


def _fill(store: Store, rows: Rows, at_once: int, context: Context) -> None:
    def flat(block: Array) -> Array:
        return block.reshape(len(block), -1)

    def look(group: range, block: Array) -> None:
        own = flat(block)
        check_rows(own, (len(group), store.columns), group, f"{rows.name} holds")

    fill_store(store, Source(rows, np.arange(len(rows)), at_once, shaped=flat), context, look)


def _compare_repeats(space: Precomputed, base: Rows, rows: StudyRows, split: str, folds: bool) -> None:
    """Raise InputError if rows of two trials with the same image differ: then rows are in another order."""
    if getattr(space.settings, space.settings.parts(split, folds)[0][1]) is not None:
        return
    repeated = [of for of in _trials_of_images(rows, split) if len(of) > 1][:_COMPARED]
    for one, other, *_ in repeated:
        pair = np.empty((2, *base.shape[1:]), np.float32)
        Picked(base, [one, other]).read(np.arange(2), pair)
        if not np.allclose(pair[0], pair[1], rtol=1e-3, atol=1e-3 * float(np.abs(pair).max(initial=0))):
            raise InputError(
                f"features.{space.name}: rows {one} and {other} of {base.name} differ, and these trials show the same image",
                expected="one row for each trial, in the order of the dataset's files",
                todo="sort the rows into this order, or give the stimulus id of each",
            )


def _trials_of_images(rows: StudyRows, split: str) -> list[list[int]]:
    """The trials of each image, in the order of its rows."""
    trials: list[list[int]] = [[] for _ in rows.ids[split]]
    for image, of in zip(rows[split].stimulus.tolist(), rows[split].trials, strict=True):
        trials[image] += of
    return trials


def _is_array(spec: str, path: str | None) -> bool:
    try:
        return locate(spec, path, None)[0].suffix.lower() in SUFFIXES
    except InputError:
        return False


def _read_ids(spec: str, path: str | None) -> list[str]:
    """Ids from a text file, or an array of strings or numbers."""
    if _is_array(spec, path):
        with open_array(spec, path) as rows:
            if rows.dtype.kind in "biuf":
                values = rows[:].ravel()
                whole = values.dtype.kind != "f" or np.array_equal(values, np.rint(values))
                return [str(int(value)) if whole else f"{value:.6f}" for value in values]
    texts = read_captions(spec, path)
    several = next((k for k, of in enumerate(texts) if len(of) > 1), None)
    if several is not None:
        raise InputError(f"{spec} has {len(texts[several])} ids for row {several}", expected="one id a row")
    return [of[0] for of in texts]


def _named(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:_LISTED]) + (", …" if len(different) > _LISTED else "")
