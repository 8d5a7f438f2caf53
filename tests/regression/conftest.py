from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest

from leanrecon.regression import ridge
from leanrecon.stores import Store

Array = np.ndarray[Any, Any]

MODULES = [
    import_module(f"{ridge.__name__}.{module.name}")
    for module in iter_modules(ridge.__path__)
    if module.name != "scikit"  # the estimators for users
]


@pytest.fixture
def study() -> Callable[..., tuple[Array, Array, Array]]:
    """Train betas [n, p], train targets [n, t] and test betas [m, p] that share 10 latent sources.

    Every column has a standard deviation of about 1; ``far`` moves the means of betas and targets to that many.
    """

    def draw(
        n: int, p: int, *, m: int = 40, t: int = 23, far: float = 3.0, seed: int = 0, dtype: Any = np.float64
    ) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(seed)
        sources = rng.standard_normal((n + m, 10))
        betas = sources @ rng.standard_normal((10, p)) / 4 + 0.6 * rng.standard_normal((n + m, p))
        targets = sources[:n] @ rng.standard_normal((10, t)) / 4 + 0.6 * rng.standard_normal((n, t))
        betas += far * rng.choice([-1, 1], p)
        targets += far * rng.choice([-1, 1], t)
        return betas[:n].astype(dtype), targets.astype(dtype), betas[n:].astype(dtype)

    return draw


@pytest.fixture
def closed_form() -> Callable[..., Array]:
    """Ridge predictions by the normal equations in float64: T (XᵀX + αI)⁻¹ XᵀY on centred (and z-scored) columns."""

    def predict(X: Array, Y: Array, T: Array, alpha: float, *, standardize: bool = False) -> Array:
        X, Y, T = (a.astype(np.float64) for a in (X, Y, T))
        varies = X.std(axis=0) > 0
        mean, scale = X.mean(axis=0), X.std(axis=0, ddof=1) if standardize else np.ones(X.shape[1])
        X, T = ((a - mean)[:, varies] / scale[varies] for a in (X, T))
        weights = np.linalg.solve(X.T @ X + alpha * np.eye(X.shape[1]), X.T @ (Y - Y.mean(axis=0)))
        return Y.mean(axis=0) + T @ weights

    return predict


@pytest.fixture
def off_by() -> Callable[[Array, Array, Array], float]:
    """The largest error of predictions, in standard deviations of their targets."""

    def error(predictions: Array, expected: Array, targets: Array) -> float:
        return float((np.abs(predictions - expected) / targets.astype(np.float64).std(axis=0)).max())

    return error


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows into a complete store and returns its path; ``chunk`` sets how many chunks there are."""

    def write(rows: Array, name: str, *, chunk: str | int = "8MB") -> Path:
        store = Store.create(tmp_path / name, rows.shape, rows.dtype, made_of={"name": name}, chunk=chunk)
        for i in range(store.row_groups):
            group = store.group_rows(i)
            store.write_rows(i, rows[group.start : group.stop])
        store.finish()
        return Path(store.path)

    return write


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets constants of the ridge wherever they are used, so that small matrices take the way of large ones."""

    def set_all(**values: int) -> None:
        for name, value in values.items():
            holders = [module for module in MODULES if hasattr(module, name)]
            assert holders, name
            for module in holders:
                monkeypatch.setattr(module, name, value)

    return set_all


@pytest.fixture
def in_float32(constants: Callable[..., None]) -> None:
    """Gram matrices of any order are formed and factored in float32, in several panels."""
    constants(FLOAT64_ORDER=0, WIDTH=64, DEPTH=32)


@pytest.fixture
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process seems to hold no memory, so that a budget is all for the work and plans are the same in every run."""
    monkeypatch.setattr("leanrecon.memory.process_memory", lambda: 0)
