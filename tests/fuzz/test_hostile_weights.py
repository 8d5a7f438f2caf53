"""Model files of any content: headers, indexes, configs, tokenizers and pickles are read, or refused in a sentence."""

import io
import json
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutations import VALUES, mutated

from leanrecon.errors import InputError, LeanreconError
from leanrecon.memory import process_memory
from leanrecon.weights.folders import Weights, read_config
from leanrecon.weights.pickle_headers import shapes_in
from leanrecon.weights.safetensors import header_of, read_header
from leanrecon.weights.tensors import TensorFile, write_tensors

SEED = 7
SECONDS = 3.0

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def attacked(path: Path, reads: Callable[[Path], object], seconds: float = SECONDS) -> None:
    """Mutate a file and read it, again and again; anything but a LeanreconError fails with the seed and the number."""
    sound, random_ = path.read_bytes(), random.Random(SEED)
    reads(path)
    done, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        path.write_bytes(mutated(sound, path.suffix, random_))
        try:
            said = refusal(reads, path)
        except BaseException:
            print(f"seed {SEED}, {path.name}, mutation {done}")
            raise
        assert said.isprintable()
        done += 1
    path.write_bytes(sound)
    assert done > seconds, "at least one a second"


def refusal(reads: Callable[[Path], object], path: Path) -> str:
    """What a reader says of a file that it refuses; empty where it reads it."""
    try:
        reads(path)
    except LeanreconError as error:
        return str(error)
    return ""


def weights_of(folder: Path) -> Path:
    tables = {"a": ("F32", (2, 3), 24), "b.c": ("F16", (4,), 8)}
    file = folder / "model.safetensors"
    file.write_bytes(header_of(tables, {"format": "pt"}) + bytes(32))
    return file


def test_mutated_safetensors_are_read_or_refused(tmp_path: Path) -> None:
    attacked(weights_of(tmp_path), read_header)


@pytest.mark.parametrize("value", [*VALUES, "BIG", [2**70], [-1, -6], "F32"], ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("key", ["shape", "data_offsets", "dtype"])
def test_headers_of_wrong_types_are_read_or_refused(tmp_path: Path, key: str, value: object) -> None:
    table = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | {key: value}
    text = json.dumps({"a": table}).replace('"BIG"', "1" * 5000).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    assert len(refusal(read_header, file)) < 1000


def test_a_header_that_declares_a_huge_tensor_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(header_of({"a": ("F32", (10**6, 10**6), 4 * 10**12)}, {}) + bytes(24))
    before = process_memory()
    with pytest.raises(InputError, match="bytes"):
        read_header(file)
    assert process_memory() - before < 20e6


@pytest.mark.parametrize(
    "map_", [{"a": 3}, {"a": None}, [], "x", {}, {"a": "../x.safetensors"}, {"a": "/x.safetensors"}]
)
def test_an_index_of_wrong_types_or_places_is_refused(tmp_path: Path, map_: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": map_}))
    with pytest.raises(InputError, match="names no files of weights"):
        Weights.of(tmp_path)


def test_mutated_indexes_and_configs_are_read_or_refused(tmp_path: Path) -> None:
    weights_of(tmp_path).rename(tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(("a", "b.c"), "model-00001-of-00001.safetensors")}))
    attacked(index, lambda path: Weights.of(path.parent))
    attacked(index, read_config, 1.0)


def test_mutated_networks_of_ours_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"w": np.arange(6, dtype=np.float32)}, {"kind": "ridge"})
    attacked(path, TensorFile)


@pytest.mark.parametrize("zipped", [True, False])
def test_mutated_pickles_are_converted_or_refused(tmp_path: Path, zipped: bool) -> None:
    from leanrecon.weights.pickles import convert

    path = tmp_path / "x.th"
    torch.save({"a": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=zipped)
    attacked(path, lambda file: convert(file, tmp_path / "out.safetensors"))
    attacked(path, shapes_in, 1.0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_without_numbers_of_its_own_is_refused_before_memory_is_taken(tmp_path: Path, device: str) -> None:
    from leanrecon.weights.pickles import convert

    path = tmp_path / "bomb.th"
    torch.save({"a": torch.zeros(1, device=device).expand(10**9)}, path)
    before = process_memory()
    with pytest.raises(InputError, match=r"bomb\.th"):
        convert(path, tmp_path / "out.safetensors")
    assert process_memory() - before < 100e6
    assert not (tmp_path / "out.safetensors").exists()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    from leanrecon.weights.pickles import convert

    path, plain = tmp_path / "zip.th", io.BytesIO()
    torch.save({"a": torch.zeros(3_000_000)}, plain)
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpacks to"):
        convert(path, tmp_path / "out.safetensors")


def test_the_header_of_a_pickle_has_the_shapes_that_pytorch_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.th"
    tensors = {
        "a": torch.ones(2, 3),
        "b": torch.nn.Parameter(torch.zeros(4, dtype=torch.float16)),
        "c": torch.tensor(1.0),
    }
    torch.save(tensors, path)
    assert shapes_in(path) == {name: tuple(value.shape) for name, value in tensors.items()}


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def test_the_header_of_a_pickle_is_read_without_running_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "evil.th")
    assert shapes_in(tmp_path / "evil.th") is None
    assert not (tmp_path / "ran").exists()
