"""``leanrecon check``: what it says of data that carry their images, of data that don't, and of labels that don't fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.errors import BudgetError, InputError, LeanreconWarning
from leanrecon.memory import PeakMemory
from leanrecon.places.files import write_json
from leanrecon.stages.check import Check, check_study, keep_check, kept_check
from leanrecon.study.layout import Study

RNG = np.random.default_rng(3)
SMALL = RNG.integers(0, 256, (44, 3, 3, 3), np.uint8)
PICTURES = SMALL.repeat(4, axis=1).repeat(4, axis=2)
MIXING = RNG.normal(size=(27, 60))


def study(root: Path, *, signal: float, repeats: int = 4, outside: tuple[int, ...] = ()) -> Study:
    """A study of 60 voxels, and of further ones that are NaN in every row, before the voxels ``outside``."""
    files = {}
    for split, images in (("train", np.tile(np.arange(36), repeats)), ("test", np.arange(36, 44))):
        clean = (SMALL.reshape(44, -1)[images] / 128.0 - 1) @ MIXING
        betas = signal * clean + 3 * np.random.default_rng(len(images)).normal(size=clean.shape)
        betas = np.insert(betas, outside, np.nan, axis=1)
        for role, values in (("betas", betas.astype(np.float32)), ("stimuli", PICTURES[images])):
            files[f"{role}_{split}"] = str(root / f"{role}_{split}.npy")
            np.save(files[f"{role}_{split}"], values)
    settings = ArraysSettings(**files, repeats="single")
    Arrays(settings).ingest(Study(root / "study"), base_dir=None, context=Context.of())
    return Study(root / "study")


def test_betas_that_carry_their_images(tmp_path: Path) -> None:
    found = check_study(study(tmp_path, signal=1.0), Context.of(), pairs=12)
    assert found.rows == 144
    assert found.pairwise is not None
    assert found.pairwise.accuracy > 0.8
    assert abs(found.pairwise.shuffled - 0.5) < 0.15
    assert found.match is not None
    assert found.match.two_way > 0.7
    assert abs(found.match.shuffled - 0.5) < 0.2
    assert found.reliability[""].above_chance
    assert found.verdict.startswith("Yes")
    assert found.lines()[-1] == found.verdict
    assert found.record()["pairwise"]["classes"] == 36


def test_voxels_outside_of_the_mask_are_left_out(tmp_path: Path) -> None:
    records = []
    for outside in ((), (0, 17, 60)):
        root = tmp_path / str(len(outside))
        root.mkdir()
        records.append(check_study(study(root, signal=1.0, outside=outside), Context.of(), pairs=12).record())
    assert records[0] == records[1]


def test_betas_of_noise(tmp_path: Path) -> None:
    found = check_study(study(tmp_path, signal=0.0), Context.of(), pairs=12)
    assert found.answers == [False, False, False]
    assert found.verdict.startswith("No")


def test_the_report_shows_what_was_found_of_the_same_rows_alone(tmp_path: Path) -> None:
    of = study(tmp_path, signal=1.0)
    assert kept_check(of) is None
    found = Check(144, None, {}, None, None, ["one note"])
    keep_check(of, found)
    assert kept_check(of) == {"verdict": found.verdict, "lines": ["one note"]}
    record = json.loads(of.check.read_bytes())
    write_json(of.check, record | {"betas": "of other rows"})
    assert kept_check(of) is None
    of.check.local_path().write_bytes(b"[")
    with pytest.warns(LeanreconWarning, match="the report leaves it out"):
        assert kept_check(of) is None


def test_averaged_rows_leave_out_what_needs_repeats(tmp_path: Path) -> None:
    found = check_study(study(tmp_path, signal=1.0, repeats=1), Context.of())
    assert found.pairwise is None
    assert found.reliability == {}
    assert found.match is not None
    assert any("pairwise classification was left out" in note for note in found.notes)
    assert "repeats were not compared, as no image has two train rows" in found.notes  # single ones: nothing to set


def test_rows_that_average_trials_are_told_to_be_kept_apart(tmp_path: Path) -> None:
    of = study(tmp_path, signal=1.0, repeats=1)
    path = of.rows.local_path()
    record = json.loads(path.read_text())
    record["train"]["repeats"] = [3] * len(record["train"]["repeats"])
    path.write_text(json.dumps(record))
    found = check_study(of, Context.of())
    assert any('set dataset.repeats = "single"' in note for note in found.notes)


def test_categories_are_given_by_a_file(tmp_path: Path) -> None:
    of = study(tmp_path, signal=1.0)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("ab"[k % 36 % 2] for k in range(144)) + "\n")
    found = check_study(of, Context.of(), labels=labels)
    assert found.pairwise is not None
    assert found.pairwise.classes == 2
    labels.write_text("a\nb\n")
    with pytest.raises(InputError, match="2 labels for 144 train rows"):
        check_study(of, Context.of(), labels=labels)
    with pytest.raises(InputError, match="can't be read"):
        check_study(of, Context.of(), labels=tmp_path / "none.txt")


def test_test_rows_are_never_read(tmp_path: Path) -> None:
    import shutil

    of = study(tmp_path, signal=1.0)
    for folder in ("betas", "stimuli"):
        shutil.rmtree(Path(of.root) / folder / "test.zarr")
    assert check_study(of, Context.of(), pairs=12).verdict.startswith("Yes")


@pytest.mark.alone
def test_the_plan_holds_and_too_little_memory_is_refused(tmp_path: Path) -> None:
    of = study(tmp_path, signal=1.0)
    context = Context.of("4GB")
    with PeakMemory() as memory:
        check_study(of, context, pairs=10)
    assert memory.peak <= context.peaks.largest
    with pytest.raises(BudgetError, match="checking the data needs at least"):
        check_study(of, Context.of(1_000_000))
