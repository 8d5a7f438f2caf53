"""New studies of runs that are refused before any work: their first files are removed."""

import contextlib
from collections.abc import Iterator

from leanrecon.places import Location, seals
from leanrecon.places.hold import no_empty_folders

_BEGUN = {seals.SETTINGS, seals.MANIFEST}  # what a run writes before its first stage


@contextlib.contextmanager
def undone(root: Location) -> Iterator[None]:
    """Remove the settings and the record of a new study or mirror if the block raises before it writes other files.

    Files that were there before stay.
    """
    folder = root.place.local_path(root.key)
    with contextlib.nullcontext() if folder is None else no_empty_folders(folder):
        before = {path.name for path in root.iterdir()}
        try:
            yield
        except Exception:
            new = {path.name for path in root.iterdir()} - before
            if new <= _BEGUN:
                for name in new:
                    (root / name).unlink()
            raise
