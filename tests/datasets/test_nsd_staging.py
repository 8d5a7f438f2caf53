"""Rows that arrive in any order end up in the store, whatever is killed or damaged in between."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanrecon.datasets.nsd.staging import Staging
from leanrecon.stores import Store

ROWS = np.random.default_rng(1).integers(-999, 999, (21, 5), np.int16)


def store_in(folder, *, name="x", **made_of):
    return Store.create(folder / f"{name}.zarr", ROWS.shape, np.int16, made_of=made_of, chunk=80)  # 8 rows a group


def test_rows_in_any_order_fill_the_store_and_nothing_is_left(tmp_path):
    store = store_in(tmp_path)
    staging = Staging(store, tmp_path / "fetched")
    for row in np.random.default_rng(2).permutation(len(ROWS)).tolist():
        assert row in staging.missing()
        staging.put(row, ROWS[row : row + 1])
        assert row not in staging.missing()
    staging.finish()
    store.finish()
    assert np.array_equal(store[:], ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zarr"]


def test_a_whole_row_group_goes_to_the_store_at_once(tmp_path):
    store = store_in(tmp_path)
    staging = Staging(store, tmp_path / "fetched")
    staging.put(3, ROWS[3:17])
    assert store.missing_row_groups() == [0, 2]
    assert sorted(path.name for path in staging.own.iterdir()) == ["0.rows", "2.rows", "notes"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.booleans()), max_size=12))
def test_what_was_staged_is_there_after_a_kill(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("s")
    staging = Staging(store_in(folder), folder / "fetched")
    put: set[int] = set()
    for first, n, killed in steps:
        staging.put(first, ROWS[first : first + n])
        put |= set(range(first, min(first + n, len(ROWS))))
        if killed:  # nothing of the object survives
            staging = Staging(store_in(folder), folder / "fetched")
        assert set(staging.missing().tolist()) == set(range(len(ROWS))) - put
    for row in staging.missing().tolist():
        staging.put(row, ROWS[row : row + 1])
    staging.finish()
    staging.store.finish()
    assert np.array_equal(staging.store[:], ROWS)


def test_rows_that_were_damaged_on_disk_are_asked_for_again(tmp_path):
    staging = Staging(store_in(tmp_path), tmp_path / "fetched")
    staging.put(0, ROWS[:7])
    file = staging.own / "0.rows"
    data = bytearray(file.read_bytes())
    data[2 * 10 + 3] ^= 1  # row 2
    file.write_bytes(data)
    staging.put(7, ROWS[7:8])
    assert staging.missing().tolist() == [2, *range(8, 21)]
    staging.put(2, ROWS[2:3])
    assert staging.store.missing_row_groups() == [1, 2]
    assert np.array_equal(staging.store.read_chunk(0, 0, np.empty(staging.store.buffer_nbytes(), np.uint8)), ROWS[:8])


@pytest.mark.parametrize("lost", ["notes", "0.rows"])
def test_rows_whose_files_are_lost_are_asked_for_again(tmp_path, lost):
    staging = Staging(store_in(tmp_path), tmp_path / "fetched")
    staging.put(0, ROWS[:5])
    (staging.own / lost).unlink()
    assert len(Staging(store_in(tmp_path), tmp_path / "fetched").missing()) == len(ROWS)


def test_rows_staged_for_another_store_are_not_used(tmp_path):
    staging = Staging(store_in(tmp_path), tmp_path / "fetched")
    staging.put(0, ROWS[:5])
    other = Staging(store_in(tmp_path, name="y", roi="V1"), tmp_path / "fetched")
    assert len(other.missing()) == len(ROWS)
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [other.own.name]


def test_a_chunk_that_is_discarded_from_the_store_is_asked_for_again(tmp_path):
    store = store_in(tmp_path)
    staging = Staging(store, tmp_path / "fetched")
    staging.put(0, ROWS)
    staging.finish()
    store.finish()
    store.discard([(1, 0)])
    assert Staging(store_in(tmp_path), tmp_path / "fetched").missing().tolist() == list(range(8, 16))
