"""Files and folders that settings name, found on this machine or in a bucket; what is missing is told with its setting."""

import fnmatch
import glob
import re
from pathlib import Path
from typing import Any

from leanrecon.datasets.files.open import find_file, missing_file
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, is_url
from leanrecon.places.location import Location, elsewhere
from leanrecon.places.paths import expanded, find


def needed_file(text: str, base_dir: Path | None, setting: str) -> InputFile:
    """The file that a setting names; raises InputError where there is none."""
    path = find_file(text, base_dir)
    if path is None:
        missing = missing_file(text, base_dir)
        raise InputError(f"dataset.{setting}: {missing.found}", expected=missing.expected, todo=missing.todo)
    return path


def needed_folder(text: str, base_dir: Path | None, setting: str) -> InputFile:
    """The folder that a setting names; raises InputError where there is none."""
    path = elsewhere(text) if is_url(text) else find(text, base_dir, Path.is_dir)
    if path is None:
        raise InputError(f"dataset.{setting}: there is no folder {text}", todo="check the path")
    return path


def matching(pattern: str, base_dir: Path | None, setting: str) -> list[InputFile]:
    """The files that a path or pattern names, sorted by name with numbers in order; relative ones as everywhere."""
    if not glob.has_magic(pattern):
        return [needed_file(pattern, base_dir, setting)]
    if is_url(pattern):
        return [*_matching_in_bucket(pattern, setting)]
    for folder in (Path.cwd(), *([base_dir] if base_dir else [])):
        paths = [Path(path) for path in glob.glob(str(folder / expanded(pattern)), recursive=True)]
        if paths := [path for path in paths if path.is_file()]:
            return sorted(paths, key=_natural)
    raise InputError(
        f"dataset.{setting}: no file matches {pattern}", expected="at least one file", todo="check the pattern"
    )


def _matching_in_bucket(pattern: str, setting: str) -> list[Location]:
    """The files of a bucket that match a pattern in its last part."""
    above, _, last = pattern.rpartition("/")
    folder = None if glob.has_magic(above) else elsewhere(above)
    if folder is None:
        raise InputError(
            f"dataset.{setting} = {pattern} can't be looked for",
            expected="a URL (s3://, gs://, az://) with * or ? behind its last / alone",
            todo="put the files into one folder, and write the pattern of their names",
        )
    names = [name for name in folder.place.children(folder.key) if not name.endswith("/")]
    if found := [folder / name for name in names if fnmatch.fnmatchcase(name, last)]:
        return sorted(found, key=_natural)
    raise InputError(
        f"dataset.{setting}: no file matches {pattern}",
        expected="at least one file",
        todo=f"the folder holds {', '.join(names[:5]) or 'no files'}",
    )


def _natural(path: InputFile) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]
