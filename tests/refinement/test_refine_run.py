"""The stage as a whole: resumed, refused before the first image, repaired in float32, and within its memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support.diffusion_models import SIZE, TOKENS, WIDTH, pictures_of, smooth, unet, write_base, write_lora  # noqa: E402

from leanrecon.context import Context  # noqa: E402
from leanrecon.errors import BudgetError, InputError, SettingsError  # noqa: E402
from leanrecon.progress import Progress  # noqa: E402
from leanrecon.refinement.baselines import derangement, without_brain  # noqa: E402
from leanrecon.refinement.diffusion import sampling  # noqa: E402
from leanrecon.refinement.diffusion.codes import Codes  # noqa: E402
from leanrecon.stores.matrix import ArrayMatrix  # noqa: E402
from leanrecon.stores.pictures import Pictures  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def out(tmp_path):
    return Pictures.create(tmp_path / "out", 5, (SIZE, SIZE, 3), made_of={"a": 1})


@pytest.fixture
def refine(first, text, out):
    def run(generator, *, text=text, first=first, out=out, memory="50GB", progress=None, **others):
        predicted = {"text": text} | others
        generator.draw(first, predicted, out, Context.of(memory, progress=progress or Progress()))
        return np.stack([out.read(row) for row in range(out.rows)])

    return run


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_first_images_of_any_size_and_grey_ones_are_taken(make, drawn, tmp_path):
    grey = np.repeat(smooth(5)[:, ::2, ::2, :1], 1, axis=3)
    images = drawn(make(), first=pictures_of(tmp_path / "grey", grey))
    assert images.shape == (5, SIZE, SIZE, 3)


def test_a_run_says_what_it_took(make, refine):
    generator = make()
    refine(generator)
    record = generator.record()
    assert record["mode"] == "none"
    assert record["precision"] == "float32"
    assert record["retried"] == record["black"] == []
    assert record["seconds_per_image"] > 0
    assert len(generator.seconds) == 5
    json.dumps(record)


KILLED = """
import json, sys, time
from pathlib import Path
import numpy as np
from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.stores.matrix import ArrayMatrix
from leanrecon.stores.pictures import Pictures

folder = Path(sys.argv[1])
write = Pictures.write
Pictures.write = lambda self, row, image: (write(self, row, image), time.sleep(0.3))
settings = kinds.settings_of("generators", json.loads(sys.argv[2]), "refine.", default="none")
generator = kinds.kind_of("generators", settings)(settings, seed=7, device="cpu", scratch=folder / "scratch")
predicted = {file.stem: ArrayMatrix(np.load(file)) for file in folder.glob("*.npy")}
out = Pictures.create(folder / "out", 5, generator.shape, made_of={"a": 1})
generator.draw(Pictures.open(folder / "stage1"), predicted, out, Context.of("50GB"))
"""


@pytest.mark.parametrize("kind", ["lcm", "versatile"])
def test_a_killed_run_ends_with_the_same_bytes(kind, make, refine, text, vision, versatile, tmp_path):
    table = {"kind": kind, "batch": 2}
    np.save(tmp_path / "text.npy", text.array)
    others = {}
    if kind == "versatile":
        table |= {"base": str(versatile), "vision": "seen", "guidance": 1.0, "steps": 3, "scheduler": "ddpm"}
        np.save(tmp_path / "vision.npy", vision.array)
        others = {"vision": vision}
    generator = make(**table)
    whole = Pictures.create(tmp_path / "whole", 5, (SIZE, SIZE, 3), made_of={"a": 1})
    refine(generator, out=whole, **others)
    (tmp_path / "out.json").unlink()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    arguments = [str(tmp_path), json.dumps(generator.settings.model_dump())]
    run = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=ONE_THREAD)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/*.png"))) < 2 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    half = Pictures.create(tmp_path / "out", 5, (SIZE, SIZE, 3), made_of={"a": 1})
    kept = 5 - len(half.missing())
    assert 0 < kept < 5
    again = make(**table)
    refine(again, out=half, **others)
    assert len(again.seconds) == 5 - kept
    assert [half.file(row).read_bytes() for row in range(5)] == [whole.file(row).read_bytes() for row in range(5)]
    assert half.complete


def test_a_complete_folder_loads_no_network(make, refine, out):
    refine(make())
    again = make()
    refine(again)
    assert again._loaded is None


# Trouble


@pytest.mark.parametrize(("value", "what"), [(float("nan"), "not finite"), (0.0, "black")])
def test_broken_images_are_drawn_again_in_float32(value, what, make, refine, drawn, monkeypatch):
    expected = drawn(make(batch=1))  # they are drawn again one by one
    original = sampling.decoded

    def broken(networks, latents, together):
        images = original(networks, latents, together)
        if networks.precision == "bfloat16":
            images[:, :8] = value
            images[:] = value if value == 0 else images
        return images

    monkeypatch.setattr(sampling, "decoded", broken)
    said, generator = Said(), make(precision="bfloat16")
    np.testing.assert_array_equal(refine(generator, progress=said), expected)
    assert generator.retried == [0, 1, 2, 3, 4]
    assert said.lines[0] == f"image 0 is {what} in bfloat16: drawn again in float32"


def test_what_is_black_in_float32_too_is_kept_and_reported(make, refine, monkeypatch):
    monkeypatch.setattr(sampling, "decoded", lambda n, latents, _: np.zeros((len(latents), SIZE, SIZE, 3), np.float32))
    said, generator = Said(), make()
    assert not refine(generator, progress=said).any()
    assert generator.record()["black"] == [0, 1, 2, 3, 4]
    assert "image 3 is black in float32 too" in said.lines


def test_what_is_not_finite_in_float32_is_an_error(make, refine, monkeypatch):
    monkeypatch.setattr(sampling, "decoded", lambda n, latents, _: np.full((len(latents), SIZE, SIZE, 3), np.nan))
    with pytest.raises(InputError, match="image 0 is not finite in float32"):
        refine(make())


# Refused before the first image


def refused(refine, out, generator, found, *, error=InputError, **inputs):
    with pytest.raises(error) as caught:
        refine(generator, **inputs)
    assert found in str(caught.value)
    assert len(out.missing()) == 5
    assert not list(out.path.glob("*"))


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ("unet", "has no unet/config.json"),
        ("vae", "has no vae/config.json"),
        ("scheduler", "has no scheduler/scheduler_config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "unet has no weights"),
        ("vae/diffusion_pytorch_model.safetensors", "vae has no weights"),
    ],
)
def test_a_model_that_lacks_a_part_is_refused(missing, found, make, refine, out, tmp_path):
    base = write_base(tmp_path / "base")
    (base / missing).rename(tmp_path / "elsewhere")
    refused(refine, out, make(base=str(base)), found)


def test_weights_of_other_sizes_are_refused(make, refine, out, tmp_path):
    base = write_base(tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    refused(refine, out, make(base=str(base)), "lack down_blocks.0.attentions.1")


def test_truncated_weights_are_refused(make, refine, out, tmp_path):
    base = write_base(tmp_path / "base")
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(refine, out, make(base=str(base)), " bytes. Expected ")


@pytest.mark.parametrize("how", [{"width": 24}, {"channels": (32, 64)}])
def test_a_lora_for_another_architecture_is_refused(how, make, refine, out, tmp_path):
    write_lora(tmp_path / "lora.safetensors", unet(**how))
    refused(refine, out, make(lora=str(tmp_path / "lora.safetensors")), "which does not fit a weight of")


def test_a_lora_of_other_layers_is_refused(make, refine, out, tmp_path):
    from safetensors.torch import save_file

    stem = "unet.down_blocks.7.attentions.0.proj_in"
    pair = {f"{stem}.lora_A.weight": torch.ones(1, 4), f"{stem}.lora_B.weight": torch.ones(4, 1)}
    save_file(pair, tmp_path / "lora.safetensors")
    refused(refine, out, make(lora=str(tmp_path / "lora.safetensors")), "which the base does not have")
    save_file({"a": torch.ones(1)}, tmp_path / "lora.safetensors")
    refused(refine, out, make(lora=str(tmp_path / "lora.safetensors")), "not a low-rank update in a known format")


def test_a_lora_that_is_not_there_is_refused(make, refine, out, tmp_path):
    refused(refine, out, make(lora=str(tmp_path / "none.safetensors")), "there is no")
    (tmp_path / "empty").mkdir()
    refused(refine, out, make(lora=str(tmp_path / "empty")), "holds 0 files of weights")


def test_predictions_that_do_not_fit_are_refused(make, refine, out, first):
    rng = np.random.default_rng(0)
    wrong = ArrayMatrix(rng.standard_normal((5, TOKENS * WIDTH + 1), dtype=np.float32))
    refused(refine, out, make(), f"has rows of {TOKENS * WIDTH + 1} numbers", text=wrong)
    short = ArrayMatrix(rng.standard_normal((4, TOKENS * WIDTH), dtype=np.float32))
    refused(refine, out, make(), "4 rows of text", text=short)
    holed = rng.standard_normal((5, TOKENS * WIDTH), dtype=np.float32)
    holed[4, 7] = np.nan
    refused(refine, out, make(), "row 4 of the predicted text is not finite", text=ArrayMatrix(holed))
    refused(refine, out, make(start="autokl"), "has rows of 9 numbers", latents=ArrayMatrix(np.zeros((5, 9))))


def test_a_budget_under_every_mode_s_need_is_refused(make, refine, out):
    for offload in ("auto", "none", "stream"):
        refused(refine, out, make(offload=offload), "needs at least", error=BudgetError, memory="100MB")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_negative_embedding_that_is_none_is_refused(precision, make, refine, out, tmp_path):
    table = {"guidance": 2.0, "precision": precision}
    refused(refine, out, make(**table), "needs the embedding of an empty caption, which is missing")
    refused(refine, out, make(negative=str(tmp_path / "none.npy"), **table), "can't be read")
    np.save(tmp_path / "wrong.npy", np.zeros((TOKENS, WIDTH + 1)))
    refused(refine, out, make(negative=str(tmp_path / "wrong.npy"), **table), "holds [77, 17] numbers")


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"kind": "euler"}, "refine.kind = 'euler'"),
        ({"base": ""}, "refine.base is not given"),
        ({"text": ""}, "refine.text is not given"),
        ({"steps": 0}, "refine.steps = 0"),
        ({"strength": 0.01}, "lcm has 0 of its 50 noise levels at strength 0.01, fewer than 4 steps"),
        ({"steps": 10, "strength": 0.1}, "lower steps to 5 or less"),
        ({"kind": "ddim", "steps": 4, "strength": 0.001}, "part of a schedule of 4000, more than the 1000"),
        ({"strength": 0}, "refine.strength = 0"),
        ({"mixing": 0.4}, "refine.mixing is unknown (known: "),
        ({"kind": "none"}, "refine.base is unknown"),
        ({"guidance": 0.5}, "refine.guidance = 0.5"),
        ({"size": 100}, "refine.size = 100"),
        ({"batch": 0}, "refine.batch = 0"),
        ({"offload": "cloud"}, "refine.offload = 'cloud'"),
        ({"precision": "float16"}, 'refine.precision = "float16" on a CPU'),
        ({"baselines": ["mean"]}, "refine.baselines = ['mean']"),
        ({"lorra": "x"}, "refine.lorra is unknown (did you mean lora?)"),
    ],
)
def test_settings_that_can_not_be_are_refused(table, found, make):
    with pytest.raises(SettingsError) as error:
        make(**table)
    assert found in str(error.value)


def test_a_model_that_is_not_here_is_refused_and_not_fetched(make, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a plan asks no network"))
    for key in ("base", "lora", "tiny_autoencoder"):
        for name in ("no/such-model-here", "nowhere"):
            with pytest.raises(
                InputError, match=rf"there is no folder {name}.*fetch-weights RECIPE.*set refine\.{key}"
            ):
                make(**{key: name}).plan(5, 10**12)


# What images are made of


def test_images_are_made_of_contents_and_settings_alone(make, tmp_path, base):
    made_of = make().made_of()
    text = json.dumps(made_of)
    assert str(tmp_path) not in text
    assert str(base) not in text
    for table in ({"offload": "stream"}, {"batch": 8}, {"base": str(write_base(tmp_path / "copy"))}):
        assert make(**table).made_of() == made_of
    for table in ({"steps": 3}, {"strength": 0.5}, {"kind": "ddim"}, {"precision": "bfloat16"}, {"size": 128}):
        assert make(**table).made_of() != made_of
    assert make(seed=8).made_of() != made_of
    assert make(base=str(write_base(tmp_path / "other", seed=1))).made_of() != made_of
    write_lora(tmp_path / "lora.safetensors", unet())
    with_lora = make(lora=str(tmp_path / "lora.safetensors")).made_of()
    assert with_lora != made_of
    assert make(lora=str(tmp_path / "lora.safetensors"), lora_scale=0.5).made_of() != with_lora


# Baselines


def test_the_prior_is_the_mean_and_shuffled_rows_are_others(first, text):
    vision = ArrayMatrix(np.random.default_rng(8).standard_normal((5, 20), dtype=np.float32))
    images, predicted = without_brain("prior", first, {"text": text, "vision": vision}, seed=0)
    assert set(predicted) == {"text", "vision"}
    rows = predicted["text"]
    block = np.empty((2, 10), np.float32)
    rows.read(range(1, 3), range(5, 15), block)
    np.testing.assert_allclose(block, np.repeat(text.array[:, 5:15].mean(0, keepdims=True), 2, 0), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(images.read(4), np.rint(smooth(5).mean(axis=0)).astype(np.uint8))
    images, predicted = without_brain("shuffled", first, {"text": text, "vision": vision}, seed=0)
    order = derangement(5, 0)
    for row in range(5):
        for role, true in (("text", text), ("vision", vision)):
            one = np.empty((1, true.shape[1]), np.float32)
            predicted[role].read(range(row, row + 1), range(true.shape[1]), one)
            np.testing.assert_array_equal(one[0], true.array[order[row]])
        np.testing.assert_array_equal(images.read(row), smooth(5)[order[row]])


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_no_row_is_shuffled_into_its_own_place(n):
    for seed in range(20):
        order = derangement(n, seed)
        assert sorted(order) == list(range(n))
        assert not np.any(order == np.arange(n))


def test_baselines_are_drawn_like_images(make, drawn, first, text):
    images, predicted = without_brain("shuffled", first, {"text": text}, seed=0)
    assert drawn(make(), first=images, **predicted).shape == (5, SIZE, SIZE, 3)


@pytest.mark.parametrize("tiny", [False, True], ids=["vae", "tiny"])
def test_an_image_is_encoded_once_however_often_it_is_drawn_from(make, drawn, first, text, taesd, monkeypatch, tiny):
    """The prior starts every row from one image, and shuffled rows start from those of others."""
    table = {"tiny_autoencoder": str(taesd)} if tiny else {}
    inputs = {name: without_brain(name, first, {"text": text}, seed=0) for name in ("prior", "shuffled")}
    alone = [drawn(make(**table), first=images, **rows) for images, rows in inputs.values()]
    whole, seen = sampling._code, []
    monkeypatch.setattr(sampling, "_code", lambda networks, image: seen.append(image) or whole(networks, image))
    generator = make(**table)
    drawn(generator)
    counts, together = [len(seen)], []
    for images, rows in inputs.values():
        together.append(drawn(generator, first=images, **rows))
        counts.append(len(seen))
    assert counts == [5, 6, 6]
    np.testing.assert_array_equal(together, alone)
    assert tiny or len({image.tobytes() for image in together[0]}) == 5  # each row has noise of its own


def test_codes_take_no_more_than_is_said_and_belong_to_a_precision():
    codes = Codes(nbytes=3 * 2 * 16)
    images = [np.full((2, 2, 3), k, np.uint8) for k in range(5)]
    for k, image in enumerate(images):
        codes.keep(codes.key(image, "float32"), (torch.full((4,), k), torch.full((2,), k, dtype=torch.float64)))
        codes.find(codes.key(images[0], "float32"))
    held = [k for k, image in enumerate(images) if codes.find(codes.key(image, "float32")) is not None]
    assert held == [0, 4]  # of 48 bytes each; the first was asked for again and again
    assert codes.find(codes.key(images[4], "bfloat16")) is None
    assert codes.find(codes.key(images[4].reshape(1, 4, 3), "float32")) is None


def test_a_schedule_is_made_once_and_counts_the_steps_of_each_batch_anew(make, monkeypatch):
    made, whole = [], sampling.schedule
    monkeypatch.setattr(sampling, "schedule", lambda *args, **how: made.append(args) or whole(*args, **how))
    model = make(steps=4).model
    one, two = model.schedule(), model.schedule()
    one.scheduler.step(torch.zeros(1, 4, 2, 2), one.levels[0], torch.zeros(1, 4, 2, 2))
    assert (one.scheduler.step_index, two.scheduler.step_index, model.schedule().scheduler.step_index) == (
        1,
        None,
        None,
    )
    assert len(made) == 1


# Import


def test_settings_and_plans_import_no_heavy_library(base):
    code = (
        "import sys; from leanrecon import kinds; "
        f"table = {{'kind': 'lcm', 'base': {str(base)!r}, 'text': 'clip', 'size': 64}}; "
        "settings = kinds.settings_of('generators', table, 'refine.', default='none'); "
        "generator = kinds.kind_of('generators', settings)(settings); generator.check(); "
        "assert generator.plan(5, 10**10).work > 3e8; generator.made_of(); "
        "assert not {'torch', 'PIL', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module", ["generator", "inputs", "none", "diffusion.plan", "diffusion.stable", "diffusion.versatile"]
)
def test_planning_modules_import_neither_zarr_nor_scipy_nor_torch(module):
    code = f"import sys, leanrecon.refinement.{module}; assert not {{'zarr', 'scipy', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
