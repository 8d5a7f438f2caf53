"""Published weights that settings name: which are needed, and which of them are missing here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leanrecon.errors import InputError
from leanrecon.places.paths import cache_folder, find
from leanrecon.weights.folders import HUB_NAME, cached_file, cached_model
from leanrecon.weights.packaged import check_packaged, is_packaged
from leanrecon.weights.pieces import Piece, choose, pickles
from leanrecon.weights.published import address_of

FETCH = "download them with `leanrecon fetch-weights RECIPE_OR_FILE`"

MISSING = "missing weights"

CAPTIONS = "dataset.captions"
"""The setting that names captions, which are published and fetched as weights are."""
"""How the error begins that lists them."""


@dataclass(frozen=True)
class Need:
    """A published model or file that a setting names."""

    setting: str
    name: str
    """A path, the name of a model on the Hugging Face Hub, or the name of a published file."""
    pieces: tuple[Piece, ...] = ()
    """The parts of a model that are needed; none: it is one file."""


def merge(needs: Iterable[Need]) -> list[Need]:
    """Each name once, with all settings that name it and all pieces that they need."""
    merged: dict[str, Need] = {}
    for need in needs:
        name = _published_name(need.name)
        known = merged.get(name)
        if known is None:
            merged[name] = Need(need.setting, name, need.pieces)
            continue
        settings = list(dict.fromkeys([*known.setting.split(", "), need.setting]))
        pieces = tuple(dict.fromkeys((*known.pieces, *need.pieces)))
        merged[name] = Need(", ".join(settings), name, pieces)
    return list(merged.values())


def where(need: Need) -> Path | None:
    """The file or folder of these weights on this machine, without a network; None if it is missing or incomplete."""
    if (path := find(need.name, None)) is not None:
        return path
    if not need.pieces:
        return cached_file(need.name)
    folder = cached_model(need.name)
    return folder if folder is not None and files_of(need, folder) else None


def files_of(need: Need, folder: Path) -> list[str]:
    """The files of a model's folder that are needed; none if some are missing, or not safetensors."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        chosen = choose(names, need.pieces, need.name)
    except InputError:
        return []
    return [] if pickles(chosen) else chosen


def is_published(need: Need) -> bool:
    """Whether it can be downloaded: a published file, or what looks like the name of a model on the hub."""
    return bool(HUB_NAME.fullmatch(need.name)) if need.pieces else address_of(need.name) is not None


def missing(needs: Iterable[Need]) -> list[Need]:
    """The needs that are not on this machine."""
    return [need for need in needs if where(need) is None]


def require(needs: Sequence[Need], *, planned: bool = False) -> None:
    """Raise InputError that names all missing weights, and the command that downloads them.

    With ``planned``, for a plan alone, single files may be missing: the sizes of their networks are in the settings.
    Models that come with leanrecon are compared with their checksums.
    """
    require_packaged(needs)
    lacking = [need for need in missing(needs) if need.pieces or not planned]
    if paths := [need for need in lacking if not is_published(need)]:
        raise InputError(f"there is no file or folder {_listed(paths)}", todo="set each to where it is")
    if lacking:
        raise InputError(
            describe(lacking), todo=f"{FETCH} and the --set options of this command, or set each to where it is"
        )


def require_packaged(needs: Iterable[Need]) -> None:
    """Raise InputError if a model that comes with leanrecon is needed and any of those is damaged."""
    if any(is_packaged(need.name) for need in needs):
        check_packaged()


def describe(lacking: Iterable[Need]) -> str:
    """The missing weights in words, with the settings that name them."""
    listed = _listed(lacking := list(lacking))
    return (
        f"{MISSING} and captions: {listed}"
        if any(need.setting == CAPTIONS for need in lacking)
        else f"{MISSING}: {listed}"
    )


def _listed(needs: Iterable[Need]) -> str:
    return ", ".join(f"{need.name} ({need.setting})" for need in needs)


def _published_name(text: str) -> str:
    """The file name alone, where a setting was resolved to a file in the cache of fetched files."""
    path = Path(text)
    return path.name if path.parent == cache_folder() else text
