"""Predictions of a trained network: weighted sums of train targets, streamed as for the ridge."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression.estimator import Regressor
from leanrecon.regression.mlp.batches import Held, Source, take
from leanrecon.regression.mlp.network import residual_mlp
from leanrecon.regression.mlp.plan import beside_ridge
from leanrecon.regression.mlp.repeats import rows_alone
from leanrecon.regression.mlp.settings import MLPSettings
from leanrecon.regression.mlp.targets import Components, EveryTarget, from_hats
from leanrecon.regression.normalise import Centred, Moments
from leanrecon.regression.ridge.hat import converted, refuse_nan_rows
from leanrecon.regression.ridge.limits import TEST_ROWS
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores.matrix import PANEL, Matrix, Reblocked, RowSubset, column_blocks, panels
from leanrecon.weights.checkpoint import weights_of

Array = np.ndarray[Any, Any]


class Trained(Regressor):
    """Predictions of a trained network, alone or added to a ridge; ``StreamingMLP`` trains it."""

    _learned = "network_"

    settings_: MLPSettings
    budget: str | int | MemoryBudget | None
    seed: int
    scratch: str | Path | None

    # Learned
    network_: Any
    alpha_: float | None
    moments_: Moments
    betas_: Matrix
    _train: Centred
    _head: Components | EveryTarget
    _offset: Array | None
    _order: Array | None
    _pairing: Pairing
    _held: Array
    _device: str

    def _require_for_predictions(self, rows: int, held: int) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if "network_" in state:  # its class is local to a function, which pickle can't name
            state["network_"] = weights_of(self.network_)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "network_" in state:
            import torch

            network = self._new_network()
            network.load_state_dict({name: torch.from_numpy(a) for name, a in state["network_"].items()})
            self.network_ = network.to(self._device).eval().requires_grad_(False)

    def _new_network(self) -> Any:
        """The untrained network, with weights from PyTorch's present seed."""
        return residual_mlp(
            self._head.outputs if self.settings_.inputs == "ridge" else self.n_features_in_,
            self._head.outputs,
            hidden=self.settings_.hidden,
            blocks=self.settings_.blocks,
            dropout=self.settings_.dropout,
            zero_head=self.alpha_ is not None,
        )

    def predict_blocks(
        self, X: Any, *, block: int | None = None, wanted: Sequence[int] | None = None, held: int = 0
    ) -> Iterator[tuple[range, range, Array]]:
        """Yield ``(rows, columns, predictions)`` block by block, as the ridge does."""
        test = self._validated_test(X)
        targets = self.targets_ if block in (None, self.targets_.block) else Reblocked(self.targets_, block)
        wanted = range(len(column_blocks(targets))) if wanted is None else wanted
        if not len(wanted):
            return
        self._require_for_predictions(test.shape[0], held)
        together = self.settings_.restandardize == "transductive"
        n, rows_at_once = self.betas_.shape[0], min(test.shape[0], TEST_ROWS)
        ridge = None if self.alpha_ is None else self._ridge(self.alpha_, beside_ridge(n, 3 * rows_at_once))
        for rows in [range(test.shape[0])] if together else panels(test.shape[0], TEST_ROWS):
            if isinstance(self._head, EveryTarget):
                yield from self._through_head(rows, test, targets, wanted)
            else:
                hats = [self._hat(part, test, ridge) for part in _parts(rows)] + self._reference(ridge)
                yield from from_hats(
                    rows, hats, targets, wanted, self.settings_.restandardize, self._stream_dtype, self._pairing.weights
                )

    def _hat(self, rows: range, test: Matrix, ridge: StreamingRidge | None) -> Array:
        """The hat matrix of some test rows: that of the network, added to that of the ridge."""
        assert isinstance(self._head, Components)
        of_ridge = None if ridge is None else ridge.hat_of(test, rows).astype(np.float32, copy=False)
        return self._mixed(Centred(test, self.moments_, scale=self.settings_.standardize), rows, of_ridge)

    def _mixed(self, betas: Source, rows: range, of_ridge: Array | None) -> Array:
        assert isinstance(self._head, Components)
        offset = None
        if of_ridge is not None and self._pairing.repeats:
            of_ridge = converted(of_ridge, of_ridge.dtype, self._paired.index, targets=self._pairing.s)
            offset = of_ridge @ self._head.coding.coordinates
        elif of_ridge is not None:
            offset = of_ridge @ self._coordinates_of_rows()
            of_ridge = converted(of_ridge, of_ridge.dtype, self._paired.index)
        given = self._inputs_of(betas, offset)
        # The ridge's predictions hold these rows alone, betas hold all rows.
        answers = self._outputs_of(given, range(len(rows)) if self.settings_.inputs == "ridge" else rows)
        refuse_nan_rows(answers, rows)
        hat = self._head.hat(answers, mean=of_ridge is None, weights=self._pairing.weights)
        if of_ridge is not None:
            hat += of_ridge
        return hat

    @property
    def _paired(self) -> Pairing:
        """The targets that the rows of betas are paired with, at random after ``shuffled``."""
        return self._pairing.shuffled(self._order)

    def _coordinates_of_rows(self) -> Array:
        """The coordinates of the targets that each train row of betas is paired with, [n, k]."""
        assert isinstance(self._head, Components)
        coordinates, index = self._head.coding.coordinates, self._paired.index
        return coordinates if index is None else coordinates[index]

    def _reference(self, ridge: StreamingRidge | None) -> list[Array]:
        """The hat matrix of the validation rows, where their predictions give the moments."""
        if self.settings_.restandardize != "inductive":
            return []
        rows = self._held
        of_ridge = None if ridge is None else ridge.left_out(rows).astype(np.float32, copy=False)
        betas = Held(take([self._train], rows)[0])
        return [self._mixed(betas, range(len(rows)), of_ridge)]

    def _through_head(
        self, rows: range, test: Matrix, targets: Matrix, wanted: Sequence[int]
    ) -> Iterator[tuple[range, range, Array]]:
        assert isinstance(self._head, EveryTarget)
        betas = Centred(test, self.moments_, scale=self.settings_.standardize)
        features = self._outputs_of(betas, rows, features=True)
        like = None
        if self.settings_.restandardize == "inductive":
            like = self._outputs_of(Held(take([self._train], self._held)[0]), range(len(self._held)), features=True)
        head = self.network_.head.weight.cpu().numpy(), self.network_.head.bias.cpu().numpy()
        yield from self._head.blocks(rows, features, like, head, targets, wanted, self.settings_.restandardize)

    def _outputs_of(self, given: Source, rows: range, *, features: bool = False) -> Array:
        """The network's outputs for some rows [len(rows), outputs], or the inputs of its last layer.

        Batches are always of 256 rows, filled up with zeros, so that a row's output does not depend on other rows.
        """
        import torch

        width = given.shape[1]
        result = buffer((len(rows), self.settings_.hidden if features else self._head.outputs), np.float32)
        memory = buffer((PANEL * width * 4,), np.uint8)
        ask = self.network_.features if features else self.network_
        for part in panels(len(rows)):
            memory[:] = 0
            given.read(range(rows.start + part.start, rows.start + part.stop), range(width), memory, np.float32)
            x = torch.from_numpy(memory.view(np.float32).reshape(PANEL, width)).to(self._device)
            with torch.inference_mode():
                result[part.start : part.stop] = ask(x)[: len(part)].float().cpu().numpy()
        return result

    # The inputs, and the ridge beside the network

    def _inputs_of(self, betas: Source, offset: Array | None) -> Source:
        """The network's inputs for some rows: betas, or the ridge's predictions, scaled to variance one in training."""
        if self.settings_.inputs == "betas":
            return betas
        assert offset is not None
        assert self._offset is not None
        scale = self._offset.std(axis=0)
        return Held(offset / np.where(scale > 0, scale, 1))

    def _ridge(self, alpha: Any, beside: int, rows: Array | None = None) -> StreamingRidge:
        """The ridge of all train rows or of some, in the budget less ``beside`` bytes."""
        budget = MemoryBudget.of(self.budget)
        ridge = StreamingRidge(
            alpha, standardize=self.settings_.standardize, alphas=self.settings_.alphas, budget=MemoryBudget(budget.allowed - beside, budget.reserved), seed=self.seed,
            scratch=self.scratch,
        )  # fmt: skip
        ridge.warns = False
        if rows is None:
            return ridge.fit(self.betas_, self.targets_, stimulus=self._pairing.index)
        targets, stimulus = rows_alone(self.targets_, self._pairing, rows)
        return ridge.fit(RowSubset(self.betas_, rows), targets, stimulus=stimulus)

    @property
    def _stream_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if np.result_type(self.targets_.dtype, np.float32) == np.float64 else np.float32)


def _parts(rows: range) -> list[range]:
    return [range(rows.start + part.start, rows.start + part.stop) for part in panels(len(rows), TEST_ROWS)]
