"""A study that a run begins: a run that is refused before it did anything leaves nothing of it."""

import contextlib
from collections.abc import Iterator

from leanrecon.places import Location, seals
from leanrecon.places.hold import no_empty_folders

_BEGUN = {seals.SETTINGS, seals.MANIFEST}  # what a run writes before its first stage


@contextlib.contextmanager
def undone(root: Location) -> Iterator[None]:
    """Remove the settings and the record that a block wrote into a study or a mirror, where it raises and wrote no more.

    What was there before stays.
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
