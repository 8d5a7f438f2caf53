"""Predictions come from one device: chunks of a run on another device are made again."""

from typing import TYPE_CHECKING

from leanrecon.context import Context

if TYPE_CHECKING:
    from leanrecon.stores.store import Store


def of_one_device(store: "Store", device: str, context: Context) -> None:
    """Delete chunks of a store of predictions that come from another device, which its notes name (none: the CPU).

    Devices differ by rounding, and may choose neighbouring alphas near a tie. A complete store is not changed.
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
