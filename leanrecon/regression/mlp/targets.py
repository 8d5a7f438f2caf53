"""The outputs of a network: coordinates along the targets' principal components, or every target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.mlp.batches import Gathered, Held, Shuffled, Source
from leanrecon.regression.mlp.coding import Coding, mixing
from leanrecon.regression.normalise import Centred, Moments
from leanrecon.regression.ridge.hat import refuse_nan_rows
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.restandardise import Kind, restandardise, through_hats
from leanrecon.stores.matrix import Matrix, column_blocks

Array = np.ndarray[Any, Any]
Blocks = Iterator[tuple[range, range, Array]]


def common(spread: Array) -> Array:
    """One scale for all outputs that vary: the root mean square of theirs."""
    return np.where(spread > 0, np.sqrt(np.mean(np.square(spread[spread > 0]))), 0.0)


@dataclass
class Components:
    """Coordinates along principal components: of variance one with ``whiten``, else with their own variances."""

    coding: Coding
    whiten: bool

    def __post_init__(self) -> None:
        self.outputs = len(self.coding.spread)
        self.spread = self.coding.spread if self.whiten else common(self.coding.spread)
        self.unit = (self.coding.spread / self.spread).astype(np.float32)
        """The standard deviation that the network sees of each coordinate."""

    def source(self, pairing: Pairing, order: Array | None) -> Source:
        """The coordinates that each row of betas is paired with."""
        index = pairing.index
        taken = self.coding.coordinates if index is None else self.coding.coordinates[index]
        return Held(taken if self.whiten else taken * self.unit)

    def hat(self, answers: Array, *, mean: bool, weights: Array | None = None) -> Array:
        """The hat matrix [m, s] of outputs [m, k]; each image counts as often as ``weights`` [s] say."""
        return mixing(answers / self.unit, self.coding.coordinates, mean=mean, weights=weights)


@dataclass
class EveryTarget:
    """Every target, z-scored with ``whiten``, else centred and on one common scale; constant targets stay constant."""

    targets: Matrix
    moments: Moments
    whiten: bool

    def __post_init__(self) -> None:
        self.outputs = self.targets.shape[1]
        own = self.moments.std
        self.spread = own if self.whiten else common(own)

    def source(self, pairing: Pairing, order: Array | None) -> Source:
        """The scaled targets that each row of betas is paired with, ``order`` being a permutation within panels."""
        scaled = Centred(self.targets, replace(self.moments, std=self.spread), scale=True)
        if pairing.index is None:
            return scaled
        if pairing.index is order:
            return Shuffled(scaled, pairing.index)
        return Gathered(scaled, pairing.index, self.targets.block)

    def blocks(
        self,
        rows: range,
        features: Array,
        like: Array | None,
        head: tuple[Array, Array],
        targets: Matrix,
        wanted: Sequence[int],
        mode: Kind,
    ) -> Blocks:
        """Yield ``(rows, columns, predictions)`` from the last layer's inputs [m, hidden] and its weights.

        ``like`` are the inputs of the rows whose predictions give the moments of ``inductive``.
        """
        weight, bias = head
        n = self.moments.rows
        population = np.sqrt((n - 1) / n)  # the ridge restores standard deviations with ddof = 0
        for j in wanted:
            columns = column_blocks(targets)[j]
            part = slice(columns.start, columns.stop)
            mean, spread = self.moments.mean[part], self.spread[part]

            def answers(of: Array, part: slice = part, mean: Array = mean, spread: Array = spread) -> Array:
                out = buffer((len(of), part.stop - part.start), np.float32)
                np.matmul(of, weight[part].T, out=out)
                out += bias[part]
                out *= spread.astype(np.float32)
                out += mean.astype(np.float32)
                return out

            values = answers(features)
            refuse_nan_rows(values, rows)
            if mode != "none":
                reference = values if like is None else answers(like)
                restandardise(values, reference, mean, self.moments.std[part] * population)
            yield rows, columns, values


def from_hats(
    rows: range,
    hats: list[Array],
    targets: Matrix,
    wanted: Sequence[int],
    mode: Kind,
    dtype: Any,
    weights: Array | None,
) -> Blocks:
    """Predictions through hat matrices, in the targets' precision; images count as ``weights`` say in their moments."""
    return through_hats(rows, [hat.astype(dtype, copy=False) for hat in hats], targets, wanted, mode, weights=weights)
