"""Predictions are of one device's arithmetic: what a run on another device had begun is begun again."""

from typing import TYPE_CHECKING

from leanrecon.context import Context

if TYPE_CHECKING:
    from leanrecon.stores.store import Store


def of_one_device(store: "Store", device: str, context: Context) -> None:
    """See to it that all chunks of a store of predictions come from one device, which its notes name (none: the CPU).

    Two devices agree to rounding only, and near a tie they may choose neighbouring alphas. A complete store stays as it is.
    """
    before = store.notes.get("device", "cpu")
    if store.complete or before == device:
        return
    every = [(i, j) for i in range(store.row_groups) for j in range(store.column_groups)]
    if written := [chunk for chunk in every if store.has(*chunk)]:
        context.progress.say(
            f"{context.label}: {len(written)} of {len(every)} chunks were made on {before}, and are made again on {device}"
        )
        store.discard(written)
    store.note(device=device)
