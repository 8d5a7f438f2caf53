"""What describes nothing, kept beside the features: the row that a generator is led away from."""

from collections.abc import Mapping

import numpy as np

from leanrecon.features.space import Array, GuidingSpace, ImageShape
from leanrecon.memory import MemoryBudget
from leanrecon.places import Location
from leanrecon.stores import Store
from leanrecon.study.layout import Study


def keep_unconditional(
    space: GuidingSpace, image_shape: ImageShape, path: Location, *, budget: MemoryBudget, overwrite: bool = False
) -> None:
    """Encode an empty text or a black image into a store of one row, unless it is there.

    Raises StoreError if what is there is another space's, unless ``overwrite``; BudgetError before any work.
    """
    made_of = {"space": space.made_of(), "of": "nothing"}
    store = Store.create(path, (1, space.dims(image_shape)), np.float32, made_of=made_of, overwrite=overwrite)
    if store.complete:
        return
    cost = space.cost(image_shape)
    budget.require(f"features {space.name}", cost.held + cost.per_image)
    if store.missing_row_groups():
        store.write_rows(0, space.unconditional()[None])
    store.finish()


def read_unconditional(study: Study, spaces: Mapping[str, str]) -> dict[str, Array]:
    """The kept rows [dims] of these feature spaces by role; raises StoreError where one is missing or damaged."""
    return {role: Store.open(study.unconditional(name))[0:1][0] for role, name in spaces.items()}
