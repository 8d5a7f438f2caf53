"""Rows tell which image they show; what contradicts itself, or is of an earlier format, is refused in words."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanrecon.errors import InputError, StoreError
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows, SplitRows, joined_groups


def split(stimulus: list[int], **more: object) -> SplitRows:
    trials = [[k] for k in range(len(stimulus))]
    return SplitRows(np.array(stimulus, np.int64), trials, [1] * len(stimulus), **more)


def both() -> Rows:
    return Rows(
        {"train": split([0, 1, 0, 2], session=[1, 1, 2, 2], run=[1, 2, 1, 1]), "test": split([0, 1])},
        {"train": ["a", "b", "c"], "test": ["x", "y"]},
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    study = Study(tmp_path)
    both().write(study)
    rows = Rows.read(study)
    assert rows == both()
    assert rows.stimulus_ids("train") == ["a", "b", "a", "c"]
    assert not rows.is_plain("train")
    assert rows.is_plain("test")
    assert json.loads(study.rows.read_text()) == {
        "format": 2,
        "train": {
            "stimulus": [0, 1, 0, 2], "trials": [[0], [1], [2], [3]], "repeats": [1, 1, 1, 1],
            "session": [1, 1, 2, 2], "run": [1, 2, 1, 1],
        },
        "test": {"stimulus": [0, 1], "trials": [[0], [1]], "repeats": [1, 1]},
    }  # fmt: skip
    assert json.loads((tmp_path / "stimuli" / "ids.json").read_text()) == {"train": ["a", "b", "c"], "test": ["x", "y"]}


def test_images_without_rows_are_not_plain() -> None:
    assert not Rows({"train": split([0, 1])}, {"train": ["a", "b", "c"]}).is_plain("train")


def test_missing_damaged_and_earlier_rows_are_refused(tmp_path: Path) -> None:
    study = Study(tmp_path)
    with pytest.raises(StoreError, match=r"there is no .*rows\.json\. Run the stage dataset first"):
        Rows.read(study)
    both().write(study)
    study.stimulus_ids.unlink()
    with pytest.raises(StoreError, match=r"can't be used.*run the stage dataset again"):
        Rows.read(study)
    study.rows.write_text(json.dumps({"train": {"stimulus": ["a", "b"], "trials": [[0], [1]], "repeats": [1, 1]}}))
    with pytest.raises(StoreError, match=r"rows\.json is of format 1.*new --study.*--overwrite"):
        Rows.read(study)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (Rows({"train": split([0, 3])}, {"train": ["a", "b"]}), "show images 0 to 3 of 2"),
        (Rows({"train": split([0, -1])}, {"train": ["a", "b"]}), "show images -1 to 0 of 2"),
        (Rows({"train": split([0, 1])}, {"train": ["a", "a"]}), "an image id of train is there twice"),
        (Rows({"train": split([0, 1], run=[1])}, {"train": ["a", "b"]}), "2 rows, but 1 entries of run"),
        (Rows({"train": split([0])}, {"test": ["a"]}), "don't fit together"),
    ],
)
def test_rows_that_contradict_themselves_are_neither_written_nor_read(tmp_path: Path, rows: Rows, words: str) -> None:
    study = Study(tmp_path)
    with pytest.raises(ValueError, match=words):
        rows.write(study)
    assert not study.rows.exists()


def test_groups_hold_images_and_what_runs_join() -> None:
    rows = both()
    assert rows.groups("train").tolist() == [0, 1, 0, 2]
    # Rows 2 and 3 share run 1 of session 2; row 2 shows the image of row 0; run 1 of session 1 is another run.
    assert rows.groups("train", "run").tolist() == [0, 1, 0, 0]
    with pytest.raises(InputError, match='group = "run", but the rows of this study have no runs'):
        rows.groups("test", "run")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_groups_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = len(pairs)
    joined = np.array([[a[0] == b[0] or a[1] == b[1] for b in pairs] for a in pairs])
    count, labels = connected_components(csr_array(joined), directed=False)
    found = joined_groups(*map(list, zip(*pairs, strict=True)))
    assert len(found) == n
    assert len(set(found.tolist())) == count
    assert len({*zip(labels.tolist(), found.tolist(), strict=True)}) == count
