"""The unconditional embedding (empty caption, black image): the negative in classifier-free guidance."""

from collections.abc import Mapping

import numpy as np

from leanrecon.context import Context
from leanrecon.features.space import Array, FeatureSpace, ImageShape
from leanrecon.places import LocationLike
from leanrecon.stores import Store
from leanrecon.study.layout import Study


def keep_unconditional(space: FeatureSpace, image_shape: ImageShape, path: LocationLike, context: Context) -> None:
    """Encode an empty caption or a black image into a store of one row, unless it is there.

    Raises StoreError if the store is of another space, unless ``context.overwrite``; BudgetError before any work.
    """
    made_of = {"space": space.made_of(), "unconditional": True}
    shape = (1, space.dims(image_shape))
    store = Store.create(path, shape, np.float32, made_of=made_of, overwrite=context.overwrite)
    if store.complete:
        return
    cost = space.cost(image_shape)
    context.refreshed().require(f"features {space.name}", cost.held + cost.per_image)
    if store.missing_row_groups():
        store.write_rows(0, space.unconditional()[None])
    store.finish()


def read_unconditional(study: Study, spaces: Mapping[str, str]) -> dict[str, Array]:
    """The embeddings [dims] of these feature spaces by role; raises StoreError if one is missing or damaged."""
    return {role: Store.open(study.unconditional(name))[0:1][0] for role, name in spaces.items()}
