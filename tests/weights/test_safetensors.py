"""Files of weights: written as the safetensors library reads them, and read only if every byte is accounted for."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors import SafetensorError, safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from leanrecon.errors import InputError  # noqa: E402
from leanrecon.weights.safetensors import (  # noqa: E402
    MappedWeights,
    ReadWeights,
    itemsize,
    read_header,
    reserved,
    write_weights,
)


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 1000, generator=generator),
        "b": torch.randn((), generator=generator),
        "c.bias": torch.randn(5, generator=generator).bfloat16(),
        "d.weight": torch.randn(7, 5, generator=generator).half(),
        "e": torch.empty(0, 4),
        "f": torch.randn(2, 3, generator=generator).double(),
    }


@pytest.fixture
def file(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"made": "here"})
    return tmp_path / "a.safetensors"


def parts(file):
    """Header and numbers of a safetensors file."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def rewrite(file, header, numbers):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def test_a_header_says_what_the_safetensors_library_says(file):
    entries, metadata = read_header(file)
    assert metadata == {"made": "here"}
    with safe_open(file, "pt") as opened:
        assert set(entries) == set(opened.keys())
        for name, entry in entries.items():
            there = opened.get_slice(name)
            assert (entry.dtype, list(entry.shape)) == (there.get_dtype(), there.get_shape())
            assert entry.nbytes == tensors()[name].nbytes
            assert entry.file == file


def test_mapped_weights_are_those_of_the_file_even_after_their_pages_were_given_back(file):
    entries, _ = read_header(file)
    for weights in (MappedWeights(entries), ReadWeights(entries)):
        assert len(weights) == len(list(weights)) == 6
        for _ in range(2):
            for name, expected in tensors().items():
                found = weights[name]
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)
                weights.release(name)
                assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_written_weights_are_read_by_the_safetensors_library(dtype, file, tmp_path):
    cast = {name: weight.to(getattr(torch, dtype)) for name, weight in tensors().items()}
    shapes = {name: entry.shape for name, entry in read_header(file)[0].items()}
    write_weights(tmp_path / "b.safetensors", ((name, cast[name]) for name in shapes), shapes, dtype)
    found = load_file(tmp_path / "b.safetensors")
    assert set(found) == set(cast)
    assert all(torch.equal(found[name], cast[name]) for name in cast)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_file_that_is_not_finished_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="b came where a was expected"):
        write_weights(tmp_path / "a.safetensors", iter([("b", torch.zeros(2))]), {"a": (2,)}, "float32")
    assert not list(tmp_path.iterdir())


def holed(header, numbers):
    header["g"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(numbers) + 4, len(numbers) + 8]}
    return header, numbers + bytes(8)


def overlapping(header, numbers):
    header["g"] = header["a.weight"]
    return header, numbers


def misshapen(header, numbers):
    header["a.weight"]["shape"] = [3, 999]
    return header, numbers


def without_type(header, numbers):
    del header["a.weight"]["dtype"]
    return header, numbers


def of_half_bytes(header, numbers):
    header["a.weight"]["data_offsets"][0] += 0.5
    return header, numbers


def no_table(header, numbers):
    return b"[1, 2]", numbers


HARMS = {
    "a byte less": lambda header, numbers: (header, numbers[:-1]),
    "a byte more": lambda header, numbers: (header, numbers + b"\0"),
    "no numbers": lambda header, numbers: (header, b""),
    "a header cut": lambda header, numbers: (json.dumps(header).encode()[:-9], b""),
    **{harm.__name__: harm for harm in (holed, overlapping, misshapen, without_type, of_half_bytes, no_table)},
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_what_the_safetensors_library_refuses_is_refused(harm, file):
    rewrite(file, *harm(*parts(file)))
    with pytest.raises((SafetensorError, KeyError)):
        load_file(file)
    with pytest.raises(
        InputError, match=r"(damaged or not a safetensors file|has \d+ bytes. Expected \d+).*fetch-weights"
    ):
        read_header(file)


@pytest.mark.parametrize("content", [b"", b"\0\0", b"PK\x03\x04 this is no safetensors file", b"\xff" * 64])
def test_another_kind_of_file_is_refused(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        read_header(tmp_path / "a.safetensors")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_header(tmp_path / "a.safetensors")


def test_whole_numbers_are_no_weights(tmp_path):
    save_file({"ids": torch.arange(3), "a": torch.ones(2)}, tmp_path / "a.safetensors")
    entries, _ = read_header(tmp_path / "a.safetensors")
    assert entries["ids"].nbytes == 24
    weights = MappedWeights(entries)
    assert weights["a"].tolist() == [1, 1]
    with pytest.raises(InputError, match="ids in .* is I64. Expected floating-point weights"):
        weights["ids"]


def test_bytes_in_memory_are_those_of_whole_cache_lines():
    assert [itemsize(name) for name in ("float64", "float32", "bfloat16", "float16")] == [8, 4, 2, 2]
    assert [reserved(shape, 4) for shape in ((), (16,), (17,), (4, 5))] == [64, 64, 128, 128]
