"""Paths in settings: they start at the current folder or, failing that, at the folder of the settings."""

from collections.abc import Callable
from pathlib import Path


def find(text: str, base_dir: Path | None, there: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The path of that name in the current folder or, failing that, in ``base_dir``; None where there is none."""
    path = Path(text).expanduser()
    return next((p for p in (path, *([base_dir / path] if base_dir else [])) if there(p)), None)


def located(text: str, base_dir: Path | None, there: Callable[[Path], bool] = Path.exists) -> str:
    """The whole path of what a setting names, so that it is found from any folder; what is not there stays as it is."""
    path = find(text, base_dir, there)
    return text if path is None else str(path.absolute())
