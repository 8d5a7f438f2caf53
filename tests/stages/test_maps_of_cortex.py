"""NIfTI in, study, NIfTI out: maps of a simulated subject show its areas where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr
from support.cortex_lab import AFFINE, NOWHERE, SHAPE, CortexLab, write_cortex_lab

import leanrecon

pytestmark = pytest.mark.slow

nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")

PIXELS = {"luminance:32,32": (32, 32), "luminance:20,40": (20, 40)}
"""Row and column, in images of 64 pixels."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CortexLab, Path]:
    folder = tmp_path_factory.mktemp("cortex")
    lab = write_cortex_lab(folder / "lab")
    study = leanrecon.run(str(lab.folder / "s.toml"), study=folder / "study", until="regression")
    study.export_maps(folder / "maps")
    study.export_maps(folder / "maps", "pattern:pca:0", "weights:pca:0", *(f"pattern:{pixel}" for pixel in PIXELS))
    return lab, folder / "maps"


def read(exported: tuple[CortexLab, Path], name: str) -> np.ndarray:
    """The numbers of the voxels, taken from the volume by the truth's own mask."""
    lab, folder = exported
    image = nibabel.load(folder / f"{name}.nii.gz")
    assert image.shape == SHAPE
    np.testing.assert_allclose(image.affine, AFFINE)
    values: Any = np.asarray(image.dataobj)[lab.mask].astype(float)
    return values


def share_above(a: np.ndarray, b: np.ndarray) -> float:
    """The share of pairs in which ``a`` is above ``b``: the area under the ROC curve."""
    return float(mannwhitneyu(a, b).statistic) / len(a) / len(b)


def of(lab: CortexLab, *areas: str) -> np.ndarray:
    return np.isin(lab.area, areas) & ~lab.constant


@pytest.mark.parametrize("area", ["V1", "V2", "V3", "V4", "ventral"])
def test_accuracy_is_high_where_voxels_answer_to_images(exported: tuple[CortexLab, Path], area: str) -> None:
    lab, _ = exported
    for name in ("accuracy", "ncsnr"):
        values = read(exported, name)
        assert share_above(values[of(lab, area)], values[of(lab, NOWHERE)]) > 0.95
    accuracy = read(exported, "accuracy")
    assert np.median(accuracy[of(lab, area)]) > 0.1
    assert np.median(accuracy[of(lab, NOWHERE)]) < 0.01


def test_accuracy_follows_the_noise_ceiling_and_stays_below_it(exported: tuple[CortexLab, Path]) -> None:
    lab, _ = exported
    seen = ~np.isin(lab.area, [NOWHERE])
    accuracy, ceiling = read(exported, "accuracy")[seen], read(exported, "noise-ceiling")[seen] / 100
    assert spearmanr(accuracy, ceiling).statistic > 0.4
    assert (accuracy < ceiling + 0.1).mean() > 0.95


def test_labels_lie_where_the_areas_are(exported: tuple[CortexLab, Path]) -> None:
    lab, folder = exported
    lines = (folder / "areas.tsv").read_text().splitlines()[1:]
    names = {int(number): name for number, name in (line.split("\t") for line in lines)}
    labels = [names.get(number, NOWHERE) for number in read(exported, "areas").astype(int).tolist()]
    assert labels == lab.area.tolist()
    assert read(exported, "left-out").astype(bool).tolist() == lab.constant.tolist()


@pytest.mark.parametrize("pixel", PIXELS)
def test_patterns_of_luminance_show_early_cortex_and_its_sign(exported: tuple[CortexLab, Path], pixel: str) -> None:
    """Simulated V1 answers to local luminance, up or down; ventral voxels answer to words and colours."""
    lab, _ = exported
    pattern = read(exported, f"pattern-{pixel.replace(':', '-').replace(',', '-')}")
    size, v1 = np.abs(pattern), of(lab, "V1")
    assert share_above(size[v1], size[of(lab, NOWHERE)]) > 0.9
    assert share_above(size[v1], size[of(lab, "ventral")]) > 0.65
    assert share_above(pattern[v1 & (lab.luminance > 0)], pattern[v1 & (lab.luminance < 0)]) > 0.95


@pytest.mark.parametrize("pixel", PIXELS)
def test_patterns_fall_off_with_distance_in_the_image(exported: tuple[CortexLab, Path], pixel: str) -> None:
    lab, _ = exported
    pattern = read(exported, f"pattern-{pixel.replace(':', '-').replace(',', '-')}")
    early = of(lab, "V1", "V2", "V3")
    row, column = PIXELS[pixel]
    distance = np.hypot(lab.prf[early, 0] - (column + 0.5) / 64, lab.prf[early, 1] - (row + 0.5) / 64)
    assert spearmanr(distance, (pattern * np.sign(lab.luminance))[early]).statistic < -0.15


def test_patterns_tell_signal_from_noise_better_than_weights(exported: tuple[CortexLab, Path]) -> None:
    """Haufe et al. (2014): a decoder's weights are large where voxels cancel noise, too."""
    lab, folder = exported
    shares = {}
    for what in ("pattern", "weights"):
        size = np.abs(read(exported, f"{what}-pca-0"))
        shares[what] = share_above(size[of(lab, "V1", "V4", "ventral")], size[of(lab, NOWHERE)])
    assert shares["pattern"] > 0.9
    assert shares["pattern"] > shares["weights"] + 0.05
    record = json.loads((folder / "maps.json").read_text())["maps"]
    assert "Haufe" in record["pattern-pca-0.nii.gz"]["shows"]
