import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.stores.layout import MAX_ROWS, MIN_COLUMNS, plan_chunks, store_nbytes
from leanrecon.stores.store import Store


@pytest.mark.parametrize(
    ("shape", "dtype", "chunk_bytes", "chunks"),
    [
        ((100, 50), "f4", 8_000_000, (256, 50)),  # 50 kB in all: one chunk, padded to 256 rows
        ((8859, 15724), "f4", 8_000_000, (256, 5248)),  # NSD betas: 3 blocks of columns
        ((8859, 91168), "f4", 8_000_000, (256, 7600)),  # VDVAE latents: 91168 / 12, up to a multiple of 16
        ((8859, 768), "f4", 8_000_000, (256, 768)),  # CLIP vision's class row
        ((8859, 425, 425, 3), "u1", 8_000_000, (8, 425, 425, 3)),  # 541,875 bytes an image: 14 would fit
        ((8859, 425, 425, 3), "u1", 16_000_000, (16, 425, 425, 3)),
        ((10, 2000, 2000, 3), "u1", 1_000_000, (1, 2000, 2000, 3)),  # an image is never split
        ((10, 1024), "f4", 4_000, (1, 1024)),  # 4,096 bytes are the least of a wide row
        ((10, 1025), "f4", 4_000, (1, 528)),  # two near-equal blocks, not 1024 + 1
        ((300, 200), "f4", 4_000, (4, 200)),  # 5 rows would fit
        ((1, 7), "f4", 8_000_000, (256, 7)),
        ((10, 3), "f4", 1, (1, 3)),  # less than a row is asked for
        ((30_000, 1), "i2", 8_000_000, (256, 1)),
    ],
)
def test_chunks_of_known_shapes(shape, dtype, chunk_bytes, chunks):
    assert plan_chunks(shape, dtype, chunk_bytes) == chunks


shapes = st.one_of(
    st.tuples(st.integers(1, 100_000), st.integers(1, 400_000)),
    st.tuples(st.integers(1, 100_000), st.integers(1, 600), st.integers(1, 600), st.sampled_from([1, 3])),
)


@given(shapes, st.sampled_from(["u1", "i2", "f4"]), st.integers(1, 10**8))
def test_chunks_of_any_shape(shape, dtype, chunk_bytes):
    rows, *width = plan_chunks(shape, dtype, chunk_bytes)
    assert 1 <= rows <= MAX_ROWS
    assert rows & (rows - 1) == 0, "rows are a power of two, so that panels of 256 rows hold whole chunks"
    if len(shape) == 4:
        assert tuple(width) == shape[1:]
    else:
        blocks = math.ceil(shape[1] / width[0])
        assert (blocks - 1) * width[0] < shape[1] <= blocks * width[0], "blocks cover the columns, none is empty"
        assert blocks == 1 or width[0] >= MIN_COLUMNS / 2
    nbytes = rows * math.prod(width) * np.dtype(dtype).itemsize
    assert nbytes <= chunk_bytes or rows == 1, "only a lone row may be larger than a chunk should be"
    assert rows == MAX_ROWS or 2 * nbytes > chunk_bytes, "chunks are no smaller than they need to be"


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1024, 10**8))
def test_chunks_do_not_depend_on_how_many_rows_there_are(few, many, chunk_bytes):
    assert plan_chunks((few, 5000), "f4", chunk_bytes) == plan_chunks((many, 5000), "f4", chunk_bytes)


@pytest.mark.parametrize("shape", [(70, 33), (9, 3000), (1, 5), (40, 6, 5, 3)])
def test_planned_bytes_are_those_of_the_files(tmp_path, shape):
    dtype = np.float32 if len(shape) == 2 else np.uint8
    store = Store.create(tmp_path / "s.zarr", shape, dtype, made_of={}, chunk="5kB")
    for i in range(store.row_groups):
        store.write_rows(i, np.zeros((len(store.group_rows(i)), *shape[1:]), dtype))
    files = [path for path in (tmp_path / "s.zarr" / "c").rglob("*") if path.is_file()]
    checksums = 4 * len(files)
    assert store_nbytes(shape, dtype, 5000) == sum(path.stat().st_size for path in files) - checksums
