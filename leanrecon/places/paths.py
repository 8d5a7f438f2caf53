"""Paths in settings: relative to the current folder or, failing that, to the folder of the settings file."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from leanrecon.errors import SettingsError


def find(text: str, base_dir: Path | None, there: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The path of that name in the current folder or, failing that, in ``base_dir``; None if neither has it."""
    path = expanded(text)
    try:
        return next((p for p in (path, *([base_dir / path] if base_dir else [])) if there(p)), None)
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        return None


def expanded(text: str | os.PathLike[str]) -> Path:
    """The path with a leading ``~`` replaced by the home of its user, where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def located(text: str, base_dir: Path | None, there: Callable[[Path], bool] = Path.exists) -> str:
    """The absolute path of what a setting names, or the text itself where there is no such file."""
    path = find(text, base_dir, there)
    return text if path is None else str(path.absolute())


def cache_folder() -> Path:
    """The folder of downloaded files outside Hugging Face's cache: ``$LEANRECON_CACHE``, or in the user's cache.

    Raises SettingsError for a user without a home folder, as in containers, where no variable names a folder.
    """
    if chosen := os.environ.get("LEANRECON_CACHE"):
        return expanded(chosen).absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", _home() / "AppData" / "Local")) / "leanrecon"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "leanrecon"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "leanrecon"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise SettingsError(
            "this user has no home folder, so there is no folder for downloads and rates",
            expected="one in HOME or LEANRECON_CACHE",
            todo="set LEANRECON_CACHE to a folder that you may write to",
        ) from None
