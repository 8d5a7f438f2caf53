"""Noise ceilings: against variances that are counted, and against the way that NSD's authors estimate them."""

import json
from pathlib import Path

import numpy as np
import pytest

from leanrecon.datasets.ceiling import area_ceilings, noise_ceiling
from leanrecon.datasets.simulated.cortex import PANEL, Cortex, trial_numbers, word_rows
from leanrecon.datasets.simulated.scenes import draw_scene
from leanrecon.study.layout import Study

NAN = float("nan")


def study_of(folder: Path, repeats: list[int], **voxels: object) -> Study:
    study = Study(folder)
    Path(study.rows).parent.mkdir(parents=True)
    study.rows.write_text(json.dumps({"train": {"repeats": [1, 1]}, "test": {"repeats": repeats}}))
    np.savez(study.voxels, **{name: np.array(values) for name, values in voxels.items()})
    return study


@pytest.mark.parametrize(
    ("ncsnr", "repeats", "percent"),
    [
        (1.0, [1], 50.0),
        (1.0, [3, 3], 75.0),
        (0.5, [4], 50.0),
        (2.0, [1], 80.0),
        (0.0, [3], 0.0),
        (1.0, [1, 2, 3], 100 / (1 + (1 + 1 / 2 + 1 / 3) / 3)),  # A/3 + B/2 + C over A + B + C, as in NSD
    ],
)
def test_noise_ceilings_by_hand(ncsnr: float, repeats: list[int], percent: float) -> None:
    assert noise_ceiling(np.array([ncsnr]), np.array(repeats)) == pytest.approx([percent])


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_ceiling_is_the_share_of_variance_that_the_images_explain(repeats: int) -> None:
    """By counting: r² of averaged responses with those without noise, over 640 images, of a cortex of known ncsnr."""
    rows, size, voxels = 40 * PANEL, 16, 60
    cortex = Cortex(0, size, voxels, 1.0, rows * repeats)
    trials = trial_numbers(0, rows, repeats)
    clean, measured = np.empty((2, rows, voxels))
    for start in range(0, rows, PANEL):
        panel = range(start, start + PANEL)
        images = np.stack([draw_scene(0, i, size)[0] for i in panel])
        clean[start : start + PANEL] = cortex.respond(images, word_rows(0, panel), panel)
        noise = [cortex.noise(0, row, trials[row].tolist()) for row in panel]
        measured[start : start + PANEL] = clean[start : start + PANEL] + noise
    r = np.array([np.corrcoef(clean[:, v], measured[:, v])[0, 1] for v in range(voxels)])
    known = noise_ceiling(cortex.voxels.ncsnr, np.full(rows, repeats))
    assert np.abs(100 * r**2 - known).max() < 15
    assert np.median(100 * r**2 - known) == pytest.approx(0, abs=2)
    assert np.corrcoef(100 * r**2, known)[0, 1] > 0.95


def test_every_area_has_its_medians_and_last_come_all_voxels(tmp_path: Path) -> None:
    study = study_of(
        tmp_path / "study",
        [3, 3],
        areas=["V1", "V1", "V1", "V2", "V2", "elsewhere", "V3"],
        ncsnr=[1, 2, 0.5, 1, 3, 9, NAN],
    )
    found = area_ceilings(study)
    assert found is not None
    assert found["repeats"] == [3, 3]
    told = {row["area"]: (row["voxels"], row["ncsnr"], row["percent"]) for row in found["areas"]}
    assert list(told) == ["V1", "V2", ""]  # no voxel of V3 has a known ncsnr
    assert told["V1"] == (3, 1, pytest.approx(75))
    assert told["V2"] == (2, 2, pytest.approx((75 + 100 * 27 / 28) / 2))
    assert told[""] == (6, 1.5, pytest.approx((75 + 100 * 12 / 13) / 2))


def test_ventral_voxels_of_nsd_are_those_of_its_stream(tmp_path: Path) -> None:
    study = study_of(
        tmp_path / "study", [1, 3], areas=["hV4", "FFA-1", "ventral", ""], streams=[2, 5, 5, 0], ncsnr=[1.0, 2, 4, 0]
    )
    found = area_ceilings(study)
    assert found is not None
    assert found["repeats"] == [1, 3]
    assert [(row["area"], row["voxels"], row["ncsnr"]) for row in found["areas"]] == [
        ("hV4", 1, 1),
        ("ventral", 2, 3),
        ("", 4, 1.5),
    ]


def test_voxels_without_ncsnr_have_no_ceiling(tmp_path: Path) -> None:
    assert area_ceilings(Study(tmp_path)) is None
    assert area_ceilings(study_of(tmp_path / "1", [1], areas=["V1"])) is None
    assert area_ceilings(study_of(tmp_path / "2", [1], areas=["V1"], ncsnr=[NAN])) is None
    cut = study_of(tmp_path / "3", [1], areas=["V1"], ncsnr=[1.0])
    cut.voxels.write_bytes(cut.voxels.read_bytes()[:90])
    assert area_ceilings(cut) is None
