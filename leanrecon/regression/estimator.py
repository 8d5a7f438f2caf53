"""What regressors have in common: what scikit-learn asks of them, and predictions into arrays and stores.

scikit-learn is imported only when a user's own arrays are checked.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from leanrecon.arguments import Parameters
from leanrecon.context import Peaks
from leanrecon.errors import InputError, LeanreconWarning, shown
from leanrecon.memory import MemoryBudget
from leanrecon.regression import unreasonable
from leanrecon.regression.normalise import Moments, moments
from leanrecon.stores.matrix import (
    NUMBERS,
    ArrayMatrix,
    ColumnSubset,
    Matrix,
    Reblocked,
    RowSubset,
    StoreMatrix,
    as_matrix,
)
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


class Regressor(Parameters):
    """A regressor whose ``__init__`` stores its arguments untouched, and that predicts block by block."""

    _learned = "alpha_"
    """The attribute that is there once it is fitted."""
    _set_first: ClassVar = frozenset({"learned_", "settings_"})
    """What ``fit`` sets before it looks at the matrices."""

    budget: str | int | MemoryBudget | None
    n_features_in_: int
    targets_: Matrix
    peaks_: Peaks
    """The projected peaks in bytes of all work since `fit`; set another one to collect them elsewhere."""
    moments_: Moments
    left_out_: int
    unreasonable_: Sequence[str]
    """What is odd about the betas, in sentences (see ``regression.unreasonable``)."""
    warns = True
    """Whether ``fit`` warns of voxels that are left out and of odd betas; those that say so themselves switch it off."""
    _one_dimensional: bool

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True),
            input_tags=InputTags(),
            regressor_tags=RegressorTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, self._learned)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination R² of the predictions, averaged over targets; rows count by ``sample_weight`` [m]."""
        from sklearn.metrics import r2_score

        return float(r2_score(y, self.predict(X), sample_weight=sample_weight))

    # Predicting

    def predict(self, X: Any) -> Array:
        """Predictions for test betas ``X`` [m, p], as an array [m, t] (or [m], if the targets were)."""
        test = self._validated_test(X)
        result = np.empty((test.shape[0], self.targets_.shape[1]), self._stream_dtype)
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
            if rows.stop == store.rows:
                advance(1)

    def predict_blocks(
        self, X: Any, *, block: int | None = None, wanted: Sequence[int] | None = None, held: int = 0
    ) -> Iterator[tuple[range, range, Array]]:
        """Yield ``(rows, columns, predictions)`` block by block; each is valid until the next one is asked for.

        ``block`` columns make a block (by default as the targets lie on disk), ``wanted`` picks some of the blocks,
        ``held`` bytes are kept by the caller.
        """
        raise NotImplementedError

    @property
    def _stream_dtype(self) -> np.dtype[Any]:
        """Of predictions."""
        raise NotImplementedError

    # Checks

    def _require(self, budget: MemoryBudget, work: str, nbytes: int) -> int:
        """The projected peak of ``nbytes`` of work, noted in ``peaks_``; raises BudgetError if it is too much."""
        projected = budget.require(work, nbytes)
        self.peaks_.projected.append(projected)
        return projected

    def _look_at(self, betas: Matrix, test: Matrix | None) -> None:
        """Take the moments of train betas, and note what is left out of them or odd about them or test betas.

        Raises InputError where no voxel varies.
        """
        self.moments_ = moments(betas)
        n, p = betas.shape
        self.left_out_ = int(p - self.moments_.usable.sum())
        if self.left_out_ == p:
            raise InputError(f"none of the {p} voxels varies over the {n} train rows", expected="betas that vary")
        found = unreasonable.of_train(betas, self.moments_)
        if test is not None:
            found += unreasonable.of_test(test, self.moments_)
        self.unreasonable_ = found
        if self.warns:
            for sentence in filter(None, [unreasonable.left_out(self.moments_), *found]):
                warnings.warn(sentence, LeanreconWarning, stacklevel=4)

    def _train_matrices(self, X: Any, y: Any, stimulus: Any) -> tuple[Matrix, Matrix]:
        """Betas [n, p] and targets [n, t], checked; notes whether targets came as [n], and forgets an earlier fit.

        With ``stimulus`` the targets have a row for each image, in any number.
        """
        self._forget()
        X, y = checked_train(self, X, y, one_to_one=stimulus is None)
        self._one_dimensional = len(y.shape) == 1 if isinstance(y, np.ndarray) else False
        betas, targets = as_matrix(X), as_matrix(y[:, None] if self._one_dimensional else y)
        if stimulus is None and targets.shape[0] != betas.shape[0]:
            raise InputError(
                f"{betas.shape[0]} rows of betas and {targets.shape[0]} rows of targets",
                expected="the same number of each",
            )
        if not targets.shape[1]:
            raise InputError("the targets have no columns", expected="one target or more")
        self.n_features_in_ = betas.shape[1]
        return betas, targets

    def _forget(self) -> None:
        """Forget an earlier fit: where this one fails nothing is left to predict with, and no figure outlives its fit."""
        for name in [name for name in vars(self) if name.endswith("_") and name not in self._set_first]:
            delattr(self, name)

    def _validated_test(self, X: Any) -> Matrix:
        self._check_fitted()
        return self._test_matrix(X)

    def _test_matrix(self, X: Any) -> Matrix:
        test = as_matrix(X if is_lazy(X) else checked_test(self, X))
        if test.shape[1] != self.n_features_in_:
            raise InputError(f"test betas of {test.shape[1]} voxels", expected=f"{self.n_features_in_}, as in training")
        return test

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")


def is_lazy(source: Any) -> bool:
    """Whether a matrix is read from where it lies, rather than checked and held as scikit-learn does."""
    if isinstance(source, str | os.PathLike | Store | StoreMatrix | ArrayMatrix | RowSubset | ColumnSubset | Reblocked):
        return True
    return type(source).__module__.partition(".")[0] in {"zarr", "dask", "h5py"}


def check_array_like(name: str, values: Any) -> None:
    """Raise InputError for what is not an array of numbers, where scikit-learn would convert it or say little."""
    if values is None or is_lazy(values):  # scikit-learn asks for targets itself
        return
    kind = getattr(getattr(values, "dtype", None), "kind", "f")
    if kind not in f"{NUMBERS}cO":  # scikit-learn refuses complex numbers, and looks into objects
        raise InputError(f"{name} of type {values.dtype}", expected="numbers")
    if not hasattr(values, "__array__") and not isinstance(values, list | tuple) and not hasattr(values, "tocsr"):
        raise InputError(
            f"{name} are {shown(values)}", expected="an array [rows, columns], a store, or the path of a store"
        )


def checked_train(estimator: Any, X: Any, y: Any, *, one_to_one: bool) -> tuple[Any, Any]:
    """Betas and targets as scikit-learn checks them; what is read from where it lies stays as it is.

    Where they are paired ``one_to_one`` they must have as many rows.
    """
    for name, values in (("betas", X), ("targets", y)):
        check_array_like(name, values)
    # Betas are searched for NaN while their moments are taken, without another pass.
    how: dict[str, Any] = {
        "dtype": [np.float64, np.float32], "ensure_min_samples": 2, "ensure_all_finite": False
    }  # fmt: skip
    if one_to_one and not is_lazy(X) and not is_lazy(y):
        from sklearn.utils.validation import validate_data

        X, y = validate_data(estimator, X, y, multi_output=True, y_numeric=True, **how)
        return X, y
    if not is_lazy(X):
        from sklearn.utils.validation import validate_data

        X = validate_data(estimator, X, **how)
    if is_lazy(y):
        return X, np.asarray(y) if len(getattr(y, "shape", ())) == 1 else y
    if y is None:
        raise InputError("there are no targets", expected="an array [rows, targets] or [rows]")
    from sklearn.utils.validation import check_array

    finite = not is_lazy(X)  # else NaN is found as targets are read
    return X, check_array(y, ensure_2d=False, dtype="numeric", input_name="y", ensure_all_finite=finite)


def checked_test(estimator: Any, X: Any) -> Any:
    """Test betas as scikit-learn checks them; NaN in them is found by the products."""
    check_array_like("test betas", X)
    from sklearn.utils.validation import validate_data

    return validate_data(estimator, X, reset=False, dtype=[np.float64, np.float32], ensure_all_finite=False)
