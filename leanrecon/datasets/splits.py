"""Which rows are test rows: a file of row numbers, a fraction, or folds; repeats of one stimulus are never torn apart."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.open import find_file, open_array, refuse_pointer
from leanrecon.datasets.files.text import read_numbers
from leanrecon.errors import InputError

Array = np.ndarray[Any, Any]

MIN_TRAIN = 2
"""Fewest train rows that anything can be learned from: a mean and a spread."""


def drawn(ids: Iterable[str], seed: int) -> list[str]:
    """The distinct ids in an order drawn by the seed: by SHA-256, so the same with every version of every library."""
    return sorted(set(ids), key=lambda stimulus: hashlib.sha256(f"{seed}:{stimulus}".encode()).digest())


def rows_of(ids: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each stimulus, ascending."""
    rows: dict[str, list[int]] = {}
    for row, stimulus in enumerate(ids):
        rows.setdefault(stimulus, []).append(row)
    return rows


def fold_rows(ids: Sequence[str], folds: int, seed: int) -> list[list[int]]:
    """Share all rows out into ``folds`` test sets of near-equal size, ascending; each row is in just one.

    ``ids`` names the stimulus of every row: the rows of one stimulus stay together.
    """
    rows = rows_of(ids)
    if len(rows) < folds:
        raise InputError(
            f"{len(rows)} different stimuli can't be shared out into {folds} folds",
            expected="at least one stimulus a fold",
            todo=f"set folds to {len(rows)} or fewer" if len(rows) > 1 else "give more stimuli",
        )
    tests: list[list[int]] = [[] for _ in range(folds)]
    for stimulus in drawn(ids, seed):
        min(tests, key=len).extend(rows[stimulus])
    largest = max(map(len, tests))
    if len(ids) - largest < MIN_TRAIN:
        raise InputError(
            f"a fold of {largest} test rows leaves {len(ids) - largest} of {len(ids)} rows to train on",
            expected=f"at least {MIN_TRAIN} train rows",
            todo="give more rows or more folds",
        )
    return [sorted(test) for test in tests]


def fraction_rows(ids: Sequence[str], fraction: float, seed: int) -> Array:
    """The test rows, ascending: whole stimuli are drawn until ``fraction`` of all rows (and at least one) is reached."""
    rows = rows_of(ids)
    wanted = max(round(fraction * len(ids)), 1)
    test: list[int] = []
    for stimulus in drawn(ids, seed):
        if len(test) >= wanted:
            break
        test.extend(rows[stimulus])
    return np.array(sorted(test), np.int64)


def read_test_rows(spec: str, n_rows: int, default_path: str | None = None, base_dir: Path | None = None) -> Array:
    """The test rows that a file names, ascending: row numbers counted from 0, or a mask with one entry a row.

    Text files (.txt, .csv) hold them separated by commas, blanks or lines; other files are opened as arrays.
    """
    text = find_file(spec, base_dir)
    if text is not None and text.suffix.lower() in (".txt", ".csv"):
        refuse_pointer(text)
        values, name = read_numbers(text, n_rows), str(text)
    else:
        with open_array(spec, default_path, base_dir) as rows:
            name = rows.name
            if rows.dtype.kind not in "biuf" or max(rows.shape, default=0) != np.prod(rows.shape):
                raise InputError(f"{name} holds {rows.kind} of shape {rows.shape}", expected="row numbers or a mask")
            if len(rows) * rows.row_nbytes > max(n_rows, 1) * rows.dtype.itemsize:
                what = "a mask of" if rows.dtype.kind == "b" else "as row numbers"
                raise InputError(
                    f"{name} is {what} {max(rows.shape)} entries", expected=f"one entry for each of {n_rows} rows"
                )
            values = rows[:].ravel()
    if values.dtype.kind == "f" and not np.all(values == np.rint(values)):
        raise InputError(f"{name} holds numbers that are not whole", expected="row numbers or a mask")
    repeated = len(np.unique(values)) < len(values)
    if values.dtype.kind == "b" or (len(values) == n_rows and repeated and set(np.unique(values)) <= {0, 1}):
        if len(values) != n_rows:
            raise InputError(
                f"{name} is a mask of {len(values)} entries", expected=f"one entry for each of {n_rows} rows"
            )
        return np.flatnonzero(values)
    if repeated:
        raise InputError(f"{name} names a row twice", expected="each test row once, or a mask with one entry a row")
    if len(values) and (values.min() < 0 or values.max() >= n_rows):
        raise InputError(
            f"{name} names rows {values.min():.0f} to {values.max():.0f}",
            expected=f"row numbers from 0 to {n_rows - 1}",
            todo="count rows from 0: subtract 1 from MATLAB's numbers" if values.max() == n_rows else None,
        )
    return np.sort(values.astype(np.int64))


def check_split(n_train: int, n_test: int) -> None:
    """Refuse a split that leaves nothing to test on, or too little to learn from."""
    if n_test < 1:
        raise InputError("the test split is empty", expected="at least one test row")
    if n_train < MIN_TRAIN:
        raise InputError(f"the train split has {n_train} rows", expected=f"at least {MIN_TRAIN}")


SHARED_TODO = "take them out of one split, or set allow_shared_stimuli = true if this is meant"


def check_shared(
    ids: Mapping[str, Sequence[str]], names: Mapping[str, Callable[[int], str]], todo: str = SHARED_TODO
) -> None:
    """Refuse stimuli that are both trained on and tested on; ``names`` says each split's rows in words."""
    train = {stimulus: row for row, stimulus in reversed(list(enumerate(ids["train"])))}
    shared = [(row, train[stimulus]) for row, stimulus in enumerate(ids["test"]) if stimulus in train]
    if shared:
        test_row, train_row = shared[0]
        raise InputError(
            f"{len(shared)} of the {len(ids['test'])} test images are among the train images too; the first is "
            f"{names['test'](test_row)} (test), the same as {names['train'](train_row)} (train)",
            expected="test images that were never trained on",
            todo=todo,
        )
