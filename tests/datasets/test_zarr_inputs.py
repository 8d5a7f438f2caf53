"""Zarr arrays as inputs: the numbers that zarr-python gives, in bands of chunks, known by the content of their files."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.memory import held

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.files import zarrs
from leanrecon.datasets.files.open import array_keys, open_array
from leanrecon.errors import InputError, StoreError
from leanrecon.memory import PeakMemory
from leanrecon.stores import Store
from leanrecon.study.layout import Study

RNG = np.random.default_rng(6)


def write(path: Path, array: np.ndarray, **how: Any) -> None:
    zarr.create_array(str(path), shape=array.shape, dtype=array.dtype, **how)[:] = array


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("shape", "dtype", "how"),
    [
        ((50, 33), "f4", {"chunks": (7, 10)}),
        ((50, 33), "i2", {"chunks": (50, 1), "order": "F", "zarr_format": 2}),
        ((50, 8, 9, 3), "u1", {"chunks": (1, 8, 4, 3), "compressors": None}),
        ((50, 8, 9), "f8", {"chunks": (5, 8, 3), "shards": (20, 8, 9)}),
        ((50, 8), ">f8", {"chunks": (5, 8), "zarr_format": 2}),
        ((50,), "i8", {"chunks": (7,)}),
    ],
)
def test_any_rows_are_those_of_zarr(
    kept: bool, shape: tuple[int, ...], dtype: str, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarrs, "_KEPT", zarrs._KEPT if kept else 0)
    monkeypatch.setattr(zarrs, "BLOCK", 5_000)  # so that these small arrays take several bands
    array = (RNG.standard_normal(shape) * 100 + 50).astype(dtype)
    write(tmp_path / "a.zarr", array, **how)
    with open_array(str(tmp_path / "a.zarr")) as rows:
        assert (rows.shape, rows.dtype) == (array.shape, array.dtype)
        assert rows.kept == kept
        for index in (np.arange(50), np.arange(3, 11), np.array([0, 6, 7, 8, 30, 49]), np.array([49]), np.arange(0)):
            out = np.zeros((len(index), *shape[1:]), np.float32)
            rows.read(index, out)
            np.testing.assert_array_equal(out, array[index].astype(np.float32))


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize(
    ("shape", "dtype", "how"),
    [
        ((4000, 8000), "f4", {}),  # chunks as zarr-python chooses them: 1 to 2 MB, several of them side by side
        ((600, 192, 192, 3), "u1", {}),
        ((100, 200_000), "f4", {}),
        ((2000, 12_000), "f4", {"chunks": (1000, 1000)}),  # as wide as is not read together any more
        ((2000, 8000), "f4", {"chunks": (2000, 2000)}),
        ((1500, 8000), "f4", {"chunks": (750, 8000)}),
        ((2000, 8000), "f4", {"chunks": (100, 1000), "shards": (500, 2000)}),
    ],
)
def test_reading_takes_no_more_than_is_planned(
    shape: tuple[int, ...], dtype: str, how: dict[str, Any], step: int, tmp_path: Path
) -> None:
    array = RNG.integers(0, 256, shape, np.uint8) if dtype == "u1" else RNG.standard_normal(shape, np.float32)
    write(tmp_path / "a.zarr", array, **how)
    del array
    write(tmp_path / "small.zarr", np.ones((64, 64), "f4"), chunks=(16, 16))
    with open_array(str(tmp_path / "small.zarr")) as rows:
        rows[0 : len(rows)]  # zarr's threads and codecs are there
    with open_array(str(tmp_path / "a.zarr")) as rows:
        out = np.ones((min(rows.together, len(rows)), *shape[1:]), np.float32)
        before = held()
        with PeakMemory() as memory:
            for start in range(0, len(rows), len(out)):
                index = np.arange(start, min(start + len(out), len(rows)))[::step]
                rows.read(index, out[: len(index)])
        planned, taken = rows.held + rows.scratch, memory.peak - before
    print(f"{taken / 1e6:.0f} of {planned / 1e6:.0f} MB")
    assert taken <= planned


def test_arrays_of_a_group_are_named_by_their_keys(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for name, dtype in (("x/betas", "f4"), ("images", "u1")):
        group.create_array(name, shape=(4, 5), dtype=dtype, chunks=(2, 5))[:] = 1
    assert sorted(map(str, array_keys(tmp_path / "a.zarr"))) == ["images", "x/betas"]
    with open_array(f"{tmp_path}/a.zarr:x/betas") as rows:
        assert rows.name == f"{tmp_path}/a.zarr:x/betas"
    with pytest.raises(InputError, match="has no array 'betsa'.*images 4x5 uint8; x/betas 4x5 float32"):
        open_array(f"{tmp_path}/a.zarr:betsa")
    with pytest.raises(InputError, match="holds 2 arrays and no key was given"):
        open_array(f"{tmp_path}/a.zarr")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "zarr.json").write_text("{"), "can't be read"),
        (lambda folder: (folder / "zarr.json").write_text("[]"), "it holds a list in place of a table"),
        (lambda folder: (folder / "zarr.json").write_text("3"), "it holds a int in place of a table"),
        (lambda folder: (folder / "zarr.json").unlink(), "there is no Zarr array in"),
        (lambda folder: (folder / "c/1/0").unlink(), r"1 of its 3 chunks are not there; the first is \(1, 0\)"),
        (lambda folder: (folder / "c/0/0").write_bytes(b"short"), "can't be read"),
        (
            lambda folder: folder_in_place_of(folder / "c/0/0"),
            r"1 of its 3 chunks are not there; the first is \(0, 0\)",
        ),
    ],
)
def test_damage_is_told(harm: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", RNG.standard_normal((9, 4)), chunks=(3, 4))
    harm(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=words), open_array(str(tmp_path / "a.zarr")) as rows:
        rows[0:9]


def folder_in_place_of(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("rows", [10**9, 10**18])
def test_a_shape_of_any_size_is_refused_by_its_chunks(rows: int, zarr_format: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", RNG.standard_normal((9, 4)), chunks=(3, 2), zarr_format=zarr_format)
    file = tmp_path / "a.zarr" / ("zarr.json" if zarr_format == 3 else ".zarray")
    file.write_text(json.dumps({**json.loads(file.read_text()), "shape": [rows, 4]}))
    total, began = -(-rows // 3) * 2, time.process_time()
    with pytest.raises(InputError, match=rf"{total - 6} of its {total} chunks are not there; the first is \(3, 0\)"):
        open_array(str(tmp_path / "a.zarr"))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("fill", "dtype"), [(0, "u1"), (0, "f4"), (np.nan, "f8"), (7, "i2")])
def test_a_chunk_that_its_shard_lacks_is_no_fill_value(
    fill: float, dtype: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarrs, "_KEPT", zarrs._KEPT if kept else 0)
    values = (RNG.integers(1, 100, (25, 8)) * 2).astype(dtype)
    store = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(25, 8), dtype=dtype, chunks=(5, 4), shards=(10, 8), fill_value=fill
    )
    store[:10], store[20:] = values[:10], values[20:]
    store[10:15] = values[10:15]
    store[15:20, 4:] = values[15:20, 4:]
    found = r"the chunk that begins at \[15, 0\] is not in its shard"
    with open_array(str(tmp_path / "a.zarr")) as rows, pytest.raises(InputError, match=found):
        rows[16:20]


@pytest.mark.parametrize("fill", [0, 5])
def test_a_chunk_of_the_fill_value_alone_may_lie_in_a_shard(fill: int, tmp_path: Path) -> None:
    values = RNG.integers(1, 100, (20, 8)).astype("u1")
    values[5:10] = fill
    how = {"chunks": (5, 4), "shards": (10, 8), "fill_value": fill, "config": {"write_empty_chunks": True}}
    write(tmp_path / "a.zarr", values, **how)
    with open_array(str(tmp_path / "a.zarr")) as rows:
        np.testing.assert_array_equal(rows[0:20], values)


def test_texts_are_refused_as_betas(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", np.array([["a", "bc"]], "U2"), chunks=(1, 2), zarr_format=2)
    with pytest.raises(InputError, match="holds <U2 values.*betas as real numbers"):
        ingest(tmp_path)


def ingest(folder: Path) -> None:
    settings = ArraysSettings(betas=str(folder / "a.zarr"), test_fraction=0.25)
    Arrays(settings).ingest(Study(folder / "study"), base_dir=None, context=Context.of("8GB"))


def test_an_array_is_known_by_the_content_of_its_files(tmp_path: Path) -> None:
    array = RNG.standard_normal((20, 6)).astype(np.float32)
    write(tmp_path / "a.zarr", array, chunks=(5, 6))
    ingest(tmp_path)
    content = Store.open(Study(tmp_path / "study").betas("train")).content
    for file in (tmp_path / "a.zarr").rglob("*"):
        file.touch()
    ingest(tmp_path)
    assert Store.open(Study(tmp_path / "study").betas("train")).content == content
    zarr.open_array(str(tmp_path / "a.zarr"), mode="a")[3, 2] = 9
    with pytest.raises(StoreError, match="made with other settings"):
        ingest(tmp_path)


def test_a_store_of_a_study_is_an_input(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array := RNG.standard_normal((20, 6)).astype(np.float32))
    settings = ArraysSettings(betas=str(tmp_path / "a.npy"), test_fraction=0.25)
    study = Study(tmp_path / "study")
    Arrays(settings).ingest(study, base_dir=None, context=Context.of("8GB"))
    with open_array(f"{study.betas('train')}") as rows:
        kept = rows[0 : len(rows)]
    assert {tuple(row) for row in kept} < {tuple(row) for row in array}
