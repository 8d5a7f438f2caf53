import threading
import time
from contextlib import closing

import dask.array
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanrecon.errors import InputError, StoreError
from leanrecon.evaluation.pool import Stacked
from leanrecon.memory import buffer
from leanrecon.stores import Store, matrix
from leanrecon.stores.gather import RowGather
from leanrecon.stores.matrix import (
    PANEL,
    ArrayMatrix,
    BlockMatrix,
    ColumnSubset,
    Reblocked,
    RowSubset,
    StoreMatrix,
    as_matrix,
    column_blocks,
    panels,
    read_ahead,
    same_matrix,
    tile_memories,
)

RNG = np.random.default_rng(5)
ROWS = RNG.standard_normal((600, 2500)).astype(np.float32)
INDEX = np.flatnonzero(RNG.random(600) < 0.4)
SOME = np.flatnonzero(RNG.random(len(INDEX)) < 0.5)
ORDER = RNG.integers(0, 600, 300)
VOXELS = np.flatnonzero(np.r_[RNG.random(2000) < 0.3, np.zeros(400, bool), np.ones(100, bool)])
IMAGES = RNG.integers(0, 256, (600, 10, 10, 3), np.uint8)


def complete(path, rows, chunk="8MB"):
    store = Store.create(path, rows.shape, rows.dtype, made_of={}, chunk=chunk)
    for i in range(store.row_groups):
        group = store.group_rows(i)
        store.write_rows(i, rows[group.start : group.stop])
    store.finish()
    return store


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Every kind of source of the same numbers: name → (matrix, the numbers)."""
    folder = tmp_path_factory.mktemp("sources")
    foreign = zarr.create_array(
        str(folder / "foreign.zarr"), shape=ROWS.shape, chunks=(100, 333), dtype="f4",
        compressors=zarr.codecs.ZstdCodec(),
    )  # fmt: skip
    foreign[:] = ROWS
    file = h5py.File(folder / "betas.h5", "w")
    file["plain"] = ROWS
    file.create_dataset("chunked", data=ROWS, chunks=(64, 500), compression="gzip")
    whole = complete(folder / "whole.zarr", ROWS)  # 256 rows by 2500 columns
    store = as_matrix(complete(folder / "s.zarr", ROWS, "150kB"))  # 32 rows by 848 columns
    images = as_matrix(complete(folder / "images.zarr", IMAGES, "5kB"))  # 16 rows
    yield {
        "store": (store, ROWS),
        "store of whole panels": (as_matrix(str(whole.path)), ROWS),
        "store of images": (images, IMAGES.reshape(600, 300)),
        "numpy": (as_matrix(ROWS), ROWS),
        "numpy in Fortran order": (as_matrix(np.asfortranarray(ROWS)), ROWS),
        "numpy in float64": (as_matrix(ROWS.astype(np.float64)), ROWS),
        "foreign zarr": (as_matrix(foreign), ROWS),
        "dask": (as_matrix(dask.array.from_array(ROWS, chunks=(128, 700))), ROWS),
        "h5py": (as_matrix(file["plain"]), ROWS),
        "h5py in chunks": (as_matrix(file["chunked"]), ROWS),
        "rows of a store": (RowSubset(store, INDEX), ROWS[INDEX]),
        "rows of an array": (RowSubset(as_matrix(ROWS), INDEX), ROWS[INDEX]),
        "columns of a store": (ColumnSubset(store, VOXELS), ROWS[:, VOXELS]),
        "columns of an array": (ColumnSubset(as_matrix(ROWS), VOXELS), ROWS[:, VOXELS]),
        "rows of columns of a store": (RowSubset(ColumnSubset(store, VOXELS), INDEX), ROWS[INDEX][:, VOXELS]),
        "columns of rows of a store": (ColumnSubset(RowSubset(store, INDEX), VOXELS), ROWS[INDEX][:, VOXELS]),
        "rows of rows of a store": (RowSubset(RowSubset(store, INDEX), SOME), ROWS[INDEX][SOME]),
        "rows of rows of an array": (RowSubset(RowSubset(as_matrix(ROWS), INDEX), SOME), ROWS[INDEX][SOME]),
        "rows in any order": (RowGather(store, ORDER), ROWS[ORDER]),
        "stores one below the other": (Stacked([store, as_matrix(ROWS)]), np.concatenate([ROWS, ROWS])),
        "store in other blocks": (Reblocked(store, 1000), ROWS),
        "array in other blocks": (Reblocked(as_matrix(ROWS), 77), ROWS),
    }
    file.close()


NAMES = [
    "store", "store of whole panels", "store of images", "numpy", "numpy in Fortran order", "numpy in float64",
    "foreign zarr", "dask", "h5py", "h5py in chunks", "rows of a store", "rows of an array",
    "columns of a store", "columns of an array", "rows of columns of a store", "columns of rows of a store",
    "rows of rows of a store", "rows of rows of an array", "rows in any order", "stores one below the other",
    "store in other blocks", "array in other blocks",
]  # fmt: skip


def a_range(data, n):
    start = data.draw(st.integers(0, n - 1))
    return range(start, data.draw(st.integers(start + 1, n)))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_block_equals_a_slice(sources, name, data):
    source, expected = sources[name]
    assert (source.shape, source.dtype.kind) == (expected.shape, expected.dtype.kind)
    rows = a_range(data, source.shape[0])
    columns = a_range(data, source.shape[1])
    if data.draw(st.booleans()):  # a few columns of whole chunks are read without the rest
        rows = range(rows.start // 32 * 32, rows.stop)
        columns = columns[:40]
    shape, dtype = (len(rows), len(columns)), data.draw(st.sampled_from([np.float32, np.float64, source.dtype]))
    wide = np.full((shape[0], 2 * shape[1]), 7, dtype)
    left, every_other = wide[:, : shape[1]], wide[:, ::2]
    out = data.draw(st.sampled_from([np.empty(shape, dtype), np.empty(shape, dtype, order="F"), left, every_other]))
    source.read(rows, columns, out)
    np.testing.assert_array_equal(out, expected[rows.start : rows.stop, columns.start : columns.stop])
    assert out is not left or (wide[:, shape[1] :] == 7).all()
    assert out is not every_other or (wide[:, 1::2] == 7).all()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_equal_a_selection(sources, name, data):
    source, expected = sources[name]
    index = np.array(sorted(data.draw(st.sets(st.integers(0, source.shape[0] - 1), max_size=60))), np.int64)
    columns = a_range(data, source.shape[1])
    out = np.empty((len(index), len(columns)), data.draw(st.sampled_from([np.float32, np.float64])))
    source.read_rows(index, columns, out)
    np.testing.assert_array_equal(out, expected[index][:, columns.start : columns.stop])


@pytest.mark.parametrize("name", NAMES)
def test_tiles_cover_the_matrix(sources, name):
    source, expected = sources[name]
    memory = np.full(source.tile_nbytes, 0xEE, np.uint8)
    found = np.zeros(source.shape, source.dtype)
    for rows in panels(source.shape[0]):
        for j, columns in enumerate(column_blocks(source)):
            tile = source.read_tile(rows, j, memory)
            assert tile.dtype == source.dtype
            assert tile.shape[0] == len(rows)
            assert np.shares_memory(tile, memory)
            found[rows.start : rows.stop, columns.start : columns.stop] = tile[:, : len(columns)]
    np.testing.assert_array_equal(found, expected)


def test_blocks_are_those_that_a_source_is_stored_in(sources):
    blocks = {name: sources[name][0].block for name in NAMES}
    assert blocks == {
        "store": 848,
        "store of whole panels": 2500,
        "store of images": 300,
        "numpy": 2500,
        "numpy in Fortran order": 2500,
        "numpy in float64": 2500,
        "foreign zarr": 333,
        "dask": 700,
        "h5py": 2500,
        "h5py in chunks": 500,
        "rows of a store": 848,
        "rows of an array": 2500,
        "columns of a store": len(VOXELS),
        "columns of an array": len(VOXELS),
        "rows of columns of a store": len(VOXELS),
        "columns of rows of a store": len(VOXELS),
        "rows of rows of a store": 848,
        "rows of rows of an array": 2500,
        "rows in any order": 848,
        "stores one below the other": 848,
        "store in other blocks": 1000,
        "array in other blocks": 77,
    }
    assert as_matrix(np.zeros((2, 10_000), np.float32)).block == 4096


def test_a_store_is_recognised_however_it_comes(tmp_path):
    store = complete(tmp_path / "s.zarr", ROWS[:40, :50])
    for source in (store, store.path, str(store.path), zarr.open_array(str(store.path), mode="r")):
        found = as_matrix(source)
        assert isinstance(found, StoreMatrix)
        assert found.store.content == store.content
        assert as_matrix(found) is found


def test_a_zarr_array_within_a_group_is_read_as_an_array(tmp_path):
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    array = group.create_array("betas", data=ROWS[:40, :50])
    array.attrs["leanrecon"] = {"complete": True}
    assert isinstance(as_matrix(array), ArrayMatrix)


def test_a_store_that_is_not_complete_is_no_matrix(tmp_path):
    store = complete(tmp_path / "s.zarr", ROWS[:40, :50])
    store.discard([(0, 0)])
    for source in (store.path, zarr.open_array(str(store.path), mode="r")):
        with pytest.raises(StoreError, match="is not complete"):
            as_matrix(source)


def test_damage_is_raised_where_a_tile_is_read(tmp_path):
    store = complete(tmp_path / "s.zarr", ROWS, "150kB")
    store.chunk_path(9, 1).unlink()
    source = as_matrix(store)
    memory = np.empty(source.tile_nbytes, np.uint8)
    source.read_tile(range(256), 1, memory)
    with pytest.raises(StoreError, match=r"c/9/1 of .* is missing"):
        source.read_tile(range(256, 512), 1, memory)


@pytest.mark.parametrize("source", [np.zeros(3), np.zeros((2, 3, 4)), [[1, 2], [3, 4]], 3])
def test_what_is_no_matrix_is_refused(source):
    with pytest.raises(InputError, match=r"is not a matrix\. Expected an array of two dimensions"):
        as_matrix(source)


@pytest.mark.parametrize("index", [[3, 2], [1, 1], [5, 6, 0]])
def test_rows_of_a_subset_ascend(index):
    with pytest.raises(ValueError, match="must ascend"):
        RowSubset(as_matrix(ROWS), index)


@pytest.mark.parametrize("index", [[3, 2], [1, 1], [5, 6, 0]])
def test_columns_of_a_subset_ascend(index):
    with pytest.raises(ValueError, match="columns of a subset must ascend"):
        ColumnSubset(as_matrix(ROWS), index)


def test_subsets_are_the_same_where_they_read_the_same():
    base = as_matrix(ROWS)
    assert same_matrix(ColumnSubset(base, [1, 5]), ColumnSubset(as_matrix(ROWS), [1, 5]))
    assert not same_matrix(ColumnSubset(base, [1, 5]), ColumnSubset(base, [1, 6]))
    assert not same_matrix(ColumnSubset(base, [1, 5]), RowSubset(base, [1, 5]))
    assert as_matrix(subset := ColumnSubset(base, [1, 5])) is subset


def test_columns_of_an_area_are_read_from_the_blocks_that_hold_them(tmp_path, monkeypatch):
    base = as_matrix(complete(tmp_path / "s.zarr", ROWS, "150kB"))  # 32 rows by 848 columns
    read, seen = Store.read_chunk, set()
    monkeypatch.setattr(
        Store, "read_chunk", lambda self, i, j, *rest, **how: seen.add(j) or read(self, i, j, *rest, **how)
    )
    area = ColumnSubset(base, [3, 800, 1700, 2400])  # none of columns 848 to 1695
    out = np.empty((600, 4), np.float32)
    area.read(range(600), range(4), out)
    np.testing.assert_array_equal(out, ROWS[:, [3, 800, 1700, 2400]])
    assert seen == {0, 2}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_few_columns_in_another_type_are_read_without_the_rest_of_their_chunks(tmp_path, monkeypatch, dtype):
    read = as_matrix(complete(tmp_path / "s.zarr", ROWS, "150kB"))  # 32 rows by 848 columns
    whole, chunks = Store.read_chunk, []
    monkeypatch.setattr(
        Store, "read_chunk", lambda self, i, j, *rest: chunks.append((i, j)) or whole(self, i, j, *rest)
    )
    for columns in (range(10, 30), range(40, 60), range(5, 25)):
        out = np.empty((600, 20), dtype)
        read.read(range(600), columns, out)
        np.testing.assert_array_equal(out, ROWS[:, columns.start : columns.stop])
    assert sorted(chunks) == [(i, 0) for i in range(19)]  # once each, to check them


def test_a_large_area_is_read_in_tiles_no_wider_than_those_of_arrays():
    base = as_matrix(np.zeros((2, 10_000), np.float32))
    assert ColumnSubset(base, np.arange(0, 10_000, 2)).block == 4096


@given(st.integers(0, 2000), st.integers(1, 600))
def test_panels_cover_their_rows_in_order(rows, size):
    cut = panels(rows, size)
    assert [row for panel in cut for row in panel] == list(range(rows))
    assert all(len(panel) == size for panel in cut[:-1])


def test_reading_tiles_takes_no_more_than_is_said(sources):
    memories = tile_memories(sources["store"][0], sources["numpy in float64"][0], count=3)
    assert [len(memory) for memory in memories] == [PANEL * 2500 * 8] * 3


# Reading ahead


@pytest.mark.parametrize("depth", [1, 2, 3, 20])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_items_come_in_order_each_with_its_own_numbers(depth, n):
    def read(item, memory):
        time.sleep(0.002 if item % 2 else 0)
        memory[:] = item
        return memory[: item + 1]

    memories = [np.empty(50, np.uint8) for _ in range(depth)]
    seen = []
    for item, block in read_ahead(iter(range(n)), read, memories):
        time.sleep(0.001)  # the next item is read meanwhile
        assert (block == item).all()
        seen.append((item, len(block)))
    assert seen == [(k, k + 1) for k in range(n)]


def test_the_next_item_is_read_while_one_is_worked_on():
    second = threading.Event()

    def read(item, memory):
        if item == 1:
            second.set()
        return memory

    for item, _ in read_ahead(range(2), read, [np.empty(1), np.empty(1)]):
        if item == 0:
            assert second.wait(5)


def test_an_error_while_reading_comes_where_its_item_would():
    def read(item, memory):
        if item == 3:
            raise StoreError("chunk c/3/0 is missing")
        return memory

    seen = []
    with pytest.raises(StoreError, match="c/3/0 is missing"):
        seen.extend(item for item, _ in read_ahead(range(10), read, [np.empty(1), np.empty(1)]))
    assert seen == [0, 1, 2]
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_a_consumer_may_stop_early():
    read = []
    with closing(read_ahead(range(1000), lambda k, memory: read.append(k) or memory, [np.empty(1)] * 3)) as ahead:
        for item, _ in ahead:
            if item == 5:
                break
    assert max(read) <= 5 + 3
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


class Sliced:
    shape, dtype = ROWS.shape, ROWS.dtype

    def __getitem__(self, part):
        return ROWS[part]


def test_rows_of_a_subset_are_read_panel_by_panel(monkeypatch):
    """Never more rows of the base at once than scratch_nbytes says."""
    base = ArrayMatrix(Sliced())  # NumPy's own arrays give any rows by themselves
    spans, read = [], ArrayMatrix.read
    monkeypatch.setattr(
        ArrayMatrix, "read", lambda self, rows, *rest: spans.append(len(rows)) or read(self, rows, *rest)
    )
    subset = RowSubset(base, [0, 255, 256, 599])
    out = np.empty((4, 2500), np.float32)
    subset.read(range(4), range(2500), out)
    np.testing.assert_array_equal(out, ROWS[[0, 255, 256, 599]])
    assert spans == [256, 1, 1]
    assert subset.scratch_nbytes >= PANEL * 2500 * 4


class Apart(BlockMatrix):
    """A matrix that gives any rows by themselves."""

    shape, dtype, block = ROWS.shape, ROWS.dtype, 2500

    def read_rows(self, index, columns, out):
        out[...] = ROWS[index, columns.start : columns.stop]


@pytest.mark.parametrize(
    "around", [lambda base: base, lambda base: Reblocked(base, 100), lambda base: RowSubset(base, INDEX)]
)
def test_rows_of_a_matrix_that_gives_any_rows_are_read_alone(around):
    base = around(Apart())  # which reads no blocks: BlockMatrix.read raises NotImplementedError
    out = np.empty((3, 7), np.float32)
    RowSubset(base, [0, 99, 200]).read(range(3), range(10, 17), out)
    chosen = INDEX[[0, 99, 200]] if isinstance(base, RowSubset) else [0, 99, 200]
    np.testing.assert_array_equal(out, ROWS[chosen, 10:17])


def test_columns_of_a_subset_are_read_within_the_memory_that_is_said(monkeypatch):
    """Never more of the base at once than a panel of rows by a block of columns."""
    base = Reblocked(as_matrix(ROWS), 500)
    shapes, read = [], ArrayMatrix.read
    monkeypatch.setattr(
        ArrayMatrix,
        "read",
        lambda self, rows, columns, out: shapes.append((len(rows), len(columns))) or read(self, rows, columns, out),
    )
    subset = ColumnSubset(base, [0, 499, 500, 501, 2499])
    out = np.empty((600, 5), np.float32)
    subset.read(range(600), range(5), out)
    np.testing.assert_array_equal(out, ROWS[:, [0, 499, 500, 501, 2499]])
    assert shapes == [(rows, columns) for rows in (256, 256, 88) for columns in (500, 2, 1)]
    assert subset.scratch_nbytes >= 256 * 500 * 4


def test_memory_of_tiles_is_page_aligned():
    (memory,) = tile_memories(as_matrix(ROWS), count=1)
    assert memory.ctypes.data % 4096 == 0
    assert isinstance(memory, type(buffer((1,), np.uint8)))
    assert matrix.PANEL % 256 == 0


def test_a_dask_array_of_unknown_length_is_refused_with_what_to_call():
    array = dask.array.from_array(np.ones((20, 3)), chunks=5)
    filtered = array[array[:, 0] > 0]
    with pytest.raises(InputError, match="compute_chunk_sizes"):
        as_matrix(filtered)
    assert as_matrix(filtered.compute_chunk_sizes()).shape == (20, 3)
