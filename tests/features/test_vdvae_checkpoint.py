import importlib.util
import os
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.vdvae_models import SMALL, random_images, random_weights  # noqa: E402

from leanrecon.errors import InputError, SettingsError, StoreError  # noqa: E402
from leanrecon.features.vdvae import VDVAE, VDVAEConfig, convert  # noqa: E402
from leanrecon.features.vdvae import checkpoint as checkpoint_module  # noqa: E402
from leanrecon.features.vdvae.checkpoint import loading_nbytes, weights_nbytes  # noqa: E402
from leanrecon.features.vdvae.config import decoding_weights, encoding_weights  # noqa: E402

pytestmark = pytest.mark.networks


@pytest.fixture
def save(tmp_path):
    """Writes weights as published, with changes, and returns the path."""

    def write(change=lambda weights: None, name="model.th", **options):
        weights = random_weights()
        weights = change(weights) or weights
        torch.save(weights, tmp_path / name, **options)
        return tmp_path / name

    return write


def assert_same_weights(model, weights):
    assert set(model.weights) == set(weights)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(model.weights[name], tensor, err_msg=name)


def test_weights_are_those_of_the_file(save):
    model = VDVAE.from_checkpoint(save(), SMALL)
    assert_same_weights(model, random_weights())
    images = random_images(2)
    np.testing.assert_allclose(model.encode(images, 6), VDVAE(SMALL, random_weights()).encode(images, 6), atol=1e-5)


def test_weights_of_a_distributed_model_and_of_an_old_pytorch_are_the_same(save):
    distributed = save(lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()}, "ddp.th")
    assert_same_weights(VDVAE.from_checkpoint(distributed, SMALL), random_weights())
    old = save(name="old.th", _use_new_zipfile_serialization=False)
    assert_same_weights(VDVAE.from_checkpoint(old, SMALL), random_weights())
    assert loading_nbytes(distributed) == 0  # mapped, not read
    assert loading_nbytes(old) == old.stat().st_size


def test_only_the_weights_that_are_asked_for_are_held(save):
    names = encoding_weights(SMALL, 3)
    model = VDVAE.from_checkpoint(save(), SMALL, only=names)
    assert list(model.weights) == names
    storages = {tensor.untyped_storage().data_ptr() for tensor in model.weights.values()}
    assert len(storages) == 1  # one stretch of memory, which goes back as a whole
    assert next(iter(model.weights.values())).untyped_storage().nbytes() == weights_nbytes(SMALL, only=names)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_halves_the_blocks_alone(save, precision):
    model = VDVAE.from_checkpoint(save(), SMALL, precision=precision)
    lowered = {name for name, tensor in model.weights.items() if tensor.dtype == getattr(torch, precision)}
    assert lowered == {name for name in model.weights if "_blocks." in name}
    assert all(model.weights[name].dtype == torch.float32 for name in model.weights.keys() - lowered)
    tensor = random_weights()["decoder.dec_blocks.3.resnet.c2.weight"]
    np.testing.assert_array_equal(
        model.weights["decoder.dec_blocks.3.resnet.c2.weight"].float(), tensor.to(getattr(torch, precision)).float()
    )


# Files that don't fit


def drop(*names):
    def change(weights):
        for name in names:
            del weights[name]

    return change


def put(**values):
    def change(weights):
        weights.update({name.replace("__", "."): value for name, value in values.items()})

    return change


GAIN, OUT = "decoder.gain", "decoder.out_net.out_conv.bias"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (drop(GAIN, OUT), f"2 missing ({GAIN}, {OUT})"),
        (put(decoder__scale=torch.ones(1)), "1 unknown (decoder.scale)"),
        (put(decoder__gain=torch.ones(8)), "1 of another shape (decoder.gain is [8], not [1, 8, 1, 1])"),
        (put(decoder__gain=torch.full((1, 8, 1, 1), torch.nan)), "1 with NaN or infinite numbers (decoder.gain)"),
        (put(decoder__bias=torch.full((1, 8, 1, 1), torch.inf)), "1 with NaN or infinite numbers (decoder.bias)"),
        (put(decoder__gain=torch.ones((1, 8, 1, 1), dtype=torch.int64)), "(decoder.gain is torch.int64)"),
        (put(decoder__gain=3), "1 not floating-point arrays (decoder.gain is int)"),
        (put(module__decoder__gain=torch.ones((1, 8, 1, 1))), "1 duplicated (decoder.gain)"),
        (lambda weights: {"model": weights, "step": 3}, "2 unknown (model, step)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(save, change, found):
    with pytest.raises(InputError) as error:
        VDVAE.from_checkpoint(save(change), SMALL)
    assert found in str(error.value)
    assert "model.th does not hold the weights of this VDVAE" in str(error.value)


def test_every_kind_of_problem_is_counted_and_the_first_names_are_shown(save):
    def change(weights):
        for i in range(5):
            for part in ("weight", "bias"):
                del weights[f"decoder.dec_blocks.{i}.z_proj.{part}"]
        weights[GAIN] = torch.ones(3)
        weights[OUT][0] = torch.nan

    with pytest.raises(InputError) as error:
        VDVAE.from_checkpoint(save(change), SMALL)
    text = str(error.value)
    assert "10 missing (decoder.dec_blocks.0.z_proj.weight, " in text
    assert "decoder.dec_blocks.3.z_proj.bias, …)" in text
    assert "dec_blocks.4" not in text
    assert "1 of another shape (decoder.gain" in text
    assert f"1 with NaN or infinite numbers ({OUT})" in text


def test_weights_of_another_network_are_refused(save):
    wider = VDVAEConfig(**SMALL.as_table() | {"width": 16})
    with pytest.raises(InputError, match=r"of another shape .* Expected 204 float32 arrays of a network of width 16"):
        VDVAE.from_checkpoint(save(), wider)


def test_problems_of_arrays_that_are_not_taken_are_found_too(save):
    path = save(put(decoder__gain=torch.full((1, 8, 1, 1), torch.nan)))
    with pytest.raises(InputError, match=r"decoder\.gain"):
        VDVAE.from_checkpoint(path, SMALL, only=encoding_weights(SMALL, 1))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("part", [0, 10, 1000, 0.5, 0.99])
def test_truncated_files_are_refused_with_what_to_do(save, part, old):
    path = save(_use_new_zipfile_serialization=not old)
    size = path.stat().st_size
    os.truncate(path, int(size * part) if part < 1 else part)
    with pytest.raises(InputError, match=r"model\.th (can't be read|does not hold).*"):
        VDVAE.from_checkpoint(path, SMALL)


@pytest.mark.parametrize("name", ["model.th", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>Not found</html>", b"\x89HDF\r\n\x1a\n" + bytes(100), b"PK\x03\x04" + bytes(99)]
)
def test_other_files_are_refused_with_what_to_do(tmp_path, name, content):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"can't be read.*\. Download it again"):
        VDVAE.from_checkpoint(tmp_path / name, SMALL)


@pytest.mark.parametrize("content", [[1, 2, 3], torch.ones(3)])
def test_files_without_names_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.th")
    with pytest.raises(InputError, match=r"model\.th holds a (list|Tensor)\. Expected a state_dict"):
        VDVAE.from_checkpoint(tmp_path / "model.th", SMALL)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "nothing.th", tmp_path):
        with pytest.raises(InputError, match="there is no file"):
            VDVAE.from_checkpoint(path, SMALL)


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["zip", "old", "pickle"])
def test_no_code_of_a_checkpoint_is_run(tmp_path, how):
    weights = {**random_weights(), "payload": Malicious(tmp_path / "hacked")}
    path = tmp_path / "model.th"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"payload": Malicious(tmp_path / "hacked")}))
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(InputError, match=r"model\.th (holds more than weights|can't be read)") as error:
        VDVAE.from_checkpoint(path, SMALL)
    if how != "pickle":
        assert "mkdir" in str(error.value)
        assert "runs no code" in str(error.value)
    assert "weights_only" not in str(error.value)  # no advice to run it after all
    assert not (tmp_path / "hacked").exists()


# Conversion


def test_safetensors_hold_the_same_weights(save, tmp_path):
    pytest.importorskip("safetensors")
    target = tmp_path / "weights" / "model.safetensors"
    convert(save(lambda weights: {f"module.{name}": tensor for name, tensor in weights.items()}), target, SMALL)
    assert_same_weights(VDVAE.from_checkpoint(target, SMALL), random_weights())
    model = VDVAE.from_checkpoint(target, SMALL, only=decoding_weights(SMALL), precision="bfloat16")
    assert list(model.weights) == decoding_weights(SMALL)
    assert [path.name for path in target.parent.iterdir()] == ["model.safetensors"]
    assert target.stat().st_mode == (tmp_path / "model.th").stat().st_mode


@pytest.mark.parametrize(("package", "name"), [("torch", "PyTorch"), ("safetensors", "safetensors")])
def test_a_library_that_is_not_installed_is_named(save, tmp_path, monkeypatch, package, name):
    path, find = save(), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda one: None if one == package else find(one))
    with pytest.raises(
        SettingsError, match=rf"(?i)need {name}, which is not installed\. Install it with pip install '\.\[models\]'"
    ):
        convert(path, tmp_path / "model.safetensors", SMALL)


def test_a_conversion_that_fails_leaves_nothing_new(save, tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    target = tmp_path / "out" / "model.safetensors"
    with pytest.raises(InputError, match="1 missing"):
        convert(save(drop(GAIN)), target, SMALL)
    assert not target.parent.exists()
    path = save()
    convert(path, target, SMALL)
    before = target.read_bytes()

    def full(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "save_file", full)
    with pytest.raises(StoreError, match="the disk is full"):
        convert(path, target, SMALL)
    assert [path.name for path in target.parent.iterdir()] == ["model.safetensors"]
    assert target.read_bytes() == before


def test_a_conversion_to_another_ending_is_refused(save, tmp_path):
    with pytest.raises(SettingsError, match=r"ends in \.safetensors"):
        convert(save(), tmp_path / "model.pt", SMALL)


def test_damaged_safetensors_are_refused(save, tmp_path):
    pytest.importorskip("safetensors")
    target = tmp_path / "model.safetensors"
    convert(save(), target, SMALL)
    os.truncate(target, target.stat().st_size // 2)
    with pytest.raises(InputError, match=r"model\.safetensors can't be read"):
        VDVAE.from_checkpoint(target, SMALL)
    with pytest.raises(InputError, match=r"can't be read"):
        target.write_bytes(b"\xff" * 8 + b"{}")
        checkpoint_module.read_weights(target, SMALL)
