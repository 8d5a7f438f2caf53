"""The recipe miyawaki on a small simulated subject: from raw volumes to the report, without a network or a download."""

import json
import shutil

import numpy as np
import pytest

import leanrecon
from leanrecon.datasets.layouts.miyawaki_simulate import simulate_miyawaki
from leanrecon.stores import Store

pytestmark = pytest.mark.slow
pytest.importorskip("nibabel", reason="NIfTI files need nibabel")

SETTINGS = ["evaluate.permutations=1", "evaluate.resamples=100"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miyawaki") / "miyawaki2008"
    simulate_miyawaki(folder, scale=0.4, random_runs=7, figure_runs=2)
    return folder


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    return leanrecon.run(
        "miyawaki", study=tmp_path_factory.mktemp("study") / "study", set=[f"dataset.root={root}", *SETTINGS]
    )


def test_figures_stand_beside_constants(done):
    figures = json.loads((done.path / "evaluation" / "metrics.json").read_text())
    stimuli = done.stimuli("test")[done.stimulus("test")] > 0
    baselines = figures["baselines"]
    assert baselines["all_dark"]["accuracy"]["value"] == pytest.approx(1 - stimuli.mean())
    best = np.where(stimuli.mean(axis=0) > 0.5, 1, 0)  # every figure is shown twice
    assert baselines["best_constant_image"]["accuracy"]["value"] == pytest.approx((stimuli == best).mean())
    assert baselines["all_dark"]["pixcorr"]["value"] == 0
    drawn = np.stack([np.asarray(image) for image in done.images("stage1")]).reshape(stimuli.shape)
    assert figures["stage1"]["accuracy"]["value"] == pytest.approx(((drawn >= 128) == stimuli).mean())
    assert figures["stage1"]["pixcorr"]["value"] > baselines["shuffled_betas"]["pixcorr"]["value"] + 0.1
    assert figures["stage1"]["two_way_pixels"]["low"] > 0.5


def test_patterns_are_figured_and_shown(done):
    patterns = json.loads((done.path / "evaluation" / "metrics.json").read_text())["patterns"]
    among = [row["value"] for row in patterns["identification"]]
    assert among == sorted(among, reverse=True)
    assert among[0] > 0.6
    assert np.shape(patterns["accuracy_by_pixel"]["final"]) == (10, 10)
    assert list(patterns["weights"]) == ["1 × 1", "1 × 2", "2 × 1", "2 × 2"]
    page = (done.path / "report.html").read_text()
    for words in ("Identification among N patterns", "Where pixels are right", "Weights of the scales", "All dark"):
        assert words in page


@pytest.mark.alone
def test_records_say_what_was_learned_and_held_to_the_plan(done):
    stages = json.loads((done.path / "run.json").read_text())["stages"]
    assert sum(stages["regression patches"]["shares"].values()) == pytest.approx(1)
    assert set(stages["stage1"]["weights"]) == {"1 × 1", "1 × 2", "2 × 1", "2 × 2"}
    for name, stage in stages.items():
        assert stage["peak_bytes"] <= stage["planned_bytes"], name


def test_nothing_of_test_rows_reaches_decoders_or_weights(root, tmp_path):
    """Figure runs are replaced by noise, and their labels by other figures: all that was learned stays as it is."""
    poisoned = tmp_path / "miyawaki2008"
    shutil.copytree(root, poisoned)
    other = tmp_path / "other"
    simulate_miyawaki(other, scale=0.4, random_runs=1, figure_runs=2, seed=7)
    for folder in ("func", "label"):
        for path in (other / folder).glob("data_figure_*"):
            shutil.copy(path, poisoned / folder)
    for name in ("data_figure_run01_label.csv", "data_figure_run02_label.csv"):
        path = poisoned / "label" / name
        labels = np.loadtxt(path, delimiter=",", dtype=int)
        labels[labels >= 0] = 1 - labels[labels >= 0]
        np.savetxt(path, labels, fmt="%d", delimiter=",")
    given = ["regression.estimator=omp", *SETTINGS]
    whole, found = (
        leanrecon.run("miyawaki", study=tmp_path / name, set=[f"dataset.root={of}", *given], until="stage1")
        for name, of in (("whole", root), ("found", poisoned))
    )
    folders = [study.path / "predictions" / "patches" for study in (whole, found)]
    train, test = ([Store.open(folder / f"{split}.zarr") for folder in folders] for split in ("train", "test"))
    np.testing.assert_array_equal(*(store[0 : store.rows] for store in train))
    np.testing.assert_array_equal(*(np.load(folder / "calibration.npz")["weights"] for folder in folders))
    assert not np.array_equal(*(store[0 : store.rows] for store in test))


def test_random_patterns_alone_leave_runs_out_together(root, tmp_path):
    given = [
        f"dataset.root={root}", 'dataset.sessions=["random"]', "dataset.folds=7", "dataset.group=run",
        "regression.estimator=omp", *SETTINGS,
    ]  # fmt: skip
    found = leanrecon.run("miyawaki", study=tmp_path / "study", set=given)
    figures = json.loads((found.path / "evaluation" / "metrics.json").read_text())
    assert figures["n_test"] == 154
    assert figures["folds"] == 7
    assert figures["stage1"]["accuracy"]["value"] > figures["baselines"]["train_majority_image"]["accuracy"]["value"]
