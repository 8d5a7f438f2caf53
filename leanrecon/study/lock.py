"""One run of a study at a time."""

from contextlib import AbstractContextManager

from leanrecon.places import LocationLike, as_location


def only_run(root: LocationLike) -> AbstractContextManager[None]:
    """Hold a study's folder against a second run at the same time; the hold ends with the process."""
    return as_location(root).hold("another run", "wait for it, or choose another --study")
