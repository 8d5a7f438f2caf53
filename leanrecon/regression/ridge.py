"""Ridge regression from betas to any number of targets, in a stated memory budget.

With centred betas X [n, p], targets Y [n, t] and test betas T [m, p], ridge minimises ‖Y − XW‖² + α‖W‖². Its
predictions T W = H Y need neither the weights W nor all of Y at once: ``gram`` forms the smaller of X Xᵀ and Xᵀ X
over panels of the betas, ``cholesky`` factors it once, ``hat_matrix`` makes the small H = T Xᵀ(X Xᵀ + αI)⁻¹ that
serves every target, and ``stream`` sends Y through it block by block. Each works in memory or from disk with the
same bytes as result.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, buffer
from leanrecon.regression import blas, per_target
from leanrecon.regression.hat import gram, hat_matrix, refuse_nan_rows, stream, weights
from leanrecon.regression.kernel import Panels, cholesky
from leanrecon.regression.loo import best_alpha, default_alphas, eigenvectors, loo_errors, mean_eigenvalue, project
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.plan import FLOAT64_ORDER, TEST_ROWS, WEIGHT_BLOCK, Shapes, plan_fit, plan_predict
from leanrecon.regression.restandardise import KINDS, LOO_ROWS, Kind, leave_one_out, loo_rows, restandardise
from leanrecon.stores.matrix import ArrayMatrix, Matrix, Reblocked, RowSubset, StoreMatrix, as_matrix, column_blocks, panels, same_matrix
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


class StreamingRidge:
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

    def fit(self, X: Any, y: Any, *, test: Any = None) -> Self:
        """Form and factor the Gram matrix of betas ``X`` [n, p] for targets ``y`` [n, t] or [n].

        ``test`` betas [m, p], where they are known and at most 1,024 rows, save a pass over ``X`` and the memory of
        the factor; only they can be predicted then. Raises InputError for NaN or infinite betas or rows that differ
        in number, BudgetError for a budget that can't hold the work, before any of it is done.
        """
        self._check_settings()
        betas, targets = self._validated(X, y)
        known = None if test is None else as_matrix(test)
        n, p = betas.shape
        if targets.shape[0] != n:
            raise InputError(f"{n} rows of betas and {targets.shape[0]} rows of targets", expected="as many of each")
        if known is not None and known.shape[1] != p:
            raise InputError(f"test betas of {known.shape[1]} voxels", expected=f"{p}, as in training")
        loo = self.alpha == "loo"
        budget = MemoryBudget.of(self.budget)
        shapes = self._shapes(betas, targets, TEST_ROWS if known is None else known.shape[0])
        extra = self._extra_rows(n)
        plan = plan_fit(
            shapes, budget.free, known=known is not None, loo=loo, per_target=self.per_target, extra_rows=extra
        )
        self.projected_ = budget.require("the ridge regression", plan.work)
        self.betas_, self.targets_, self.n_features_in_ = betas, targets, p
        self.moments_ = moments(betas)
        self.left_out_ = int(p - self.moments_.usable.sum())
        if self.left_out_ == p:
            raise InputError(f"none of the {p} voxels varies over the {n} train rows", expected="betas that vary")
        self._train = self._centred(betas)
        self._known: tuple[Matrix, list[Array]] | None = None
        released = known is not None and len(known_rows := range(known.shape[0])) <= TEST_ROWS
        released = released and shapes.through_hat and not self.per_target
        test_betas = self._centred(known) if released and known is not None else None
        dtype = np.dtype(np.float64 if min(n, p) <= FLOAT64_ORDER else np.float32)
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:  # the file in it outlives it, unnamed
            directory = None if plan.in_memory else Path(folder)
            kernel, cross = gram(
                self._train, dtype, test=test_betas, directory=directory, pass_nbytes=plan.pass_nbytes
            )
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
            hat = hat_matrix(self._train, test_betas, known_rows, kernel, cross=cross)
            self._known = known, [hat, *self._reference(kernel)]
        return self

    def _centred(self, betas: Matrix) -> Centred:
        return Centred(betas, self.moments_, scale=self.standardize)

    def _choose_alpha(self, kernel: Panels, dtype: np.dtype[Any]) -> None:
        n, p = self.betas_.shape
        grid = default_alphas(mean_eigenvalue(kernel)) if self.alphas is None else np.sort(np.asarray(self.alphas, float))
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

    # Predicting

    def predict(self, X: Any) -> Array:
        """Predictions for test betas ``X`` [m, p], as an array [m, t] (or [m], if the targets were)."""
        test = self._validated_test(X)
        m, t = test.shape[0], self.targets_.shape[1]
        result = np.empty((m, t), self._stream_dtype)
        for rows, columns, values in self.predict_blocks(test, held=result.nbytes):
            result[rows.start : rows.stop, columns.start : columns.stop] = values
        return result[:, 0] if self._one_dimensional else result

    def predict_into(self, X: Any, store: Store, *, advance: Callable[[int], None] = lambda n: None) -> None:
        """Write predictions for test betas into a store [m, t]: only the blocks of columns that it lacks.

        ``advance`` is told of every block that is done.
        """
        test = self._validated_test(X)
        if (store.rows, store.columns) != (test.shape[0], self.targets_.shape[1]):
            raise InputError(f"a store of {store.shape} can't take predictions of {test.shape[0]} rows")
        for rows, columns, values in self.predict_blocks(
            test, block=store.chunk_columns, wanted=store.missing_column_groups()
        ):
            store.write_columns(columns.start // store.chunk_columns, values, first_row=rows.start)
            advance(1)

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
        if self._known is not None:
            betas, hats = self._known
            if not same_matrix(betas, test):
                raise InputError(
                    "this ridge was fitted for other test betas alone", todo="leave out `test` in fit to predict any"
                )
            yield from self._through_hats(range(test.shape[0]), hats, targets, wanted)
            return
        centred = self._centred(test)
        if self._factor is None:
            yield from per_target.predict_blocks(
                self._train, centred, self._spectrum, targets, self.alpha_, wanted, self.restandardize
            )
            return
        shapes = self._shapes(self.betas_, targets, test.shape[0])
        budget = MemoryBudget.of(self.budget)
        extra, together = self._extra_rows(shapes.n), self.restandardize == "transductive"
        on_disk = self._factor.on_disk
        count, work = plan_predict(shapes, budget.free, on_disk=on_disk, extra_rows=extra, together=together)
        budget.require("predicting", work + held)
        if not shapes.through_hat:
            yield from self._through_weights(centred, targets, wanted)
            return
        reference = self._reference(self._factor)
        for group in panels(shapes.m, count * TEST_ROWS):
            parts = [range(group.start + r.start, group.start + r.stop) for r in panels(len(group), TEST_ROWS)]
            hats = [hat_matrix(self._train, centred, part, self._factor) for part in parts]
            yield from self._through_hats(group, hats + reference, targets, wanted)

    def _reference(self, factor: Panels) -> list[Array]:
        """The hat matrix of leave-one-out predictions of train rows, where they give the moments."""
        if self.restandardize != "inductive":
            return []
        rows = loo_rows(self.betas_.shape[0])
        hat = hat_matrix(self._train, self._centred(RowSubset(self.betas_, rows)), range(len(rows)), factor)
        leave_one_out(hat, rows)
        return [hat]

    def _through_hats(
        self, rows: range, hats: list[Array], targets: Matrix, wanted: Sequence[int]
    ) -> Iterator[tuple[range, range, Array]]:
        hats = [hat.astype(self._stream_dtype, copy=False) for hat in hats]
        restandardized = self.restandardize != "none"
        for block in stream(hats, targets, wanted, moments=restandardized):
            values = block.values[: len(rows)]
            if restandardized:
                inductive = self.restandardize == "inductive"
                like = block.values[len(rows) :] if inductive else values
                restandardise(values, like, block.mean, block.std)
            yield rows, block.columns, values

    def _through_weights(
        self, test: Centred, targets: Matrix, wanted: Sequence[int]
    ) -> Iterator[tuple[range, range, Array]]:
        assert self._factor is not None
        p, dtype = self.betas_.shape[1], self._factor.dtype
        for j in wanted:
            columns = column_blocks(targets)[j]
            w, mean = buffer((len(columns), p), dtype), np.zeros(len(columns))
            for part in panels(len(columns), WEIGHT_BLOCK):
                at = slice(part.start, part.stop)
                some = range(columns.start + part.start, columns.start + part.stop)
                w[at], mean[at] = weights(self._train, self._factor, targets, some)
            memory = buffer((min(TEST_ROWS, test.shape[0]) * p * dtype.itemsize,), np.uint8)
            for rows in panels(test.shape[0], TEST_ROWS):
                values = np.empty((len(rows), len(columns)), dtype)
                blas.gemm(test.read(rows, range(p), memory, dtype), w, values, beta=0, tb=True)
                refuse_nan_rows(values, rows)
                values += mean.astype(dtype)
                yield rows, columns, values

    # Weights

    def weight_blocks(self, wanted: Sequence[range] | None = None) -> Iterator[tuple[range, Array, Array]]:
        """Yield ``(targets, coef [len(targets), p], intercept [len(targets)])``, 512 targets at a time.

        They apply to betas as measured: ``betas @ coef.T + intercept``. Voxels left out have weight 0.
        """
        self._check_fitted()
        if self._factor is None:
            raise SettingsError("the factor was not kept", todo="fit without per_target and without test betas")
        scale = np.where(self.moments_.usable, self.moments_.std, 1) if self.standardize else np.ones(self.n_features_in_)
        centre = np.where(self.moments_.usable, self.moments_.mean, 0)
        for columns in panels(self.targets_.shape[1], WEIGHT_BLOCK) if wanted is None else wanted:
            w, mean = weights(self._train, self._factor, self.targets_, columns)
            w /= scale.astype(w.dtype)
            yield columns, w, mean - (w @ centre.astype(w.dtype)).astype(np.float64)

    def write_weights(self, path: str | Path, *, overwrite: bool = False) -> Store:
        """Write the weights to a store [targets, p + 1], the last column being the intercept; resumable."""
        self._check_fitted()
        t, p = self.targets_.shape[1], self.n_features_in_
        made_of = {
            "alpha": float(self.alpha_),
            "standardize": self.standardize,
            "betas": hashlib.sha256(self.moments_.mean.tobytes() + self.moments_.std.tobytes()).hexdigest(),
            "targets": self.targets_.store.content if isinstance(self.targets_, StoreMatrix) else "array",
        }
        store = Store.create(path, (t, p + 1), np.float32, made_of=made_of, overwrite=overwrite)
        rows = {row for i in store.missing_row_groups() for row in store.group_rows(i)}
        lacking = [columns for columns in panels(t, WEIGHT_BLOCK) if not rows.isdisjoint(columns)]
        for columns, w, intercept in self.weight_blocks(lacking):
            block = np.hstack([w, intercept[:, None]]).astype(np.float32)
            for part in panels(len(columns), store.chunk_rows):
                store.write_rows((columns.start + part.start) // store.chunk_rows, block[part.start : part.stop])
        store.finish()
        return store

    # What scikit-learn asks of an estimator; it is imported only when a user's own arrays are checked

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise SettingsError(f"StreamingRidge has no parameter {name!r}", expected=f"one of {', '.join(_PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True),
            input_tags=InputTags(),
            regressor_tags=RegressorTags(),
        )

    def score(self, X: Any, y: Any) -> float:
        """The coefficient of determination R² of the predictions, averaged over targets."""
        from sklearn.metrics import r2_score

        return float(r2_score(y, self.predict(X)))

    def _validated(self, X: Any, y: Any) -> tuple[Matrix, Matrix]:
        self._one_dimensional = False
        if _is_lazy(X) or _is_lazy(y):
            if isinstance(y, np.ndarray) and y.ndim == 1:
                self._one_dimensional = True
                y = y[:, None]
            return as_matrix(X), as_matrix(y)
        from sklearn.utils.validation import validate_data

        # Betas are searched for NaN while their moments are taken, without another pass.
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=[np.float64, np.float32], ensure_min_samples=2,
            ensure_all_finite=False,
        )  # fmt: skip
        self._one_dimensional = y.ndim == 1
        return as_matrix(X), as_matrix(y[:, None] if y.ndim == 1 else y)

    def _validated_test(self, X: Any) -> Matrix:
        self._check_fitted()
        if not _is_lazy(X):
            from sklearn.utils.validation import validate_data

            X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32], ensure_all_finite=False)
        test = as_matrix(X)
        if test.shape[1] != self.n_features_in_:
            raise InputError(f"test betas of {test.shape[1]} voxels", expected=f"{self.n_features_in_}, as in training")
        return test

    def _check_fitted(self) -> None:
        if not hasattr(self, "alpha_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this StreamingRidge is not fitted yet; call fit first")

    def _check_settings(self) -> None:
        if self.alpha != "loo" and not (isinstance(self.alpha, int | float | np.number) and self.alpha >= 0):
            raise SettingsError(f"alpha = {self.alpha!r}", expected='a number, 0 or more, or "loo"')
        if self.per_target and self.alpha != "loo":
            raise SettingsError("per_target chooses an alpha for every target", todo='set alpha = "loo"')
        if self.alphas is not None and (len(self.alphas) == 0 or min(self.alphas) <= 0):
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
        exact = min(self.betas_.shape) <= FLOAT64_ORDER and np.result_type(self.targets_.dtype, np.float32) == np.float64
        return np.dtype(np.float64 if exact else np.float32)

    def _shapes(self, betas: Matrix, targets: Matrix, m: int) -> Shapes:
        (n, p), t = betas.shape, targets.shape[1]
        wide = np.result_type(targets.dtype, np.float32) == np.float64
        return Shapes(
            n, p, m, t, targets.block, betas.tile_nbytes, targets.tile_nbytes, betas.scratch_nbytes,
            y_itemsize=8 if wide else 4, restandardized=self.restandardize != "none",
        )  # fmt: skip


_PARAMETERS = ("alpha", "standardize", "alphas", "per_target", "restandardize", "budget", "seed", "scratch")


def _is_lazy(source: Any) -> bool:
    """Whether a matrix is read from where it lies, rather than checked and held as scikit-learn does."""
    if isinstance(source, str | Path | Store | StoreMatrix | ArrayMatrix | RowSubset | Reblocked):
        return True
    return type(source).__module__.partition(".")[0] in {"zarr", "dask", "h5py"}
