"""Rescaling of predictions to the spread of their targets, which ridge shrinks.

``transductive`` is the method of Brain-Diffuser (Ozcelik & VanRullen 2023): predictions are z-scored with their own
moments over the test rows. So each prediction depends on the other test rows, and a single one can't be made.
``inductive`` takes the moments from leave-one-out predictions of train rows. It needs no test statistics, and works for
one test image.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.hat import stream
from leanrecon.regression.ridge.limits import LOO_ROWS
from leanrecon.regression.ridge.pairing import Groups, Pairing
from leanrecon.stores.matrix import Matrix, panels

Array = np.ndarray[Any, Any]

Kind = Literal["none", "inductive", "transductive"]


def loo_rows(n: int, most: int = LOO_ROWS) -> Array:
    """Up to 1,000 train rows, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def group_rows(pairing: Pairing, most: int = LOO_ROWS) -> Array:
    """About 1,000 train rows at most (ascending): all rows of some images, which are evenly spread; one image at least."""
    if pairing.index is None or not pairing.repeats:
        return loo_rows(pairing.n, most)
    shown = np.flatnonzero(pairing.counts)
    some = min(len(shown), most)
    while True:
        images = shown[np.unique(np.linspace(0, len(shown) - 1, some).round().astype(np.int64))]
        rows = int(pairing.counts[images].sum())
        if rows <= most or some == 1:
            return np.flatnonzero(np.isin(pairing.index, images))
        some = max(min(some - 1, some * most // rows), 1)


def leave_groups_out(hat: Array, rows: Array, pairing: Pairing) -> None:
    """Turn the hat matrix of some train rows into that of predictions without the rows of the same image, in place.

    ``rows`` hold all rows of each image G that is among them. Their predictions from all other rows are
    (I − S_GG)⁻¹ S_G Y with the columns of G set to zero: what ``leave_one_out`` does with single rows.
    """
    if pairing.index is None or not pairing.repeats:
        leave_one_out(hat, rows)
        return
    for groups in Groups.of(pairing.index[rows]).sizes:
        for group in groups:
            part = hat[group]
            kept = np.eye(len(group)) - part[:, rows[group]]
            part[:, rows[group]] = 0
            hat[group] = np.linalg.inv(kept).astype(hat.dtype) @ part


def leave_one_out(hat: Array, rows: Array) -> None:
    """Turn the hat matrix of some train rows into that of their leave-one-out predictions, in place.

    A row's prediction from all others is (S_i Y − S_ii y_i) / (1 − S_ii).
    """
    leverage = hat[np.arange(len(rows)), rows].astype(np.float64)
    hat[np.arange(len(rows)), rows] = 0
    hat /= (1 - leverage)[:, None].astype(hat.dtype)


def spread(a: Array, centre: Array) -> Array:
    """The standard deviation (ddof = 0) of the columns of ``a`` about ``centre``, without float64 copies of it all."""
    squares = np.zeros(len(centre))
    for rows in panels(len(a)):
        part = a[rows.start : rows.stop] - centre
        squares += np.einsum("ij,ij->j", part, part)
    result: Array = np.sqrt(squares / len(a))
    return result


def restandardise(predictions: Array, reference: Array, mean: Array, std: Array) -> None:
    """Move predictions [m, w] from the moments of ``reference`` [r, w] to those of the train targets, in place.

    Moments are population moments (ddof = 0). Where the reference does not vary there is no scale to give
    back, and the prediction is the train mean.
    """
    centre = reference.mean(axis=0, dtype=np.float64)
    reference_std = spread(reference, centre)
    factor = np.divide(std, reference_std, out=np.zeros_like(reference_std), where=reference_std > 0)
    predictions -= centre.astype(predictions.dtype)
    predictions *= factor.astype(predictions.dtype)
    predictions += mean.astype(predictions.dtype)


def through_hats(
    rows: range,
    hats: list[Array],
    targets: Matrix,
    wanted: Sequence[int],
    kind: Kind,
    out: Array | None = None,
    *,
    weights: Array | None,
    arithmetic: Arithmetic = ON_CPU,
) -> Iterator[tuple[range, range, Array]]:
    """Yield ``(rows, columns, predictions)``: targets streamed through hat matrices, re-standardised block by block.

    Hats beyond those of the ``rows`` are of predictions that give the moments for ``inductive``. In the moments of
    the targets each row counts as often as its weight says.
    """
    how: Any = {"weights": weights, "arithmetic": arithmetic}
    for _, columns, values in sets_through_hats(rows, [hats], targets, wanted, kind, out, **how):
        yield rows, columns, values


def sets_through_hats(
    rows: range,
    sets: Sequence[list[Array]],
    targets: Matrix,
    wanted: Sequence[int],
    kind: Kind,
    out: Array | None = None,
    *,
    weights: Array | None = None,
    arithmetic: Arithmetic = ON_CPU,
) -> Iterator[tuple[int, range, Array]]:
    """Yield ``(set, columns, predictions)`` of some rows by several sets of hat matrices, in one pass over the targets."""
    height = sum(map(len, sets[0]))
    hats = [hat for one in sets for hat in one]
    how: Any = {"moments": kind != "none", "weights": weights, "out": out, "arithmetic": arithmetic}
    for block in stream(hats, targets, wanted, **how):
        for k in range(len(sets)):
            part = block.values[k * height : (k + 1) * height]
            values = part[: len(rows)]
            if kind != "none":
                restandardise(values, part[len(rows) :] if kind == "inductive" else values, block.mean, block.std)
            yield k, block.columns, values
