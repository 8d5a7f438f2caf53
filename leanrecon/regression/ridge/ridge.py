"""Ridge regression from betas to any number of targets, in a stated memory budget.

With centred betas X [n, p], targets Y [n, t] and test betas T [m, p], ridge minimises ‖Y − XW‖² + α‖W‖². Its
predictions T W = H Y need neither the weights W nor all of Y at once: ``gram`` forms the smaller of X Xᵀ and Xᵀ X
over panels of the betas, ``cholesky`` factors it once, ``hat_matrix`` makes the small H = T Xᵀ(X Xᵀ + αI)⁻¹ that
serves every target, and ``stream`` sends Y through it block by block. Each works in memory or from disk with the
same bytes as result.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leanrecon.context import Peaks
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression.estimator import Regressor
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge import per_target
from leanrecon.regression.ridge.hat import converted, gram, hat_matrix
from leanrecon.regression.ridge.kernel import Panels, cholesky
from leanrecon.regression.ridge.loo import (
    best_alpha,
    default_alphas,
    eigenvectors,
    loo_errors,
    mean_eigenvalue,
    project,
)
from leanrecon.regression.ridge.plan import (
    ALPHAS,
    FLOAT64_ORDER,
    TEST_ROWS,
    WEIGHT_BLOCK,
    Shapes,
    plan_fit,
    plan_per_target,
    plan_predict,
    plan_stream,
    plan_weights,
)
from leanrecon.regression.ridge.restandardise import KINDS, LOO_ROWS, Kind, leave_one_out, loo_rows, through_hats
from leanrecon.regression.ridge.weights import contents, through_weights, weights
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.matrix import (
    Matrix,
    Reblocked,
    RowSubset,
    StoreMatrix,
    as_matrix,
    column_blocks,
    panels,
    same_matrix,
)
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


@dataclass
class Known:
    """Test betas known at fit, as they were given and as a matrix, and the hat matrices that predict them alone."""

    given: Any
    betas: Matrix
    hats: list[Array]


class StreamingRidge(Regressor):
    """Ridge regression with an intercept, streamed from disk within a memory budget (a scikit-learn estimator).

    Parameters
    ----------
    alpha : float or "loo"
        Penalty α of ‖Y − XW‖² + α‖W‖². ``"loo"`` takes the one of ``alphas`` with the least leave-one-out error,
        over all targets or, with more than 512 of them, over 512 random projections of them.
    standardize : bool
        Divide voxels by their train standard deviation (ddof = 1).
    alphas : sequence of float, optional
        The grid for ``"loo"``; by default 10⁻³ to 10⁴ times the mean eigenvalue of the Gram matrix, three a decade.
    per_target : bool
        With ``"loo"``, choose an alpha for every target.
    restandardize : {"none", "inductive", "transductive"}
        Give predictions the spread of the train targets (see ``regression.restandardise``).
    budget : str, int or MemoryBudget, optional
        What the process may hold, as in ``"4GB"``; by default 80 % of the free memory. It never changes a result.
    seed : int
        Seed of the random projections.
    scratch : path, optional
        Folder for the Gram matrix where the budget does not hold it; by default the system's temporary folder.

    ``fit`` and ``predict`` take NumPy, Zarr and Dask arrays, stores, and paths of stores, [rows, columns]. The
    targets are not read until predictions are made, so they must stay where they are. Gram matrices up to order
    3072 are formed and factored in float64, larger ones in float32, where predictions are exact to about
    10⁻⁷ · (largest eigenvalue of the Gram matrix) / α of the targets' spread.

    Attributes
    ----------
    alpha_ : float, or array of float [targets] with ``per_target``
    left_out_ : int
        Voxels left out because they are constant, or NaN in every row.
    n_features_in_ : int
    """

    def __init__(
        self,
        alpha: float | Literal["loo"] = 1.0,
        *,
        standardize: bool = False,
        alphas: Sequence[float] | None = None,
        per_target: bool = False,
        restandardize: Kind = "none",
        budget: str | int | MemoryBudget | None = None,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> None:
        self.alpha = alpha
        self.standardize = standardize
        self.alphas = alphas
        self.per_target = per_target
        self.restandardize = restandardize
        self.budget = budget
        self.seed = seed
        self.scratch = scratch

    # Fitting

    def fit(self, X: Any, y: Any, *, test: Any = None, shuffled: bool = False) -> Self:
        """Form and factor the Gram matrix of betas ``X`` [n, p] for targets ``y`` [n, t] or [n].

        ``test`` betas [m, p], where they are known and at most 1,024 rows, save a pass over ``X`` and the memory of
        the factor; only they can be predicted then. ``shuffled`` plans for predictions of ``shuffled()`` fits too. Raises InputError for NaN or infinite betas or rows that differ
        in number, BudgetError for a budget that can't hold the work, before any of it is done.
        """
        self._check_settings()
        betas, targets = self._train_matrices(X, y)
        n, p = betas.shape
        known = None if test is None else self._test_matrix(test)
        loo = self.alpha == "loo"
        budget = MemoryBudget.of(self.budget)
        self._shuffles = shuffled
        self._order: Array | None = None
        shapes = self._shapes(betas, targets, TEST_ROWS if known is None else known.shape[0])
        extra = self._extra_rows(n)
        plan = plan_fit(
            shapes, budget.free, known=known is not None, loo=loo, per_target=self.per_target,
            alphas=ALPHAS if self.alphas is None else len(self.alphas), extra_rows=extra,
        )  # fmt: skip
        self.peaks_ = Peaks()
        self.projected_ = self._require(budget, "the ridge regression", plan.work)
        self.betas_, self.targets_ = betas, targets
        self.moments_ = moments(betas)
        self.left_out_ = int(p - self.moments_.usable.sum())
        if self.left_out_ == p:
            raise InputError(f"none of the {p} voxels varies over the {n} train rows", expected="betas that vary")
        self._train = self._centred(betas)
        self._known: Known | None = None
        if known is not None and (self.per_target or not shapes.through_hat or known.shape[0] > TEST_ROWS):
            known = None
        test_betas = None if known is None else self._centred(known)
        dtype = np.dtype(np.float64 if min(n, p) <= FLOAT64_ORDER else np.float32)
        folder = None if plan.in_memory else Path(self.scratch or tempfile.gettempdir())
        kernel, cross = gram(self._train, dtype, test=test_betas, directory=folder, pass_nbytes=plan.pass_nbytes)
        self._factor: Panels | None = None
        if loo:
            self._choose_alpha(kernel, dtype)
        else:
            self.alpha_: Any = float(self.alpha)
        if self.per_target:
            return self
        cholesky(kernel, self.alpha_, deflate=n <= p)
        if test_betas is None or known is None:
            self._factor = kernel
        else:
            hat = hat_matrix(self._train, test_betas, range(known.shape[0]), kernel, cross=cross)
            self._known = Known(test, known, [hat, *self._reference(kernel)])
        return self

    def _centred(self, betas: Matrix) -> Centred:
        return Centred(betas, self.moments_, scale=self.standardize)

    def _choose_alpha(self, kernel: Panels, dtype: np.dtype[Any]) -> None:
        n, p = self.betas_.shape
        grid = (
            default_alphas(mean_eigenvalue(kernel)) if self.alphas is None else np.sort(np.asarray(self.alphas, float))
        )
        spectrum = eigenvectors(kernel, deflate=n <= p)
        self.alphas_ = grid
        if self.per_target:
            self._spectrum = spectrum
            self.alpha_ = per_target.choose(self._train, spectrum, self.targets_, grid)
            return
        errors = loo_errors(self._train, spectrum, project(self.targets_, self.seed, dtype), grid).sum(axis=1)
        self.loo_errors_ = errors / (n * self.targets_.shape[1])
        self.alpha_ = float(best_alpha(errors, grid))

    def with_targets(self, y: Any) -> "StreamingRidge":
        """The same fit for other targets of the same rows: the factor is shared, nothing is computed again."""
        if self.per_target:
            raise SettingsError("alphas chosen for every target can't serve other targets", todo="call fit again")
        targets = as_matrix(y)
        if targets.shape[0] != self.betas_.shape[0]:
            raise InputError(f"{self.betas_.shape[0]} rows of betas and {targets.shape[0]} rows of targets")
        other = StreamingRidge(**self.get_params())
        other.__dict__.update(self.__dict__ | {"targets_": targets, "_one_dimensional": False})
        return other

    def shuffled(self, seed: int | Sequence[int]) -> "StreamingRidge":
        """The same fit with betas and targets paired at random: what is predicted without any information.

        ``seed`` draws the permutation of the train rows. Alpha stays as it was chosen.
        """
        self._check_fitted()
        other = StreamingRidge(**self.get_params())
        other.__dict__.update(self.__dict__)
        other._shuffles = True
        other._order = np.random.default_rng(seed).permutation(self.betas_.shape[0])
        return other

    # Predicting

    def predict_blocks(
        self, X: Any, *, block: int | None = None, wanted: Sequence[int] | None = None, held: int = 0
    ) -> Iterator[tuple[range, range, Array]]:
        """Yield ``(rows, columns, predictions)`` block by block; each is valid until the next one is asked for.

        ``block`` columns make a block (by default as the targets lie on disk), ``wanted`` picks some of the blocks,
        ``held`` bytes are kept by the caller.
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
            yield from self._through_hats(range(shapes.m), self._known.hats, targets, wanted)
            return
        if self._factor is None:
            self._require(budget, "predicting", plan_per_target(shapes) + held)
            yield from per_target.predict_blocks(
                self._train, centred, self._spectrum, targets, self.alpha_, wanted, self.restandardize, self._order
            )
            return
        extra, together = self._extra_rows(shapes.n), self.restandardize == "transductive"
        count, work = plan_predict(
            shapes, budget.free - held, on_disk=self._factor.on_disk, extra_rows=extra, together=together
        )
        self._require(budget, "predicting", work + held)
        if not shapes.through_hat:
            yield from through_weights(self._train, centred, self._factor, targets, wanted, self._order)
            return
        reference = self._reference(self._factor)
        out = buffer((min(count * TEST_ROWS, shapes.m) + extra, targets.block), self._stream_dtype)
        for group in panels(shapes.m, count * TEST_ROWS):
            parts = [range(group.start + r.start, group.start + r.stop) for r in panels(len(group), TEST_ROWS)]
            hats = [hat_matrix(self._train, centred, part, self._factor) for part in parts]
            yield from self._through_hats(group, hats + reference, targets, wanted, out)
            del hats  # before the next ones are formed

    def hat_of(self, X: Any, rows: range) -> Array:
        """The hat matrix of up to 1,024 rows of betas: H Y are their predictions, before any ``restandardize``."""
        return hat_matrix(self._train, self._centred(as_matrix(X)), rows, self._kept_factor)

    def left_out(self, rows: Array) -> Array:
        """The hat matrix of some train rows (ascending), each predicted from all other rows."""
        some = RowSubset(self.betas_, rows)
        hat = hat_matrix(self._train, self._centred(some), range(len(rows)), self._kept_factor)
        leave_one_out(hat, rows)
        return hat

    @property
    def _kept_factor(self) -> Panels:
        if self._factor is None:
            raise SettingsError("the factor was not kept", todo="fit without per_target and without test betas")
        return self._factor

    def _reference(self, factor: Panels) -> list[Array]:
        """The hat matrix of leave-one-out predictions of train rows, where they give the moments."""
        if self.restandardize != "inductive":
            return []
        rows = loo_rows(self.betas_.shape[0])
        hat = hat_matrix(self._train, self._centred(RowSubset(self.betas_, rows)), range(len(rows)), factor)
        leave_one_out(hat, rows)
        return [hat]

    def _through_hats(
        self, rows: range, hats: list[Array], targets: Matrix, wanted: Sequence[int], out: Array | None = None
    ) -> Iterator[tuple[range, range, Array]]:
        hats = [converted(hat, self._stream_dtype, self._order) for hat in hats]
        return through_hats(rows, hats, targets, wanted, self.restandardize, out)

    # Weights

    def weight_blocks(self, wanted: Sequence[range] | None = None) -> Iterator[tuple[range, Array, Array]]:
        """Yield ``(targets, coef [len(targets), p], intercept [len(targets)])``, 512 targets at a time.

        They apply to betas as measured: ``betas @ coef.T + intercept``, before any ``restandardize``. Voxels left out
        have weight 0.
        """
        self._check_fitted()
        factor = self._kept_factor
        scale = (
            np.where(self.moments_.usable, self.moments_.std, 1) if self.standardize else np.ones(self.n_features_in_)
        )
        centre = np.where(self.moments_.usable, self.moments_.mean, 0)
        shapes = self._shapes(self.betas_, self.targets_, 1)
        self._require(MemoryBudget.of(self.budget), "the weights", plan_weights(shapes, on_disk=factor.on_disk))
        for columns in panels(self.targets_.shape[1], WEIGHT_BLOCK) if wanted is None else wanted:
            w, mean = weights(self._train, factor, self.targets_, columns, self._order)
            w /= scale.astype(w.dtype)
            yield columns, w, mean - np.einsum("ij,j->i", w, centre, dtype=np.float64)

    def write_weights(self, path: str | Path, *, overwrite: bool = False) -> Store:
        """Write the weights to a store [targets, p + 1], the last column being the intercept; resumable.

        Arrays that are no stores are read once more, for a fingerprint.
        """
        self._check_fitted()
        t, p = self.targets_.shape[1], self.n_features_in_
        made_of = {
            "alpha": float(self.alpha_),
            "standardize": self.standardize,
            "betas": contents(self.betas_),
            "targets": contents(self.targets_),
        }
        if self._order is not None:
            made_of["order"] = fingerprint({"order": self._order.tolist()})
        store = Store.create(path, (t, p + 1), np.float32, made_of=made_of, overwrite=overwrite)
        rows = {row for i in store.missing_row_groups() for row in store.group_rows(i)}
        lacking = [columns for columns in panels(t, WEIGHT_BLOCK) if not rows.isdisjoint(columns)]
        for columns, w, intercept in self.weight_blocks(lacking):
            block = np.empty((len(columns), p + 1), np.float32)
            block[:, :p], block[:, p] = w, intercept
            for part in panels(len(columns), store.chunk_rows):
                store.write_rows((columns.start + part.start) // store.chunk_rows, block[part.start : part.stop])
        store.finish()
        return store

    # Checks

    def _validated_test(self, X: Any) -> Matrix:
        self._check_fitted()
        if self._known is not None and X is self._known.given:
            return self._known.betas
        return self._test_matrix(X)

    def _check_settings(self) -> None:
        number = isinstance(self.alpha, int | float | np.number)
        if self.alpha != "loo" and not (number and 0 <= float(self.alpha) < np.inf):
            raise SettingsError(f"alpha = {self.alpha!r}", expected='a number, 0 or more, or "loo"')
        if self.per_target and self.alpha != "loo":
            raise SettingsError("per_target chooses an alpha for every target", todo='set alpha = "loo"')
        if self.alphas is not None and (len(self.alphas) == 0 or not all(0 < a < np.inf for a in self.alphas)):
            raise SettingsError(f"alphas = {self.alphas!r}", expected="numbers above 0")
        if self.restandardize not in KINDS:
            raise SettingsError(f"restandardize = {self.restandardize!r}", expected=f"one of {', '.join(KINDS)}")
        if self.per_target and self.restandardize == "inductive":
            raise SettingsError(
                'restandardize = "inductive" has no leave-one-out predictions under an alpha for every target',
                todo="use one alpha for all targets, or another restandardize",
            )

    def _extra_rows(self, n: int) -> int:
        return min(n, LOO_ROWS) if self.restandardize == "inductive" else 0

    @property
    def _stream_dtype(self) -> np.dtype[Any]:
        """Targets in float64 are answered in float64 where the factor is."""
        exact = (
            min(self.betas_.shape) <= FLOAT64_ORDER and np.result_type(self.targets_.dtype, np.float32) == np.float64
        )
        return np.dtype(np.float64 if exact else np.float32)

    def _shapes(self, betas: Matrix, targets: Matrix, m: int) -> Shapes:
        (n, p), t = betas.shape, targets.shape[1]
        wide = np.result_type(targets.dtype, np.float32) == np.float64
        y_scratch = 0 if isinstance(targets, StoreMatrix) else targets.scratch_nbytes
        if targets.dtype != np.dtype(np.float64 if wide else np.float32):
            y_scratch += targets.tile_nbytes * 4 // targets.dtype.itemsize  # a tile that was converted
        scratch = betas.scratch_nbytes + (2 * betas.tile_nbytes if self.restandardize == "inductive" else 0)
        return Shapes(
            n, p, m, t, targets.block, betas.tile_nbytes, targets.tile_nbytes, scratch, y_scratch,
            y_itemsize=8 if wide else 4, restandardized=self.restandardize != "none", shuffled=self._shuffles,
        )  # fmt: skip
