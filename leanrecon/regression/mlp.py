"""A residual network from betas to any number of targets, trained from disk within a memory budget.

The network (``network``) learns by AdamW (``training``) from batches that are read chunk by chunk (``batches``). Its head
answers in coordinates along the targets' principal components (``coding``), so that a prediction is a mixture of train
targets, H Y, and streams as the ridge's do; or it answers every target. With ``skip = "ridge"`` it learns what the ridge
leaves of the train rows when each is predicted from all others, and is added to the ridge.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leanrecon import devices
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.progress import Progress
from leanrecon.regression.batches import VALIDATION_ROWS, Batches, Held, Source, paired_at_random, split, take
from leanrecon.regression.checkpoint import Folder, History, load_weights, weights_of
from leanrecon.regression.coding import Coding, code, target_moments
from leanrecon.regression.estimator import Regressor, checked_test, checked_train, is_lazy
from leanrecon.regression.hat import converted, refuse_nan_rows
from leanrecon.regression.mlp_plan import NetworkPlan, NetworkShapes, plan_network
from leanrecon.regression.network import residual_mlp
from leanrecon.regression.normalise import Centred, Moments, moments
from leanrecon.regression.plan import TEST_ROWS
from leanrecon.regression.restandardise import Kind
from leanrecon.regression.ridge import StreamingRidge
from leanrecon.regression.settings import MLPSettings
from leanrecon.regression.targets import Components, EveryTarget, from_hats
from leanrecon.regression.training import Data, Schedule, own_random_numbers, train
from leanrecon.regression.weights import contents
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import PANEL, Matrix, Reblocked, StoreMatrix, as_matrix, column_blocks, panels
from leanrecon.stores.store import Store
from leanrecon.validation import validate

Array = np.ndarray[Any, Any]

FORMAT = 1
"""Of the files of a training, and of the arithmetic that leads to them."""

_SCHEDULE = tuple(Schedule.__dataclass_fields__)
_NO_MATTER = {"checkpoint_minutes", "restandardize", "kind"}
"""Settings that change no weight."""


class StreamingMLP(Regressor):
    """A residual network trained by mini-batches, streamed from disk within a memory budget (a scikit-learn estimator).

    Parameters
    ----------
    hidden, blocks, dropout : int, int, float
        Width and number of residual blocks; the share of a layer's outputs that is dropped while learning.
    head : {"pca", "full"}
        Answer in coordinates along principal components of the train targets, or in every target.
    components, explained : int, float
        Keep at most so many components, and no more than explain this share of the variance.
    whiten : bool
        Give every component (or target) the same weight in the loss, instead of its variance.
    skip : {"none", "ridge"}
        Add the network to a ridge, and train it on the ridge's leave-one-out residuals. Needs the PCA head.
    inputs : {"betas", "ridge"}
        What the network is given: voxels, or the ridge's predictions of the coordinates (leave-one-out in training).
    alpha, alphas : float or "loo", sequence of float
        Those of the ridge.
    standardize : bool
        Divide voxels by their train standard deviation (ddof = 1).
    restandardize : {"none", "inductive", "transductive"}
        As the ridge's; ``inductive`` takes the moments from predictions of the validation rows.
    loss, temperature, contrast : {"mse", "softclip"}, float, float
        Mean squared error, plus ``contrast`` times SoftCLIP at a temperature.
    epochs, batch_size, learning_rate, weight_decay, warmup, clip
        AdamW under a cosine schedule, with a linear rise over the first share ``warmup`` of the steps and gradients
        clipped to the norm ``clip``.
    validation, patience : float, int
        The share of the train rows that are not learned from (at most 1,024 rows), and after how many epochs without
        a lower loss on them training ends. The weights of the least validation loss are kept; with 0, the last.
    noise, voxel_dropout : float
        Standard deviation of noise on inputs, and the share of inputs left out, while learning.
    window : int
        Rows that are shuffled together (a multiple of 256).
    precision : {"float32", "bfloat16", "float16"}
        Of products while learning.
    checkpoint_minutes : float
        How often a training that may be stopped is written to ``folder``.
    budget, seed, scratch
        As the ridge's. The budget never changes a result.
    device : {"auto", "cuda", "mps", "cpu"}
    folder : path, optional
        Where training is kept and continued; without it, a stopped training is lost.
    overwrite : bool
        Replace what other settings left there.
    progress, label
        Where and under which name it shows how far it is.

    Attributes
    ----------
    network_ : torch.nn.Module
    history_ : History
        Losses by epoch, and the epoch whose weights are kept.
    alpha_ : float or None
        The ridge's.
    left_out_ : int
        Voxels left out because they are constant, or NaN in every row.
    waited_ : float
        Seconds that steps waited for data.
    n_features_in_ : int
    """

    _learned = "network_"

    def __init__(
        self,
        *,
        hidden: int = 2048,
        blocks: int = 2,
        dropout: float = 0.5,
        head: Literal["pca", "full"] = "pca",
        components: int = 1024,
        explained: float = 1.0,
        whiten: bool = True,
        skip: Literal["none", "ridge"] = "ridge",
        inputs: Literal["betas", "ridge"] = "betas",
        alpha: float | Literal["loo"] = "loo",
        alphas: Sequence[float] | None = None,
        standardize: bool = True,
        restandardize: Kind = "none",
        loss: Literal["mse", "softclip"] = "mse",
        temperature: float = 0.125,
        contrast: float = 1.0,
        epochs: int = 60,
        batch_size: int = 64,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.1,
        warmup: float = 0.05,
        clip: float = 1.0,
        validation: float = 0.1,
        patience: int = 10,
        noise: float = 0.1,
        voxel_dropout: float = 0.1,
        window: int = 1024,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        checkpoint_minutes: float = 10.0,
        budget: str | int | MemoryBudget | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
        device: str = "cpu",
        folder: str | Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        label: str = "mlp",
    ) -> None:
        self.hidden = hidden
        self.blocks = blocks
        self.dropout = dropout
        self.head = head
        self.components = components
        self.explained = explained
        self.whiten = whiten
        self.skip = skip
        self.inputs = inputs
        self.alpha = alpha
        self.alphas = alphas
        self.standardize = standardize
        self.restandardize = restandardize
        self.loss = loss
        self.temperature = temperature
        self.contrast = contrast
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.clip = clip
        self.validation = validation
        self.patience = patience
        self.noise = noise
        self.voxel_dropout = voxel_dropout
        self.window = window
        self.precision = precision
        self.checkpoint_minutes = checkpoint_minutes
        self.budget = budget
        self.seed = seed
        self.scratch = scratch
        self.device = device
        self.folder = folder
        self.overwrite = overwrite
        self.progress = progress
        self.label = label

    # Fitting

    def fit(self, X: Any, y: Any, *, groups: Sequence[Any] | None = None, test_rows: int = TEST_ROWS) -> Self:
        """Learn targets ``y`` [n, t] or [n] from betas ``X`` [n, p], or continue, or load what was learned in ``folder``.

        Rows of one group (``groups`` [n]: the stimulus of each) are kept together, for validation or for learning.
        ``test_rows`` plans for predictions of as many. Raises InputError for NaN, rows that differ in number or are fewer than
        a batch; BudgetError for a budget that can't hold the work, before any of it is done; StoreError for a ``folder``
        that was trained with other settings.
        """
        self._checked_settings()
        X, y = checked_train(self, X, y)
        self._one_dimensional = len(y.shape) == 1 if isinstance(y, np.ndarray) else False
        betas, targets = as_matrix(X), as_matrix(y[:, None] if self._one_dimensional else y)
        return self._fit(betas, targets, groups, test_rows, None)

    def shuffled(self, seed: int | Sequence[int], *, folder: str | Path | None = None, label: str = "") -> "StreamingMLP":
        """The same network trained again with betas and targets paired at random: what is predicted without information.

        With the full head, targets are permuted within panels of 256 rows, so that chunks are still read whole.
        """
        self._check_fitted()
        other = StreamingMLP(**self.get_params() | {"folder": folder, "label": label or self.label})
        order = paired_at_random(self.betas_.shape[0], seed, within_panels=self.head == "full")
        other._one_dimensional, other._coding_at = self._one_dimensional, self._coding_at
        return other._fit(self.betas_, self.targets_, self._groups, self._test_rows, order)

    _coding_at: Path | None = None
    """The folder with the targets' coordinates, where it is that of another training."""

    def _fit(
        self, betas: Matrix, targets: Matrix, groups: Sequence[Any] | None, test_rows: int, order: Array | None
    ) -> Self:
        n, p = betas.shape
        if targets.shape[0] != n:
            raise InputError(f"{n} rows of betas and {targets.shape[0]} rows of targets", expected="as many of each")
        self.n_features_in_ = p
        self.betas_, self.targets_, self._groups, self._order = betas, targets, groups, order
        self._test_rows, self._device = test_rows, devices.choose(self.device)
        learned, held = split(n, self.validation, self.seed, groups)
        if len(learned) < self.batch_size:
            raise InputError(
                f"{len(learned)} train rows to learn from ({n} less {len(held)} for validation) are fewer than a batch "
                f"of {self.batch_size}",
                todo="lower regression.batch_size",
            )
        self._held = held
        plan = self._require("training the network")
        with contextlib.ExitStack() as stack:
            at = Path(self.folder or stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch)))
            self._learn(at, learned, plan)
        return self

    def _require(self, what: str, *, phases: Sequence[str] = ()) -> NetworkPlan:
        """Plan, and raise BudgetError with the phase that takes the most where the budget is too small."""
        import sys

        budget = MemoryBudget.of(self.budget)
        plan = plan_network(self._shapes(), budget.free, torch_held="torch" in sys.modules)
        work = max(plan.phases[name] for name in phases) if phases else plan.work
        self.projected_ = budget.require(f"{self.label}: {what}" + ("" if phases else f" ({plan.largest})"), work)
        return plan

    def _learn(self, at: Path, learned: Array, plan: NetworkPlan) -> None:
        made_of = self._made_of()
        folder = Folder(at, made_of, overwrite=self.overwrite)
        known = {name: folder.find(name) for name in ("network", "best", "checkpoint")}["network"]
        self.moments_ = moments(self.betas_)
        self.left_out_ = int(self.betas_.shape[1] - self.moments_.usable.sum())
        if self.left_out_ == self.betas_.shape[1]:
            raise InputError(f"none of the {self.left_out_} voxels varies over the {self.betas_.shape[0]} train rows")
        self._train = Centred(self.betas_, self.moments_, scale=self.standardize)
        self._coding_at = self._coding_at or (at if self.folder else None)
        self._head = self._coded(self._coding_at or at, plan)
        self.alpha_, self._offset = self._left_by_ridge(at)
        with own_random_numbers(self.seed):
            self.network_ = residual_mlp(
                self._shapes().inputs if self.inputs == "betas" else self._head.outputs,
                self._head.outputs,
                hidden=self.hidden,
                blocks=self.blocks,
                dropout=self.dropout,
                zero_head=self.skip == "ridge",
            )
            self.waited_ = 0.0
            if known is not None:
                load_weights(self.network_, known)
                self.network_ = self.network_.to(self._device).eval()
                self.history_ = History(**known.record["history"])
            else:
                self._trained(folder, learned)
        folder.forget("best", "checkpoint")
        self.network_.requires_grad_(False)

    def _trained(self, folder: Folder, learned: Array) -> None:
        sources: list[Source] = [self._given(self._train, self._offset), self._head.source(self._order)]
        if self._offset is not None and isinstance(self._head, Components):
            sources.append(Held(self._offset * self._head.unit))
        batches = Batches(sources, learned, batch=self.batch_size, window=self.window, seed=self.seed)
        spread = self._head.spread / max(float(self._head.spread.max()), np.finfo(np.float64).tiny)
        data = Data(batches, take(sources, self._held), spread.astype(np.float32))
        how = Schedule(**{name: getattr(self, name) for name in _SCHEDULE})
        self.network_ = self.network_.to(self._device)
        self.history_ = train(
            self.network_, data, how, folder, seed=self.seed, device=self._device,
            progress=self.progress or Progress(), label=self.label,
        )  # fmt: skip
        self.waited_ = batches.waited
        folder.write("network", weights_of(self.network_), history=self.history_.as_dict())

    def _given(self, betas: Centred, offset: Array | None) -> Source:
        """What the network is given of some rows: betas, or what the ridge predicts, each coordinate of variance one in training."""
        if self.inputs == "betas":
            return betas
        assert offset is not None and self._offset is not None
        scale = self._offset.std(axis=0)
        return Held(offset / np.where(scale > 0, scale, 1))

    def _coded(self, at: Path, plan: NetworkPlan) -> Components | EveryTarget:
        """The targets as the network learns them; their coordinates are computed once and kept."""
        if self.head == "full":
            return EveryTarget(self.targets_, target_moments(self.targets_), self.whiten)
        how = {"components": self.components, "explained": self.explained}
        made_of = {"format": FORMAT, "targets": self._content(self.targets_), **how}
        folder = Folder(at, made_of, overwrite=self.overwrite)
        found = folder.find("coordinates")
        if found is None:
            coding = code(
                self.targets_,
                target_moments(self.targets_),
                components=self.components,
                explained=self.explained,
                folder=None if plan.in_memory else Path(self.scratch or tempfile.gettempdir()),
                pass_nbytes=plan.pass_nbytes,
            )
            folder.write("coordinates", vars(coding))
        else:
            coding = Coding(*(found.read(name) for name in ("coordinates", "spread", "explained")))
        return Components(coding, self.whiten)

    def _left_by_ridge(self, at: Path) -> tuple[float | None, Array | None]:
        """The ridge's alpha, and its leave-one-out predictions of the train rows' coordinates, computed once and kept."""
        if self.skip == "none" or not isinstance(self._head, Components):
            return None, None
        names = ("betas", "targets", "components", "explained", "standardize", "alpha", "alphas", "seed", "order")
        folder = Folder(at, {name: self._made_of()[name] for name in names}, overwrite=self.overwrite)
        if (found := folder.find("ridge")) is not None:
            return float(found.record["alpha"]), found.read("offset")
        ridge = self._ridge(self.alpha)
        coordinates = self._head.coding.coordinates
        paired = coordinates if self._order is None else coordinates[self._order]
        offset = buffer(coordinates.shape, np.float32)
        for rows in panels(len(offset), TEST_ROWS):
            hat = ridge.left_out(np.arange(rows.start, rows.stop))
            offset[rows.start : rows.stop] = hat.astype(np.float32, copy=False) @ paired
        folder.write("ridge", {"offset": offset}, alpha=float(ridge.alpha_))
        return float(ridge.alpha_), offset

    def _ridge(self, alpha: Any) -> StreamingRidge:
        ridge = StreamingRidge(
            alpha, standardize=self.standardize, alphas=self.alphas, budget=self.budget, seed=self.seed,
            scratch=self.scratch,
        )  # fmt: skip
        return ridge.fit(self.betas_, self.targets_)

    # Predicting

    def predict(self, X: Any) -> Array:
        """Predictions for test betas ``X`` [m, p], as an array [m, t] (or [m], if the targets were)."""
        test = self._test_matrix(X)
        result = np.empty((test.shape[0], self.targets_.shape[1]), self._dtype)
        for rows, columns, values in self.predict_blocks(test, held=result.nbytes):
            result[rows.start : rows.stop, columns.start : columns.stop] = values
        return result[:, 0] if self._one_dimensional else result

    def predict_into(self, X: Any, store: Store, *, advance: Callable[[int], None] = lambda n: None) -> None:
        """Write predictions for test betas into a store [m, t]: only the blocks of columns that it lacks.

        ``advance`` is told of every block that is done.
        """
        test = self._test_matrix(X)
        if (store.rows, store.columns) != (test.shape[0], self.targets_.shape[1]):
            raise InputError(f"a store of {store.shape} can't take predictions of {test.shape[0]} rows")
        for rows, columns, values in self.predict_blocks(
            test, block=store.chunk_columns, wanted=store.missing_column_groups()
        ):
            store.write_columns(columns.start // store.chunk_columns, values, first_row=rows.start)
            if rows.stop == store.rows:
                advance(1)

    def predict_blocks(
        self, X: Any, *, block: int | None = None, wanted: Sequence[int] | None = None, held: int = 0
    ) -> Iterator[tuple[range, range, Array]]:
        """Yield ``(rows, columns, predictions)`` block by block, as the ridge does."""
        test = self._test_matrix(X)
        targets = self.targets_ if block in (None, self.targets_.block) else Reblocked(self.targets_, block)
        wanted = range(len(column_blocks(targets))) if wanted is None else wanted
        if not len(wanted):
            return
        self._test_rows = test.shape[0]
        self._require("predicting", phases=["predictions"])
        together = self.restandardize == "transductive"
        ridge = None if self.alpha_ is None else self._ridge(self.alpha_)
        for rows in [range(test.shape[0])] if together else panels(test.shape[0], TEST_ROWS):
            if isinstance(self._head, EveryTarget):
                yield from self._through_head(rows, test, targets, wanted)
            else:
                hats = [self._hat(part, test, ridge) for part in _parts(rows)] + self._reference(ridge)
                yield from from_hats(rows, hats, targets, wanted, self.restandardize, self._dtype)

    def _hat(self, rows: range, test: Matrix, ridge: StreamingRidge | None) -> Array:
        """The hat matrix of some test rows: the network's answers as mixtures of train targets, added to the ridge's."""
        assert isinstance(self._head, Components)
        of_ridge = None if ridge is None else ridge.hat_of(test, rows).astype(np.float32, copy=False)
        return self._mixed(Centred(test, self.moments_, scale=self.standardize), rows, of_ridge)

    def _mixed(self, betas: Centred, rows: range, of_ridge: Array | None) -> Array:
        assert isinstance(self._head, Components)
        offset = None
        if of_ridge is not None:
            offset = of_ridge @ (self._head.coding.coordinates if self._order is None else self._paired())
        given = self._given(betas, offset)
        # The ridge's predictions are of these rows alone, betas are of all.
        answers = self._answers(given, range(len(rows)) if self.inputs == "ridge" else rows)
        refuse_nan_rows(answers, rows)
        hat = self._head.hat(answers, mean=of_ridge is None)
        if of_ridge is not None:
            hat += converted(of_ridge, np.dtype(np.float32), self._order)
        return hat

    def _paired(self) -> Array:
        assert isinstance(self._head, Components)
        return self._head.coding.coordinates[self._order]

    def _reference(self, ridge: StreamingRidge | None) -> list[Array]:
        """The hat matrix of the validation rows, where their predictions give the moments."""
        if self.restandardize != "inductive":
            return []
        rows = self._held
        of_ridge = None if ridge is None else ridge.left_out(rows).astype(np.float32, copy=False)
        betas = Held(take([self._train], rows)[0])
        return [self._mixed(betas, range(len(rows)), of_ridge)]  # type: ignore[arg-type]

    def _through_head(
        self, rows: range, test: Matrix, targets: Matrix, wanted: Sequence[int]
    ) -> Iterator[tuple[range, range, Array]]:
        assert isinstance(self._head, EveryTarget)
        betas = Centred(test, self.moments_, scale=self.standardize)
        features = self._answers(betas, rows, features=True)
        like = None
        if self.restandardize == "inductive":
            like = self._answers(Held(take([self._train], self._held)[0]), range(len(self._held)), features=True)
        head = tuple(tensor.cpu().numpy() for tensor in (self.network_.head.weight, self.network_.head.bias))
        yield from self._head.blocks(rows, features, like, head, targets, wanted, self.restandardize)  # type: ignore[arg-type]

    def _answers(self, given: Source, rows: range, *, features: bool = False) -> Array:
        """The network's answers to some rows [len(rows), outputs], or its last layer's inputs.

        Always 256 rows at a time, the last of them zeros where there are fewer: a row's answer is the same in any company.
        """
        import torch

        width = given.shape[1]
        result = buffer((len(rows), self.hidden if features else self._head.outputs), np.float32)
        memory = buffer((PANEL * width * 4,), np.uint8)
        ask = self.network_.features if features else self.network_
        for part in panels(len(rows)):
            memory[:] = 0
            given.read(range(rows.start + part.start, rows.start + part.stop), range(width), memory, np.float32)
            x = torch.from_numpy(memory.view(np.float32).reshape(PANEL, width)).to(self._device)
            with torch.inference_mode():
                result[part.start : part.stop] = ask(x)[: len(part)].float().cpu().numpy()
        return result

    # Checks

    def _test_matrix(self, X: Any) -> Matrix:
        self._check_fitted()
        test = as_matrix(X if is_lazy(X) else checked_test(self, X))
        if test.shape[1] != self.n_features_in_:
            raise InputError(f"test betas of {test.shape[1]} voxels", expected=f"{self.n_features_in_}, as in training")
        return test

    def _checked_settings(self) -> None:
        table = {name: getattr(self, name) for name in MLPSettings.model_fields if name != "kind"}
        table["alphas"] = None if self.alphas is None else [float(a) for a in self.alphas]
        validate(MLPSettings, table, "")
        if self.precision == "float16" and devices.choose(self.device) == "cpu":
            raise SettingsError("precision = 'float16' on a CPU, which is slower than float32", expected="float32 or bfloat16")

    def _made_of(self) -> dict[str, Any]:
        """All that decides the weights."""
        settings = {name: getattr(self, name) for name in MLPSettings.model_fields if name not in _NO_MATTER}
        settings["alphas"] = None if self.alphas is None else [float(a) for a in self.alphas]
        return settings | {
            "format": FORMAT,
            "betas": self._content(self.betas_),
            "targets": self._content(self.targets_),
            "groups": None if self._groups is None else fingerprint({"groups": [str(g) for g in self._groups]}),
            "order": None if self._order is None else fingerprint({"order": self._order.tolist()}),
            "seed": self.seed,
        }

    def _content(self, matrix: Matrix) -> str:
        """What a matrix holds, where a folder outlives this process; arrays are read once for it."""
        return contents(matrix) if self.folder else ""

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64 if np.result_type(self.targets_.dtype, np.float32) == np.float64 else np.float32)

    def _shapes(self) -> NetworkShapes:
        betas, targets = self.betas_, self.targets_
        wide = self._dtype == np.float64
        y_scratch = 0 if isinstance(targets, StoreMatrix) else targets.scratch_nbytes
        if targets.dtype != self._dtype:
            y_scratch += targets.tile_nbytes * 4 // targets.dtype.itemsize
        return NetworkShapes(
            betas.shape[0], betas.shape[1], self._test_rows, targets.shape[1], self.hidden, self.blocks, self.batch_size,
            self.window, self.components if self.head == "pca" else None, self.validation, targets.block,
            betas.tile_nbytes, targets.tile_nbytes, betas.scratch_nbytes, y_scratch, 8 if wide else 4,
            skip=self.skip == "ridge", from_ridge=self.inputs == "ridge", loo=self.alpha == "loo",
            half=self.precision != "float32", restandardized=self.restandardize != "none", device=self._device,
        )  # fmt: skip


def _parts(rows: range) -> list[range]:
    return [range(rows.start + part.start, rows.start + part.stop) for part in panels(len(rows), TEST_ROWS)]
