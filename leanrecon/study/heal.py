"""What a run finds damaged of an earlier one and makes again: small files, and records that a power cut left empty."""

import warnings
from collections.abc import Iterator

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.places import Location, seals
from leanrecon.stores.copies import distrust
from leanrecon.stores.pictures import beside
from leanrecon.study.layout import KEPT, SMALL, Found, Role, Study
from leanrecon.study.readable import problem_of

LARGEST = 256 * 10**6
"""Bytes of the largest small file that every run checks; larger ones are checked by ``verify``."""

_UNPROVEN = (".csv", ".html", ".npy")
"""Files that damage may leave readable: without a checksum they are made again in studies that keep checksums."""


def heal(study: Study) -> None:
    """Remove damaged small files, so that this run makes them again, and keep checksums from now on.

    Warns of each file. Where the record of a store or of images is damaged, its chunks or images are compared with what
    this run computes before they are kept.
    """
    proven = _mend_manifest(study)
    unknown = []
    for found, path in _records(study):
        problem, known = _judged(found, path, proven)
        if problem:
            warnings.warn(f"{problem}: it is made again", LeanreconWarning, stacklevel=2)
            if found.item.role in KEPT:
                distrust(found.path)
            else:
                path.unlink(missing_ok=True)
        elif not known:
            unknown.append(path)
    for store in study.scratch_stores():
        if seals.state(record := store / "zarr.json") is seals.State.DAMAGED:
            warnings.warn(f"{record} does not match its checksum: it is made again", LeanreconWarning, stacklevel=2)
            distrust(store)
    if unknown or not proven:
        seals.adopt(study.root, unknown)


def _mend_manifest(study: Study) -> bool:
    """Discard a damaged run.json; returns whether the study has kept checksums until now."""
    try:
        content = seals.load(study.root)
    except StoreError as error:
        warnings.warn(f"{error.found}: what earlier runs measured is lost", LeanreconWarning, stacklevel=3)
        study.record.unlink()
        seals.begin(study.root)
        return True
    return content is not None and seals.CHECKSUMS in content


def _records(study: Study) -> Iterator[tuple[Found, Location]]:
    """The small files, and the records of stores, images and networks, of a study and its variants."""
    for found in study.found(*SMALL, *KEPT, Role.NETWORK):
        if found.path != study.record:
            path = found.path
            if found.item.role is Role.STORE:
                path = path / "zarr.json"
            elif found.item.role not in SMALL:
                path = beside(path)
            yield found, path


def _judged(found: Found, path: Location, proven: bool) -> tuple[str, bool]:
    """What is wrong with a file that is to be made again, and whether its checksum is kept."""
    if (path.size() or 0) > LARGEST:
        return "", True
    state = seals.state(path)
    if path.name == seals.SETTINGS:  # the user's own; this run writes it anew
        return "", state is not seals.State.UNKNOWN
    if state is seals.State.SOUND:
        return "", True
    if problem := problem_of(path):
        return problem, False
    if state is seals.State.DAMAGED:
        return f"{path} does not match its checksum", True
    if found.item.role in SMALL and proven and path.suffix in _UNPROVEN:
        return f"no checksum is kept of {path}", False
    return "", False
