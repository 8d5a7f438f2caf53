"""Several test sets in one study: each has the figures of a study that tests it alone."""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from support.layouts import BDATA_FORMS

import leanrecon
from leanrecon.errors import InputError, SettingsError

SETS = {"natural": (8, 3), "shapes": (6, 2), "letters": (4, 1)}
"""Images of each test set, and how often each is shown."""

VOXELS = 30


def write(path: Path, stimulus: np.ndarray, code: np.ndarray, rng: np.random.Generator) -> None:
    """BData of trials that show images of some codes, with noise."""
    matrix = np.hstack([code + rng.normal(0, 0.5, code.shape), stimulus[:, None]])
    flags = np.full((2, VOXELS + 1), np.nan)
    flags[0, :VOXELS] = flags[1, VOXELS] = 1
    BDATA_FORMS["bdpy"](path, matrix, ["VoxelData", "Label"], flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and test files of one subject: shapes and letters have the same numbers for other images."""
    root, rng = tmp_path_factory.mktemp("bdata"), np.random.default_rng(0)
    weights = rng.standard_normal((3 * 16, VOXELS))
    for name, (count, shown) in {"train": (30, 2), **SETS}.items():
        own = "" if name in ("train", "natural") else name
        (root / "images" / own).mkdir(parents=True, exist_ok=True)
        first = 1 if own else 100 if name == "natural" else 200
        coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
        for k, image in enumerate(coarse):
            pixels = np.kron(image, np.ones((4, 4, 1), np.uint8))
            Image.fromarray(pixels).save(root / "images" / own / f"{first + k}.png")
        order = rng.permutation(np.repeat(np.arange(count), shown))
        code = (coarse.reshape(count, -1) / 128.0 - 1) @ weights
        write(root / f"{name}.h5", first + order.astype(float), code[order], rng)
    return root


def tables(root: Path, **tested: Any) -> dict[str, Any]:
    files = {"train": str(root / "train.h5"), "images": str(root / "images"), "label": "Label"}
    return {
        "dataset": {"kind": "bdpy", **files, "zscore": "train", "check": "warn", **tested},
        "features": {"pca": {"components": 10, "size": 16}},
        "evaluate": {"permutations": 0, "resamples": 100},
    }


def all_sets(root: Path) -> dict[str, Any]:
    own = {name: {"path": str(root / f"{name}.h5"), "images": name} for name in ("shapes", "letters")}
    return {"natural": str(root / "natural.h5"), **own}


@pytest.fixture(scope="module")
def study(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return leanrecon.run(tables(folder, tests=all_sets(folder)), study=tmp_path_factory.mktemp("all") / "study")


def metrics_of(study: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study.path / "evaluation" / "metrics.json").read_text())
    return found


def flat(figures: Any, prefix: str = "") -> dict[str, Any]:
    """Nested figures by their paths."""
    if not isinstance(figures, dict):
        return {prefix: figures}
    return {path: value for key, of in figures.items() for path, value in flat(of, f"{prefix}/{key}").items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["natural", "letters"])
def test_figures_of_a_set_are_those_of_a_study_that_tests_it_alone(
    folder: Path, study: Any, tmp_path: Path, name: str
) -> None:
    own = all_sets(folder)[name]
    alone = metrics_of(leanrecon.run(tables(folder, tests={name: own}), study=tmp_path / "alone"))
    found = metrics_of(study)["tests"][name]
    assert found["n_test"] == SETS[name][0]
    for key in ("stage1", "final", "baselines", "upper_bounds", "features", "margins", "chance_pairs"):
        assert flat(found[key]) == pytest.approx(flat(alone[key]), rel=1e-5, abs=1e-6), (
            key
        )  # products of other sizes round
    assert metrics_of(study)["stage1"] == metrics_of(study)["tests"]["natural"]["stage1"]


@pytest.mark.slow
def test_every_row_tells_its_set_in_the_order_of_the_images(study: Any) -> None:
    sets = [name for name, (count, _) in SETS.items() for _ in range(count)]
    assert json.loads((study.path / "betas" / "rows.json").read_text())["test"]["test_set"] == sets
    with (study.path / "evaluation" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test_set"] for row in rows] == sets
    assert [int(row["row"]) for row in rows] == list(range(18))
    names = json.loads((study.path / "stimuli" / "ids.json").read_text())["test"]
    assert [row["stimulus"] for row in rows] == names
    assert {"shapes/1", "letters/1"} <= set(names)
    report = study.report.read_text()
    assert "By test set" in report
    assert "All other scores of this page are those of natural" in report


@pytest.mark.slow
def test_finished_figures_are_not_made_again(folder: Path, study: Any) -> None:
    before = (study.path / "evaluation" / "metrics.json").stat().st_mtime_ns
    leanrecon.run(tables(folder, tests=all_sets(folder)), study=study.path)
    assert (study.path / "evaluation" / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("tested", "said"),
    [
        ({"tests": {"a": "natural.h5"}, "test": "natural.h5"}, "test and tests are both given"),
        ({"tests": {"a": "natural.h5"}, "test_fraction": 0.5}, "test_fraction can't"),
        ({"tests": {"a/b": "natural.h5"}}, "can't be a test set's name"),
        ({"tests": {"a": {"file": "natural.h5"}}}, "a has file: a file, or .path, images. is expected"),
        ({"tests": {}}, "tests"),
        ({"tests": {"a": "natural.h5"}, "images": None}, "tests needs images"),
        ({}, "give either path, or both"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(folder: Path, tested: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        leanrecon.run(tables(folder, **tested), study=folder / "none")


def test_a_test_set_can_not_have_the_name_of_another_variant(folder: Path, tmp_path: Path) -> None:
    own = {"natural": str(folder / "natural.h5"), "oracle": {"path": str(folder / "letters.h5"), "images": "letters"}}
    with pytest.raises(SettingsError, match="oracle can't be the name of a test set"):
        leanrecon.run(tables(folder, tests=own), study=tmp_path / "study", until="dataset")
    areas = {"areas": {"letters": ["VoxelData"]}}
    with pytest.raises(SettingsError, match="letters is a test set and an area"):
        leanrecon.run(tables(folder, tests=all_sets(folder)) | areas, study=tmp_path / "other", until="dataset")


def test_an_image_of_two_sets_is_refused(folder: Path, tmp_path: Path) -> None:
    own = {"one": str(folder / "natural.h5"), "two": str(folder / "natural.h5")}
    with pytest.raises(InputError, match="an image of two test sets, one and two"):
        leanrecon.run(tables(folder, tests=own), study=tmp_path / "study")


def test_a_set_of_other_voxels_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(folder / "letters.h5") as source, h5py.File(path, "w") as file:
        file["dataset"] = source["dataset"][:, 1:]
        file["metadata/key"] = source["metadata/key"][:]
        file["metadata/value"] = source["metadata/value"][:, 1:]
    own = {"natural": str(folder / "natural.h5"), "letters": {"path": str(path), "images": "letters"}}
    with pytest.raises(InputError, match="30 voxels.*29"):
        leanrecon.run(tables(folder, tests=own), study=tmp_path / "study")
