"""Records of a fitted ridge for run.json, and its lines of progress."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.regression.ridge.form import FLOOR, Form

if TYPE_CHECKING:
    from leanrecon.regression.ridge.ridge import StreamingRidge


def form_sentences(ridge: "StreamingRidge", *, figures: bool = True) -> Iterator[str]:
    """The chosen form in sentences, with or without the ``figures`` of all forms that were compared."""
    learned = ridge.learned_
    if learned.choice is not None:
        yield learned.choice.told(figures=figures)
    if learned.share is not None and not (learned.share > FLOOR).any():
        yield f"no voxel follows the images (by {learned.form.source}), so all voxels have the same weight"


def how_chosen(ridge: "StreamingRidge") -> dict[str, Any]:
    """How leave-one-out chose alpha: by eigenvectors, or by a search with few Cholesky factors; and how many it tried."""
    if ridge.search_ is not None:
        return {"of": len(ridge.alphas_), **ridge.search_.as_dict()}
    tried = len(ridge.alphas_) if ridge.per_target else int(np.isfinite(ridge.loo_errors_).sum())
    return {"of": len(ridge.alphas_), "by": "eigenvectors", **({"tried": tried} if tried < len(ridge.alphas_) else {})}


def device_record(ridge: "StreamingRidge") -> dict[str, Any]:
    """The record of a device other than the CPU, or of the reason why it was not used."""
    if ridge.device_ == "cpu" and ridge.device_note_ is None:
        return {}
    return {"device": ridge.device_ if ridge.device_note_ is None else f"{ridge.device_}: {ridge.device_note_}"}


def form_record(ridge: "StreamingRidge") -> dict[str, Any]:
    """The record of a form other than the linear ridge without weights."""
    learned = ridge.learned_
    if learned.form == Form() and learned.choice is None:
        return {}
    record: dict[str, Any] = {"form": learned.form.as_dict(), "notes": list(form_sentences(ridge, figures=False))}
    if learned.choice is not None:
        record["choice"] = learned.choice.as_dict()
    if learned.share is not None:
        share = learned.share[~np.isnan(learned.share)]
        record["voxels_at_floor"] = int((share <= FLOOR).sum())
    return record
