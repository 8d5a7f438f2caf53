"""What scikit-learn asks of an estimator; it is imported only when a user's own arrays are checked."""

import inspect
from pathlib import Path
from typing import Any, Self

import numpy as np

from leanrecon.errors import SettingsError
from leanrecon.stores.matrix import ArrayMatrix, Reblocked, RowSubset, StoreMatrix
from leanrecon.stores.store import Store


class Regressor:
    """Parameters, tags and score of a regressor whose ``__init__`` stores its arguments untouched."""

    _learned = "alpha_"
    """The attribute that is there once it is fitted."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        known = list(inspect.signature(type(self)).parameters)
        for name, value in params.items():
            if name not in known:
                raise SettingsError(
                    f"{type(self).__name__} has no parameter {name!r}", expected=f"one of {', '.join(known)}"
                )
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

    def predict(self, X: Any) -> Any:
        raise NotImplementedError

    def _check_fitted(self) -> None:
        if not hasattr(self, self._learned):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")


def is_lazy(source: Any) -> bool:
    """Whether a matrix is read from where it lies, rather than checked and held as scikit-learn does."""
    if isinstance(source, str | Path | Store | StoreMatrix | ArrayMatrix | RowSubset | Reblocked):
        return True
    return type(source).__module__.partition(".")[0] in {"zarr", "dask", "h5py"}


def checked_train(estimator: Any, X: Any, y: Any) -> tuple[Any, Any]:
    """Betas and targets as scikit-learn checks them, unless one of them is read from where it lies."""
    if is_lazy(X) or is_lazy(y):
        return X, y
    from sklearn.utils.validation import validate_data

    # Betas are searched for NaN while their moments are taken, without another pass.
    X, y = validate_data(
        estimator, X, y, multi_output=True, y_numeric=True, dtype=[np.float64, np.float32], ensure_min_samples=2,
        ensure_all_finite=False,
    )  # fmt: skip
    return X, y


def checked_test(estimator: Any, X: Any) -> Any:
    """Test betas as scikit-learn checks them; NaN in them is found by the products."""
    from sklearn.utils.validation import validate_data

    return validate_data(estimator, X, reset=False, dtype=[np.float64, np.float32], ensure_all_finite=False)
