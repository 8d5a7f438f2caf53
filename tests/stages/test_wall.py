"""The wall: nothing of a test image reaches its prediction or its reconstruction, but through the brain.

Studies are run twice, the second time with test images, captions or features replaced by noise: all that is
predicted and drawn has to be the same to the byte. What is drawn from the true features of the test images, as a
ceiling, must differ, and so must the figures.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.errors import LeanreconWarning
from leanrecon.stages.pipeline import Pipeline
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.settings import check_settings

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

N_TRAIN, N_TEST, N_VOXELS, SIDE = 40, 12, 30, 12
RNG = np.random.default_rng(5)
STIMULI = np.kron(RNG.integers(0, 256, (N_TRAIN + N_TEST, 3, 3, 1)), np.ones((1, 4, 4, 1))).astype(np.uint8)
BETAS = STIMULI.reshape(len(STIMULI), -1) / 255 @ RNG.standard_normal((SIDE**2, N_VOXELS))
BETAS = (BETAS + RNG.standard_normal(BETAS.shape)).astype(np.float32)
CAPTIONS = [[f"image {k}", f"picture number {k}"] for k in range(len(STIMULI))]

COMMON: dict[str, Any] = {
    "stores": {"chunk": "700B"},
    "features": {"pixels": {}, "pca": {"components": 6}},
    "regression": {"alpha": 3.0, "pca": {"alpha": "loo", "restandardize": "inductive"}},
    "evaluate": {"permutations": 2, "resamples": 100},
}


def run(study: Path, dataset: dict[str, Any], until: str = "evaluate", **changes: Any) -> None:
    settings = check_settings(COMMON | changes | {"dataset": dataset})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeanreconWarning)
        Pipeline(settings, Study(study)).run(until)


def replace(path: Path, rows: list[int] | None = None) -> None:
    """Put noise into rows of a store (all, or some), which stays whole and sound."""
    store = Store.open(path)
    found = store[0 : store.rows]
    rng = np.random.default_rng(99)
    for row in range(store.rows) if rows is None else rows:
        noise = rng.standard_normal(found.shape[1:])
        found[row] = rng.integers(0, 256, found.shape[1:]) if store.dtype == np.uint8 else 5 * noise
    store.discard(list(product(range(store.row_groups), range(store.column_groups))))
    for i in range(store.row_groups):
        store.write_rows(i, found[store.group_rows(i).start : store.group_rows(i).stop])
    with pytest.warns(LeanreconWarning, match="not to the same bytes"):
        store.finish()
    assert not list(Store.open(path).damage())


def from_the_brain(root: Path) -> dict[str, bytes]:
    """All predictions and reconstructions of a study or a variant, but for what is drawn from true features."""
    found = [*root.rglob("reconstructions/*/*.png"), *root.rglob("predictions/*/test.zarr/c/**/*")]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in found
        if path.is_file() and "oracle" not in path.parts
    }


def of_fold(root: Path, fold: str) -> dict[str, bytes]:
    """What ``from_the_brain`` finds for a fold and its baselines."""
    folders = [path for path in root.glob(f"{fold}*") if not path.name.endswith("-oracle")]
    assert len(folders) > 1
    return {f"{path.name}/{name}": data for path in folders for name, data in from_the_brain(path).items()}


def ceiling(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(root.glob("variants/oracle/reconstructions/stage1/*.png"))]


def figures(root: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((root / "evaluation" / "metrics.json").read_text())
    return metrics


# The split of a study


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """[dataset] of arrays that are split."""
    folder = tmp_path_factory.mktemp("split")
    table: dict[str, Any] = {}
    for part, rows in (("train", slice(0, N_TRAIN)), ("test", slice(N_TRAIN, None))):
        for name, array in (("betas", BETAS), ("stimuli", STIMULI)):
            np.save(folder / f"{name}_{part}.npy", array[rows])
            table[f"{name}_{part}"] = str(folder / f"{name}_{part}.npy")
        (folder / f"captions_{part}.json").write_text(json.dumps(CAPTIONS[rows]))
        table[f"captions_{part}"] = str(folder / f"captions_{part}.json")
    return table


@pytest.fixture(scope="module", params=["pixels", "pca"])
def honest(request: pytest.FixtureRequest, split: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study as it should be, with those left after the stages dataset and features; drawn from one space or the other."""
    root = tmp_path_factory.mktemp(f"honest-{request.param}")
    drawn_from = {"stage1": {"space": request.param}}
    for stage in ("dataset", "features", "evaluate"):
        run(root / "study", split, stage, **drawn_from)
        shutil.copytree(root / "study", root / stage)
    found = from_the_brain(root / "evaluate")
    # Predictions of two spaces and two of shuffled betas; images: first, final and those of shuffled betas.
    assert sum(name.endswith(".png") for name in found) == 4 * N_TEST
    assert len({name.partition("/c/")[0] for name in found if "/c/" in name}) == 4
    return root, drawn_from


def test_test_images_and_captions_reach_no_reconstruction(honest: Any, split: dict[str, Any], tmp_path: Path) -> None:
    root, drawn_from = honest
    other = Path(shutil.copytree(root / "dataset", tmp_path / "study"))
    replace(other / "stimuli" / "test.zarr")
    (other / "captions" / "test.json").write_text(json.dumps([["nothing of the kind"]] * N_TEST))
    run(other, split | {"captions_test": str(_captions(tmp_path))}, **drawn_from)
    assert from_the_brain(other) == from_the_brain(root / "evaluate")
    assert all(one != two for one, two in zip(ceiling(other), ceiling(root / "evaluate"), strict=True))
    for stage in ("stage1", "final"):
        pixcorr = [figures(study)[stage]["pixcorr"]["value"] for study in (other, root / "evaluate")]
        assert pixcorr[0] < 0.3 < pixcorr[1]
    predicted = f"features/{drawn_from['stage1']['space']}/test.zarr"
    assert not np.allclose(*(Store.open(study / predicted)[0:N_TEST] for study in (other, root / "evaluate")))


def _captions(folder: Path) -> Path:
    path = folder / "captions_test.json"
    path.write_text(json.dumps([["nothing of the kind"]] * N_TEST))
    return path


def test_features_of_test_images_reach_no_reconstruction(honest: Any, split: dict[str, Any], tmp_path: Path) -> None:
    root, drawn_from = honest
    other = Path(shutil.copytree(root / "features", tmp_path / "study"))
    for space in ("pixels", "pca"):
        replace(other / "features" / space / "test.zarr")
    run(other, split, **drawn_from)
    assert from_the_brain(other) == from_the_brain(root / "evaluate")
    assert ceiling(other) != ceiling(root / "evaluate")
    of_features = [figures(study)["features"]["pca"]["latent_r2_mean"]["value"] for study in (other, root / "evaluate")]
    assert of_features[0] < 0.1 < of_features[1]


def test_test_betas_do_reach_reconstructions(honest: Any, split: dict[str, Any], tmp_path: Path) -> None:
    """The brain is the way: this test of a wall could fail."""
    root, drawn_from = honest
    other = Path(shutil.copytree(root / "features", tmp_path / "study"))
    replace(other / "betas" / "test.zarr", [3])
    run(other, split, **drawn_from)
    found, expected = from_the_brain(other), from_the_brain(root / "evaluate")
    changed = {name for name in expected if found[name] != expected[name]}
    pngs = {name for name in changed if name.endswith(".png")}
    assert {Path(name).stem for name in pngs} == {"00003"}, "a row's image follows from its own betas alone"
    assert len(pngs) == 4
    assert len({name.partition("/c/")[0] for name in changed - pngs}) == 4


# Folds


def test_what_a_fold_tests_reaches_none_of_its_reconstructions(tmp_path: Path) -> None:
    np.save(tmp_path / "betas.npy", BETAS)
    np.save(tmp_path / "stimuli.npy", STIMULI)
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    dataset = {
        "betas": str(tmp_path / "betas.npy"),
        "stimuli": str(tmp_path / "stimuli.npy"),
        "captions": str(tmp_path / "captions.json"),
        "folds": 3,
    }
    drawn_from = {"stage1": {"space": "pca"}}
    run(tmp_path / "dataset", dataset, "dataset")
    shutil.copytree(tmp_path / "dataset", tmp_path / "honest")
    run(tmp_path / "honest", dataset, **drawn_from)
    folds = json.loads((tmp_path / "dataset" / "folds.json").read_text())["folds"]
    for k, tested in [(0, folds[0]), (2, folds[2])]:
        other = Path(shutil.copytree(tmp_path / "dataset", tmp_path / f"other{k}"))
        replace(other / "stimuli" / "train.zarr", tested)
        captions = json.loads((other / "captions" / "train.json").read_text())
        for row in tested:
            captions[row] = ["nothing of the kind"]
        (tmp_path / f"captions{k}.json").write_text(json.dumps(captions))
        (other / "captions" / "train.json").write_text(json.dumps(captions))
        run(other, dataset | {"captions": str(tmp_path / f"captions{k}.json")}, **drawn_from)
        for j, rows in enumerate(folds):
            fold = f"variants/fold{j:02d}"
            found, expected = (of_fold(study, fold) for study in (other, tmp_path / "honest"))
            assert sum(name.endswith(".png") for name in expected) == 4 * len(rows)
            assert found.keys() == expected.keys()
            if j == k:
                assert found == expected, f"fold {k} knows what it tests"
                learned = [np.load(study / fold / "features/pca/fitted.npz") for study in (other, tmp_path / "honest")]
                numbers = [name for name in learned[0].files if learned[0][name].dtype.kind == "f"]
                assert "components" in numbers
                for name in numbers:
                    np.testing.assert_array_equal(*(of[name] for of in learned))
            else:  # it is trained on these rows
                assert all(found[name] != expected[name] for name in expected if name.endswith(".png"))
        assert figures(other)["final"] != figures(tmp_path / "honest")["final"]


# What is opened


AUDIT = """
import json, sys
from leanrecon.stages import pipeline
from leanrecon.stages.pipeline import STAGES, Pipeline
from leanrecon.stages.stage1 import StageOneStage
from leanrecon.study.settings import check_settings
from leanrecon.study.layout import Study

opened, stage = {name: set() for name in (*STAGES, "upper bound")}, None

def hook(event, arguments):
    if event == "open" and stage is not None and isinstance(arguments[0], (str, bytes)):
        name = arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()
        opened[stage].add(name)

sys.addaudithook(hook)

def watched(name, method):
    def run(self, given):
        global stage
        stage = name
        try:
            method(self, given)
        finally:
            stage = None
    return run

settings, study = check_settings(json.loads(sys.argv[1])), sys.argv[2]
for kind in map(type, pipeline.stages_of(settings)):
    kind.run = watched(kind.name, kind.run)

draw = StageOneStage._draw

def drawn(self, run, variant, *others):
    # Images of true features, an upper bound, are told apart.
    global stage
    before, stage = stage, "upper bound" if variant.baseline == "oracle" else stage
    draw(self, run, variant, *others)
    stage = before

StageOneStage._draw = drawn
Pipeline(settings, Study(__import__("pathlib").Path(study))).run()
print(json.dumps({name: sorted(paths) for name, paths in opened.items()}))
"""


def test_stages_that_predict_and_draw_open_nothing_of_the_test_images(split: dict[str, Any], tmp_path: Path) -> None:
    study = tmp_path / "study"
    command = [sys.executable, "-c", AUDIT, json.dumps(COMMON | {"dataset": split}), str(study)]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=one_thread)
    assert done.returncode == 0, done.stderr
    opened = json.loads(done.stdout.splitlines()[-1])
    inside = {
        stage: {path.removeprefix(f"{study}/") for path in paths if path.startswith(f"{study}/")}
        for stage, paths in opened.items()
    }

    def of(stage: str, *starts: str) -> set[str]:
        return {path for path in inside[stage] if path.startswith(starts)}

    walled = (
        "stimuli/test.zarr/c", "captions/test.json", "features/pixels/test.zarr/c", "features/pca/test.zarr/c",
    )  # fmt: skip
    given = {split[name] for name in ("stimuli_test", "captions_test")}
    for stage in ("regression", "stage1", "refine"):
        assert of(stage, *walled) == set(), stage
        assert not given & set(opened[stage]), stage
    # The same way of looking does see them where they belong.
    assert given <= set(opened["dataset"])
    assert of("features", "stimuli/test.zarr/c")
    assert of("regression", "features/pixels/train.zarr/c")
    assert of("regression", "features/pca/train.zarr/c")
    assert of("regression", "betas/test.zarr/c")
    assert of("stage1", "predictions/pixels/test.zarr/c")
    assert of("upper bound", "features/pixels/test.zarr/c")
    for start in walled:
        assert of("evaluate", start), start
