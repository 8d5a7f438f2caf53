"""Folders of images: continued, refused by name, checked, and never half-written."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.memory_place import MemoryPlace

from leanrecon.errors import StoreError
from leanrecon.places import Location, as_location
from leanrecon.stores.pictures import Pictures, remove

Array = np.ndarray[Any, Any]

SHAPE = (6, 9, 3)
ROWS = 5
IMAGES = np.random.default_rng(0).integers(0, 256, (ROWS, *SHAPE), np.uint8)


def create(
    path: Path | Location, *, rows: int = ROWS, shape: Any = SHAPE, overwrite: bool = False, **made_of: Any
) -> Pictures:
    return Pictures.create(path, rows, shape, made_of=made_of, overwrite=overwrite)


def write(pictures: Pictures, images: Array = IMAGES) -> Pictures:
    for row in pictures.missing():
        pictures.write(row, images[row])
    pictures.finish()
    return pictures


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder on a disk, and one in a place without paths."""
    return as_location(tmp_path) if request.param == "local" else MemoryPlace().at("study")


@pytest.fixture
def path(root: Location) -> Location:
    return root / "reconstructions" / "stage1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is on a disk."""
    return tmp_path / "reconstructions" / "stage1"


@pytest.fixture
def whole(path: Location) -> Pictures:
    write(create(path, alpha=1))
    return Pictures.open(path)


def files(root: Path | Location) -> dict[str, bytes]:
    return {file.relative_to(as_location(root)): file.read_bytes() for file in as_location(root).files()}


def names(folder: Location) -> list[str]:
    return [path.name for path in folder.iterdir()]


def stamps(folder: Location) -> dict[str, object]:
    return {str(file): file.stamp() for file in folder.files()}


# Writing and reading


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_they_were_and_any_program_reads_them(path: Location, channels: int) -> None:
    images = IMAGES[..., :channels]
    write(create(path, shape=(*SHAPE[:2], channels)), images)
    pictures = Pictures.open(path)
    assert (pictures.rows, pictures.shape, pictures.complete) == (ROWS, (*SHAPE[:2], channels), True)
    for row in range(ROWS):
        np.testing.assert_array_equal(pictures.read(row), images[row])
        with Image.open((path / f"{row:05d}.png").open()) as picture:
            assert (picture.format, picture.size) == ("PNG", (9, 6))
            np.testing.assert_array_equal(np.asarray(picture), images[row].squeeze())


@pytest.mark.parametrize("image", [IMAGES[0, :, :, :1], IMAGES[0, :5], IMAGES[0] / 255, IMAGES[0].transpose(1, 0, 2)])
def test_an_image_of_another_kind_is_not_written(path: Location, image: Array) -> None:
    pictures = create(path)
    with pytest.raises(ValueError, match="can't take"):
        pictures.write(0, image)
    assert pictures.missing() == list(range(ROWS))


def test_a_folder_is_complete_only_when_every_image_is_there(path: Location) -> None:
    pictures = create(path)
    pictures.write(2, IMAGES[2])
    assert pictures.missing() == [0, 1, 3, 4]
    with pytest.raises(StoreError, match=r"lacks 4 images, 00000\.png first"):
        pictures.finish()
    with pytest.raises(StoreError, match="4 of 5 images are missing"):
        Pictures.open(path)
    assert not Pictures.open(path, incomplete=True).complete


def test_where_nothing_was_written_the_stage_to_run_is_named(path: Location) -> None:
    with pytest.raises(StoreError, match=r"there are no images at .*stage1\. Run the stage"):
        Pictures.open(path)


def test_what_the_images_are_is_told_by_their_bytes(path: Location, root: Location, whole: Pictures) -> None:
    again = write(create(root / "again", alpha=1))
    assert again.content == whole.content
    other = IMAGES.copy()
    other[3, 2, 2, 1] ^= 1
    assert write(create(root / "other", alpha=1), other).content != whole.content


# Continuing


def test_a_run_is_continued_where_it_stopped(path: Location) -> None:
    first = create(path, alpha=1)
    first.write(0, IMAGES[0])
    first.write(3, IMAGES[3])
    if path.place.local_path(path.key):
        (path / "00001.png.0123.partial").local_path().write_bytes(b"half")
    before = {row: (path / f"{row:05d}.png").stamp() for row in (0, 3)}
    again = create(path, alpha=1)
    assert again.missing() == [1, 2, 4]
    write(again)
    assert {row: (path / f"{row:05d}.png").stamp() for row in (0, 3)} == before
    if path.place.local_path(path.key):
        assert sorted(os.listdir(path)) == [f"{row:05d}.png" for row in range(ROWS)]
    assert list(Pictures.open(path).damage()) == []


def test_a_complete_folder_is_left_as_it_is(path: Location, whole: Pictures) -> None:
    before = stamps(path.parent)
    write(create(path, alpha=1))
    write(create(path, alpha=1, overwrite=True))
    assert stamps(path.parent) == before


def test_a_run_killed_between_record_and_folder_is_continued(path: Location) -> None:
    create(path, alpha=1)
    path.delete_tree()
    assert list(write(create(path, alpha=1)).damage()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [({"alpha": 2}, "alpha was 1, is 2"), ({"rows": 6}, "rows was 5, is 6"), ({"shape": (6, 9, 1)}, "shape was")],
)
def test_images_of_other_settings_are_refused_by_name(path: Location, whole: Pictures, change: Any, named: str) -> None:
    before = files(path.parent)
    with pytest.raises(StoreError, match=named) as error:
        create(path, **({"alpha": 1} | change))
    assert "--overwrite" in str(error.value)
    assert files(path.parent) == before


def test_images_of_other_settings_are_overwritten_when_asked(path: Location, whole: Pictures) -> None:
    pictures = create(path, rows=2, alpha=2, overwrite=True)
    assert pictures.missing() == [0, 1]
    write(pictures)
    assert names(path) == ["00000.png", "00001.png"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("record", [False, True])
def test_a_folder_that_holds_anything_else_is_never_emptied(path: Location, record: bool, overwrite: bool) -> None:
    if record:
        write(create(path, alpha=1))
    (path / "notes.txt").write_text("mine")
    before = files(path.parent)
    with pytest.raises(StoreError, match=r"notes\.txt|alpha was 1"):
        create(path, alpha=2, overwrite=overwrite)
    with pytest.raises(StoreError, match=r"holds notes\.txt beside images"):
        remove(path)
    assert files(path.parent) == before


def test_removing_images_leaves_nothing(path: Location, whole: Pictures) -> None:
    remove(path)
    assert not path.place.local_path(path.key) or list(path.parent.local_path().iterdir()) == []
    assert names(path.parent) == []
    remove(path)  # nor does it mind


# Damage


def truncate(file: Location) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def flip(file: Location) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def replace(file: Location) -> None:
    with file.writing() as out:
        Image.fromarray(IMAGES[0]).save(out, format="PNG")


HARMS = {
    truncate: "does not match its checksum",
    flip: "does not match",
    replace: "does not match",
    Location.unlink: "missing",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_damage_is_found_and_only_the_damaged_image_made_again(path: Location, whole: Pictures, harm: Any) -> None:
    before = files(path.parent)
    harm(path / "00003.png")
    ((row, what),) = whole.damage()
    assert row == 3
    assert "00003.png" in what
    assert HARMS[harm] in what
    kept = (path / "00002.png").stamp()
    whole.discard([row])
    assert not Pictures.open(path, incomplete=True).complete
    again = create(path, alpha=1)
    assert again.missing() == [3]
    write(again)
    assert files(path.parent) == before
    assert (path / "00002.png").stamp() == kept
    assert list(Pictures.open(path).damage()) == []


def test_an_image_cut_off_anywhere_is_read_whole_or_not_at_all(path: Location, whole: Pictures) -> None:
    file = path / "00001.png"
    data = file.read_bytes()
    refused: list[str] = []
    for end in range(len(data)):
        file.write_bytes(data[:end])
        try:
            np.testing.assert_array_equal(whole.read(1), IMAGES[1])  # what is cut off may be checksums alone
        except StoreError as error:
            refused.append(str(error))
    pattern = re.compile(r"00001\.png .* can't be read .*leanrecon verify .*stage1 --repair")
    assert all(map(pattern.search, refused))
    assert len(refused) > 0.9 * IMAGES[1].nbytes


def test_a_missing_image_is_an_error_that_names_the_command(path: Location, whole: Pictures) -> None:
    (path / "00004.png").unlink()
    with pytest.raises(StoreError, match=r"00004\.png .* is missing\. Run `leanrecon verify"):
        whole.read(4)


@pytest.mark.parametrize(
    "other",
    [IMAGES[0, :, :, 0], IMAGES[0, :5], np.zeros((6, 9, 4), np.uint8), IMAGES[0].transpose(1, 0, 2)],
    ids=["grey", "cut", "with alpha", "on its side"],
)
def test_an_image_of_another_shape_is_refused(path: Location, whole: Pictures, other: Array) -> None:
    with (path / "00000.png").writing() as file:
        Image.fromarray(np.ascontiguousarray(other)).save(file, format="PNG")
    with pytest.raises(StoreError, match=r"instead of \(6, 9, 3\)"):
        whole.read(0)


def test_nothing_discarded_changes_nothing(path: Location, whole: Pictures) -> None:
    before = files(path.parent)
    whole.discard([])
    assert files(path.parent) == before
    assert Pictures.open(path).complete


def test_damage_that_a_kill_kept_from_being_removed_is_not_taken_for_an_image(
    path: Location, whole: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(path / "00003.png")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(path.place), "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            whole.discard([3])
    write(create(path, alpha=1))
    pictures = Pictures.open(path)
    if not list(pictures.damage()):  # then the image has to be there, whole
        np.testing.assert_array_equal(pictures.read(3), IMAGES[3])


# Copies


def test_a_copy_has_the_same_bytes_and_only_what_was_missing_is_copied(root: Location, whole: Pictures) -> None:
    other = create(root / "final", stage1=whole.content)
    other.write(2, IMAGES[2])
    kept = (root / "final" / "00002.png").stamp()
    other.copy(whole)
    other.finish()
    assert files(root / "final") == files(whole.path)
    assert other.content == whole.content
    assert (root / "final" / "00002.png").stamp() == kept


@pytest.mark.parametrize("harm", [truncate, flip])
def test_damage_is_not_copied_as_if_it_were_an_image(root: Location, whole: Pictures, harm: Any) -> None:
    harm(whole.path / "00001.png")
    other = create(root / "final", stage1=whole.content)
    with pytest.raises(StoreError, match=r"00001\.png"):
        other.copy(whole)
        other.finish()


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Pictures, Pictures]:
    """Images on a disk, and a folder that shares their files."""
    stage1 = write(create(tmp_path / "stage1", alpha=1))
    final = create(tmp_path / "final", stage1=stage1.content)
    final.link(stage1)
    final.finish()
    return stage1, final


def test_linked_images_are_the_same_files(linked: tuple[Pictures, Pictures]) -> None:
    stage1, final = linked
    assert [os.stat(final.file(row)).st_ino for row in range(ROWS)] == [
        os.stat(stage1.file(row)).st_ino for row in range(ROWS)
    ]
    assert final.content == stage1.content
    assert names(final.path) == [f"{row:05d}.png" for row in range(ROWS)]
    assert list(final.damage()) == []


def test_damage_of_a_shared_file_is_found_on_both_sides_and_mended_on_both(linked: tuple[Pictures, Pictures]) -> None:
    stage1, final = linked
    data = bytearray(stage1.file(2).read_bytes())
    data[30] ^= 1
    with Path(stage1.file(2)).open("r+b") as file:  # in place, as a disk damages it
        file.write(data)
    assert [[row for row, _ in pictures.damage()] for pictures in linked] == [[2], [2]]
    for pictures in linked:
        pictures.discard([2])
    write(Pictures.open(stage1.path, incomplete=True))
    again = Pictures.open(final.path, incomplete=True)
    again.link(stage1)
    again.finish()
    assert [list(pictures.damage()) for pictures in (stage1, again)] == [[], []]


def test_images_drawn_anew_leave_those_that_shared_their_files(linked: tuple[Pictures, Pictures]) -> None:
    stage1, final = linked
    other = create(stage1.path, alpha=2, overwrite=True)
    for row in range(ROWS):
        other.write(row, IMAGES[row] ^ 1)
    assert list(final.damage()) == []
    np.testing.assert_array_equal(final.read(0), IMAGES[0])


def test_images_are_copied_where_files_can_not_be_shared(root: Location, whole: Pictures, tmp_path: Path) -> None:
    for where in (root / "final", as_location(tmp_path / "elsewhere"), MemoryPlace().at("elsewhere")):
        other = create(where, stage1=whole.content)
        other.link(whole)
        other.finish()
        assert files(where) == files(whole.path)


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    stage1 = write(create(tmp_path / "stage1", alpha=1))
    monkeypatch.setattr(os, "link", refuse)
    final = create(tmp_path / "final", stage1=stage1.content)
    final.link(stage1)
    final.finish()
    assert files(tmp_path / "final") == files(tmp_path / "stage1")
    assert os.stat(final.file(0)).st_ino != os.stat(stage1.file(0)).st_ino


def test_damage_is_not_linked_as_if_it_were_an_image(root: Location, whole: Pictures) -> None:
    flip(whole.file(3))
    with pytest.raises(StoreError, match=r"00003\.png .* does not match its checksum"):
        create(root / "final", stage1=whole.content).link(whole)


# Being stopped


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = create(folder)

    def full(self: Any, file: Any, **_: Any) -> None:
        file.write(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StoreError, match="the disk is full"):
        pictures.write(0, IMAGES[0])
    assert os.listdir(folder) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_write_that_is_stopped_leaves_nothing(folder: Path, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = create(folder)

    def stopped(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(error):
        pictures.write(0, IMAGES[0])
    assert os.listdir(folder) == []


WRITING = """
import sys
from pathlib import Path
import numpy as np
from leanrecon.stores.pictures import Pictures
pictures = Pictures.create(Path(sys.argv[1]), 200, (64, 64, 3), made_of={"alpha": 1})
print("ready", flush=True)
for row in pictures.missing():
    pictures.write(row, np.random.default_rng(row).integers(0, 256, (64, 64, 3), np.uint8))
pictures.finish()
"""


@pytest.mark.kills
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_killed_writer_leaves_whole_images_and_its_successor_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while not (folder / "00020.png").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = Pictures.open(folder, incomplete=True)
    there = sorted(set(range(200)) - set(left.missing()))
    assert 20 <= len(there) < 200
    expected = {row: np.random.default_rng(row).integers(0, 256, (64, 64, 3), np.uint8) for row in there}
    for row in there:
        np.testing.assert_array_equal(left.read(row), expected[row])
    for where in (folder, tmp_path / "undisturbed"):
        subprocess.run([sys.executable, "-c", WRITING, str(where)], check=True, capture_output=True)
    assert files(folder) == files(tmp_path / "undisturbed")
    record = json.loads((folder.parent / "stage1.json").read_text())
    assert record == json.loads((tmp_path / "undisturbed.json").read_text())


def test_a_record_that_is_no_record_of_images_is_not_taken_for_one(path: Location) -> None:
    (path.parent / "stage1.json").write_text('{"someone": "else"}')
    with pytest.raises(StoreError):
        create(path, alpha=1)
    assert (path.parent / "stage1.json").read_text() == '{"someone": "else"}'


def test_no_more_digits_than_five_are_needed_for_a_hundred_thousand_rows() -> None:
    pictures = Pictures(Path("x"), {"made_of": {"images": {"rows": 1, "shape": [1, 1, 1]}}})
    assert [pictures.file(row).name for row in (0, 99_999, 100_000)] == ["00000.png", "99999.png", "100000.png"]


def test_a_folder_begun_with_other_settings_is_taken_over_while_it_is_empty(tmp_path: Path) -> None:
    Pictures.create(tmp_path / "images", 2, (4, 4, 1), made_of={"weights": "wrong"})
    pictures = Pictures.create(tmp_path / "images", 2, (4, 4, 1), made_of={"weights": "right"})
    pictures.write(0, np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(StoreError, match="weights was"):
        Pictures.create(tmp_path / "images", 2, (4, 4, 1), made_of={"weights": "wrong"})
