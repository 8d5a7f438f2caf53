"""Images that are equal by their bytes, though they may go by different ids: in train and test, or in several folds."""

import hashlib
from collections.abc import Callable, Sequence

from leanrecon.context import Context
from leanrecon.datasets.splits import SHARED_TODO, check_shared
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study


def refuse_shared_images(
    study: Study, names: Callable[[str, int], str], context: Context, todo: str = SHARED_TODO
) -> None:
    """Raise InputError where a test image of a study's complete stores has the bytes of a train image.

    ``names`` says in words which image a row of a split is, and ``todo`` what to do about it. Images are read group of
    rows by group of rows.
    """
    stores = {split: Store.open(study.stimuli(split)) for split in ("train", "test")}
    total = sum(store.rows for store in stores.values())
    with context.named("stimuli, comparing train and test").task(total=total, unit="images") as advance:
        digests = {split: _digests(store, advance) for split, store in stores.items()}
    check_shared(digests, {split: lambda row, split=split: names(split, row) for split in stores}, todo)  # type: ignore[misc]


def equal_images(study: Study, names: Sequence[str], context: Context) -> dict[str, str]:
    """Train images whose bytes an earlier one has: the name of that one by their own name.

    ``names`` are those of the images of the complete store, in its order.
    """
    store = Store.open(study.stimuli("train"))
    with context.named("stimuli, comparing images").task(total=store.rows, unit="images") as advance:
        digests = _digests(store, advance)
    first: dict[str, str] = {}
    found = {name: first.setdefault(digest, name) for name, digest in zip(names, digests, strict=True)}
    return {name: other for name, other in found.items() if other != name}


def _digests(store: Store, advance: Callable[[int], None]) -> list[str]:
    found: list[str] = []
    for i in range(store.row_groups):
        group = store.group_rows(i)
        found += [hashlib.sha256(image.data).hexdigest() for image in store[group.start : group.stop]]
        advance(len(group))
    return found
