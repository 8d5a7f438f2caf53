"""The loop from captions to feature rows: as ``extract`` is from images, batch by batch in a planned amount of memory."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from leanrecon.errors import InputError
from leanrecon.features.extract import check_rows, cut, resumed
from leanrecon.features.plan import BatchPlan, Cost, plan_extract
from leanrecon.features.space import Array, FeatureSpace, Rows
from leanrecon.memory import MemoryBudget, buffer, parse_bytes
from leanrecon.places import LocationLike, as_location
from leanrecon.places.files import read_json
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import DEFAULT_CHUNK, plan_chunks

NO_IMAGE = (0, 0, 0)
"""The shape of images to a space that looks at captions."""

Captions = Sequence[Sequence[str]]
"""One or more captions for each row."""


@runtime_checkable
class CaptionSpace(FeatureSpace, Protocol):
    """A feature space that describes the captions of images; ``dims`` and ``cost`` are the same for images of any shape.

    A row depends on its captions, its row number and ``made_of()`` alone, on a CPU to the byte.
    """

    def encode_captions(self, captions: Captions, rows: Rows) -> Array:
        """Rows [b, dims] in float32 of images with these captions and row numbers."""


def read_captions(path: LocationLike, rows: int) -> list[list[str]]:
    """The captions that a study keeps of a split with so many rows; raises InputError where it has none."""
    found = read_json(path)
    if found is None:
        raise InputError(
            f"there are no captions at {path}",
            todo="give the dataset its captions (dataset.captions_train and dataset.captions_test, or "
            "dataset.captions), or leave out the feature spaces that describe them",
        )
    if not isinstance(found, list):
        raise InputError(f"{path} holds no list of captions", expected="a list of strings for each row")
    if len(found) != rows:
        raise InputError(f"{path} has captions of {len(found)} rows", expected=f"{rows}, as there are images")
    return check_captions(found)


def check_captions(captions: Captions) -> list[list[str]]:
    """The captions as they came; raises InputError that names the first row without one."""
    for row, texts in enumerate(captions):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the captions of row {row} are no list of strings")
        if not any(text.strip() for text in texts):
            raise InputError(f"row {row} has no caption", expected="one or more for each row")
    return [[text for text in texts if text.strip()] for texts in captions]


def plan_captions(rows: int, dims: int, cost: Cost, *, chunk: int, free: int, batch: int | None = None) -> BatchPlan:
    """Plan the encoding of the captions of so many rows into float32 rows of ``dims``, in chunks of ``chunk`` bytes."""
    height, width = plan_chunks((rows, dims), np.float32, chunk)
    return plan_extract((rows, 0), 0, (height, width), dims, cost, free=free, batch=batch)


def extract_captions(
    space: CaptionSpace,
    captions: Captions,
    target: LocationLike,
    *,
    chunk: str | int = DEFAULT_CHUNK,
    budget: MemoryBudget | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    batch: int | None = None,
) -> Store:
    """Encode the captions of all rows into a store of float32 rows, and return it complete.

    Continues where an earlier run stopped, group of rows by group of rows, with the batch size of the run that
    began the store. Raises InputError if a row has no caption or the space gives something other than finite
    numbers, and BudgetError before any work if one row at a time does not fit.
    """
    captions = check_captions(captions)
    n, dims = len(captions), space.dims(NO_IMAGE)

    def plan(free: int, batch: int | None) -> BatchPlan:
        return plan_captions(n, dims, space.cost(NO_IMAGE), chunk=parse_bytes(chunk), free=free, batch=batch)

    def encode(store: Store, plan: BatchPlan) -> None:
        _encode(space, captions, store, plan.batch, progress or Progress())

    made_of = {"captions": fingerprint({"captions": captions})}
    how: dict[str, Any] = {"chunk": chunk, "budget": budget, "overwrite": overwrite, "batch": batch}
    return resumed(space, as_location(target), (n, dims), made_of, plan, encode, **how)


def _encode(space: CaptionSpace, captions: Captions, store: Store, batch: int, progress: Progress) -> None:
    missing = store.missing_row_groups()
    gathered = buffer((min(store.chunk_rows, store.rows), store.columns), np.float32)
    done = store.rows - sum(len(store.group_rows(i)) for i in missing)
    with progress.task(f"{space.name}, {store.path.stem}", total=store.rows, unit="rows", done=done) as advance:
        for i in missing:
            group = store.group_rows(i)
            for rows in cut(group, batch):
                features = space.encode_captions(captions[rows.start : rows.stop], rows)
                check_rows(features, (len(rows), store.columns), rows, f"the feature space {space.name} gave")
                gathered[rows.start - group.start : rows.stop - group.start] = features
                advance(len(rows))
            store.write_rows(i, gathered[: len(group)])
