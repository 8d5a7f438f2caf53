"""Ridge regression from betas to any number of targets, in a stated memory budget.

Predictions are H Y, with a small hat matrix H that serves every target. ``gram`` forms the smaller of X Xᵀ and Xᵀ X, and
``cholesky`` factors it once. ``hat_matrix`` makes H, and ``stream`` sends Y through it block by block (see ``ridge.hat``).
Each works in memory or from disk with the same bytes as result.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leanrecon.arguments import check_path
from leanrecon.context import Peaks
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge import kept_parts, per_target
from leanrecon.regression.ridge.alpha import Chosen, choose_by_eigenvectors, choose_by_search
from leanrecon.regression.ridge.form import Form, forms
from leanrecon.regression.ridge.hat import by_image, gram, hat_matrix, train_hat_matrix
from leanrecon.regression.ridge.kernel import Panels, cholesky
from leanrecon.regression.ridge.known import Known
from leanrecon.regression.ridge.learned import Learned
from leanrecon.regression.ridge.limits import ALPHAS, FLOAT64_ORDER, TEST_ROWS
from leanrecon.regression.ridge.loo import default_alphas, mean_eigenvalue
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.parameters import check_form, check_parameters
from leanrecon.regression.ridge.plan import FitPlan, Shapes, plan_fit, plan_per_target, plan_predict, plan_stream
from leanrecon.regression.ridge.plan_form import plan_formed
from leanrecon.regression.ridge.rbf import Rbf, into_rbf, median_distance
from leanrecon.regression.ridge.restandardise import Kind, group_rows, leave_groups_out
from leanrecon.regression.ridge.search import Search
from leanrecon.regression.ridge.shapes import shapes_of
from leanrecon.regression.ridge.spectrum import Spectrum, eigenvectors
from leanrecon.regression.ridge.together import Together
from leanrecon.regression.ridge.vram import aside, place
from leanrecon.regression.ridge.weights import through_weights
from leanrecon.stores.matrix import Matrix, Reblocked, RowSubset, as_matrix, column_blocks, panels, same_matrix

Array = np.ndarray[Any, Any]


class StreamingRidge(Together):
    """Ridge regression with an intercept, streamed from disk within a memory budget (a scikit-learn estimator).

    Parameters
    ----------
    alpha : float or "loo", default "loo"
        Penalty α of ‖Y − XW‖² + α‖W‖². ``"loo"`` takes the one of ``alphas`` with the least leave-one-out error,
        over all targets or, with more than 512 of them, over 512 random projections of them.
    standardize : bool, default True
        Divide voxels by their train standard deviation (ddof = 1).
    alphas : sequence of float, optional
        The grid for ``"loo"``; by default 10⁻³ to 10⁴ times the mean eigenvalue of the Gram matrix, three a decade.
    per_target : bool
        With ``"loo"``, choose an alpha for every target.
    restandardize : {"none", "inductive", "transductive"}
        Give predictions the spread of the train targets (see ``regression.restandardise``).
    kernel : {"linear", "rbf", "auto"}
        The kernel of betas. "rbf" is exp(−gamma · D² / median D²) of their distances D (see ``ridge.rbf``), "auto" the
        one of the two with less error for held-out images (see ``ridge.choice``), which needs alpha "loo".
    gamma : float or "loo"
        γ of an rbf kernel; ``"loo"`` chooses ¼, ½, 1 or 2 in the same way.
    voxel_weights : {"none", "accuracy", "reliability", "auto"}
        Weigh voxels by how well images predict them, or by reliability (see ``regression.voxel_weights``); "auto" takes
        "accuracy" if that predicts held-out images better.
    voxel_power : float or "loo"
        The power of these weights; ``"loo"`` chooses ½ or 1 in the same way.
    budget : str, int or MemoryBudget, optional
        Memory that the process may hold, as in ``"4GB"``; by default 80 % of the free memory. It changes no result.
    seed : int
        Seed of the random projections.
    scratch : path, optional
        Folder for a Gram matrix that does not fit into the budget; by default the system's temporary folder. If it is given,
        a search for alpha keeps the best factor there while it computes others; else it computes that one again.
    device : {"cpu", "auto", "cuda", "mps"}
        Where the large products and the factors are computed (see ``ridge.on_torch``); "auto" is the CPU.

    ``fit`` and ``predict`` take NumPy, Zarr and Dask arrays, stores, and paths of stores, [rows, columns]. Targets
    are read when predictions are made, so they must not be moved or changed before. A pickled fit holds its NumPy
    arrays, and the paths of stores. Gram matrices up to order
    3072 are formed and factored in float64, larger ones in float32, where predictions are exact to about
    10⁻⁷ · (largest eigenvalue of the Gram matrix) / α of the targets' spread.

    Attributes
    ----------
    alpha_ : float, or array of float [targets] with ``per_target``
    loo_errors_ : array of float [alphas]
        With ``"loo"``, mean squared errors of ``alphas_``; estimates or NaN where a search gave up (see ``ridge.search``).
    left_out_ : int
        Voxels left out because they are constant, or NaN in every row; ``fit`` warns of them.
    unreasonable_ : list of str
        Warnings about the betas, such as a voxel that varies only by rounding; ``fit`` emits them.
    device_, device_note_ : str
        The device of the fit, and the reason if it is not the requested one.
    n_features_in_ : int
    """

    def __init__(
        self,
        alpha: float | Literal["loo"] = "loo",
        *,
        standardize: bool = True,
        alphas: Sequence[float] | None = None,
        per_target: bool = False,
        restandardize: Kind = "none",
        kernel: Literal["linear", "rbf", "auto"] = "linear",
        gamma: float | Literal["loo"] = "loo",
        voxel_weights: Literal["none", "accuracy", "reliability", "auto"] = "none",
        voxel_power: float | Literal["loo"] = "loo",
        budget: str | int | MemoryBudget | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.alpha = alpha
        self.standardize = standardize
        self.alphas = alphas
        self.per_target = per_target
        self.restandardize = restandardize
        self.kernel = kernel
        self.gamma = gamma
        self.voxel_weights = voxel_weights
        self.voxel_power = voxel_power
        self.budget = budget
        self.seed = seed
        self.scratch = scratch
        self.device = device

    # Fitting

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        stimulus: Any = None,
        test: Any = None,
        shuffled: bool = False,
        reliability: Any = None,
    ) -> Self:
        """Form and factor the Gram matrix of betas ``X`` [n, p] for targets ``y`` [n, t] or [n].

        ``stimulus`` [n] says which row of ``y`` each row of betas is paired with, where ``y`` [s, t] holds each image
        once; leave-one-out then leaves out all rows of an image. ``test`` betas [m, p], where they are known and at
        most 1,024 rows, save a pass over ``X`` and the memory of the factor; only they can be predicted then.
        ``shuffled`` plans for predictions of ``shuffled()`` fits too. ``reliability`` [p] is the share of each voxel's
        variance that is not noise, for ``voxel_weights = "reliability"`` where no image is repeated. Raises InputError for NaN or infinite betas or
        rows that differ in number, BudgetError for a budget that can't hold the work, before any of it is done.
        """
        check_parameters(self.alpha, self.alphas, self.per_target, self.standardize, self.restandardize)
        check_form(self.kernel, self.gamma, self.voxel_weights, self.voxel_power, self.alpha, self.seed)
        if self.scratch is not None:
            check_path("scratch", self.scratch)
        choices = forms(self.kernel, self.gamma, self.voxel_weights, self.voxel_power)
        self.learned_ = Learned(Form())
        betas, targets = self._train_matrices(X, y, stimulus)
        self._pairing = Pairing.of(stimulus, betas.shape[0], targets.shape[0])
        self._order: Array | None = None
        self._shuffles = shuffled
        self._held_out = group_rows(self._pairing) if self.restandardize == "inductive" else np.empty(0, np.int64)
        known = None if test is None else self._test_matrix(test)
        shapes = self._shapes(betas, targets, TEST_ROWS if known is None else known.shape[0])
        options: dict[str, Any] = {
            "known": known is not None, "loo": self.alpha == "loo", "per_target": self.per_target,
            "alphas": ALPHAS if self.alphas is None else len(self.alphas), "extra_rows": len(self._held_out),
        }  # fmt: skip
        widest = replace(shapes, rbf=any(form.kernel == "rbf" for form in choices))
        self.device_, self.device_note_ = place(self.device, widest, **options), None
        self._aside = aside(self.device_, widest, **options)
        budget = MemoryBudget.of(self.budget)
        self.peaks_ = Peaks()
        free = budget.free - self._aside
        work = plan_formed(shapes, free, choices, **options).work
        self.projected_ = self._require(budget, "the ridge regression", work)
        self.betas_, self.targets_ = betas, targets
        self._look_at(betas, known)
        self.learned_ = self._learn_form(choices, reliability)
        shapes = replace(shapes, rbf=self.kernel_ == "rbf")
        plan = plan_fit(shapes, free, **options)
        self._train = self._centred(betas)
        self._rbf: Rbf | None = None
        self._known: Known | None = None
        self._factor: Panels | None = None
        later = self.per_target or not shapes.through_hat or shapes.m > TEST_ROWS
        self._factorise(plan, test, None if later else known)
        return self

    def _factorise(self, plan: FitPlan, source: Any, known: Matrix | None) -> None:
        """Form the Gram matrix, choose alpha, factor it, and form the hat matrices of test betas that are ``known``."""
        test = None if known is None else self._centred(known)
        dtype = np.dtype(np.float64 if self._train.order <= FLOAT64_ORDER else np.float32)
        folder = None if plan.in_memory else Path(self.scratch or tempfile.gettempdir())
        how: Any = {"pass_nbytes": plan.pass_nbytes, "arithmetic": self._arithmetic}

        def make() -> tuple[Panels, Array | None]:
            if self.workers is not None and self.workers.takes_gram(self._train, dtype, test):
                return self.workers.gram(self._train, dtype, test, folder)
            return gram(self._train, dtype, test=test, directory=folder, **how)

        kernel, cross = kept_parts.gram_matrix(self._kept, self._train, dtype, test, folder, make, alike=self._alike)
        if (gamma := self.learned_.form.gamma) is not None:
            self._rbf = into_rbf(kernel, gamma, median_distance(kernel))
        factor: Panels | None = None
        self.search_: Search | None = None
        if self.alpha == "loo":
            factor = self._choose_alpha(kernel, dtype, searched=plan.searched)
        else:
            self.alpha_: Any = float(self.alpha)
        if self.per_target:
            return
        if factor is None:
            cholesky(kernel, self.alpha_, deflate=self._train.dual, arithmetic=how["arithmetic"])
        kernel = factor or kernel
        if known is None or test is None:
            self._factor = kernel
            return
        fold = None if self._shuffles else self._fold
        hat = self._hat(test, range(known.shape[0]), kernel, cross=cross, fold=fold)
        del cross  # it is the hat matrix, or was folded
        self._known = Known(source, known, [hat, *self._reference(kernel, fold)], folded=fold is not None)

    def _centred(self, betas: Matrix) -> Centred:
        dual = True if self.kernel_ == "rbf" else None
        return Centred(betas, self.moments_, scale=self.standardize, weights=self.voxel_weights_, dual=dual)

    def _choose_alpha(self, kernel: Panels, dtype: np.dtype[Any], *, searched: bool) -> Panels | None:
        """Choose alpha; returns the Cholesky factor for it where a search still has that one."""
        grid = (
            default_alphas(mean_eigenvalue(kernel)) if self.alphas is None else np.sort(np.asarray(self.alphas, float))
        )
        self.alphas_ = grid
        on, projected = self._arithmetic, partial(self._projected, dtype)
        options: dict[str, Any] = {"targets": self.targets_.shape[1], "seed": self.seed, "arithmetic": on}
        if searched:
            chosen = choose_by_search(kernel, projected, grid, self._pairing, scratch=self.scratch, **options)
        elif self.per_target:
            self._spectrum = self._eigenvectors(kernel)
            chosen = Chosen(per_target.choose(self._train, self._spectrum, self.targets_, grid, self._pairing, on))
        else:
            spectrum = self._eigenvectors(kernel)
            chosen = choose_by_eigenvectors(self._train, spectrum, projected, grid, self._pairing, **options)
        self.alpha_, self.search_ = chosen.alpha, chosen.search
        if chosen.errors is not None:
            self.loo_errors_ = chosen.errors
        return chosen.factor

    def _eigenvectors(self, kernel: Panels) -> Spectrum:
        def make() -> Spectrum:
            return eigenvectors(kernel, deflate=self._train.dual, arithmetic=self._arithmetic)

        return kept_parts.spectrum_of(self._kept, self._train, kernel, self._rbf, make, alike=self._alike)

    def with_targets(self, y: Any) -> "StreamingRidge":
        """The same fit for other targets of the same images, with the same factor."""
        if self.per_target:
            raise SettingsError("alphas chosen for every target can't serve other targets", todo="call fit again")
        targets = as_matrix(y)
        if targets.shape[0] != self._pairing.s:
            images = f" of {self._pairing.s} images" if self._pairing.repeats else ""
            raise InputError(f"{self._pairing.n} rows of betas{images} and {targets.shape[0]} rows of targets")
        return self._copy(targets_=targets, _one_dimensional=False)

    @property
    def shuffles(self) -> bool:
        """Whether ``shuffled`` may be called; it can't after hat matrices of known test betas were summed by image."""
        return self._known is None or not self._known.folded

    def shuffled(self, seed: int | Sequence[int]) -> "StreamingRidge":
        """The same fit with betas and targets paired at random, whose predictions have no information.

        ``seed`` draws the permutation of the train rows. Alpha stays the same. Rows whose betas are of one image
        are still left out together.
        """
        self._check_fitted()
        if not self.shuffles:
            raise SettingsError("this ridge was fitted for the measured pairing alone", todo="set shuffled=True in fit")
        order = np.random.default_rng(seed).permutation(self._pairing.n)
        return self._copy(_shuffles=True, _order=order)

    def _copy(self, **changed: Any) -> "StreamingRidge":
        other = StreamingRidge(**self.get_params())
        other.__dict__.update(self.__dict__ | changed)
        return other

    # Predicting

    def predict_blocks(
        self, X: Any, *, block: int | None = None, wanted: Sequence[int] | None = None, held: int = 0
    ) -> Iterator[tuple[range, range, Array]]:
        """Yield ``(rows, columns, predictions)`` block by block; each is valid until the next one is requested.

        ``block`` is the number of columns of a block (by default that of the targets on disk), ``wanted`` selects
        blocks, and the caller keeps ``held`` bytes.
        """
        test = self._validated_test(X)
        targets = self.targets_ if block in (None, self.targets_.block) else Reblocked(self.targets_, block)
        wanted = range(len(column_blocks(targets))) if wanted is None else wanted
        if self._known is not None and not same_matrix(self._known.betas, test):
            raise InputError(
                "this ridge was fitted for other test betas alone", todo="leave out `test` in fit to predict any"
            )
        if not len(wanted):
            return
        centred = self._centred(test)
        shapes = self._shapes(self.betas_, targets, test.shape[0])
        budget = MemoryBudget.of(self.budget)
        if self._known is not None:
            self._require(budget, "predicting", plan_stream(shapes, sum(map(len, self._known.hats))) + held)
            index = None if self._known.folded else self._paired.index
            yield from self._through_hats(range(shapes.m), self._known.hats, index, targets, wanted)
            return
        if self._factor is None:
            self._require(budget, "predicting", plan_per_target(shapes) + held)
            fit = (self._train, centred, self._spectrum, targets, self.alpha_, wanted)
            yield from per_target.predict_blocks(*fit, self.restandardize, self._paired, self._rbf, self._arithmetic)
            return
        extra, together = len(self._held_out), self.restandardize == "transductive"
        count, work = plan_predict(
            shapes, budget.free - self._aside - held, on_disk=self._factor.on_disk, extra_rows=extra, together=together
        )
        self._require(budget, "predicting", work + held)
        if not shapes.through_hat:
            yield from through_weights(self._train, centred, self._factor, targets, wanted, self._paired)
            return
        fold = self._fold
        index = self._paired.index if fold is None else None
        reference = self._reference(self._factor, fold)
        out = buffer((min(count * TEST_ROWS, shapes.m) + extra, targets.block), self._stream_dtype)
        for group in panels(shapes.m, count * TEST_ROWS):
            parts = [range(group.start + r.start, group.start + r.stop) for r in panels(len(group), TEST_ROWS)]
            hats = [self._hat(centred, part, self._factor, fold=fold) for part in parts]
            yield from self._through_hats(group, hats + reference, index, targets, wanted, out)
            del hats  # before the next ones are formed

    def hat_of(self, X: Any, rows: range) -> Array:
        """The hat matrix of up to 1,024 rows of betas: H Y are their predictions, before any ``restandardize``."""
        return self._hat(self._centred(as_matrix(X)), rows, self._kept_factor)

    def _hat(self, test: Centred, rows: range, factor: Panels, **given: Any) -> Array:
        return hat_matrix(self._train, test, rows, factor, rbf=self._rbf, arithmetic=self._arithmetic, **given)

    def _left_out(self, rows: Array, factor: Panels) -> Array:
        if self._train.dual:
            hat = train_hat_matrix(rows, factor, self.alpha_, self._arithmetic)
        else:
            hat = self._hat(self._centred(RowSubset(self.betas_, rows)), range(len(rows)), factor)
        leave_groups_out(hat, rows, self._pairing)
        return hat

    @property
    def _kept_factor(self) -> Panels:
        if self._factor is None:
            raise SettingsError("the factor was not kept", todo="fit without per_target and without test betas")
        return self._factor

    @property
    def _paired(self) -> Pairing:
        """The rows of the targets that betas are paired with, at random after ``shuffled``."""
        return self._pairing.shuffled(self._order)

    @property
    def _fold(self) -> Pairing | None:
        """The pairing that hat matrices are folded by as soon as they are formed; None without repeats."""
        return self._paired if self._pairing.repeats else None

    def _reference(self, factor: Panels, fold: Pairing | None) -> list[Array]:
        """The hat matrix of leave-one-out predictions of train rows, where they give the moments."""
        if self.restandardize != "inductive":
            return []
        return [by_image(self._left_out(self._held_out, factor), fold)]

    def _validated_test(self, X: Any) -> Matrix:
        self._check_fitted()
        known = self._known
        return known.betas if known is not None and X is known.source else self._test_matrix(X)

    def _shapes(self, betas: Matrix, targets: Matrix, m: int) -> Shapes:
        rbf = self.kernel_ == "rbf"
        return shapes_of(betas, targets, m, self._pairing, self.restandardize, shuffled=self._shuffles, rbf=rbf)
