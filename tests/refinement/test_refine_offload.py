"""Every way of holding weights gives the same images; what is held in a file is written once."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from safetensors.torch import load_file, save_file  # noqa: E402
from support.diffusion_models import unet, write_lora  # noqa: E402

pytestmark = pytest.mark.networks

MODES = ("none", "model", "sequential", "disk", "stream")


@pytest.fixture
def lora(tmp_path):
    write_lora(tmp_path / "lora.safetensors", unet())
    return str(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_mode_gives_the_same_images(precision, with_lora, make, drawn, lora, tmp_path):
    table = {"precision": precision, "lora": lora if with_lora else ""}
    expected = drawn(make(offload="none", **table))
    for mode in MODES[1:]:
        generator = make(offload=mode, scratch=tmp_path / mode, **table)
        np.testing.assert_array_equal(drawn(generator), expected, err_msg=mode)
        assert generator.mode == mode
        written = list((tmp_path / mode).glob("*"))
        parts = (precision != "float32") + (precision != "float32" or with_lora)  # the autoencoder has no LoRA
        assert len(written) == (parts if mode in ("disk", "stream") else 0)


def test_the_tiny_autoencoder_runs_in_every_mode(make, drawn, taesd):
    expected = drawn(make(offload="none", tiny_autoencoder=str(taesd)))
    for mode in MODES[1:]:
        np.testing.assert_array_equal(drawn(make(offload=mode, tiny_autoencoder=str(taesd))), expected, err_msg=mode)


@pytest.mark.parametrize("offload", ["none", "stream"])
@pytest.mark.parametrize("kind", ["lcm", "ddpm"])
def test_batches_change_no_image(kind, offload, make, drawn):
    one, eight = (drawn(make(kind=kind, steps=3, offload=offload, batch=batch)) for batch in (1, 8))
    # the same numbers, summed in another order: at most the last step of a level
    assert np.abs(one.astype(int) - eight).max() <= 1
    assert (one != eight).mean() < 1e-3


def test_bfloat16_stays_near_float32(make, drawn):
    exact, fast = (drawn(make(precision=precision)).astype(float) for precision in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - fast).mean() < 3  # levels of 255


def test_merged_weights_are_written_once_and_named_by_what_they_are_made_of(make, drawn, lora, tmp_path):
    scratch = tmp_path / "scratch"
    drawn(make(lora=lora, offload="stream"))
    (first,) = scratch.iterdir()
    written = first.stat().st_mtime_ns
    drawn(make(lora=lora, offload="disk", kind="ddim", steps=2))
    assert [file.stat().st_mtime_ns for file in scratch.iterdir()] == [written]
    drawn(make(lora=lora, lora_scale=0.5, offload="stream"))
    assert len(list(scratch.iterdir())) == 2


def test_weights_of_half_precision_are_used_as_they_are(make, drawn, base, tmp_path):
    folder = tmp_path / "half"
    for part in ("unet", "vae", "scheduler"):
        (folder / part).mkdir(parents=True)
        for file in (base / part).iterdir():
            if file.suffix == ".json":
                (folder / part / file.name).write_bytes(file.read_bytes())
            else:
                half = {name: weight.bfloat16() for name, weight in load_file(file).items()}
                save_file(half, folder / part / "diffusion_pytorch_model.fp16.safetensors")
    images = drawn(make(base=str(folder), precision="bfloat16", offload="stream"))
    assert not (tmp_path / "scratch").exists()
    np.testing.assert_array_equal(images, drawn(make(precision="bfloat16", offload="none")))
