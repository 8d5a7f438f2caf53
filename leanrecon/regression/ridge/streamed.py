"""The device of a fitted ridge, and the streaming of targets through its hat matrices."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from leanrecon.devices import choose
from leanrecon.memory import MemoryBudget
from leanrecon.regression.kept import Kept
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.hat import converted
from leanrecon.regression.ridge.known import Known
from leanrecon.regression.ridge.left_out import LeftOut
from leanrecon.regression.ridge.limits import FLOAT64_ORDER
from leanrecon.regression.ridge.restandardise import Kind, through_hats
from leanrecon.regression.ridge.vram import require_to_stream
from leanrecon.stores.matrix import Matrix

Array = np.ndarray[Any, Any]


class Streamed(LeftOut):
    """A ridge on a device."""

    device: str
    restandardize: Kind

    device_: str
    device_note_: str | None
    _aside: int
    _train: Centred
    _known: Known | None

    @property
    def _arithmetic(self) -> Arithmetic:
        """Where the Gram matrix is formed and factored."""
        return self._arithmetic_for(np.float64 if self._train.order <= FLOAT64_ORDER else np.float32)

    def _arithmetic_for(self, dtype: Any) -> Arithmetic:
        if self.device_ == "cpu":
            return ON_CPU
        from leanrecon.regression.ridge.on_torch import arithmetic_on

        return arithmetic_on(choose(self.device_), dtype)

    @property
    def _kept(self) -> Kept | None:
        """What earlier fits left for this one: kept on the CPU alone, where it has the bytes that would be computed."""
        return self.kept if self.device_ == "cpu" else None

    def _require(self, budget: MemoryBudget, work: str, nbytes: int) -> int:
        return super()._require(budget, work, nbytes + self._aside)

    def _through_hats(
        self,
        rows: range,
        hats: list[Array],
        index: Array | None,
        targets: Matrix,
        wanted: Sequence[int],
        out: Array | None = None,
    ) -> Iterator[tuple[range, range, Array]]:
        """Predictions through hat matrices of a column for each row of betas, by their ``index``, or for each target row."""
        hats = self._converted(hats, index)
        if self.device_ == "cuda":
            require_to_stream(self._shapes(self.betas_, targets, len(rows)), sum(map(len, hats)))
        return through_hats(
            rows, hats, targets, wanted, self.restandardize, out,
            weights=self._pairing.weights, arithmetic=self._arithmetic_for(self._stream_dtype),
        )  # fmt: skip

    def _converted(self, hats: list[Array], index: Array | None) -> list[Array]:
        images = self._pairing.s if self._pairing.repeats else None
        return [converted(hat, self._stream_dtype, index, targets=images) for hat in hats]

    @property
    def _stream_dtype(self) -> np.dtype[Any]:
        """Targets in float64 are answered in float64 where the factor is."""
        wide = np.result_type(self.targets_.dtype, np.float32) == np.float64
        return np.dtype(np.float64 if wide and self._train.order <= FLOAT64_ORDER else np.float32)
