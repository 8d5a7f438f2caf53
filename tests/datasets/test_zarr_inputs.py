"""Zarr arrays as inputs: the numbers that zarr-python gives, in bands of chunks, known by the content of their files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.files import zarrs
from leanrecon.datasets.files.open import array_keys, open_array
from leanrecon.errors import InputError, StoreError
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
        (lambda folder: (folder / "zarr.json").unlink(), "there is no Zarr array in"),
        (lambda folder: (folder / "c/1/0").unlink(), r"1 of its 3 chunks are not there; the first is \(1, 0\)"),
        (lambda folder: (folder / "c/0/0").write_bytes(b"short"), "can't be read"),
    ],
)
def test_damage_is_told(harm: Any, words: str, tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", RNG.standard_normal((9, 4)), chunks=(3, 4))
    harm(tmp_path / "a.zarr")
    with pytest.raises(InputError, match=words), open_array(str(tmp_path / "a.zarr")) as rows:
        rows[0:9]


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
