"""One run of a study at a time."""

import contextlib
from collections.abc import Iterator

from leanrecon.places import LocationLike, as_location
from leanrecon.study.layout import Study
from leanrecon.study.network_copies import discard_workplaces


@contextlib.contextmanager
def only_run(root: LocationLike) -> Iterator[None]:
    """Hold a study's folder against a second run at the same time; the hold ends with the process."""
    with as_location(root).hold("another run", "wait for it, or choose another --study"):
        discard_workplaces(Study(root))
        yield
