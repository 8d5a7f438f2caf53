"""A residual network from betas to any number of targets, trained from disk within a memory budget.

The network (``network``) learns by AdamW (``training``) from batches that are read chunk by chunk (``batches``). Its head
answers in coordinates along the targets' principal components (``coding``), so that a prediction is a mixture of train
targets, H Y, and streams as the ridge's do; or it answers every target. With ``skip = "ridge"`` it learns what the ridge
leaves of the train rows when each is predicted from all others, and is added to the ridge.
"""

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leanrecon import devices
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.progress import Progress
from leanrecon.regression.mlp.batches import Batches, Held, Source, paired_at_random, split, take
from leanrecon.regression.mlp.checkpoint import Folder, History, load_weights, weights_of
from leanrecon.regression.mlp.coding import Coding, code, target_moments
from leanrecon.regression.mlp.plan import NetworkPlan, NetworkShapes, beside_ridge, plan_network
from leanrecon.regression.mlp.targets import Components, EveryTarget
from leanrecon.regression.mlp.trained import Trained
from leanrecon.regression.mlp.training import Data, Schedule, own_random_numbers, train
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge.plan import TEST_ROWS
from leanrecon.regression.ridge.restandardise import Kind
from leanrecon.regression.ridge.weights import contents
from leanrecon.regression.settings import MLPSettings
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import Matrix, RowSubset, StoreMatrix, panels
from leanrecon.validation import validate

Array = np.ndarray[Any, Any]

FORMAT = 1
"""Of the files of a training, and of the arithmetic that leads to them."""

_SCHEDULE = tuple(Schedule.__dataclass_fields__)
_NO_MATTER = {"checkpoint_minutes", "restandardize", "kind"}
"""Settings that change no weight."""


class StreamingMLP(Trained):
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
        betas, targets = self._train_matrices(X, y)
        return self._fit(betas, targets, groups, test_rows, None)

    def shuffled(
        self, seed: int | Sequence[int], *, folder: str | Path | None = None, label: str = ""
    ) -> "StreamingMLP":
        """The same network trained again with betas and targets paired at random: what is predicted without information.

        With the full head, targets are permuted within panels of 256 rows, so that chunks are still read whole.
        """
        self._check_fitted()
        changed: dict[str, Any] = {"folder": folder, "label": label or self.label}
        if self.alpha_ is not None:
            changed["alpha"] = self.alpha_  # as it was chosen
        other = StreamingMLP(**self.get_params() | changed)
        order = paired_at_random(self.betas_.shape[0], seed, within_panels=self.head == "full")
        other._one_dimensional, other._shared = self._one_dimensional, self._head
        return other._fit(self.betas_, self.targets_, self._groups, self._test_rows, order)

    _shared: Components | EveryTarget | None = None
    """The targets as another training learned them."""

    def _fit(
        self, betas: Matrix, targets: Matrix, groups: Sequence[Any] | None, test_rows: int, order: Array | None
    ) -> Self:
        n, self.n_features_in_ = betas.shape
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
        plan = self._planned()
        with contextlib.ExitStack() as stack:
            at = Path(self.folder or stack.enter_context(tempfile.TemporaryDirectory(dir=self.scratch)))
            self._learn(at, learned, plan)
        return self

    def _planned(self) -> NetworkPlan:
        """The plan; raises BudgetError with the phase that takes the most where the budget is too small."""
        budget = MemoryBudget.of(self.budget)
        plan = plan_network(self._shapes(self._test_rows), budget.free, torch_held="torch" in sys.modules)
        self.projected_ = budget.require(f"{self.label}: training the network ({plan.largest})", plan.work)
        return plan

    def _require_for_predictions(self, rows: int, held: int) -> None:
        budget = MemoryBudget.of(self.budget)
        plan = plan_network(self._shapes(rows), budget.free - held, torch_held=True)
        budget.require(f"{self.label}: predicting", plan.phases["predictions"] + held)

    def _learn(self, at: Path, learned: Array, plan: NetworkPlan) -> None:
        made_of = self._made_of()
        folder = Folder(at, made_of, overwrite=self.overwrite)
        known = {name: folder.find(name) for name in ("network", "best", "checkpoint")}["network"]
        self.moments_ = moments(self.betas_)
        self.left_out_ = int(self.betas_.shape[1] - self.moments_.usable.sum())
        if self.left_out_ == self.betas_.shape[1]:
            raise InputError(f"none of the {self.left_out_} voxels varies over the {self.betas_.shape[0]} train rows")
        self._train = Centred(self.betas_, self.moments_, scale=self.standardize)
        self._head = self._shared or self._coded(at, plan)
        self.alpha_, self._offset = self._left_by_ridge(at, learned)
        with own_random_numbers(self.seed):
            self.network_ = self._new_network()
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

    def _left_by_ridge(self, at: Path, learned: Array) -> tuple[float | None, Array | None]:
        """The ridge's alpha, and its predictions of every train row's coordinates, computed once and kept.

        Of the rows that are learned from, each is predicted from all others; validation rows are predicted from those, so
        that nothing that is learned knows of them.
        """
        if self.skip == "none" or not isinstance(self._head, Components):
            return None, None
        names = ("betas", "targets", "components", "explained", "standardize", "alpha", "alphas", "seed", "order")
        made_of = {name: self._made_of()[name] for name in (*names, "validation", "groups")}
        folder = Folder(at, made_of, overwrite=self.overwrite)
        if (found := folder.find("ridge")) is not None:
            return float(found.record["alpha"]), found.read("offset")
        beside = beside_ridge(self.betas_.shape[0], TEST_ROWS)
        alpha = float(self._ridge(self.alpha, beside).alpha_ if self.alpha == "loo" else self.alpha)
        ridge = self._ridge(alpha, beside, learned)
        paired = self._paired()[learned]
        offset = buffer(self._head.coding.coordinates.shape, np.float32)
        for part in panels(len(learned), TEST_ROWS):
            hat = ridge.left_out(np.arange(part.start, part.stop))
            offset[learned[part.start : part.stop]] = hat.astype(np.float32, copy=False) @ paired
        held = RowSubset(self.betas_, self._held)
        for part in panels(len(self._held), TEST_ROWS):
            hat = ridge.hat_of(held, part)
            offset[self._held[part.start : part.stop]] = hat.astype(np.float32, copy=False) @ paired
        folder.write("ridge", {"offset": offset}, alpha=alpha)
        return alpha, offset

    # Checks

    def _checked_settings(self) -> None:
        table = {name: getattr(self, name) for name in MLPSettings.model_fields if name != "kind"}
        table["alphas"] = None if self.alphas is None else [float(a) for a in self.alphas]
        validate(MLPSettings, table, "")
        if self.precision == "float16" and devices.choose(self.device) == "cpu":
            raise SettingsError(
                "precision = 'float16' on a CPU, which is slower than float32", expected="float32 or bfloat16"
            )

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

    def _shapes(self, test_rows: int) -> NetworkShapes:
        betas, targets = self.betas_, self.targets_
        wide = self._stream_dtype == np.float64
        y_scratch = 0 if isinstance(targets, StoreMatrix) else targets.scratch_nbytes
        if targets.dtype != self._stream_dtype:
            y_scratch += targets.tile_nbytes * 4 // targets.dtype.itemsize
        return NetworkShapes(
            betas.shape[0], betas.shape[1], test_rows, targets.shape[1], self.hidden, self.blocks, self.batch_size,
            self.window, self.components if self.head == "pca" else None, self.validation, targets.block,
            betas.tile_nbytes, targets.tile_nbytes, betas.scratch_nbytes, y_scratch, 8 if wide else 4,
            skip=self.skip == "ridge", from_ridge=self.inputs == "ridge", loo=self.alpha == "loo",
            half=self.precision != "float32", restandardized=self.restandardize != "none", device=self._device,
        )  # fmt: skip
