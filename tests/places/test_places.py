"""Every place keeps the same promises: files appear whole, are read from any offset, and folders are beginnings of keys."""

import contextlib
import os
import pickle
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import buckets
from support.memory_place import MemoryPlace

from leanrecon.errors import InputError, StoreError
from leanrecon.places import Location, as_location
from leanrecon.places.files import read_json, sweep, write_json, write_text, write_whole
from leanrecon.places.local import LocalPlace
from leanrecon.places.objects import ObjectPlace

DATA = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)


IN_BUCKETS = [
    pytest.param("bucket", marks=[pytest.mark.slow, pytest.mark.long]),
    pytest.param("held bucket", marks=pytest.mark.slow),
]


@pytest.fixture(params=["local", "local folder", "memory", *IN_BUCKETS])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if "bucket" in request.param:
        with buckets.environment(request.getfixturevalue("s3"), cache=tmp_path):
            place = buckets.at(tmp_path.name)
            with place.hold("a test", "wait") if "held" in request.param else contextlib.nullcontext():
                yield place
        return
    places = {
        "local": lambda: as_location(tmp_path),
        "local folder": lambda: Location(LocalPlace(tmp_path), "."),
        "memory": lambda: MemoryPlace().at("."),
    }
    found: Location = places[request.param]()
    yield found


# Files


def test_a_file_is_its_parts_one_after_another(root: Location) -> None:
    file = root / "a" / "b.bin"
    assert (file.size(), file.stamp(), file.exists()) == (None, None, False)
    file.write_bytes(DATA, b"four", bytearray(b"more"))
    assert file.read_bytes() == DATA.tobytes() + b"fourmore"
    assert file.size() == 10_008
    file.write_bytes()
    assert file.read_bytes() == b""


def test_a_file_that_is_written_again_has_another_stamp(root: Location) -> None:
    file = root / "a.txt"
    file.write_text("one")
    stamp = file.stamp()
    assert stamp is not None
    assert file.stamp() == stamp
    file.write_text("two")
    assert file.stamp() != stamp


@pytest.mark.parametrize(("offset", "length", "expected"), [(0, 100, 100), (4000, 8192, 6000), (10_000, 5, 0)])
@pytest.mark.parametrize("cached", [True, False])
def test_any_piece_of_a_file_is_read(root: Location, offset: int, length: int, expected: int, cached: bool) -> None:
    file = root / "a.bin"
    file.write_bytes(DATA)
    memory = np.zeros(length, np.uint8)
    assert root.place.read_into(file.key, memory, offset, cached) == expected
    np.testing.assert_array_equal(memory[:expected], DATA[offset : offset + length])
    assert not memory[expected:].any()


def test_rows_a_stride_apart_are_read_until_the_file_ends(root: Location) -> None:
    file = root / "a.bin"
    file.write_bytes(DATA)
    wide = np.zeros((5, 20), np.uint16)
    out = wide[:, 3:13]
    assert root.place.read_rows(file.key, out, 6, 100) == 5
    np.testing.assert_array_equal(out, [DATA[6 + 100 * k :][:20].view(np.uint16) for k in range(5)])
    assert not wide[:, :3].any()
    assert not wide[:, 13:].any()
    assert root.place.read_rows(file.key, out, 9_700, 100) == 3


def test_what_is_not_there_can_not_be_read(root: Location) -> None:
    file, memory = root / "no" / "thing", np.zeros((1, 1), np.uint8)
    for read in (
        lambda: file.read_bytes(),
        lambda: file.open(),
        lambda: root.place.read_into(file.key, memory[0]),
        lambda: root.place.read_rows(file.key, memory, 0, 1),
        lambda: file.unlink(),
    ):
        with pytest.raises(FileNotFoundError):
            read()
    file.unlink(missing_ok=True)
    file.delete_tree()
    assert read_json(file) is None


def test_an_open_file_is_read_from_any_offset(root: Location) -> None:
    write_whole(root / "a.npz", lambda file: np.savez(file, x=DATA, y=DATA[::-1]))
    with (root / "a.npz").open() as file, np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["y"], DATA[::-1])
    write_text(root / "lines", "one\ntwo\n")
    with (root / "lines").open() as file:
        assert file.readlines() == [b"one\n", b"two\n"]
        file.seek(-4, os.SEEK_END)
        assert file.read(2) == b"tw"
        file.seek(-1, os.SEEK_CUR)
        assert file.read() == b"wo\n"


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(root: Location) -> None:
    file = root / "a" / "b.txt"
    file.write_text("before")
    with pytest.raises(KeyboardInterrupt), file.writing() as out:
        out.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "before"
    if (path := root.place.local_path(root.key)) is not None:
        assert [p.name for p in (path / "a").iterdir()] == ["b.txt"]


# Folders


def test_folders_are_the_beginnings_of_keys(root: Location) -> None:
    for name in ("s/c/0/1", "s/c/0/0", "s/zarr.json", "s.json", "t"):
        (root / name).write_text(name)
    assert [path.name for path in root.iterdir()] == ["s", "s.json", "t"]
    assert root.place.children((root / "s").key) == ["c/", "zarr.json"]
    assert [file.relative_to(root) for file in (root / "s").files()] == ["s/c/0/0", "s/c/0/1", "s/zarr.json"]
    assert [path.name for path in root.glob("s*")] == ["s", "s.json"]
    assert [(root / name).is_dir() for name in ("s", "s/c", "t", "no")] == [True, True, False, False]
    assert [(root / name).is_file() for name in ("s", "s/c", "t", "no")] == [False, False, True, False]
    (root / "s").delete_tree()
    assert [file.relative_to(root) for file in root.files()] == ["s.json", "t"]
    assert not (root / "s").exists()


def test_a_held_folder_is_held_by_one_alone(root: Location) -> None:
    root = root / "study"
    with root.hold("another run", "wait for it"):
        refused = []

        def try_it() -> None:
            try:
                with root.hold("another run", "wait for it"):
                    pass
            except StoreError as error:
                refused.append(str(error))

        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert re.fullmatch(rf"another run is using {re.escape(str(root))}( \(.*\))?\. Wait for it\..*", refused[0])
    with root.hold("another run", "wait for it"):
        pass


def test_a_linked_file_outlives_a_new_one_under_the_other_key(root: Location) -> None:
    one, two = root / "a" / "one", root / "b" / "two"
    one.write_text("bytes")
    if not root.place.link(one.key, two.key):
        assert not two.exists()
        return
    assert two.read_text() == "bytes"
    one.write_text("others")
    assert (one.read_text(), two.read_text()) == ("others", "bytes")
    assert root.place.link(one.key, two.key)
    assert root.place.link(one.key, two.key)
    assert two.read_text() == "others"
    assert [path.name for path in two.parent.iterdir()] == ["two"]
    if root.place.local_path(root.key) is not None:
        assert os.listdir(two.parent) == ["two"]


# Small files


def test_small_files_come_back_as_they_were_written(root: Location) -> None:
    content = {"names": ["Öl", "x"], "n": 1.5, "none": None}
    write_json(root / "a.json", content)
    write_json(root / "b.json", content, indent=1)
    assert read_json(root / "a.json") == read_json(root / "b.json") == content
    assert (root / "a.json").read_text() == '{"names": ["Öl", "x"], "n": 1.5, "none": null}'
    (root / "c.json").write_text("{")
    assert read_json(root / "c.json") is None
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(root / "d.json", float("nan"))
    assert not (root / "d.json").exists()


def test_a_text_that_is_there_already_is_not_written_again(root: Location) -> None:
    write_text(root / "a.txt", "eins")
    stamp = (root / "a.txt").stamp()
    write_text(root / "a.txt", "eins")
    assert (root / "a.txt").stamp() == stamp
    write_text(root / "a.txt", "zwei")
    assert (root / "a.txt").read_text() == "zwei"


def test_what_a_kill_left_half_written_is_listed_nowhere_and_swept(tmp_path: Path) -> None:
    for name in ("a.json.12.partial", "deep/b.png.34.partial", "a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    root = as_location(tmp_path)
    assert [file.name for file in root.files()] == ["a.json"]
    assert root.place.children(root.key) == ["a.json", "deep/"]
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*.partial")) == ["b.png.34.partial"]
    root.sweep(deep=True)
    assert not list(tmp_path.rglob("*.partial"))


# Locations


def test_locations_are_joined_and_taken_apart_as_paths_are() -> None:
    where = as_location("study/features") / "pca" / "train.zarr"
    assert str(where) == str(Path("study/features/pca/train.zarr"))
    assert (where.name, where.stem, where.suffix) == ("train.zarr", "train", ".zarr")
    assert where.with_name("test.zarr") == where.parent / "test.zarr"
    assert where.relative_to(as_location("study")) == "features/pca/train.zarr"
    assert as_location(where) is where
    assert pickle.loads(pickle.dumps(where)) == where
    assert as_location(Path("study/features/")) == as_location("study/features")
    assert str(as_location(".") / "a") == "a"


def test_the_folders_above_reach_beyond_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    above = [str(folder) for folder in as_location("b/c").parents]
    assert above[:2] == ["b", "."]
    assert str(tmp_path) in above
    assert above[-1] == str(Path("/"))


def test_one_file_has_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_location("a/../b").address() == (as_location(tmp_path) / "b").address()
    assert as_location("b/c").is_within(as_location(tmp_path / "b"))
    assert as_location("b").is_within(as_location("b"))
    assert not as_location("bc").is_within(as_location("b"))


def test_a_location_on_this_machine_is_a_path_and_others_are_not(tmp_path: Path) -> None:
    assert Path(as_location(tmp_path) / "a") == tmp_path / "a"
    with pytest.raises(StoreError, match="is not on a disk of this machine"):
        os.fspath(MemoryPlace().at("a"))


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.org/study", r"https://example\.org/study is a URL\. Expected a folder on a disk"),
        ("file:///data/study", "file://data/study is a URL"),
        ("S3://bucket/study", r"is a URL.*Write it as s3://bucket/study\."),
        ("gcs://bucket/study", r"is a URL.*Write it as gs://bucket/study\."),
        ("abfss://container/study", r"is a URL.*Write it as az://container/study\."),
        ("s3://", "s3:.* names no bucket"),
        ("S3://", "S3:.* names no bucket"),
        ("https://", "https:.* names no bucket"),
    ],
)
def test_other_urls_are_refused_by_name(url: str, words: str, kind: type, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        with pytest.raises(InputError, match=words):
            as_location(kind(url))  # a Path has lost a slash
        assert list(Path().iterdir()) == []


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(InputError, match="holds a zero byte"):
        as_location("a\0b")


def test_colons_in_paths_of_this_machine_are_no_urls(tmp_path: Path) -> None:
    for text in ("C:/data", "run 2:/x", "a/b:/c", "run2:", f"{tmp_path}/s3:/bucket"):
        assert as_location(text).local_path() == Path(text)


@pytest.mark.parametrize("text", ["s3://bucket/a/study", "s3://bucket/a/study/", Path("s3://bucket/a/study")])
def test_the_url_of_a_bucket_is_a_location(text: str | Path) -> None:
    where = as_location(text)
    assert str(where) == where.address() == "s3://bucket/a/study"
    assert (where.place, where.key, where.parent.parent.key) == (ObjectPlace("s3://bucket"), "a/study", ".")
    assert pickle.loads(pickle.dumps(where)) == where
    assert (where / "x").is_within(as_location("s3://bucket"))
    assert not where.is_within(as_location("gs://bucket"))


@pytest.mark.parametrize("text", ["s3://KEY:SECRET@bucket/study", "s3://bucket/../other", "gs://-bucket"])
def test_urls_that_name_no_bucket_are_refused_without_their_secrets(text: str) -> None:
    with pytest.raises(InputError, match="names no bucket") as refused:
        as_location(text)
    assert "SECRET" not in str(refused.value)


def test_a_folder_that_another_process_still_writes_to_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "fit").mkdir()
    (folder / "a").touch()
    late, rmdir = iter(["b", "c"]), os.rmdir

    def slow(path: Any, **options: Any) -> None:
        if (name := next(late, None)) is not None:
            (folder / name).touch()
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", slow)
    as_location(folder).delete_tree()
    assert not folder.exists()
    assert next(late, None) is None


def test_a_folder_that_another_process_makes_just_now_has_no_children_yet(tmp_path, monkeypatch):
    folder, scandir = tmp_path / "later", os.scandir

    def late(path):
        try:
            return scandir(path)
        except FileNotFoundError:
            folder.mkdir()
            raise

    monkeypatch.setattr(os, "scandir", late)
    assert list(as_location(folder).iterdir()) == []
    assert folder.is_dir()
