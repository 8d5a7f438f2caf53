"""What a machine refuses: open files, space, a reader of the output. Each is told in words, and nothing done is lost."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image
from support.lab import write_lab

from leanrecon.api import run
from leanrecon.datasets.files.captions import read_captions
from leanrecon.datasets.files.folder import read_image
from leanrecon.datasets.files.nifti import NiftiHeader, NiftiRows
from leanrecon.datasets.files.open import open_array
from leanrecon.datasets.files.table import read_table
from leanrecon.errors import InputError, LeanreconError, StoreError
from leanrecon.places.files import read_json, write_json
from leanrecon.stores import Store

resource = pytest.importorskip("resource", reason="limits of open files are those of POSIX")


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "leanrecon", *map(str, words)]


# A reader of the output that has gone


@pytest.mark.slow
@pytest.mark.parametrize("words", [("plan", "demo-fast"), ("recipes",), ("kinds",), ("--help",)])
def test_a_command_whose_reader_has_gone_ends_without_a_word(words: tuple[str, ...], tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(command(*words), stdout=writes, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_run_whose_reader_has_gone_continues_later(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    words = command("run", lab.folder / "s.toml", "--study", "study", "--until", "dataset")
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(words, stderr=writes, cwd=tmp_path)
    os.close(writes)
    assert done.returncode == 141
    assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 0


# Open files


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """A while in which this process can't open any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened(path: Path) -> None:
    with open_array(str(path) if path.suffix == ".npy" else f"{path}:x") as rows:
        rows[0:1]


def volumes(path: Path) -> None:
    with NiftiRows(NiftiHeader.read(path), np.arange(8)) as rows:
        rows[0:1]


def write_inputs(folder: Path) -> dict[str, Callable[[], Any]]:
    import nibabel

    numbers = np.ones((3, 2))
    np.save(folder / "a.npy", numbers)
    np.savez(folder / "a.npz", x=numbers)
    scipy.io.savemat(folder / "a.mat", {"x": numbers})
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = numbers
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2, 3), "f4"), np.eye(4)), folder / "a.nii.gz")
    (folder / "a.tsv").write_text("stimulus\nx\n")
    (folder / "a.txt").write_text("a caption\n")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "a.png")
    readers: dict[str, Any] = dict.fromkeys(("a.npy", "a.npz", "a.mat", "a.h5"), opened)
    readers |= {"a.nii.gz": volumes, "a.tsv": read_table, "a.png": lambda path: read_image(path, (4, 4, 3))}
    readers["a.txt"] = lambda path: read_captions(str(path))
    return {name: lambda read=read, name=name: read(folder / name) for name, read in readers.items()}


def test_a_file_that_can_not_be_opened_for_want_of_open_files_is_not_called_damaged(tmp_path: Path) -> None:
    for name, read in write_inputs(tmp_path).items():
        read()  # whatever libraries it imports
        with no_more_files(), pytest.raises(LeanreconError) as error:
            read()
        said = str(error.value)
        assert f"{name} can't be opened: Too many open files. Raise the limit of open files (ulimit -n" in said, said


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    np.save(tmp_path / "a.npy", np.ones(3))
    monkeypatch.setattr("leanrecon.datasets.files.open.refuse_pointer", lambda path: None)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(InputError, match=r"a.npy can't be opened: Permission denied. Check its permissions"):
        open_array(str(tmp_path / "a.npy"))


def test_files_that_can_not_be_written_for_want_of_open_files_leave_what_is_there(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s.zarr", (4, 3), np.float32, made_of={})
    write_json(tmp_path / "a.json", {"a": 1})
    store.write_rows(0, np.ones((4, 3), np.float32))
    for write in (
        lambda: write_json(tmp_path / "a.json", {"a": 2}),
        lambda: store.write_chunk(0, 0, np.zeros((4, 3), np.float32)),
    ):
        with no_more_files(), pytest.raises(StoreError, match=r"Too many open files. Raise the limit of open files"):
            write()
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert store[0:4].sum() == 12
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_study_of_many_files_needs_few_open_ones(tmp_path: Path, ending: str) -> None:
    lab = write_lab(tmp_path / "lab", runs=60, images=30, ending=ending)
    words = command("run", lab.folder / "s.toml", "--study", lab.folder / "study", "--until", "dataset")
    words += ["--set", "dataset.check=warn"]  # a run of one trial tells nothing
    limit = (
        f"import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); os.execv({words[0]!r}, {words})"
    )
    done = subprocess.run([sys.executable, "-c", limit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Space


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own at ``folder``; the function given gives it another size."""
    folder.mkdir()
    with contextlib.suppress(OSError):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode == 0:
            try:
                yield lambda size: _remount(folder, size)
            finally:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("mounting a small disk needs root")


def _remount(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def test_a_small_file_stays_as_it_was_where_the_disk_is_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k"):
        path = tmp_path / "disk" / "a.json"
        write_json(path, {"a": 1})
        with pytest.raises(StoreError, match=r"the disk is full: .*a.json could not be written.*Free some space"):
            write_json(path, {"a": "x" * 100_000})
        assert read_json(path) == {"a": 1}
        assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for name in ("betas", "stimuli") for file in (folder / name).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.name != "sources.json"}


@pytest.mark.slow
def test_a_study_that_fills_the_disk_ends_with_the_same_bytes_once_there_is_space(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    settings = str(lab.folder / "s.toml")
    run(settings, study=tmp_path / "whole", until="dataset")
    said: list[str] = []
    with small_disk(tmp_path / "disk", "8k") as resize:
        for pages in range(3, 80, 4):
            resize(f"{4 * pages}k")
            try:
                run(settings, study=tmp_path / "disk" / "study", until="dataset")
            except LeanreconError as error:
                said.append(str(error))
            else:
                break
        assert len(said) >= 4
        assert all("the disk is full" in text for text in said)
        assert contents(tmp_path / "disk" / "study") == contents(tmp_path / "whole")
