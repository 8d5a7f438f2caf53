"""Whether a study is tested on images that it is trained on, by their bytes: equal images may go by different ids."""

import hashlib
from collections.abc import Callable

from leanrecon.context import Context
from leanrecon.datasets.splits import check_shared
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study


def refuse_shared_images(study: Study, names: Callable[[str, int], str], context: Context) -> None:
    """Raise InputError where a test image of a study's complete stores has the bytes of a train image.

    ``names`` says in words which image a row of a split is. Images are read group of rows by group of rows.
    """
    stores = {split: Store.open(study.stimuli(split)) for split in ("train", "test")}
    total = sum(store.rows for store in stores.values())
    with context.named("stimuli, comparing train and test").task(total=total, unit="images") as advance:
        digests: dict[str, list[str]] = {}
        for split, store in stores.items():
            found = digests[split] = []
            for i in range(store.row_groups):
                group = store.group_rows(i)
                images = store[group.start : group.stop]
                found += [hashlib.sha256(image.data).hexdigest() for image in images]
                advance(len(group))
    check_shared(digests, {split: lambda row, split=split: names(split, row) for split in stores})  # type: ignore[misc]
