"""The rows of a study's betas: which image each row is a response to, who saw it, when, and how often.

Responses and images are counted apart: ``stimuli/``, ``captions/`` and ``features/`` hold each image once, and
``betas/rows.json`` says which of them each row shows.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from leanrecon.errors import InputError, StoreError
from leanrecon.places.files import read_json, write_json
from leanrecon.study.layout import Study

Array = np.ndarray[Any, Any]
Group = Literal["stimulus", "run"]

FORMAT = 2
"""Of rows.json: 1 had one image a row, and ids of images in the place of numbers."""

SPLITS = ("train", "test")
AVERAGE = "average"
"""The subject of rows that are means over subjects."""
_OPTIONAL = ("subject", "session", "run", "test_set")


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split; every field has one entry a row."""

    stimulus: Array
    """Row of the image in ``stimuli/{split}.zarr``: int64 [rows]."""
    trials: list[list[int]]
    """Numbers of the trials that the row is the mean of."""
    repeats: list[int]
    """How many trials these are."""
    subject: list[str] | None = None
    """Who saw it, where a study has several subjects."""
    session: list[int] | None = None
    """Scan session, where rows are single trials of known sessions."""
    run: list[int] | None = None
    """Run within the session, where rows are single trials of known runs."""
    test_set: list[str] | None = None
    """Name of the test set that the row is of, where a study has several."""

    def __len__(self) -> int:
        return len(self.stimulus)

    @property
    def is_plain(self) -> bool:
        """Whether row i shows image i."""
        return np.array_equal(self.stimulus, np.arange(len(self)))

    def as_record(self) -> dict[str, Any]:
        """Plain values for rows.json; what is not known is left out."""
        record = {"stimulus": self.stimulus.tolist(), "trials": self.trials, "repeats": self.repeats}
        return record | {key: values for key in _OPTIONAL if (values := getattr(self, key)) is not None}


@dataclass(frozen=True)
class Rows:
    """The rows of all splits, and the ids of the images that they show. With folds there is a train split alone."""

    splits: Mapping[str, SplitRows]
    ids: Mapping[str, list[str]]
    """Id of each image of ``stimuli/{split}.zarr``."""

    @classmethod
    def read(cls, study: Study) -> Self:
        """Read ``betas/rows.json`` and ``stimuli/ids.json``.

        Raises StoreError where they are missing, damaged, or were written by an earlier version (format 1).
        """
        record = read_json(study.rows)
        if record is None:
            raise StoreError(f"there is no {study.rows}", todo=study.rows.todo())
        refuse_earlier_format(study)
        ids = read_json(study.stimulus_ids)
        try:
            splits = {split: _split_rows(record[split]) for split in SPLITS if split in record}
            rows = cls(splits, {split: [str(name) for name in ids[split]] for split in splits})
        except (TypeError, KeyError, ValueError, AttributeError, IndexError, OverflowError):
            raise _damaged(study, "they don't hold what they should") from None
        if problem := rows.problem():
            raise _damaged(study, problem)
        return rows

    def are_in(self, study: Study) -> bool:
        """Whether both files of a study tell of these very rows."""
        try:
            return self.read(study) == self
        except StoreError:
            return False

    def write(self, study: Study) -> None:
        """Write both files, rows.json last: its presence says that the dataset is complete."""
        if problem := self.problem():
            raise ValueError(problem)
        ids = {split: list(names) for split, names in self.ids.items()}
        if read_json(study.stimulus_ids) != ids:
            write_json(study.stimulus_ids, ids)
        write_json(study.rows, {"format": FORMAT, **{name: split.as_record() for name, split in self.splits.items()}})

    def __getitem__(self, split: str) -> SplitRows:
        return self.splits[split]

    def __contains__(self, split: object) -> bool:
        return split in self.splits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._as_values() == other._as_values()

    __hash__ = None  # type: ignore[assignment]

    def stimulus_ids(self, split: str) -> list[str]:
        """The id of the image of every row."""
        names = self.ids[split]
        return [names[image] for image in self[split].stimulus.tolist()]

    def is_plain(self, split: str) -> bool:
        """Whether row i shows image i and every image has its row."""
        return self[split].is_plain and len(self[split]) == len(self.ids[split])

    def groups(self, split: str, by: Group = "stimulus") -> Array:
        """A group number for each row, int64 [rows]: rows of one group have to be held out together.

        ``"stimulus"`` groups the rows of an image; ``"run"`` also groups those of a run, with all that this joins.
        """
        rows = self[split]
        if by == "stimulus":
            return joined_groups(rows.stimulus.tolist())
        if rows.run is None:
            raise InputError(
                'group = "run", but the rows of this study have no runs',
                expected="single trials of a dataset that tells its runs",
                todo='set dataset.group = "stimulus"',
            )
        unknown: Sequence[Any] = [None] * len(rows)
        runs = list(zip(rows.subject or unknown, rows.session or unknown, rows.run, strict=True))
        return joined_groups(rows.stimulus.tolist(), runs)

    def problem(self) -> str | None:
        """What contradicts itself in these rows, as a sentence; None if nothing does."""
        if set(self.splits) != set(self.ids):
            return f"rows of {sorted(self.splits)} and images of {sorted(self.ids)} don't fit together"
        for name, rows in self.splits.items():
            n, images = len(rows), len(self.ids[name])
            lists: dict[str, Sequence[Any]] = {"trials": rows.trials, "repeats": rows.repeats}
            lists |= {key: values for key in _OPTIONAL if (values := getattr(rows, key)) is not None}
            if wrong := [key for key, values in lists.items() if len(values) != n]:
                return f"{name} has {n} rows, but {len(lists[wrong[0]])} entries of {wrong[0]}"
            if n and not 0 <= rows.stimulus.min() <= rows.stimulus.max() < images:
                return f"{name} rows show images {rows.stimulus.min()} to {rows.stimulus.max()} of {images}"
            if len(set(self.ids[name])) != images:
                return f"an image id of {name} is there twice"
        return None

    def _as_values(self) -> Any:
        return {name: rows.as_record() for name, rows in self.splits.items()}, dict(self.ids)


def refuse_earlier_format(study: Study) -> None:
    """Raise StoreError for a study whose rows.json is of format 1, which had one image a row."""
    record = read_json(study.rows)
    if record is None or (isinstance(record, dict) and record.get("format") == FORMAT):
        return
    found = record.get("format", 1) if isinstance(record, dict) else 1
    raise StoreError(
        f"{study.rows} is of format {found}: another version of leanrecon made this study",
        expected=f"format {FORMAT}, in which each image is stored once however often it was shown",
        todo="run into a new --study, or make this one again with --overwrite",
    )


def joined_groups(*keys: Sequence[Hashable]) -> Array:
    """Number the groups of items that are joined by equal keys, int64 [items], in order of first appearance.

    Items with an equal entry in any of the lists are in one group, and so is whatever these are joined with.
    """
    n = len(keys[0])
    parent = list(range(n))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for entries in keys:
        first: dict[Hashable, int] = {}
        for item, key in enumerate(entries):
            a, b = root(first.setdefault(key, item)), root(item)
            parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(item), len(numbers)) for item in range(n)], np.int64)


def _split_rows(record: Mapping[str, Any]) -> SplitRows:
    stimulus = np.array(record["stimulus"])
    if stimulus.ndim != 1 or (stimulus.size and stimulus.dtype.kind not in "iu"):
        raise ValueError("stimulus")
    optional = {key: list(record[key]) for key in _OPTIONAL if record.get(key) is not None}
    return SplitRows(stimulus.astype(np.int64), list(record["trials"]), list(record["repeats"]), **optional)


def _damaged(study: Study, problem: str) -> StoreError:
    return StoreError(
        f"{study.rows} and {study.stimulus_ids} can't be used: {problem}",
        todo="remove them and run the stage dataset again, which writes them anew",
    )
