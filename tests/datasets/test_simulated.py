import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from support.arrays import open_array
from support.kills import stopping
from support.memory import held

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.datasets.images import stimulus_ids
from leanrecon.datasets.simulated import scenes
from leanrecon.datasets.simulated.cortex import AREAS, CALIBRATION, PANEL, Cortex, trial_numbers, word_rows
from leanrecon.datasets.simulated.dataset import FIRST, Simulated, SimulatedSettings
from leanrecon.datasets.simulated.scenes import draw_scene
from leanrecon.errors import BudgetError, SettingsError, StoreError
from leanrecon.memory import MemoryBudget, PeakMemory
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import Store
from leanrecon.stores.metadata import load_library
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows
from leanrecon.validation import validate

pytestmark = pytest.mark.slow

SMALL = {"n_train": 40, "n_test": 9, "size": 16, "voxels": 60}
CHUNK = 2000  # bytes: 2 images or 8 rows of betas a group


def run(folder: Path, *, chunk: int = CHUNK, seed: int = 0, budget: object = None, **changes: object) -> Study:
    options = {key: changes.pop(key) for key in ("overwrite",) if key in changes}
    study = Study(folder)
    settings = SimulatedSettings(**(SMALL | changes))
    context = Context.of(budget, chunk=chunk, seed=seed, **options)
    Simulated(settings).ingest(study, base_dir=None, context=context)
    return study


def contents(root: "os.PathLike[str]") -> dict[str, bytes]:
    root = Path(root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def betas_of(study: Study, split: str = "train") -> np.ndarray:
    return open_array(study.betas(split))[:]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run(tmp_path_factory.mktemp("simulated") / "study")


def test_every_scene_is_composed_once_and_none_is_kept(tmp_path, monkeypatch):
    Cortex(0, 16, 10, 1.0, 10)  # its scenes of calibration are known to later ones
    scenes.compose.cache_clear()
    composed = []
    place = scenes._place
    monkeypatch.setattr(scenes, "_place", lambda *args, **how: composed.append(args) or place(*args, **how))
    run(tmp_path / "study")
    assert len(composed) == SMALL["n_train"] + SMALL["n_test"]  # painted, told in words, and answered to
    assert scenes.compose.cache_info().currsize == 0


# What is written


def test_a_study_holds_what_every_dataset_holds(study):
    rows, ids = (json.loads(path.read_text()) for path in (study.rows, study.root / "stimuli" / "ids.json"))
    for split, n in (("train", 40), ("test", 9)):
        betas, images = open_array(study.betas(split)), open_array(study.stimuli(split))
        assert (betas.shape, betas.dtype) == ((n, 60), np.float32)
        assert (images.shape, images.dtype) == ((n, 16, 16, 3), np.uint8)
        assert np.isfinite(betas[:]).all()
        assert Store.open(study.betas(split)).complete
        drawn = [draw_scene(0, FIRST[split] + i, 16) for i in range(n)]
        np.testing.assert_array_equal(images[:], [image for image, _ in drawn])
        assert json.loads(study.captions(split).read_text()) == [[caption] for _, caption in drawn]
        assert rows[split]["stimulus"] == list(range(n))
        assert ids[split] == stimulus_ids(images[:])
        assert rows[split]["repeats"] == [3] * n
    assert not set(ids["train"]) & set(ids["test"])
    trials = sorted(trial for split in ("train", "test") for row in rows[split]["trials"] for trial in row)
    assert trials == list(range(49 * 3))  # every trial belongs to one row
    assert not list(Path(study.root).rglob("*.partial"))


def test_voxels_are_told_by_area_place_and_noise(study):
    with np.load(study.voxels) as voxels:
        assert list(voxels["index"]) == list(range(60))
        assert voxels["coordinates"].shape == (60, 3)
        assert (voxels["ncsnr"] > 0).all()
        areas, left = voxels["areas"].tolist(), voxels["coordinates"][:, 0] < 0
    assert list(dict.fromkeys(areas)) == list(AREAS)
    assert {area: areas.count(area) for area in AREAS} == {"V1": 16, "V2": 14, "V3": 10, "V4": 9, "ventral": 11}
    assert 10 < left.sum() < 50


def test_no_image_is_in_two_of_train_test_and_calibration():
    largest = SimulatedSettings.model_fields
    spans = [range(FIRST["train"], FIRST["train"] + 10**6), range(FIRST["test"], FIRST["test"] + 10**5), CALIBRATION]
    assert "le=1000000)" in repr(largest["n_train"])
    assert "le=100000)" in repr(largest["n_test"])
    assert all(a.stop <= b.start for a, b in pairwise(spans))


# The same result


@pytest.mark.parametrize(("chunk", "free"), [(500, 8_000_000_000), (2_000_000, 500_000_000)])
def test_rows_do_not_depend_on_chunks_or_budget(study, tmp_path, chunk, free):
    other = run(tmp_path / "other", chunk=chunk, budget=str(held() + free))
    for split in ("train", "test"):
        np.testing.assert_array_equal(betas_of(other, split), betas_of(study, split))
        np.testing.assert_array_equal(open_array(other.stimuli(split))[:], open_array(study.stimuli(split))[:])
    assert contents(other.root)["betas/rows.json"] == contents(study.root)["betas/rows.json"]


@pytest.mark.slow
@pytest.mark.parametrize("writes", [3, 21, 26, 27])
def test_killed_runs_end_with_the_same_bytes(study, tmp_path, writes):
    with pytest.raises(KeyboardInterrupt), stopping(writes, method="write_rows"):
        run(tmp_path / "study")
    assert not Study(tmp_path / "study").rows.exists()
    assert contents(run(tmp_path / "study", budget="8GB").root) == contents(study.root)


def test_lost_chunks_are_made_again_alone(tmp_path, monkeypatch):
    study = run(tmp_path)
    before = contents(tmp_path)
    Store.open(study.betas("train")).discard([(1, 0)])
    Store.open(study.stimuli("test")).discard([(2, 0)])
    written: list[tuple[str, int]] = []
    write = Store.write_rows
    monkeypatch.setattr(Store, "write_rows", lambda s, i, rows: (written.append((s.path.stem, i)), write(s, i, rows)))
    run(tmp_path)
    assert written == [("test", 2), ("train", 1)]
    assert contents(tmp_path) == before


def test_what_is_complete_is_not_done_again(tmp_path):
    study = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    study.voxels.write_bytes(b"cut short")
    study.captions("test").unlink()
    run(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)
    assert len(np.load(study.voxels)["ncsnr"]) == 60


def test_more_rows_leave_the_first_ones_as_they_are(study, tmp_path):
    longer = run(tmp_path, n_train=50)
    np.testing.assert_array_equal(open_array(longer.stimuli("train"))[:40], open_array(study.stimuli("train"))[:])
    np.testing.assert_array_equal(open_array(longer.stimuli("test"))[:], open_array(study.stimuli("test"))[:])


def test_other_settings_are_refused_and_replace_only_what_differs(tmp_path):
    study = run(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"dataset\.noise was 1\.0, is 2\.0"):
        run(tmp_path, noise=2.0)
    with pytest.raises(StoreError, match=r"seed was 0, is 1"):
        run(tmp_path, seed=1)
    assert contents(tmp_path) == before
    drawn = Path(study.stimuli("train")).stat().st_ino
    run(tmp_path, noise=2.0, overwrite=True)
    assert Path(study.stimuli("train")).stat().st_ino == drawn
    assert contents(tmp_path)["betas/train.zarr/c/0/0"] != before["betas/train.zarr/c/0/0"]
    run(tmp_path, overwrite=True)
    assert contents(tmp_path) == before


# Single trials


@pytest.mark.parametrize("chunk", [500, CHUNK, 10**6])
def test_single_trials_are_what_the_averages_are_the_means_of(study, tmp_path, chunk):
    single = run(tmp_path, chunk=chunk, repeats="single")
    rows, averaged = Rows.read(single), Rows.read(study)
    betas = betas_of(single)
    assert betas.shape == (120, 60)
    assert rows["train"].stimulus.tolist() == [image for image in range(40) for _ in range(3)]
    assert [trials for [trials] in rows["train"].trials] == [t for trials in averaged["train"].trials for t in trials]
    np.testing.assert_allclose(betas.reshape(40, 3, 60).mean(axis=1), betas_of(study), rtol=1e-4, atol=1e-5)
    assert np.abs(betas.reshape(40, 3, 60).std(axis=1)).min() > 0, "the noise of each trial is its own"
    np.testing.assert_array_equal(betas_of(single, "test"), betas_of(study, "test"))
    np.testing.assert_array_equal(open_array(single.stimuli("train"))[:], open_array(study.stimuli("train"))[:])
    assert rows.ids == averaged.ids
    assert rows["test"].as_record() == averaged["test"].as_record()


def test_averaged_test_rows_are_rescaled_by_the_root_of_their_trials(study, tmp_path):
    scaled = run(tmp_path, repeats="single", rescale_average=True)
    np.testing.assert_allclose(betas_of(scaled, "test"), betas_of(study, "test") * 3**0.5, rtol=1e-6)
    with pytest.raises(StoreError, match=r"dataset\.rescale_average was true, is not set"):
        run(tmp_path, repeats="single")


@pytest.mark.slow
@pytest.mark.parametrize("writes", [22, 30, 40])
def test_killed_runs_of_single_trials_end_with_the_same_bytes(tmp_path, writes):
    whole = run(tmp_path / "whole", repeats="single", test_repeats="single")
    with pytest.raises(KeyboardInterrupt), stopping(writes, method="write_rows"):
        run(tmp_path / "study", repeats="single", test_repeats="single")
    again = run(tmp_path / "study", repeats="single", test_repeats="single")
    assert contents(again.root) == contents(whole.root)


# The brain


@pytest.fixture(scope="module")
def single_trials(tmp_path_factory):
    """Responses to one showing of 400 images, nearly without noise and with much."""
    found, sizes = [], {"n_train": 400, "n_test": 2, "presentations": 1, "voxels": 100}
    for noise in (1e-5, 2.0):
        made = run(tmp_path_factory.getbasetemp() / "trials", chunk=10**6, noise=noise, overwrite=True, **sizes)
        found.append((betas_of(made), np.load(made.voxels)["ncsnr"]))
    return found


@pytest.mark.slow
def test_ncsnr_is_the_spread_over_images_over_that_of_trials(single_trials):
    (clean, _), (noisy, ncsnr) = single_trials
    signal, noise = clean.std(axis=0, ddof=1), (noisy - clean).std(axis=0, ddof=1)
    ratio = signal / noise / ncsnr
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert np.abs(ratio - 1).max() < 0.3  # 256 scenes calibrate, 400 measure; some voxels answer to rare things
    assert np.median(noise / signal) == pytest.approx(2.0, rel=0.15)
    assert np.log(ncsnr).std() == pytest.approx(0.5, abs=0.1)


def test_responses_are_percents_of_signal_change(single_trials):
    clean = single_trials[0][0]
    assert 1 < np.median(clean.std(axis=0)) < 2
    assert np.abs(clean.mean(axis=0)).max() < 3


def test_repeats_average_the_noise_out():
    cortex = Cortex(0, 16, 40, 1.0, trials=4000)
    trials = trial_numbers(0, 1000, 4)
    assert sorted(trials.ravel()) == list(range(4000))
    averaged = np.array([cortex.noise(0, row, trials[row].tolist()) for row in range(1000)])
    once = np.array([cortex.noise(0, row, [trials[row, 0]]) for row in range(1000)])
    level = cortex.voxels.signal / cortex.voxels.ncsnr
    np.testing.assert_allclose(once.std(axis=0), level, rtol=0.12)
    np.testing.assert_allclose(averaged.std(axis=0), level / 2, rtol=0.12)


def test_drift_is_slow_and_common_to_a_group():
    cortex = Cortex(3, 16, 200, 1.0, trials=5000)
    drift = np.array([cortex.drift(trial) for trial in range(5000)])
    np.testing.assert_allclose(drift.var(axis=0), 1, rtol=1e-3)
    assert np.abs(np.diff(drift, axis=0)).max() < 0.03
    noise = np.array([cortex.noise(0, trial, [trial]) for trial in range(5000)]) / cortex.noise_level
    shared = np.corrcoef(noise.T)
    same = cortex.voxels.group[:, None] == cortex.voxels.group
    assert shared[same & ~np.eye(200, dtype=bool)].mean() == pytest.approx(0.15, abs=0.02)
    assert abs(shared[~same].mean()) < 0.05


def test_drift_has_only_slow_waves_and_runs_on_through_all_trials():
    cortex = Cortex(5, 16, 20, 1.0, trials=4096)
    power = np.abs(np.fft.rfft([cortex.drift(trial) for trial in range(4096)], axis=0)) ** 2
    assert power[1:9].sum() / power.sum() > 1 - 1e-5  # cycles over the experiment
    assert ((power / power.sum(axis=0) > 0.3).sum(axis=0) == 3).all(), "three waves a group, of like strength"
    shared_drift = np.corrcoef(np.array([cortex.drift(trial) for trial in range(4096)]).T)
    assert np.abs(shared_drift[~np.eye(len(shared_drift), dtype=bool)]).mean() < 0.4, (
        "groups drift in ways of their own"
    )


def test_three_repeats_are_one_experiment_in_one_drawn_order():
    trials = trial_numbers(3, 500, 3)
    assert sorted(trials.ravel()) == list(range(1500))
    assert (np.diff(trials, axis=1) > 0).all()
    gaps = np.diff(trials, axis=1).mean()
    assert gaps == pytest.approx(1500 / 4, rel=0.1)  # of three places drawn among all, in order
    assert not np.array_equal(trials, trial_numbers(4, 500, 3))


@pytest.mark.slow
def test_voxels_answer_to_what_their_area_answers_to():
    cortex = Cortex(0, 32, 200, 1.0, trials=10)
    area, prf = cortex.voxels.area, cortex.voxels.prf
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    words = word_rows(0, range(1))
    base = cortex.respond(grey, words, range(1))[0]
    reddened = grey.copy()
    reddened[..., 0] += 40
    reddened[..., 1] -= 20  # of the same luminance
    changed = np.abs(cortex.respond(reddened, words, range(1))[0] - base)
    assert np.median(changed[area == "V4"]) > 5 * np.median(changed[area == "V1"])
    other = np.abs(cortex.respond(grey, ~words, range(1))[0] - base)
    assert (other[area != "ventral"] == 0).all()
    assert (other[area == "ventral"] > 0).mean() > 0.9
    stripes = grey.copy()
    stripes[:, :, :16:2] = 255  # on the left half alone
    seen = np.abs(cortex.respond(stripes, words, range(1))[0] - base)
    v1 = area == "V1"
    assert np.median(seen[v1 & (prf[:, 0] < 0.3)]) > 5 * np.median(seen[v1 & (prf[:, 0] > 0.7)])
    assert (cortex.voxels.coordinates[v1 & (prf[:, 0] < 0.2), 0] > 0).all()  # the right hemisphere


def test_a_row_is_answered_alike_alone_and_in_its_panel():
    cortex = Cortex(1, 16, 70, 1.0, trials=10)
    rows = range(PANEL, 2 * PANEL)
    images, words = np.stack([draw_scene(1, i, 16)[0] for i in rows]), word_rows(1, rows)
    together = cortex.respond(images, words, rows)
    for k in (0, 5, 15):
        alone = cortex.respond(images[k : k + 1], words[k : k + 1], range(rows[k], rows[k] + 1))
        np.testing.assert_array_equal(alone[0], together[k])


@pytest.mark.slow
def test_images_can_be_decoded_and_the_worse_the_noisier(tmp_path):
    found = {}
    for noise in (1.0, 8.0):
        made = run(tmp_path, chunk=10**6, n_train=200, n_test=30, voxels=400, noise=noise, overwrite=True)
        train, test = (open_array(made.stimuli(s))[:].reshape(-1, 16 * 16 * 3) / 255 for s in ("train", "test"))
        mean = train.mean(axis=0)
        axes = np.linalg.svd(train - mean, full_matrices=False)[2][:64]
        ridge = StreamingRidge(alpha=300.0, standardize=True).fit(betas_of(made), (train - mean) @ axes.T)
        images = ridge.predict(betas_of(made, "test")) @ axes + mean
        found[noise] = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(images, test, strict=True)])
        found["mean"] = np.mean([np.corrcoef(mean, b)[0, 1] for b in test])
    assert found["mean"] + 0.2 < found[1.0] < 0.9
    assert found["mean"] + 0.05 < found[8.0] < found[1.0] - 0.08


# Settings and memory


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_train": 1}, r"dataset\.n_train = 1"),
        ({"n_test": 0}, r"dataset\.n_test = 0"),
        ({"size": 8}, r"dataset\.size = 8"),
        ({"voxels": 0}, r"dataset\.voxels = 0"),
        ({"presentations": 0}, r"dataset\.presentations = 0"),
        ({"repeats": 3}, r"dataset\.repeats = 3"),
        ({"group": "run"}, r"dataset\.group = 'run': a simulated subject has no runs"),
        ({"noise": 0}, r"dataset\.noise = 0"),
        ({"noise": float("nan")}, r"dataset\.noise = nan"),
        ({"folds": 5}, r"dataset\.folds = 5: a simulated subject has test images of its own"),
        ({"voxel": 5}, r"dataset\.voxel is unknown \(did you mean voxels\?\)"),
    ],
)
def test_settings_that_are_refused(changes, words):
    with pytest.raises(SettingsError, match=words):
        validate(SimulatedSettings, {"kind": "simulated"} | changes, "dataset.")


def test_other_kinds_are_not_taken_for_simulated():
    with pytest.raises(ValidationError):
        SimulatedSettings(kind="arrays")
    assert kinds.get("datasets", "simulated").Settings is SimulatedSettings


def test_too_small_a_budget_is_refused_before_any_work(tmp_path):
    budget = MemoryBudget(held() + 20_000_000)
    with pytest.raises(BudgetError, match="simulating the subject needs at least"):
        Simulated(SimulatedSettings()).ingest(Study(tmp_path / "study"), base_dir=None, context=Context(budget))
    assert not list(tmp_path.iterdir())


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [{}, {"voxels": 12_000, "presentations": 1}, {"size": 96}, {"size": 256}, {"repeats": "single", "voxels": 6000}],
)
def test_the_plan_holds_and_is_near(tmp_path, sizes):
    settings = SimulatedSettings(**({"n_train": 30, "n_test": 5, "size": 16} | sizes))
    load_library()  # as every run does before its first stage
    context = Context.of("8GB")
    with PeakMemory() as memory:
        Simulated(settings).ingest(Study(tmp_path), base_dir=None, context=context)
    plan = Simulated(settings).plan(base_dir=None, chunk=context.chunk, free=context.budget.free)
    print(f"{memory.peak / 1e6:.0f} of {context.peaks.largest / 1e6:.0f} MB")
    assert 0.6 * context.peaks.largest <= memory.peak <= context.peaks.largest == context.budget.reserved + plan.work
    stored = sum(len(data) for name, data in contents(tmp_path).items() if ".zarr/c/" in name)
    assert stored == pytest.approx(plan.disk, rel=1e-3)
    assert (plan.train_images, plan.test_images, plan.voxels, plan.folds) == (30, 5, settings.voxels, None)
    assert (plan.n_train, plan.n_test) == (90 if settings.repeats == "single" else 30, 5)
    assert plan.image_shape == (settings.size, settings.size, 3)


def test_settings_load_nothing_heavy():
    code = "import sys, leanrecon.datasets.simulated.dataset; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"zarr", "scipy", "PIL", "torch"} & set(loaded)
