"""Encoding captions into feature rows, batch by batch in planned memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.features.extract import Extraction, check_rows, cut, run_extraction
from leanrecon.features.plan import BatchPlan, plan_captions
from leanrecon.features.space import FeatureSpace
from leanrecon.memory import buffer
from leanrecon.places import LocationLike, as_location
from leanrecon.places.files import read_json
from leanrecon.progress import Advance
from leanrecon.stores import Store
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.layout import plan_chunks

NO_IMAGE = (0, 0, 0)
"""The image shape that spaces of captions are asked with; they ignore it."""

Captions = Sequence[Sequence[str]]
"""One or more captions for each image."""


def read_captions(path: LocationLike, rows: int) -> list[list[str]]:
    """The captions of a split of a study with ``rows`` images; raises InputError if there are none."""
    found = read_json(path)
    if found is None:
        raise InputError(
            f"there are no captions at {path}",
            todo="give the dataset its captions (dataset.captions_train and dataset.captions_test, or "
            "dataset.captions), or leave out the feature spaces that describe them",
        )
    if not isinstance(found, list):
        raise InputError(f"{path} holds no list of captions", expected="a list of strings for each image")
    if len(found) != rows:
        raise InputError(f"{path} has captions of {len(found)} images", expected=f"{rows}")
    return check_captions(found)


def check_captions(captions: Captions) -> list[list[str]]:
    """The captions without blank ones; raises InputError that names the first row without a caption."""
    for row, texts in enumerate(captions):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the captions of row {row} are not a list of strings")
        if not any(text.strip() for text in texts):
            raise InputError(f"row {row} has no caption", expected="one or more for each row")
    return [[text for text in texts if text.strip()] for texts in captions]


def extract_captions(
    space: FeatureSpace,
    captions: Captions,
    target: LocationLike,
    context: Context | None = None,
    *,
    batch: int | None = None,
    record: dict[str, Any] | None = None,
) -> Store:
    """Encode the captions of all images into a store of float32 rows, and return it complete.

    What the space finds in the captions, such as how many it cuts, is said and added to the ``record``.

    Continues where an earlier run stopped, group of rows by group of rows, with the batch size of the run that
    began the store. Raises InputError if a row has no caption or the space returns anything but finite numbers,
    and BudgetError before any work if one row at a time does not fit.
    """
    if space.inputs != "captions":
        raise SettingsError(f"the feature space {space.name} describes images, not captions")
    context = context or Context.of()
    captions = check_captions(captions)
    n, dims = len(captions), space.dims(NO_IMAGE)
    height, width = plan_chunks((n, dims), np.float32, context.chunk)

    def plan(free: int, batch: int | None) -> BatchPlan:
        return plan_captions(n, (height, width), dims, space.cost(NO_IMAGE), free=free, batch=batch)

    def examine(store: Store) -> None:
        found = space.examine(captions)
        if said := found.pop("said", ""):
            context.progress.say(f"{space.name}, {store.path.stem}: {said}")
        if record is not None:
            record.update({f"{store.path.stem}_{name}": value for name, value in found.items()})

    def encode(store: Store, plan: BatchPlan, groups: Sequence[int], advance: Advance) -> None:
        encode_captions(space, captions, store, plan.batch, groups, advance)

    made_of = {"captions": fingerprint({"captions": captions})}
    work = Extraction(space, (n, dims), made_of, plan, encode, "rows", examine)
    return run_extraction(work, as_location(target), context, batch)


def encode_captions(
    space: FeatureSpace, captions: Captions, store: Store, batch: int, groups: Sequence[int], advance: Advance
) -> None:
    """Encode the captions of some groups of rows into their store."""
    gathered = buffer((min(store.chunk_rows, store.rows), store.columns), np.float32)
    for i in groups:
        group = store.group_rows(i)
        for rows in cut(group, batch):
            features = space.encode(captions[rows.start : rows.stop], rows)
            check_rows(features, (len(rows), store.columns), rows, f"the feature space {space.name} gave")
            gathered[rows.start - group.start : rows.stop - group.start] = features
            advance(len(rows))
        store.write_rows(i, gathered[: len(group)])
