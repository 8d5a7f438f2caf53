"""A study with a search: learned from train rows, killed and continued, in its plan, and behind the wall."""

import contextlib
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from support.vdvae_models import SMALL, random_weights

import leanrecon
from leanrecon.errors import SettingsError, StoreError
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import stages_of
from leanrecon.stages.stage import Run
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import Study
from leanrecon.study.settings import check_settings
from leanrecon.weights.tensors import TensorFile

pytestmark = [pytest.mark.slow, pytest.mark.networks]

BASELINES = ("prior", "shuffled", "mismatched", "oracle")
N = 6


def tables(folder, **refine):
    return {
        "memory": "3GB",
        "dataset": {"kind": "simulated", "n_train": 40, "n_test": N, "size": 16, "voxels": 60},
        "features": {
            "vdvae": {
                "checkpoint": str(folder / "vdvae.pth"), "n_latents": 5, "latents": "mean", "config": SMALL.as_table(),
            }
        },
        "refine": {
            "kind": "inversion", "decoder": "vdvae", "features": "vdvae", "tuned_on": 4, "most": 3, "rate": 0.1,
            "baselines": list(BASELINES),
        } | refine,
        "evaluate": {"permutations": 0, "resamples": 100},
    }  # fmt: skip


def pictures(study):
    return {str(path.relative_to(study)): path.read_bytes() for path in sorted(study.glob("**/final/*.png"))}


def run(folder, name, **refine):
    leanrecon.run(tables(folder, **refine), study=folder / name, progress=Progress())
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    torch.save(random_weights(), folder / "vdvae.pth")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    return run(folder, "study")


@pytest.fixture
def copied(finished, tmp_path):
    """The finished study without anything that the search made."""
    study = shutil.copytree(finished, tmp_path / "study")
    for path in ("reconstructions/final", "networks", "variants", "evaluation"):
        shutil.rmtree(study / path)
    (study / "reconstructions" / "final.json").unlink()
    (study / "report.html").unlink()
    return study


def test_final_images_baselines_and_curves_are_there(finished):
    for where in (".", *(f"variants/{name}" for name in BASELINES)):
        assert len(list((finished / where / "reconstructions" / "final").glob("*.png"))) == N, where
    record = json.loads((finished / "run.json").read_text())["stages"]["refine"]
    assert record["steps"] in (0, 1, 2, 3)
    assert set(record["likeness"]) == {"0", "1", "2", "3"}
    assert len(record["distance"]) == record["steps"] + 1
    assert record["searched"] == N * 5
    assert 0.3 * record["planned_bytes"] <= record["peak_bytes"] <= record["planned_bytes"]
    metrics = json.loads((finished / "evaluation" / "metrics.json").read_text())
    assert {"prior_only", "shuffled_predictions", "mismatched"} <= set(metrics["baselines"])
    assert "oracle" in metrics["upper_bounds"]
    assert any("a search through the decoder of vdvae" in note for note in metrics["notes"])
    report = (finished / "report.html").read_text()
    assert "Another image&#39;s target" in report or "Another image's target" in report


@contextlib.contextmanager
def stopping(monkeypatch, after):
    """Stop instead of writing the image that follows ``after`` others."""
    left, write = [after], Pictures.write

    def fragile(self, row, image):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        write(self, row, image)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Pictures, "write", fragile)
        yield


def test_a_study_that_stops_anywhere_ends_with_the_same_bytes(finished, copied, folder, monkeypatch):
    for after in (1, 3, 8):
        with stopping(monkeypatch, after):
            leanrecon.run(tables(folder), study=copied, progress=Progress())
    leanrecon.run(tables(folder), study=copied, progress=Progress())
    assert pictures(copied) == pictures(finished)
    learned = "networks/refine/search.safetensors"
    assert (copied / learned).read_bytes() == (finished / learned).read_bytes()


def test_another_setting_is_refused_by_its_name(copied, finished, folder):
    shutil.copytree(finished / "networks", copied / "networks")
    with pytest.raises(StoreError, match=r"refine.penalty was 0.1, is 0.7"):
        leanrecon.run(tables(folder, penalty=0.7), study=copied, progress=Progress())


def test_no_step_leaves_first_images_as_they_are(copied, folder):
    leanrecon.run(tables(folder, steps=0, baselines=[]), study=copied, progress=Progress())
    first, final = Pictures.open(copied / "reconstructions/stage1"), Pictures.open(copied / "reconstructions/final")
    assert all(np.array_equal(first.read(row), final.read(row)) for row in range(N))


def test_responses_are_searched_for_from_measured_betas(copied, folder):
    responses = {"match": "responses", "voxels": 20, "baselines": ["mismatched"]}
    leanrecon.run(tables(folder, **responses), study=copied, progress=Progress())
    learned = TensorFile(copied / "networks/refine/search.safetensors")
    assert 1 <= len(learned.read("voxels")) <= 20
    final = Pictures.open(copied / "reconstructions/final")
    assert final.made_of["betas"] == Store.open(copied / "betas" / "test.zarr").content


def test_the_wall_holds(finished, copied, folder):
    """Noise instead of test images and their features changes no final image but those of the upper bound."""
    rng = np.random.default_rng(0)
    for store in (
        Store.open(copied / "stimuli" / "test.zarr"),
        Store.open(copied / "features" / "vdvae" / "test.zarr"),
    ):
        store.discard([(i, j) for i in range(store.row_groups) for j in range(store.column_groups)])
        for i in range(store.row_groups):
            rows = len(store.group_rows(i))
            noise = rng.integers(0, 256, (rows, *store.shape[1:])).astype(store.dtype)
            store.write_rows(i, noise)
        with pytest.warns(UserWarning, match="not to the same bytes"):
            store.finish()
    settings = check_settings(tables(folder))
    work = Run(settings, Study(copied))
    for stage in stages_of(settings):
        if stage.name in ("stage1", "refine"):
            stage.run(work)
    ours, theirs = pictures(copied), pictures(finished)
    assert ours.keys() == theirs.keys()
    for name, image in ours.items():
        assert "oracle" in name or image == theirs[name], name
    assert any("oracle" in name and image != theirs[name] for name, image in ours.items())


@pytest.mark.parametrize(
    ("refine", "words"),
    [
        ({"decoder": "vdvea"}, "refine.decoder = 'vdvea' is not a feature space here .*vdvae"),
        ({"features": "clip"}, "refine.features = 'clip' is not a feature space here"),
    ],
)
def test_spaces_that_are_not_there_are_named(folder, refine, words):
    with pytest.raises(SettingsError, match=words):
        leanrecon.plan(tables(folder, **refine))


def test_spaces_without_gradients_are_refused(folder):
    table = tables(folder, features="pixels")
    table["features"]["pixels"] = {}
    with pytest.raises(SettingsError, match=r"refine.features = 'pixels', which gives no gradients"):
        leanrecon.plan(table)


def test_the_plan_knows_the_search(folder):
    refine = next(stage for stage in leanrecon.plan(tables(folder)) if stage.stage == "refine")
    assert "inversion, at most 3 steps" in refine.summary


def test_the_recipe_of_three_subjects_plans_and_searches_in_their_shared_space(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for subject in (1, 2, 3):
        dataset = {
            "kind": "simulated",
            "subject": subject,
            "n_train": 30,
            "n_test": 2,
            "size": 16,
            "voxels": 40 + subject,
        }
        leanrecon.run({"dataset": dataset}, study=f"sub-0{subject}", until="dataset", progress=Progress())
    vdvae = tables(folder)["features"]["vdvae"]
    config = ", ".join(f"{key} = {json.dumps(value)}" for key, value in vdvae["config"].items())
    small = [
        f'features.vdvae={{checkpoint = "{vdvae["checkpoint"]}", n_latents = 5, latents = "mean", config = {{{config}}}}}',
        "features.seen=false", "refine.features=vdvae", "refine.restarts=2", "refine.steps=2", "dataset.alignment.k=10",
        "evaluate.permutations=0", "evaluate.resamples=100", "memory=3GB",
    ]  # fmt: skip
    planned = {stage.stage: stage for stage in leanrecon.plan("srm-gan", set=small)}
    assert "inversion, 2 steps, 2 starts" in planned["refine"].summary
    leanrecon.run("srm-gan", study="group", set=small, progress=Progress())
    learned = TensorFile(tmp_path / "group" / "networks" / "refine" / "search.safetensors")
    assert learned.read("voxels").max() < 10  # dimensions of the shared space
    record = json.loads((tmp_path / "group" / "run.json").read_text())["stages"]["refine"]
    assert sum(record["restarts"]) == record["searched"] == 3 * (3 * 2 + 2)
