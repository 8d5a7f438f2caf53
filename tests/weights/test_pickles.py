"""Pickled weights are opened without running what is in them, and written once as safetensors."""

import json
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402

from leanrecon.errors import InputError  # noqa: E402
from leanrecon.weights.pickles import convert, open_checkpoint  # noqa: E402


def state(**changed):
    generator = torch.Generator().manual_seed(0)
    found = {"a.weight": torch.randn(3, 4, 2, generator=generator), "b": torch.randn((), generator=generator)}
    return found | {"c": torch.randn(4, 3, generator=generator).T} | changed


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_stay_as_they_are(dtype, zipped, tmp_path):
    tensors = {name: value.to(dtype) for name, value in state().items()}
    torch.save(tensors, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "a.bin", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value)


def test_mixed_precisions_lose_nothing(tmp_path):
    tensors = state(d=torch.tensor([1.001], dtype=torch.float16), e=torch.tensor([1.01], dtype=torch.bfloat16))
    torch.save(tensors, tmp_path / "a.bin")
    convert(tmp_path / "a.bin", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    for name, value in tensors.items():
        assert torch.equal(found[name], value.float())


def test_positions_are_left_out(tmp_path):
    torch.save(state() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, tmp_path / "a.bin")
    convert(tmp_path / "a.bin", tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == state().keys()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"ids": torch.arange(3)}, "holds ids, which is not a floating-point array"),
        ({"a": 3}, "holds a, which is not a floating-point array"),
        ({}, "holds no weights"),
        (torch.ones(3), "holds a Tensor"),
        ("run", "holds more than weights"),
        ("cut", "can't be read.*fetch-weights"),
        ("text", "can't be read as weights"),
    ],
)
def test_what_is_no_state_dict_is_refused_and_not_run(content, found, tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": Malicious(tmp_path / "hacked")} if content == "run" else content, path)
    if content == "cut":
        torch.save(state(), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "text":
        path.write_text("<html>404</html>")
    with pytest.raises(InputError, match=found):
        convert(path, tmp_path / "a.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_file_that_is_safetensors_already_is_opened_as_that(tmp_path):
    torch.save(state(), tmp_path / "a.bin")
    convert(tmp_path / "a.bin", tmp_path / "a.safetensors")
    assert open_checkpoint(tmp_path / "a.safetensors").keys() == state().keys()


MEASURED = """
import json, sys
from pathlib import Path
import torch
from leanrecon.memory import PeakMemory
from leanrecon.weights.pickles import convert
torch.ones(3).half()
with PeakMemory() as memory:
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps(memory.peak))
"""


def test_converting_holds_one_tensor_at_a_time(tmp_path):
    """Sixteen tensors of 16 MB: anonymous memory grows by two of them at most."""
    torch.save({f"w{k}": torch.full((4_000_000,), float(k)) for k in range(16)}, tmp_path / "a.bin")
    torch.save({"w": torch.ones(10)}, tmp_path / "small.bin")
    peaks = []
    for name in ("small", "a"):
        command = [sys.executable, "-c", MEASURED, str(tmp_path / f"{name}.bin"), str(tmp_path / f"{name}.safetensors")]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(json.loads(run.stdout))
    print(f"peaks: {peaks}")
    assert peaks[1] - peaks[0] < 48_000_000
    assert load_file(tmp_path / "a.safetensors")["w15"][-1] == 15
