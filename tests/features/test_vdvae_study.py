"""Whole studies with VDVAE latents, through the command line."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from support.vdvae_models import SHARED, SMALL, random_weights, recorded, recorded_config  # noqa: E402

from leanrecon.app import cli  # noqa: E402
from leanrecon.features.vdvae import VDVAE, VDVAEConfig  # noqa: E402
from leanrecon.stores import Store  # noqa: E402
from leanrecon.study.recipes import read_settings  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

SETTINGS = """
seed = 3
[dataset]
{dataset}
[features.vdvae]
checkpoint = "{checkpoint}"
n_latents = {n}
[features.vdvae.config]
{sizes}
[regression]
alpha = 10.0
[stage1]
size = 512
[evaluate]
permutations = 1
resamples = 100
"""

SIMULATED = 'kind = "simulated"\nn_train = 24\nn_test = 5\nsize = 16\nvoxels = 40'

ARRAYS = "\n".join(
    f'{role}_{split} = "{role}_{split}.npy"' for role in ("betas", "stimuli") for split in ("train", "test")
)


def settings(checkpoint, config=SMALL, n=5, dataset=SIMULATED):
    sizes = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.as_table().items())
    return SETTINGS.format(checkpoint=checkpoint, n=n, sizes=sizes, dataset=dataset)


def leanrecon(*arguments, cwd, code=0):
    """Run the command line in a process of its own; returns what it said."""
    command = [sys.executable, "-m", "leanrecon", *map(str, arguments)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=os.environ | threads)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def here(monkeypatch, capfd):
    """Run the command line in this process, which has PyTorch imported: exit code and what it said."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["leanrecon", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of the recorded network, or of a random one where the recorded ones are not at hand, run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    if (SHARED / "data" / "vdvae").exists():
        shutil.copyfile(recorded("tiny_model.th"), folder / "model.th")
        config = recorded_config("tiny_hps.json")
    else:
        torch.save(random_weights(), folder / "model.th")
        config = SMALL
    (folder / "small.toml").write_text(settings("model.th", config))
    leanrecon("run", "small.toml", "--study", "study", cwd=folder)
    return folder, VDVAE.from_checkpoint(folder / "model.th", config)


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished study, with its settings file and its weights."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_a_study_goes_from_scenes_to_images_of_512_pixels(finished):
    folder, model = finished
    stimuli, features, predictions = (
        Store.open(folder / "study" / name)[:]
        for name in ("stimuli/test.zarr", "features/vdvae/test.zarr", "predictions/vdvae/test.zarr")
    )
    small = [np.asarray(Image.fromarray(image).resize((model.config.image_size,) * 2, 2)) for image in stimuli]
    np.testing.assert_allclose(model.encode(np.stack(small), 5, latents="sample", seed=3), features, atol=1e-5)
    decoded = model.decode(predictions)
    for stage in ("stage1", "final"):
        for row in range(5):
            with Image.open(folder / "study" / "reconstructions" / stage / f"{row:05d}.png") as picture:
                expected = Image.fromarray(decoded[row]).resize((512, 512), Image.Resampling.BICUBIC)
                np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    metrics = json.loads((folder / "study" / "evaluation" / "metrics.json").read_text())
    assert metrics["n_test"] == 5


def test_the_report_has_the_latents_of_each_resolution_apart(finished):
    folder, model = finished
    report = (folder / "study" / "report.html").read_text()
    assert "R² of vdvae by group" in report
    for resolution in {block.resolution for block in model.config.decoder[:5]}:
        assert f"{resolution} × {resolution}" in report


def test_temperature_decides_images_and_no_features(study):
    features = study / "study" / "features" / "vdvae" / "test.zarr"
    before = {path: path.stat().st_mtime_ns for path in features.rglob("*")}
    warmer = ("--set", "features.vdvae.temperature=0.5")
    said = leanrecon("run", "small.toml", "--study", "study", *warmer, cwd=study, code=2)
    assert "stage1 was made with other settings" in said
    assert "temperature was 0.0, is 0.5" in said
    leanrecon("run", "small.toml", "--study", "study", *warmer, "--until", "regression", cwd=study)
    assert {path: path.stat().st_mtime_ns for path in features.rglob("*")} == before
    said = leanrecon("run", "small.toml", "--study", "study", "--set", "features.vdvae.latents=mean", cwd=study, code=2)
    assert 'latents was "sample", is "mean"' in said.replace("'", '"')


def test_a_study_continues_from_any_folder(study, tmp_path):
    image = study / "study" / "reconstructions" / "stage1" / "00002.png"
    whole = image.read_bytes()
    image.unlink()
    record = json.loads(image.parent.with_suffix(".json").read_text())
    image.parent.with_suffix(".json").write_text(json.dumps(record | {"complete": False}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # The copy's settings name the weights of the study that it was copied from: both are the same.
    leanrecon("run", study / "study", cwd=elsewhere)
    assert image.read_bytes() == whole


def small_networks():
    """Settings that put small networks in the place of the published ones."""
    sizes = ", ".join(f"{key} = {json.dumps(value)}" for key, value in SMALL.as_table().items())
    small = [f"features.vdvae.{it}" for it in (f"config={{{sizes}}}", "n_latents=5", "checkpoint=model.th")]
    small += [f"features.{name}.model=versatile" for name in ("clip-text", "clip-vision")]
    small += ["refine.base=versatile", "refine.size=64", "refine.steps=2"]
    return [word for setting in small for word in ("--set", setting)]


def test_the_recipe_is_brain_diffuser(tmp_path, here, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from support.versatile_models import write_encoders, write_versatile

    table = read_settings("brain-diffuser")[0].tables()
    published = {
        "n_latents": 31,
        "latents": "sample",
        "temperature": 1.0,
        "sample_pixels": True,
        "config": "imagenet64",
    }
    assert table["features"]["vdvae"].items() >= published.items()
    assert table["regression"].items() >= {"standardize": True, "restandardize": "transductive"}.items()
    regression = read_settings("brain-diffuser")[0].regression
    alphas = {name: ridge.alpha for name, ridge in regression.items()}
    assert alphas == {"vdvae": 5e4, "clip-vision": 6e4, "clip-text": 1e5}
    guided = {"kind": "versatile", "steps": 37, "strength": 0.75, "guidance": 7.5, "mixing": 0.6, "scheduler": "ddim"}
    assert table["refine"].items() >= (guided | {"text": "clip-text", "vision": "clip-vision", "size": 512}).items()
    assert table["stage1"]["size"] == 512
    data = {"kind": "nsd", "subject": 1, "sessions": 37, "roi": "nsdgeneral", "repeats": "average"}
    assert table["dataset"].items() >= data.items()
    save_arrays(tmp_path, np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), np.uint8))
    for split in ("train", "test"):
        (tmp_path / f"captions_{split}.json").write_text(json.dumps([["a scene", "a view"]] * 9))
    write_encoders(write_versatile(tmp_path / "versatile"))
    monkeypatch.chdir(tmp_path)
    tables = [f"{role}_{split}" for role in ("betas", "stimuli", "captions") for split in ("train", "test")]
    files = ", ".join(f'{name}="{name}.{"json" if "captions" in name else "npy"}"' for name in tables)
    arrays = ("run", "brain-diffuser", "--set", f'dataset={{kind="arrays", {files}}}')
    code, said = here(*arrays)
    assert code == 2
    assert "missing weights: imagenet64-iter-1600000-model-ema.th" in said.splitlines()[-1]
    assert "leanrecon fetch-weights" in said.splitlines()[-1]
    code, said = here(*arrays, *small_networks())
    assert code == 0, said
    with Image.open(tmp_path / "brain-diffuser" / "reconstructions" / "stage1" / "00008.png") as picture:
        assert picture.size == (512, 512)
    assert "transductive" in (tmp_path / "brain-diffuser" / "report.html").read_text()


@pytest.mark.parametrize("data", ["nsd", "prepared"])
def test_the_recipe_runs_on_nsd_and_on_the_prepared_folder(tmp_path, here, monkeypatch, data):
    pytest.importorskip("transformers")
    pytest.importorskip("nibabel")
    from support.layouts import write_brain_diffuser
    from support.versatile_models import write_encoders, write_versatile

    from leanrecon.datasets.nsd.simulate import simulate_nsd

    torch.save(random_weights(SMALL), tmp_path / "model.th")
    write_encoders(write_versatile(tmp_path / "versatile"))
    monkeypatch.chdir(tmp_path)
    if data == "nsd":
        simulate_nsd(tmp_path / "nsd", sessions=1, scale=0.15)
        own = ["dataset.root=nsd", "dataset.sessions=1", "dataset.captions=nsd/COCO_73k_annots_curated.npy"]
        own += ["dataset.image_size=16"]
    else:
        write_brain_diffuser(tmp_path / "processed_data")
        own = ['dataset={kind="brain-diffuser", root="processed_data", subject=2}']
    words = [word for setting in own for word in ("--set", setting)] + small_networks() + ["--until", "regression"]
    for command in ("plan", "run"):
        code, said = here(command, "brain-diffuser", *words)
        assert code == 0, said
    predictions = tmp_path / "brain-diffuser" / "predictions"
    shapes = {path.name: Store.open(path / "test.zarr").shape for path in predictions.iterdir()}
    rows = len(json.loads((tmp_path / "brain-diffuser" / "stimuli" / "ids.json").read_text())["test"])
    assert shapes.keys() == {"vdvae", "clip-vision", "clip-text"}
    assert all(shape[0] == rows > 0 for shape in shapes.values())


# Memory


def test_a_study_stays_within_its_plan(tmp_path):
    """Most weights lie at 4 × 4 pixels: much memory, little arithmetic (scripts/bench_vdvae.py has the full size)."""
    config = VDVAEConfig(image_size=64, enc_blocks="64x1,64d4,16x1,16d4,4x40", dec_blocks="4x36,16m4,64m16", width=512)
    torch.save(random_weights(config), tmp_path / "wide.th")
    rng = np.random.default_rng(0)
    for split, n in (("train", 9), ("test", 3)):
        np.save(tmp_path / f"stimuli_{split}.npy", rng.integers(0, 256, (n, 100, 100, 3), np.uint8))
        np.save(tmp_path / f"betas_{split}.npy", rng.standard_normal((n, 50), np.float32))
    (tmp_path / "wide.toml").write_text(settings("wide.th", config, 36, ARRAYS))
    for budget in ("1GB", "2GB"):
        leanrecon("run", "wide.toml", "--study", budget, "--memory", budget, cwd=tmp_path)
        stages = json.loads((tmp_path / budget / "run.json").read_text())["stages"]
        assert {"features vdvae", "regression vdvae", "stage1", "evaluate"} <= set(stages)
        for stage, record in stages.items():
            planned, peak = record["planned_bytes"], record["peak_bytes"]
            print(f"{budget}, {stage}: measured {peak / 1e6:.0f} MB of {planned / 1e6:.0f} MB planned")
            assert peak <= planned <= record["budget_bytes"], stage
            assert planned <= 300e6 or peak >= 0.6 * planned, stage
        assert max(record["planned_bytes"] for record in stages.values()) > 300e6
    said = leanrecon("run", "wide.toml", "--study", "less", "--memory", "200MB", cwd=tmp_path, code=2)
    assert "features vdvae needs at least" in said


# Mistakes


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def other_sizes(path, **sizes):
    torch.save(random_weights(VDVAEConfig(**SMALL.as_table() | sizes)), path)


def truncated(path):
    torch.save(random_weights(), path)
    os.truncate(path, path.stat().st_size // 2)


OTHERS = {
    "other widths": (lambda path: other_sizes(path, width=16), "does not hold the weights of this VDVAE"),
    "another resolution": (
        lambda path: other_sizes(path, image_size=16, enc_blocks="16d2,8d2,4d4,1", dec_blocks="1x2,4m1,4x1,8m4,16m8"),
        "does not hold the weights of this VDVAE",
    ),
    "truncated": (truncated, "can't be read"),
    "no weights": (lambda path: path.write_text("<html>404</html>"), "can't be read"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": Malicious(path.parent / "run")}, 2)), "runs no code"),
    "a pickle of PyTorch": (lambda path: torch.save({"a": Malicious(path.parent / "run")}, path), "runs no code"),
    "nothing": (lambda path: None, "there is no file"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_checkpoint_is_refused_in_a_sentence_and_none_of_it_is_run(tmp_path, here, kind):
    write, found = OTHERS[kind]
    path = tmp_path / "other.th"
    write(path)
    (tmp_path / "small.toml").write_text(settings(path.as_posix()))
    commands = ("doctor", "--vdvae", path), ("run", tmp_path / "small.toml", "--study", tmp_path / "study")
    for command in commands:
        code, said = here(*command)
        assert code == 2
        sentence = said.splitlines()[-1]
        assert sentence.startswith("leanrecon: ")
        assert found in sentence
        assert "other.th" in sentence
        assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_two_or_four_channels_are_refused(tmp_path, here, channels):
    code, said = run_on(tmp_path, here, np.zeros((9, 12, 12, channels), np.uint8))
    assert code == 2
    assert "channels" in said or f"12, {channels}" in said


def test_grey_images_are_repeated_in_the_three_colours(tmp_path, here):
    grey = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    code, said = run_on(tmp_path, here, grey, "--until", "features")
    assert code == 0, said
    model = VDVAE.from_checkpoint(tmp_path / "model.th", SMALL)
    expected = model.encode(np.repeat(grey[..., None], 3, axis=3), 5, latents="sample", seed=3)
    np.testing.assert_allclose(Store.open(tmp_path / "study/features/vdvae/train.zarr")[:], expected, atol=1e-5)


def run_on(folder, here, stimuli, *more):
    save_arrays(folder, stimuli)
    (folder / "small.toml").write_text(settings((folder / "model.th").as_posix(), dataset=ARRAYS))
    return here("run", folder / "small.toml", "--study", folder / "study", *more)


def save_arrays(folder, stimuli):
    """Weights, betas and stimuli, of which the test images are the negatives of the train images."""
    torch.save(random_weights(), folder / "model.th")
    for split, images in (("train", stimuli), ("test", 255 - stimuli)):
        np.save(folder / f"stimuli_{split}.npy", images)
        betas = np.random.default_rng(len(split)).standard_normal((len(images), 20), np.float32)
        np.save(folder / f"betas_{split}.npy", betas)
