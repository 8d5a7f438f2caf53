"""Rows that arrive in any order end up in the store, whatever is killed or damaged in between."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanrecon.datasets.nsd.staging import Receipts, Staging
from leanrecon.errors import StoreError
from leanrecon.places import as_location
from leanrecon.stores import Store, shared

ROWS = np.random.default_rng(1).integers(-999, 999, (21, 5), np.int16)


def store_in(folder: Path, *, name: str = "x", **made_of: object) -> Store:
    return Store.create(folder / f"{name}.zarr", ROWS.shape, np.int16, made_of=made_of, chunk=80)  # 8 rows a group


def staging_in(folder: Path, **options: object) -> Staging:
    staging = Staging(store_in(folder, **options), as_location(folder / "fetched"))
    staging.begin()
    return staging


def put(staging: Staging, first: int, stop: int) -> None:
    rows = range(first, min(stop, len(ROWS)))
    staging.put(first, ROWS[first : rows.stop])
    staging.seal(staging.ends(rows))


def waiting(staging: Staging) -> list[str]:
    return sorted(path.name for path in staging.own.iterdir())


def test_rows_in_any_order_fill_the_store_and_nothing_is_left(tmp_path):
    staging = staging_in(tmp_path)
    for row in np.random.default_rng(2).permutation(len(ROWS)).tolist():
        assert row in staging.missing()
        put(staging, row, row + 1)
        assert row not in staging.missing()
    staging.finish()
    staging.store.finish()
    assert np.array_equal(staging.store[:], ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zarr"]


def test_whole_row_groups_go_to_the_store_at_once_and_the_ends_wait_beside_it(tmp_path):
    staging = staging_in(tmp_path)
    put(staging, 3, 17)
    assert staging.store.missing_row_groups() == [0, 2]
    assert waiting(staging) == ["16-17.rows", "3-8.rows"]
    put(staging, 0, 3)
    assert staging.store.missing_row_groups() == [2]
    assert waiting(staging) == ["16-17.rows"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9), st.booleans(), st.booleans()), max_size=12))
def test_what_was_put_is_there_after_a_kill(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("s")
    staging = staging_in(folder)
    arrived: set[int] = set()
    for first, n, killed, sealed in steps:
        staging.put(first, ROWS[first : first + n])
        rows = range(first, min(first + n, len(ROWS)))
        arrived |= set(rows)
        if sealed:
            staging.seal(staging.ends(rows))
        if killed:  # nothing of the object survives
            staging = staging_in(folder)
        assert set(staging.missing().tolist()) == set(range(len(ROWS))) - arrived
    for row in staging.missing().tolist():
        put(staging, row, row + 1)
    staging.begin()
    staging.finish()
    staging.store.finish()
    assert np.array_equal(staging.store[:], ROWS)


def test_rows_that_were_damaged_on_disk_are_asked_for_again(tmp_path):
    staging = staging_in(tmp_path)
    put(staging, 0, 7)
    file = staging.own / "0-7.rows"
    data = bytearray(file.read_bytes())
    data[2 * 10 + 3] ^= 1
    file.write_bytes(data)
    put(staging, 7, 8)
    assert staging.missing().tolist() == [*range(7), *range(8, 21)]
    put(staging, 0, 7)
    assert staging.store.missing_row_groups() == [1, 2]
    assert np.array_equal(staging.store.read_chunk(0, 0, np.empty(staging.store.buffer_nbytes(), np.uint8)), ROWS[:8])


@pytest.mark.parametrize("cut", [None, 10])
def test_rows_whose_file_is_lost_or_cut_are_asked_for_again(tmp_path, cut):
    staging = staging_in(tmp_path)
    put(staging, 0, 5)
    file = staging.own / "0-5.rows"
    data = file.read_bytes()
    file.unlink()
    if cut is not None:
        file.write_bytes(data[:cut])
    assert len(staging_in(tmp_path).missing()) == len(ROWS)


def test_rows_that_wait_for_another_store_are_removed(tmp_path):
    put(staging_in(tmp_path), 0, 5)
    other = staging_in(tmp_path, name="y", roi="V1")
    assert len(other.missing()) == len(ROWS)
    assert not (tmp_path / "fetched").exists() or not list((tmp_path / "fetched").iterdir())


def test_a_chunk_that_is_discarded_from_the_store_is_asked_for_again(tmp_path):
    staging = staging_in(tmp_path)
    put(staging, 0, len(ROWS))
    staging.finish()
    staging.store.finish()
    staging.store.discard([(1, 0)])
    assert staging_in(tmp_path).missing().tolist() == list(range(8, 16))


# Several processes


def test_what_others_put_is_taken_by_its_receipts_whoever_comes_first(tmp_path):
    staging, (early, late) = staging_in(tmp_path), ((0, 11), (11, 21))
    for first, stop in (late, early):
        other = Staging(Store.open(staging.store.path, incomplete=True), staging.folder)
        other.put(first, ROWS[first:stop])
        staging.take(other.receipts(range(first, stop)))
        again = other.receipts(range(first, stop))  # as of a task whose worker died when it was done
        staging.take(again)
        assert not set(range(first, stop)) & set(staging.missing().tolist())
    assert again.parts == []
    assert waiting(staging) == []
    staging.store.finish()
    assert np.array_equal(staging.store[:], ROWS)


def test_what_another_process_put_has_to_be_seen_here_as_it_was_put(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "VISIBLE_WITHIN", 0.2)
    staging = staging_in(tmp_path)
    staging.put(0, ROWS[:5])
    found = staging.receipts(range(5))
    assert found.parts[0][:2] == (0, 5)
    with pytest.raises(StoreError, match=r"0-5\.rows is not what a worker wrote"):
        staging.take(Receipts([], [(0, 5, "00000000")]))
    (staging.own / "0-5.rows").unlink()
    with pytest.raises(StoreError, match=r"0-5\.rows was written by a worker and is not seen here"):
        staging.take(found)
