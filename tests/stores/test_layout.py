import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.errors import StoreError
from leanrecon.stores.layout import MAX_ROWS, MIN_COLUMNS, plan_chunks, store_nbytes
from leanrecon.stores.store import Store


@pytest.mark.parametrize(
    ("shape", "dtype", "chunk_bytes", "chunks"),
    [
        ((100, 50), "f4", 8_000_000, (128, 50)),  # 20 kB in all: one chunk, padded to a power of two rows
        ((8859, 15724), "f4", 8_000_000, (256, 5248)),  # NSD betas: 3 blocks of columns
        ((8859, 91168), "f4", 8_000_000, (256, 7600)),  # VDVAE latents: 91168 / 12, up to a multiple of 16
        ((8859, 768), "f4", 8_000_000, (256, 768)),  # CLIP vision's class row
        ((8859, 425, 425, 3), "u1", 8_000_000, (8, 425, 425, 3)),  # 541,875 bytes an image: 14 would fit
        ((8859, 425, 425, 3), "u1", 16_000_000, (16, 425, 425, 3)),
        ((10, 2000, 2000, 3), "u1", 1_000_000, (1, 2000, 2000, 3)),  # an image is never split
        ((10, 1024), "f4", 4_000, (1, 1024)),  # 4,096 bytes are the least of a wide row
        ((10, 1025), "f4", 4_000, (1, 528)),  # two near-equal blocks, not 1024 + 1
        ((300, 200), "f4", 4_000, (4, 200)),  # 5 rows would fit
        ((1, 7), "f4", 8_000_000, (1, 7)),
        ((50, 200_000), "f4", 8_000_000, (64, 7696)),  # 200,000 / 26, up to a multiple of 16
        ((257, 7), "f4", 8_000_000, (256, 7)),
        ((40, 12, 12, 3), "u1", 8_000_000, (64, 12, 12, 3)),
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
    whole = rows >= shape[0] or rows == MAX_ROWS
    assert whole or 2 * nbytes > chunk_bytes, "chunks are no smaller than they need to be"
    assert rows == 1 or rows < 2 * shape[0], "few rows are not padded to more than twice their number"


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1024, 10**8))
def test_blocks_of_columns_do_not_depend_on_how_many_rows_there_are(few, many, chunk_bytes):
    assert plan_chunks((few, 5000), "f4", chunk_bytes)[1] == plan_chunks((many, 5000), "f4", chunk_bytes)[1]


def test_a_store_whose_few_rows_were_padded_is_continued_as_it_is(tmp_path):
    made_of = {"a": 1}
    assert Store.create(tmp_path, (5, 20), np.float32, made_of=made_of).chunks == (8, 20)
    metadata = json.loads((tmp_path / "zarr.json").read_text())
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [256, 20]  # as every store had it once
    metadata["attributes"]["leanrecon"]["made_of"]["stores.chunk"] = [256, 20]
    (tmp_path / "zarr.json").write_text(json.dumps(metadata))
    store = Store.create(tmp_path, (5, 20), np.float32, made_of=made_of)
    assert store.chunks == (256, 20)
    store.write_rows(0, np.ones((5, 20), np.float32))
    store.finish()
    assert Store.create(tmp_path, (5, 20), np.float32, made_of=made_of).complete
    with pytest.raises(StoreError, match="a was 1, is 2"):
        Store.create(tmp_path, (5, 20), np.float32, made_of={"a": 2})
    assert Store.create(tmp_path, (5, 20), np.float32, made_of={"a": 2}, overwrite=True).chunks == (8, 20)


@pytest.mark.parametrize("shape", [(70, 33), (9, 3000), (1, 5), (40, 6, 5, 3)])
def test_planned_bytes_are_those_of_the_files(tmp_path, shape):
    dtype = np.float32 if len(shape) == 2 else np.uint8
    store = Store.create(tmp_path / "s.zarr", shape, dtype, made_of={}, chunk="5kB")
    for i in range(store.row_groups):
        store.write_rows(i, np.zeros((len(store.group_rows(i)), *shape[1:]), dtype))
    files = [path for path in (tmp_path / "s.zarr" / "c").rglob("*") if path.is_file()]
    checksums = 4 * len(files)
    assert store_nbytes(shape, dtype, 5000) == sum(path.stat().st_size for path in files) - checksums
