"""From the names in settings to final images: refused, fetched, continued after a kill, and run without a network."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file
from support import published_models as models
from support.diffusion_models import tiny_vae, unet, write_base, write_lora
from support.hub_server import serving

pytestmark = [pytest.mark.slow, pytest.mark.networks]

SETTINGS = """
memory = "3GB"
[dataset]
kind = "simulated"
n_train = 20
n_test = 6
size = 16
voxels = 40
[features.pca]
components = 4
[features.clip]
kind = "clip-text"
model = "tiny/base"
form = "sd15"
[refine]
kind = "lcm"
base = "tiny/base"
lora = "tiny/lora"
tiny_autoencoder = "tiny/taesd"
text = "clip"
size = 64
steps = 1
precision = "float32"
[evaluate]
permutations = 1
resamples = 100
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A base with half-precision weights beside whole ones, a LoRA, and a tiny autoencoder."""
    folder = tmp_path_factory.mktemp("published")
    base = write_base(folder / "base", width=models.WIDTH)
    models.write_text_encoder(base, projection=False)
    for file in list(base.rglob("*.safetensors")):
        half = {name: value.half() for name, value in load_file(file).items()}
        save_file(half, file.with_name(f"{file.stem}.fp16.safetensors"))
    (base / "v1-5-pruned.ckpt").write_bytes(bytes(100_000))
    (folder / "lora").mkdir()
    write_lora(folder / "lora" / "pytorch_lora_weights.safetensors", unet(width=models.WIDTH))
    tiny_vae().save_pretrained(folder / "taesd")
    return folder


@pytest.fixture(scope="module")
def hub(published):
    with serving() as server:
        for folder in published.iterdir():
            server.put_model(f"tiny/{folder.name}", folder)
        yield server


@pytest.fixture
def place(tmp_path, hub):
    hub.asked.clear()
    hub.fault = lambda asked: None
    (tmp_path / "tiny.toml").write_text(SETTINGS)
    return tmp_path


def command(place, hub, *arguments, **environment):
    caches = {"HF_HOME": str(place / "hf"), "LEANRECON_CACHE": str(place / "cache"), "HF_ENDPOINT": hub.url}
    whole = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    how = {"cwd": place, "env": whole | caches | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"} | environment}
    return [sys.executable, "-m", "leanrecon", *arguments], how


def leanrecon(place, hub, *arguments, code=0, **environment):
    line, how = command(place, hub, *arguments, **environment)
    done = subprocess.run(line, **how, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join((done.stdout + done.stderr).split())


NEEDED = {
    *(f"{part}/{name}" for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model"))
      for name in ("config.json", f"{stem}.fp16.safetensors")),
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json",
    "pytorch_lora_weights.safetensors", "config.json", "diffusion_pytorch_model.safetensors",
}  # fmt: skip


def test_a_study_runs_offline_once_its_weights_are_fetched(place, hub):
    for refused in ("run", "plan"):
        said = leanrecon(place, hub, refused, "tiny.toml", code=2)
        assert "tiny/base (features.clip.model, refine.base), " in said
        assert "tiny/lora (refine.lora)" in said
        assert "ownload them with `leanrecon fetch-weights RECIPE_OR_FILE`" in said
    assert hub.asked == []
    leanrecon(place, hub, "run", "tiny.toml", "--until", "dataset")
    assert "all weights are here" in leanrecon(place, hub, "fetch-weights", "tiny.toml")
    assert hub.files() == NEEDED
    hub.asked.clear()
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "tiny/base: " in leanrecon(place, hub, "fetch-weights", "tiny.toml", **nowhere)
    assert "refine" in leanrecon(place, hub, "plan", "tiny.toml", **nowhere)
    leanrecon(place, hub, "run", "tiny.toml", **nowhere)
    assert hub.asked == []
    assert len(list((place / "tiny" / "reconstructions" / "final").glob("*.png"))) == 6


def test_a_fetch_that_is_killed_continues(place, hub):
    large = "unet/diffusion_pytorch_model.fp16.safetensors"

    def slowly(asked):
        if large in asked.path and asked.method == "GET":
            time.sleep(0.2)
            return 10_000

    hub.fault = slowly
    line, how = command(place, hub, "fetch-weights", "tiny.toml")
    process = subprocess.Popen(line, **how, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60

    def fetched():  # of the large file: smaller ones are complete before it is asked for
        if not any(large in asked.path and asked.method == "GET" for asked in list(hub.asked)):
            return
        for path in place.rglob("*.partial"):
            with contextlib.suppress(FileNotFoundError):  # a record that was just renamed
                yield path.stat().st_size

    while not any(size >= 20_000 for size in fetched()):
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = place.rglob("*.partial")
    kept = partial.stat().st_size
    time.sleep(0.3)  # what was asked for last
    hub.fault = lambda asked: None
    hub.asked.clear()
    leanrecon(place, hub, "fetch-weights", "tiny.toml")
    size = len(hub.models["tiny/base"][1][large])
    assert 0 < kept < size
    assert hub.nbytes(large) == size - kept
    assert not list(place.rglob("*.partial*"))


def test_settings_without_weights_need_none(place, hub):
    (place / "plain.toml").write_text('[dataset]\nkind = "simulated"\n')
    assert "need no weights" in leanrecon(place, hub, "fetch-weights", "plain.toml")
    assert hub.asked == []


def test_a_name_that_the_hub_does_not_know_is_refused(place, hub):
    said = leanrecon(place, hub, "fetch-weights", "tiny.toml", "--set", "refine.lora=no/such", code=2)
    assert "no/such is neither a local folder nor a model on the Hugging Face Hub" in said
    assert hub.nbytes() == 0
