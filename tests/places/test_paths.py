"""Paths with ~, users without a home, and the folder of downloads."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from leanrecon.app.init import study_text
from leanrecon.datasets.builder.settings import located_files
from leanrecon.datasets.files.open import locate
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.datasets.nifti.read import matching
from leanrecon.errors import InputError, SettingsError, StoreError
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.inputs import is_there
from leanrecon.places.paths import cache_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, as containers start them under any number."""

    def unknown(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(Path, "expanduser", lambda path: unknown() if str(path).startswith("~") else path)
    for name in ("LEANRECON_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home_is_told_what_to_set(homeless: None) -> None:
    with pytest.raises(SettingsError, match="no home folder.*set LEANRECON_CACHE|no home folder.*Set LEANRECON_CACHE"):
        cache_folder()


def test_a_user_without_a_home_may_name_the_folder(
    homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


TOLD: list[Callable[[str], object]] = [
    lambda text: locate(f"{text}/betas.npy", None, None),
    lambda text: inspect(Path(text) / "betas.npy"),
    lambda text: study_text(Path(text) / "betas.npy"),
    lambda text: matching(f"{text}/*.nii", None, "betas"),
]


@pytest.mark.parametrize("look", TOLD)
def test_the_home_of_nobody_is_a_path_of_nothing(look: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match="~nobody-of-this-name"):
        look("~nobody-of-this-name")


@pytest.mark.parametrize("look", TOLD)
def test_a_home_that_is_not_known_is_a_path_of_nothing(look: Callable[[str], object], homeless: None) -> None:
    with pytest.raises(InputError, match="~"):
        look("~")


def test_patterns_and_files_of_nobody_stay_as_they_are(homeless: None) -> None:
    assert located_files("~/betas*.nii", None) == "~/betas*.nii"
    assert not is_there(Path("~/betas.nii"))


def test_a_pipe_is_no_file_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "betas.npy")
    with pytest.raises(InputError, match="betas.npy is a pipe or a device. Expected a file"):
        locate(str(tmp_path / "betas.npy"), None, None)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EFBIG, "raise the limit on the size of files"),
        (errno.EEXIST, "a file or a broken link has this name"),
        (errno.ENOSPC, "free some space"),
    ],
)
def test_what_the_disk_refuses_is_told_with_what_to_do(code: int, words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"(?i){words}"), explained_disk_errors(tmp_path / "a"):
        raise OSError(code, os.strerror(code))
