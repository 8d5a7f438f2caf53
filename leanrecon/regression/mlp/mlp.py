"""A residual network from betas to any number of targets, trained from disk within a memory budget.

The network (``network``) learns by AdamW (``training``) from batches that are read chunk by chunk (``batches``). Its head
predicts every target, or coordinates along the targets' principal components (``coding``). Then a prediction is a weighted
sum of train targets, H Y, which is streamed as for the ridge. With ``skip = "ridge"`` it learns
the cross-validated residuals of a ridge, and is added to the ridge.
"""

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from leanrecon import devices
from leanrecon.arguments import check_flag, check_path, check_progress, check_whole, plain_values
from leanrecon.context import Peaks
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.progress import Progress
from leanrecon.regression.mlp.batches import Batches, Held, Source, paired_at_random, split, take
from leanrecon.regression.mlp.coding import Coding, code, target_moments
from leanrecon.regression.mlp.parameters import defaults_of, parameters_from
from leanrecon.regression.mlp.plan import NetworkPlan, NetworkShapes, beside_ridge, plan_network
from leanrecon.regression.mlp.repeats import rows_alone, whole_images
from leanrecon.regression.mlp.settings import NOT_IN_WEIGHTS, MLPSettings
from leanrecon.regression.mlp.targets import Components, EveryTarget
from leanrecon.regression.mlp.trained import Trained
from leanrecon.regression.mlp.training import WEIGHTS, Data, train
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.limits import TEST_ROWS
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.shapes import targets_scratch_nbytes
from leanrecon.regression.ridge.weights import contents
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import Matrix, RowSubset, panels
from leanrecon.validation import nearest, validate
from leanrecon.weights.checkpoint import Folder, History, load_weights, weights_of
from leanrecon.weights.seeds import seeded_weights

Array = np.ndarray[Any, Any]

FORMAT = 1
"""Of the files of a training, and of the arithmetic that leads to them."""


@parameters_from(MLPSettings)
class StreamingMLP(Trained):
    """A residual network trained by mini-batches, streamed from disk within a memory budget (a scikit-learn estimator).

    Parameters
    ----------
    {settings}
    budget : str, int or MemoryBudget, optional
        What the process may hold, as in ``"4GB"``; by default 80 % of the free memory. It never changes a result.
    seed : int
        Seed of the validation rows, the weights, the batches and the dropout.
    scratch : path, optional
        Folder for matrices that the budget does not hold; by default the system's temporary folder.
    device : {"auto", "cuda", "mps", "cpu"}
        Where the network runs.
    folder : path, optional
        Where the training is kept and continued; without it, a stopped training is lost.
    overwrite : bool
        Replace what other settings left in ``folder``.
    progress : Progress, optional
        Where progress is shown.
    label : str
        What the work is called in progress and messages.

    Attributes
    ----------
    settings_ : MLPSettings
        The checked parameters.
    network_ : torch.nn.Module
    history_ : History
        Losses by epoch, and the epoch whose weights are kept.
    alpha_ : float or None
        The ridge's penalty.
    left_out_ : int
        Voxels left out because they are constant, or NaN in every row; ``fit`` warns of them.
    unreasonable_ : list of str
        What is odd about the betas, such as a voxel of mere rounding; ``fit`` warns of it.
    waited_ : float
        Seconds that steps waited for data.
    n_features_in_ : int
    """

    def __init__(
        self,
        *,
        budget: str | int | MemoryBudget | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
        device: str = "cpu",
        folder: str | Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        label: str = "mlp",
        **settings: Any,
    ) -> None:
        known = defaults_of(MLPSettings)
        if unknown := [name for name in settings if name not in known]:
            raise SettingsError(f"StreamingMLP has no parameter {unknown[0]!r} ({nearest(unknown[0], known)})")
        for name, default in known.items():
            setattr(self, name, settings.get(name, default))
        self.budget = budget
        self.seed = seed
        self.scratch = scratch
        self.device = device
        self.folder = folder
        self.overwrite = overwrite
        self.progress = progress
        self.label = label

    # Fitting

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        stimulus: Any = None,
        groups: Sequence[Any] | None = None,
        test_rows: int = TEST_ROWS,
    ) -> Self:
        """Learn targets ``y`` [n, t] or [n] from betas ``X`` [n, p]; continues or loads a training in ``folder``.

        ``stimulus`` [n] says which row of ``y`` each row of betas is paired with, where ``y`` [s, t] holds each image
        once. Rows of one group (``groups`` [n], by default the stimulus) are all learned from or all used for
        validation. ``test_rows`` plans for predictions of as many rows.
        Raises InputError for NaN, for rows that differ in number, and for fewer rows than a batch; BudgetError before
        any work that the budget can't hold; StoreError for a ``folder`` that was trained with other settings.
        """
        self.settings_ = self._checked_settings()
        betas, targets = self._train_matrices(X, y, stimulus)
        pairing = Pairing.of(stimulus, betas.shape[0], targets.shape[0])
        targets, index = (
            (targets, None) if pairing.index is None else rows_alone(targets, pairing, np.arange(pairing.n))
        )
        self._pairing = Pairing.of(index, pairing.n, targets.shape[0])
        if groups is None and self._pairing.index is not None and self._pairing.repeats:
            groups = self._pairing.index.tolist()
        return self._fit(betas, targets, groups, test_rows, None)

    def shuffled(
        self, seed: int | Sequence[int], *, folder: str | Path | None = None, label: str = ""
    ) -> "StreamingMLP":
        """The same network trained again with betas and targets paired at random: a baseline without information.

        With the full head, rows are permuted within panels of 256, so that chunks are still read whole.
        """
        self._check_fitted()
        changed: dict[str, Any] = {"folder": folder, "label": label or self.label}
        if self.alpha_ is not None:
            changed["alpha"] = self.alpha_  # the chosen one is kept
        other = StreamingMLP(**self.get_params() | changed)
        order = paired_at_random(self.betas_.shape[0], seed, within_panels=self.settings_.head == "full")
        other.settings_, other.warns = other._checked_settings(), False  # the betas are the same
        other._one_dimensional, other._shared, other._pairing = self._one_dimensional, self._head, self._pairing
        return other._fit(self.betas_, self.targets_, self._groups, self._test_rows, order)

    _shared: Components | EveryTarget | None = None
    """The targets as another training learned them."""

    def _fit(
        self, betas: Matrix, targets: Matrix, groups: Sequence[Any] | None, test_rows: int, order: Array | None
    ) -> Self:
        n, self.n_features_in_ = betas.shape
        self.betas_, self.targets_, self._groups, self._order = betas, targets, groups, order
        self._test_rows, self._device, self.peaks_ = test_rows, devices.choose(self.device), Peaks()
        learned, held = split(n, self.settings_.validation, self.seed, groups)
        if (index := self._pairing.index) is not None:  # an image may be shown in several runs
            learned = learned[~np.isin(index[learned], index[held])]
        if len(learned) < self.settings_.batch_size:
            raise InputError(
                f"{len(learned)} train rows to learn from ({n} less {len(held)} for validation) are fewer than a batch "
                f"of {self.settings_.batch_size}",
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
        self.projected_ = self._require(budget, f"{self.label}: training the network ({plan.largest})", plan.work)
        return plan

    def _require_for_predictions(self, rows: int, held: int) -> None:
        budget = MemoryBudget.of(self.budget)
        plan = plan_network(self._shapes(rows), budget.free - held, torch_held=True)
        self._require(budget, f"{self.label}: predicting", plan.phases["predictions"] + held)

    def _learn(self, at: Path, learned: Array, plan: NetworkPlan) -> None:
        made_of = self._made_of()
        folder = Folder(at, made_of, overwrite=self.overwrite)
        known = {name: folder.find(name) for name in ("network", "best", "checkpoint")}["network"]
        self._look_at(self.betas_, None)
        self._train = Centred(self.betas_, self.moments_, scale=self.settings_.standardize)
        self._head = self._shared or self._coded(at, plan)
        self.alpha_, self._offset = self._ridge_predictions(at, learned)
        with seeded_weights(self.seed, WEIGHTS):
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
        sources: list[Source] = [
            self._inputs_of(self._train, self._offset),
            self._head.source(self._paired, self._order),
        ]
        if self._offset is not None and isinstance(self._head, Components):
            sources.append(Held(self._offset * self._head.unit))
        batches = Batches(
            sources, learned, batch=self.settings_.batch_size, window=self.settings_.window, seed=self.seed
        )
        spread = self._head.spread / max(float(self._head.spread.max()), np.finfo(np.float64).tiny)
        data = Data(batches, take(sources, self._held), spread.astype(np.float32))
        self.network_ = self.network_.to(self._device)
        self.history_ = train(
            self.network_, data, self.settings_, folder, seed=self.seed, device=self._device,
            progress=self.progress or Progress(), label=self.label,
        )  # fmt: skip
        self.waited_ = batches.waited
        folder.write("network", weights_of(self.network_), history=self.history_.as_dict())

    def _coded(self, at: Path, plan: NetworkPlan) -> Components | EveryTarget:
        """The targets in the form that the network learns; their coordinates are computed once and kept."""
        if self.settings_.head == "full":
            found = target_moments(self.targets_, self._pairing.weights)
            return EveryTarget(self.targets_, found, self.settings_.whiten)
        how = {"components": self.settings_.components, "explained": self.settings_.explained}
        made_of = {"format": FORMAT, "targets": self._content(self.targets_), **how, **self._repeats()}
        folder = Folder(at, made_of, overwrite=self.overwrite)
        known = folder.find("coordinates")
        if known is None:
            coding = code(
                self.targets_,
                target_moments(self.targets_, self._pairing.weights),
                self._pairing.weights,
                components=self.settings_.components,
                explained=self.settings_.explained,
                folder=None if plan.in_memory else Path(self.scratch or tempfile.gettempdir()),
                pass_nbytes=plan.pass_nbytes,
            )
            folder.write("coordinates", vars(coding))
        else:
            coding = Coding(*(known.read(name) for name in ("coordinates", "spread", "explained")))
        return Components(coding, self.settings_.whiten)

    def _ridge_predictions(self, at: Path, learned: Array) -> tuple[float | None, Array | None]:
        """The ridge's alpha, and its predictions of every train row's coordinates, computed once and kept.

        Of the rows that are learned from, each is predicted from all rows of other images. Validation rows are predicted
        from the rows that are learned from, so that nothing that is learned depends on them.
        """
        if self.settings_.skip == "none" or not isinstance(self._head, Components):
            return None, None
        names = ("betas", "targets", "components", "explained", "standardize", "alpha", "alphas", "seed", "order")
        made_of = {name: self._made_of()[name] for name in (*names, "validation", "groups")} | self._repeats()
        folder = Folder(at, made_of, overwrite=self.overwrite)
        if (found := folder.find("ridge")) is not None:
            return float(found.record["alpha"]), found.read("offset")
        beside = beside_ridge(self.betas_.shape[0], TEST_ROWS)
        alpha = float(
            self._ridge(self.settings_.alpha, beside).alpha_ if self.settings_.alpha == "loo" else self.settings_.alpha
        )
        ridge = self._ridge(alpha, beside, learned)
        paired = self._coordinates_of_rows()[learned]
        offset = buffer((self.betas_.shape[0], self._head.outputs), np.float32)
        _, alone = rows_alone(self.targets_, self._pairing, learned)
        images = len(learned) if alone is None else int(alone.max()) + 1
        for part in whole_images(Pairing.of(alone, len(learned), images), TEST_ROWS):
            offset[learned[part]] = ridge.left_out(part).astype(np.float32, copy=False) @ paired
        held = RowSubset(self.betas_, self._held)
        for rows in panels(len(self._held), TEST_ROWS):
            hat = ridge.hat_of(held, rows)
            offset[self._held[rows.start : rows.stop]] = hat.astype(np.float32, copy=False) @ paired
        folder.write("ridge", {"offset": offset}, alpha=alpha)
        return alpha, offset

    # Checks

    def _checked_settings(self) -> MLPSettings:
        check_whole("seed", self.seed)
        check_flag("overwrite", self.overwrite)
        check_progress(self.progress)
        for name in ("folder", "scratch"):
            if getattr(self, name) is not None:
                check_path(name, getattr(self, name))
        table = {name: plain_values(getattr(self, name)) for name in defaults_of(MLPSettings)}
        settings = validate(MLPSettings, table, "")
        if settings.precision == "float16" and devices.choose(self.device) == "cpu":
            raise SettingsError(
                "precision = 'float16' on a CPU, which is slower than float32", expected="float32 or bfloat16"
            )
        return settings

    def _made_of(self) -> dict[str, Any]:
        """Everything that decides the weights."""
        return self.settings_.model_dump(exclude=set(NOT_IN_WEIGHTS)) | {
            "format": FORMAT,
            "betas": self._content(self.betas_),
            "targets": self._content(self.targets_),
            "groups": None if self._groups is None else fingerprint({"groups": [str(g) for g in self._groups]}),
            "order": None if self._order is None else fingerprint({"order": self._order.tolist()}),
            "seed": self.seed,
            **self._repeats(),
        }

    def _repeats(self) -> dict[str, str]:
        """The fingerprint of the image of each row; empty where row i shows image i."""
        index = self._pairing.index
        return {} if index is None else {"stimulus": fingerprint({"index": index.tolist()})}

    def _content(self, matrix: Matrix) -> str:
        """The content of a matrix, needed where a folder is kept; arrays are read once for it."""
        return contents(matrix) if self.folder else ""

    def _shapes(self, test_rows: int) -> NetworkShapes:
        betas, targets, dtype = self.betas_, self.targets_, self._stream_dtype
        return NetworkShapes(
            betas.shape[0], betas.shape[1], test_rows, targets.shape[1], self.settings_, s=self._pairing.s,
            largest=self._pairing.largest, block=targets.block, x_tile=betas.tile_nbytes, y_tile=targets.tile_nbytes,
            scratch=betas.scratch_nbytes, y_scratch=targets_scratch_nbytes(targets, dtype), y_itemsize=dtype.itemsize,
            device=self._device,
        )  # fmt: skip
