"""Whether two studies mean the same test images by the same names."""

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.study.layout import Study

LOOKED_AT = 32
"""Common test images at most whose pictures are compared, spread over all of them."""


def another_picture(one: Study, other: Study) -> str | None:
    """The name of a test image whose stored picture differs between two studies; None where all that were looked at agree.

    Images of different sizes are not compared, nor those of studies whose images are not there any more.
    """
    from leanrecon.stores.images import ImageReader
    from leanrecon.stores.store import Store
    from leanrecon.study.rows import Rows

    try:
        places, stores = [], []
        for study in (one, other):
            rows = Rows.read(study)
            split = "test" if "test" in rows else "train"  # with folds
            places.append({name: row for row, name in enumerate(rows.ids[split])})
            stores.append(Store.open(study.stimuli(split)))
        if stores[0].shape[1:] != stores[1].shape[1:]:
            return None
        common = [name for name in places[0] if name in places[1]]
        step = max(len(common) // LOOKED_AT, 1)
        readers = [ImageReader(store) for store in stores]
        for name in common[::step]:
            seen = [
                next(images[0].copy() for _, images in reader.runs([place[name]]))
                for reader, place in zip(readers, places, strict=True)
            ]
            if not np.array_equal(*seen):
                return name
    except StoreError:
        return None
    return None
