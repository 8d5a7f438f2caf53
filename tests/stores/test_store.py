import errno
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.memory_place import MemoryPlace
from zarr.core.buffer import cpu

from leanrecon.errors import LeanreconError, LeanreconWarning, StoreError
from leanrecon.memory import buffer
from leanrecon.places import Location, as_location, disk
from leanrecon.stores import Store
from leanrecon.stores.store import remove

RNG = np.random.default_rng(3)
WIDE = RNG.standard_normal((21, 3000)).astype(np.float32)  # chunks of 8 rows by 1008 columns
IMAGES = RNG.integers(0, 256, (21, 6, 5, 3), np.uint8)
CASES = {
    "columns in blocks": (WIDE, "33kB"),
    "images": (IMAGES, "800B"),
    "one row": (WIDE[:1, :7], "8MB"),
    "rows that fill their chunks": (WIDE[:16, :100], "3200B"),
    "one column": (WIDE[:, :1], "16B"),
    "16-bit": (IMAGES[:, 0, :, 0].astype(np.int16) - 100, "20B"),
}


def create(path: Path, rows: np.ndarray, chunk: str = "8MB", **options) -> Store:
    return Store.create(path, rows.shape, rows.dtype, chunk=chunk, **({"made_of": {"alpha": 1.0}} | options))


def fill(store: Store, rows: np.ndarray) -> Store:
    for i in store.missing_row_groups():
        group = store.group_rows(i)
        store.write_rows(i, rows[group.start : group.stop])
    return store


def complete(path: Path, rows: np.ndarray, chunk: str = "8MB", **options) -> Store:
    store = fill(create(path, rows, chunk, **options), rows)
    store.finish()
    return store


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path) -> Location:
    """A folder on a disk, and one in a place without paths."""
    return as_location(tmp_path) if request.param == "local" else MemoryPlace().at("study")


def chunk_files(path: Location) -> dict[str, Location]:
    return {file.relative_to(path): file for file in as_location(path / "c").files()}


def contents(path: Location) -> dict[str, bytes]:
    return {name: file.read_bytes() for name, file in chunk_files(path).items()}


def stamps(path: Location) -> dict[str, object]:
    local = path.place.local_path(path.key) is not None
    inode = {name: os.stat(file).st_ino if local else 0 for name, file in chunk_files(path).items()}
    return {name: (inode[name], file.stamp()) for name, file in chunk_files(path).items()}


def zarr_array(path: Location) -> zarr.Array:
    """The array as zarr-python alone opens it."""
    if path.place.local_path(path.key) is not None:
        return zarr.open_array(str(path), mode="r")
    buffers = {file.relative_to(path): cpu.Buffer.from_bytes(file.read_bytes()) for file in path.files()}
    return zarr.open_array(zarr.storage.MemoryStore(buffers), mode="r")


# A plain Zarr array


@pytest.mark.parametrize("case", CASES)
def test_zarr_alone_reads_a_store(root, case):
    rows, chunk = CASES[case]
    complete(root / "s.zarr", rows, chunk)
    array = zarr_array(root / "s.zarr")
    assert (array.shape, array.dtype) == (rows.shape, rows.dtype)
    np.testing.assert_array_equal(array[:], rows)


def test_a_store_is_a_top_level_zarr_3_array_with_checksums_and_nan_fill(root):
    complete(root / "s.zarr", WIDE, "33kB")
    array = zarr_array(root / "s.zarr")
    assert array.path == ""
    assert array.metadata.zarr_format == 3
    assert array.chunks == (8, 1008)
    assert [type(codec).__name__ for codec in array.metadata.codecs] == ["BytesCodec", "Crc32cCodec"]
    assert array.shards is None
    assert np.isnan(array.fill_value)


def test_chunk_files_are_the_rows_themselves_and_four_bytes(root):
    complete(root / "s.zarr", WIDE, "33kB")
    files = chunk_files(root / "s.zarr")
    assert list(files) == [f"c/{i}/{j}" for i in range(3) for j in range(3)]
    np.testing.assert_array_equal(np.frombuffer(files["c/1/1"].read_bytes()[:-4], "<f4"), WIDE[8:16, 1008:2016].ravel())
    edge = np.frombuffer(files["c/2/2"].read_bytes()[:-4], "<f4").reshape(8, 1008)
    np.testing.assert_array_equal(edge[:5, :984], WIDE[16:, 2016:])
    assert np.isnan(edge[5:]).all()
    assert np.isnan(edge[:, 984:]).all()


@pytest.mark.parametrize("case", CASES)
def test_rows_come_back_as_they_were_written(root, case):
    rows, chunk = CASES[case]
    store = Store.open(complete(root / "s.zarr", rows, chunk).path)
    for some in (slice(None), slice(3, 4), slice(5, 18), slice(7, 9), slice(-2, None), slice(4, 4), slice(30, 40)):
        np.testing.assert_array_equal(store[some], rows[some])
    with pytest.raises(IndexError, match="steps of one"):
        store[::2]


def test_columns_can_be_written_block_by_block_in_several_turns(root):
    store = create(root / "s.zarr", WIDE, "33kB")
    for j in reversed(range(store.column_groups)):
        columns = store.group_columns(j)
        store.write_columns(j, WIDE[16:, columns.start : columns.stop], first_row=16)
        store.write_columns(j, WIDE[:16, columns.start : columns.stop])
    store.finish()
    assert contents(store.path) == contents(complete(root / "t.zarr", WIDE, "33kB").path)


def test_numbers_are_converted_to_the_type_of_the_store(root):
    store = Store.create(root / "s.zarr", WIDE.shape, np.float32, made_of={})
    fill(store, np.asfortranarray(WIDE.astype(np.float64)))
    np.testing.assert_array_equal(store[:], WIDE)


def test_a_chunk_of_nothing_but_fill_values_is_a_file_all_the_same(root):
    rows = np.full((20, 10), np.nan, np.float32)
    store = complete(root / "s.zarr", rows, "320B")
    assert len(chunk_files(store.path)) == 3
    assert store.complete
    np.testing.assert_array_equal(zarr_array(store.path)[:], rows)


def test_a_block_that_is_no_chunk_is_refused(root):
    store = create(root / "s.zarr", WIDE, "33kB")
    with pytest.raises(ValueError, match=r"c/0/0 of .* can't take a block of shape \(7, 1008\)"):
        store.write_chunk(0, 0, WIDE[:7, :1008])
    assert not chunk_files(store.path)


# Resuming


def test_a_second_run_writes_only_what_is_missing(root):
    store = fill(create(root / "s.zarr", WIDE, "33kB"), WIDE)
    for i, j in [(0, 1), (2, 2)]:
        store.chunk_path(i, j).unlink()
    before = stamps(store.path)
    again = create(root / "s.zarr", WIDE, "33kB")
    assert again.missing() == [(0, 1), (2, 2)]
    assert (again.missing_row_groups(), again.missing_column_groups()) == ([0, 2], [1, 2])
    fill(again, WIDE).finish()
    after = stamps(store.path)
    assert {name for name in after if after[name] != before.get(name)} == {"c/0/1", "c/2/2"}
    np.testing.assert_array_equal(again[:], WIDE)


def test_a_file_that_was_cut_short_counts_as_missing(root):
    store = fill(create(root / "s.zarr", WIDE, "33kB"), WIDE)
    store.chunk_path(1, 1).write_bytes(bytes(100))
    assert create(root / "s.zarr", WIDE, "33kB").missing() == [(1, 1)]


def test_an_incomplete_store_can_not_be_read_by_mistake(root):
    store = fill(create(root / "s.zarr", WIDE, "33kB"), WIDE)
    store.chunk_path(0, 0).unlink()
    store.chunk_path(0, 1).unlink()
    with pytest.raises(StoreError, match=r"s\.zarr is not complete: 2 of 9 chunks are missing\. Run the same command"):
        Store.open(store.path)
    assert Store.open(store.path, incomplete=True).missing() == [(0, 0), (0, 1)]
    with pytest.raises(StoreError, match=r"s\.zarr lacks 2 chunks, c/0/0 first"):
        store.finish()
    assert not Store.open(store.path, incomplete=True).complete
    fill(store, WIDE)
    with pytest.raises(StoreError, match="0 of 9 chunks are missing"):
        Store.open(store.path)
    store.finish()
    assert Store.open(store.path).complete


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    store = fill(create(tmp_path / "s.zarr", WIDE, "33kB"), WIDE)
    for name in ("c/0/0.0123.partial", "c/partly.partial", "zarr.4567.partial"):
        (store.path / name).write_bytes(b"half")
    create(tmp_path / "s.zarr", WIDE, "33kB")
    assert list(tmp_path.rglob("*.partial")) == []


def test_a_folder_without_metadata_is_begun_again(root):
    """A run that was killed before, or a removal that was killed after, zarr.json was there."""
    store = complete(root / "s.zarr", WIDE, "33kB")
    (store.path / "zarr.json").unlink()
    again = create(root / "s.zarr", WIDE, "33kB")
    assert len(again.missing()) == 9


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_removed(tmp_path, overwrite):
    thesis = tmp_path / "results" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(StoreError, match=r"results is not a store: it holds thesis\.txt\. Choose another path"):
        create(tmp_path / "results", WIDE, overwrite=overwrite)
    assert thesis.read_text() == "years of work"


def test_nothing_is_left_behind_by_a_write_that_fails(tmp_path, monkeypatch):
    store = create(tmp_path / "s.zarr", WIDE, "33kB")
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write_rows(0, WIDE[:8])
    monkeypatch.undo()
    assert [p.name for p in store.path.local_path().rglob("*") if p.is_file()] == ["zarr.json"]


def test_removing_takes_the_metadata_first(tmp_path, monkeypatch):
    """What is left of a store by a kill must not say that it is complete."""
    store = complete(tmp_path / "s.zarr", WIDE, "33kB")
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove(store.path)
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(store.path)


# Made of


def test_a_store_made_of_something_else_is_refused_by_name(root):
    made_of = {"regression": {"alpha": 1.0, "standardize": True}, "betas": "abc"}
    complete(root / "s.zarr", WIDE, made_of=made_of)
    before = contents(root / "s.zarr")
    other = {"regression": {"alpha": 2.0, "standardize": True}, "betas": "def"}
    with pytest.raises(StoreError) as error:
        create(root / "s.zarr", WIDE, made_of=other)
    assert 'betas was "abc", is "def"; regression.alpha was 1.0, is 2.0' in str(error.value)
    assert "standardize" not in str(error.value)
    assert "--overwrite" in str(error.value)
    assert contents(root / "s.zarr") == before


@pytest.mark.parametrize(
    ("rows", "chunk", "named"),
    [
        (WIDE, "66kB", r"stores\.chunk was \[8, 1008\], is \[16, 1008\]"),
        (WIDE[:20], "33kB", r"shape was \[21, 3000\], is \[20, 3000\]"),
        (WIDE.astype(np.int32), "33kB", 'dtype was "float32", is "int32"'),
    ],
)
def test_another_layout_is_refused_by_name(root, rows, chunk, named):
    complete(root / "s.zarr", WIDE, "33kB")
    with pytest.raises(StoreError, match=named):
        create(root / "s.zarr", rows, chunk)


def test_overwrite_replaces(root):
    complete(root / "s.zarr", WIDE, "33kB")
    store = complete(root / "s.zarr", IMAGES, "800B", made_of={"alpha": 2.0}, overwrite=True)
    np.testing.assert_array_equal(zarr_array(store.path)[:], IMAGES)
    assert store.made_of["alpha"] == 2.0
    assert contents(store.path) == contents(complete(root / "t.zarr", IMAGES, "800B").path)


def test_overwrite_keeps_what_the_same_settings_made(root):
    complete(root / "s.zarr", WIDE, "33kB")
    before = stamps(root / "s.zarr")
    assert create(root / "s.zarr", WIDE, "33kB", overwrite=True).complete
    assert stamps(root / "s.zarr") == before


def test_notes_of_the_first_run_are_kept_and_decide_nothing(root):
    create(root / "s.zarr", WIDE, notes={"batch": 32})
    assert create(root / "s.zarr", WIDE, notes={"batch": 4}).notes == {"batch": 32}
    assert Store.open(root / "s.zarr", incomplete=True).made_of["alpha"] == 1.0


def test_content_tells_data_not_places(tmp_path):
    here = complete(tmp_path / "s.zarr", WIDE, "33kB")
    there = complete(tmp_path / "far" / "away.zarr", WIDE, "33kB", made_of={"other": "settings"}, notes={"batch": 1})
    changed = WIDE.copy()
    changed[20, 2999] = np.nextafter(changed[20, 2999], 2, dtype=np.float32)
    assert here.content == there.content == Store.open(shutil.copytree(here.path, tmp_path / "copy.zarr")).content
    assert here.content != complete(tmp_path / "changed.zarr", changed, "33kB").content
    assert here.content != complete(tmp_path / "short.zarr", WIDE[:20], "33kB").content


# Damage


def flip(path: Location) -> None:
    data = bytearray(path.read_bytes())
    data[777] ^= 0x10
    path.write_bytes(bytes(data))


def truncate(path: Location) -> None:
    path.write_bytes(path.read_bytes()[:1234])


def lengthen(path: Location) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGE = {
    flip: "does not match its checksum",
    truncate: "has 1234 bytes instead of 32260",
    lengthen: "has 32261 bytes instead of 32260",
    Location.unlink: "is missing",
}


@pytest.mark.parametrize("harm", DAMAGE, ids=lambda harm: harm.__name__)
def test_a_damaged_chunk_is_found_and_named_and_can_not_be_read(root, harm):
    store = complete(root / "s.zarr", WIDE, "33kB")
    assert list(store.damage()) == []
    harm(store.chunk_path(1, 2))
    assert list(store.damage()) == [((1, 2), f"chunk c/1/2 of {store.path} {DAMAGE[harm]}")]
    for read in (lambda: store[:], lambda: store[9:10], lambda: list(store[15:17])):
        with pytest.raises(StoreError) as error:
            read()
        assert f"chunk c/1/2 of {store.path} {DAMAGE[harm]}" in str(error.value)
        assert f"leanrecon verify {store.path} --repair" in str(error.value)
    np.testing.assert_array_equal(store[:8], WIDE[:8])


def test_zarr_alone_notices_a_flipped_byte_too(root):
    store = complete(root / "s.zarr", WIDE, "33kB")
    flip(store.chunk_path(1, 2))
    with pytest.raises(ValueError, match="checksum"):
        zarr_array(store.path)[:]


def test_every_damaged_chunk_is_found(root):
    store = complete(root / "s.zarr", WIDE, "33kB")
    for at, harm in zip([(0, 0), (1, 1), (2, 2)], [flip, truncate, Location.unlink], strict=True):
        harm(store.chunk_path(*at))
    assert [at for at, _ in store.damage()] == [(0, 0), (1, 1), (2, 2)]


def test_reading_a_few_columns_names_missing_and_truncated_chunks(root):
    store = complete(root / "s.zarr", WIDE, "33kB")
    out = np.empty((8, 5), np.float32)
    store.read_columns(1, 1, range(3, 8), out)
    np.testing.assert_array_equal(out, WIDE[8:16, 1011:1016])
    truncate(store.chunk_path(1, 1))
    with pytest.raises(StoreError, match=r"c/1/1 of .* is truncated"):
        store.read_columns(1, 1, range(3, 8), out)
    store.chunk_path(1, 1).unlink()
    with pytest.raises(StoreError, match=r"c/1/1 of .* is missing"):
        store.read_columns(1, 1, range(3, 8), out)


def test_discarded_chunks_are_written_again_and_no_others(root):
    store = complete(root / "s.zarr", WIDE, "33kB")
    before, whole, content = stamps(store.path), contents(store.path), store.content
    flip(store.chunk_path(1, 2))
    store.discard([at for at, _ in store.damage()])
    with pytest.raises(StoreError, match="1 of 9 chunks are missing"):
        Store.open(store.path)
    again = create(store.path, WIDE, "33kB")
    assert again.missing() == [(1, 2)]
    fill(again, WIDE).finish()
    assert Store.open(store.path).content == content
    assert contents(store.path) == whole
    after = stamps(store.path)
    assert [name for name in after if after[name] != before[name]] == ["c/1/2"]


def test_a_repair_that_gives_other_bytes_is_told_and_stands_for_other_content(root):
    """Another processor or library version may round otherwise; what was made of the store no longer fits it."""
    store = complete(root / "s.zarr", WIDE, "33kB")
    content = store.content
    store.discard([(0, 0)])
    again = create(store.path, WIDE, "33kB")
    fill(again, WIDE + 1)
    with pytest.warns(LeanreconWarning, match=r"s\.zarr was made again, but not to the same bytes"):
        again.finish()
    assert Store.open(store.path).content != content


def test_discarding_nothing_changes_nothing(root):
    store = complete(root / "s.zarr", WIDE)
    store.discard([])
    assert Store.open(store.path).complete


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda path: (path / "zarr.json").write_text("{"), r"zarr\.json can't be read"),
        (lambda path: (path / "zarr.json").write_bytes(b"\xff\xfe"), r"zarr\.json can't be read"),
        (lambda path: (path / "zarr.json").write_text('{"zarr_format": 3}'), r"zarr\.json can't be read"),
        (lambda path: (path / "zarr.json").unlink(), "there is no store at"),
    ],
)
def test_damaged_metadata_is_explained(root, harm, found):
    store = complete(root / "s.zarr", WIDE)
    harm(store.path)
    with pytest.raises(StoreError, match=found):
        Store.open(store.path)


def test_other_zarr_arrays_and_groups_are_no_stores(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=WIDE)
    zarr.create_group(str(tmp_path / "g.zarr"))
    with pytest.raises(StoreError, match="is a Zarr array but not one of leanrecon's stores"):
        Store.open(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match="can't be read"):
        Store.open(tmp_path / "g.zarr")
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(tmp_path / "nothing.zarr")


# Disks

LARGE = RNG.standard_normal((300, 3000)).astype(np.float32)  # 256 rows by 1504 columns: 1.5 MB a chunk


def places() -> list[str]:
    return ["disk", *(["memory"] if os.access("/dev/shm", os.W_OK) else [])]


@pytest.fixture(params=places())
def place(request, tmp_path):
    if request.param == "disk":
        yield tmp_path
        return
    folder = Path("/dev/shm") / f"leanrecon-{os.getpid()}"  # no uncached reads on some kernels
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_reading_and_writing_past_the_page_cache_gives_the_same_bytes(place, monkeypatch):
    aligned = buffer(LARGE.shape, np.float32)
    aligned[:] = LARGE
    past = create(place / "past.zarr", LARGE, "2MB")
    memories = [buffer((past.buffer_nbytes() + 8,), np.uint8), buffer((past.buffer_nbytes() + 8,), np.uint8)[3:]]
    fill(past, aligned).finish()
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    through = complete(place / "through.zarr", LARGE, "2MB")
    monkeypatch.undo()
    assert past.content == through.content
    assert contents(past.path) == contents(through.path)
    rows = np.pad(LARGE, ((0, 212), (0, 8)), constant_values=np.nan).reshape(2, 256, 2, 1504)
    for memory in memories:  # page-aligned, and not
        for cached in (True, False):
            for i, j in past.missing() or [(0, 0), (1, 1)]:
                block = past.read_chunk(i, j, memory, cached=cached)
                np.testing.assert_array_equal(block, rows[i, :, j])
    flip(past.chunk_path(0, 0))
    with pytest.raises(StoreError, match="does not match its checksum"):
        past.read_chunk(0, 0, memories[0], cached=False)
    truncate(past.chunk_path(0, 0))
    with pytest.raises(StoreError, match="has 1234 bytes"):
        past.read_chunk(0, 0, memories[0], cached=False)


def test_a_write_that_the_system_cuts_short_is_continued(tmp_path, monkeypatch):
    """As when a disk runs full and is freed again: an uncached write may end anywhere."""
    aligned = buffer(LARGE.shape, np.float32)
    aligned[:] = LARGE
    whole = complete(tmp_path / "whole.zarr", aligned, "2MB")
    write, sizes = os.write, []

    def short(descriptor, data):
        sizes.append(len(data))
        return write(descriptor, data[: 512 * 2049])

    monkeypatch.setattr(os, "write", short)
    cut = complete(tmp_path / "cut.zarr", aligned, "2MB")
    if not sizes:
        pytest.skip("the disk under the temporary folder takes no uncached writes")
    assert cut.content == whole.content
    assert contents(cut.path) == contents(whole.path)


@pytest.mark.parametrize(("cached", "at_once"), [(True, 1000), (True, 8192), (False, 8192)])
def test_a_read_that_the_system_cuts_short_is_continued(tmp_path, monkeypatch, cached, at_once):
    store = complete(tmp_path / "s.zarr", WIDE, "33kB")
    read_at, sizes = disk.read_at, []

    def short(descriptor, views, offset):
        sizes.append(read_at(descriptor, [views[0][:at_once]], offset))
        return sizes[-1]

    monkeypatch.setattr(disk, "read_at", short)
    memory = buffer((store.buffer_nbytes(),), np.uint8)
    np.testing.assert_array_equal(store.read_chunk(1, 1, memory, cached=cached), WIDE[8:16, 1008:2016])
    assert max(sizes) <= at_once
    assert sum(sizes) == 8 * 1008 * 4 + 4


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_the_rest_follows_when_space_is_freed(small_disk, tmp_path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    rows = np.arange(300 * 1000, dtype=np.float32).reshape(300, 1000)
    store = create(small_disk / "s.zarr", rows, "130kB")  # 32 rows, 128 kB a chunk
    with pytest.raises(StoreError, match=r"the disk is full: .*/s\.zarr/c/\d/0 could not be written") as error:
        fill(store, rows)
    assert "everything written so far is kept" in str(error.value)
    assert isinstance(error.value.__cause__, OSError)
    written = stamps(store.path)
    assert 4 <= len(written) < 10
    assert list(small_disk.rglob("*.partial")) == []
    ballast.unlink()
    again = create(small_disk / "s.zarr", rows, "130kB")
    fill(again, rows).finish()
    assert stamps(store.path).items() >= written.items()
    np.testing.assert_array_equal(again[:], rows)


def test_a_disk_that_is_full_from_the_start_is_explained(small_disk):
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "ballast").write_bytes(bytes(3_000_000))
    with pytest.raises(StoreError, match=r"the disk is full: .*s\.zarr/zarr\.json could not be written"):
        create(small_disk / "s.zarr", WIDE)


def test_a_full_disk_during_an_uncached_write_is_explained(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = create(tmp_path / "s.zarr", LARGE, "2MB")
    aligned = buffer((256, 1504), np.float32)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="the disk is full"):
        store.write_chunk(0, 0, aligned)
    assert chunk_files(store.path) == {}


def test_a_read_only_folder_is_explained(small_disk):
    store = create(small_disk / "s.zarr", WIDE, "33kB")
    store.write_rows(0, WIDE[:8])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    again = create(small_disk / "s.zarr", WIDE, "33kB")
    writes = (
        lambda: again.write_rows(1, WIDE[8:16]),
        lambda: again.discard([(0, 0)]),
        lambda: create(small_disk / "t.zarr", WIDE),
        lambda: create(small_disk / "s.zarr", WIDE, "66kB", overwrite=True),
    )
    for write in writes:
        with pytest.raises(
            StoreError, match=r"can't be written: Read-only file system\. Choose a folder you may write"
        ):
            write()
    np.testing.assert_array_equal(again[:8], WIDE[:8])


def test_a_path_that_can_not_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written: Not a directory"):
        create(tmp_path / "file" / "s.zarr", WIDE)


def test_disk_errors_are_explained_once_and_only_they(tmp_path):
    inner = StoreError("something else")
    for error, kind in ((inner, StoreError), (KeyError("x"), KeyError)):
        with pytest.raises(kind) as caught, disk.explained_disk_errors(tmp_path):
            raise error
        assert caught.value is error
    found = r"can't be written: Input/output error\. Check the path"
    with pytest.raises(LeanreconError, match=found), disk.explained_disk_errors(tmp_path / "x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_store_error_crosses_processes(tmp_path):
    error = pickle.loads(pickle.dumps(StoreError("found", expected="that", todo="do this")))
    assert (type(error), str(error)) == (StoreError, "found. Expected that. Do this.")


def test_chunk_files_are_shared_by_no_partial_of_another_writer(tmp_path):
    """Two writers of one chunk each have a file of their own; the last rename wins, whole."""
    one, two = (create(tmp_path / "s.zarr", WIDE, "33kB") for _ in range(2))
    one.write_chunk(0, 0, WIDE[:8, :1008])
    two.write_chunk(0, 0, WIDE[:8, :1008])
    assert [p.name for p in one.chunk_path(0, 0).parent.iterdir()] == ["0"]


def test_a_store_begun_with_other_settings_is_taken_over_while_it_is_empty(tmp_path):
    Store.create(tmp_path / "rows.zarr", (4, 3), np.float32, made_of={"weights": "wrong"})
    store = Store.create(tmp_path / "rows.zarr", (4, 3), np.float32, made_of={"weights": "right"})
    store.write_rows(0, np.ones((4, 3), np.float32))
    with pytest.raises(StoreError, match="weights was"):
        Store.create(tmp_path / "rows.zarr", (4, 3), np.float32, made_of={"weights": "wrong"})
