"""The choice of a decoder's form and of the weights of voxels, before that of alpha."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.regression.estimator import Regressor
from leanrecon.regression.kept import Kept
from leanrecon.regression.normalise import Moments
from leanrecon.regression.ridge import kept_parts
from leanrecon.regression.ridge.choice import Choice, choose
from leanrecon.regression.ridge.form import Form, Kernel
from leanrecon.regression.ridge.loo import project
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.voxel_weights import carried, weights_of
from leanrecon.stores.matrix import Matrix, as_matrix

if TYPE_CHECKING:
    from leanrecon.regression.ridge.on_workers import FitOnWorkers

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Learned:
    """The chosen form, and the shares of variance that give its weights."""

    form: Form
    choice: Choice | None = None
    """How it was chosen; None if there was only one."""
    share: Array | None = None
    """The share of each voxel's variance that the images explain, float64 [p]."""
    weights: Array | None = None
    """The weight of each voxel, float64 [p]."""


class Formed(Regressor):
    """A regressor whose form is chosen before its alpha."""

    alpha: Any
    alphas: Sequence[float] | None
    standardize: bool
    seed: int
    kept: Kept | None = None
    """Intermediate results that fits of the same betas or targets share; None: nothing is shared."""

    workers: "FitOnWorkers | None" = None
    """The workers that make parts of the fit; None: it is made in this process."""

    # Learned
    learned_: Learned
    betas_: Matrix
    _pairing: Pairing

    @property
    def kernel_(self) -> Kernel:
        """The kernel that was chosen or given."""
        return self.learned_.form.kernel

    @property
    def voxel_weights_(self) -> Array | None:
        """The weight of each voxel, float64 [p]; None where all weigh the same."""
        return self.learned_.weights

    def _look_at(self, betas: Matrix, test: Matrix | None) -> None:
        found = None if self.kept is None else kept_parts.look_found(self.kept, betas, test)
        if found is not None:
            self.moments_, self.left_out_, self.unreasonable_ = found.moments, found.left_out, found.unreasonable
            return
        super()._look_at(betas, test)
        if self.kept is not None:
            self.kept.add("moments", kept_parts.Look(betas, test, self.moments_, self.left_out_, self.unreasonable_))

    def _projected(self, dtype: Any) -> Array:
        """Centred targets [s, t], or random projections of them, in memory that may be used up."""
        targets, weights = self.targets_, self._pairing.weights

        def make() -> Array:
            if self.workers is not None and self.workers.takes_projections(targets):
                return self.workers.projections(targets, self.seed, np.dtype(dtype), weights)
            return project(targets, self.seed, dtype, weights)

        return kept_parts.projections(self.kept, targets, self.seed, dtype, weights, make)

    @property
    def _alike(self) -> bool:
        """Whether other targets have the same Gram matrix, as far as voxels are not weighed by how they carry them."""
        return self.learned_.form.source != "accuracy"

    def _learn_form(self, choices: Sequence[Form], reliability: Any) -> Learned:
        return learn_form(
            choices,
            self.betas_,
            self.targets_,
            self._pairing,
            self.moments_,
            project=lambda: self._projected(np.float64),
            scale=self.standardize,
            alpha=None if self.alpha == "loo" else float(self.alpha),
            alphas=self.alphas,
            reliability=None if reliability is None else np.asarray(reliability),
            seed=self.seed,
            kept=self.kept,
        )


def learn_form(
    forms: Sequence[Form],
    betas: Matrix,
    targets: Matrix,
    pairing: Pairing,
    train: Moments,
    *,
    project: Callable[[], Array],
    scale: bool,
    alpha: float | None,
    alphas: Sequence[float] | None,
    reliability: Array | None,
    seed: int,
    kept: Kept | None,
) -> Learned:
    """Choose among ``forms``, and weigh the voxels over all train rows as the chosen one says.

    ``project`` gives the targets' projections in float64 (see ``loo.project``), where they are needed. ``kept`` holds
    what fits of the same betas to other targets left.
    """
    if forms == [Form()]:
        return Learned(forms[0])
    by_targets = len(forms) > 1 or any(form.source == "accuracy" for form in forms)
    projected = project() if by_targets else np.empty((targets.shape[0], 0))
    choice, signal = None, None
    if any(form.source == "reliability" for form in forms):
        signal = carried("reliability", as_matrix(projected), betas, pairing, train, reliability=reliability)
    if len(forms) > 1:
        choice = choose(
            forms,
            betas,
            projected,
            pairing,
            scale=scale,
            alpha=alpha,
            alphas=alphas,
            reliability=signal,
            seed=seed,
            kept=kept,
        )
    form = forms[0] if choice is None else choice.best
    if form.source is None or form.power is None:
        return Learned(form, choice)
    share = signal if form.source == "reliability" else None
    if share is None:
        share = carried(form.source, as_matrix(projected), betas, pairing, train)
    return Learned(form, choice, share, weights_of(share, form.power))
