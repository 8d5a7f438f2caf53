"""Which form a decoder takes: the one of least error for images that are held out of the train rows.

Up to 1,000 train rows are cut into five folds of images (with up to twenty images each is a fold of its own). In every
fold the voxels' moments and weights are learned anew without its images: weights that had seen an image would favour it.
Every form is tried with every alpha, on up to 100 principal components of the targets. The plainest form stays unless
the best one gains more than one standard error over the folds (Breiman et al. 1984, "Classification and regression trees").
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.kept import Kept
from leanrecon.regression.normalise import Centred, Moments, moments
from leanrecon.regression.ridge.form import Form, Source
from leanrecon.regression.ridge.hat import gram
from leanrecon.regression.ridge.kept_parts import kernels_of, placed
from leanrecon.regression.ridge.limits import COMPONENTS, FEWEST_IMAGES, FOLDS, ONE_EACH
from leanrecon.regression.ridge.loo import default_alphas
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan import choice_rows
from leanrecon.regression.ridge.rbf import into_rbf, median_distance, squared_norms
from leanrecon.regression.ridge.restandardise import group_rows
from leanrecon.regression.ridge.tridiagonal import Turned
from leanrecon.regression.voxel_weights import carried, weights_of
from leanrecon.stores.matrix import Matrix, RowSubset, as_matrix, column_blocks, panels

Array = np.ndarray[Any, Any]

_STREAM = 41  # of random numbers


@dataclass(frozen=True)
class Choice:
    """What was tried, and how well each form predicted images that were held out."""

    forms: Sequence[Form]
    r2: Sequence[float]
    """1 − squared error over that of the mean image, at each form's best alpha."""
    rows: int
    folds: int
    certain: bool = True
    """Whether the form of least error gains more over the plainest than one standard error over the folds."""

    @property
    def best(self) -> Form:
        """The form of least error, or the plainest where it gains too little."""
        return self.forms[int(np.argmax(self.r2))] if self.folds and self.certain else self.forms[0]

    def told(self, *, figures: bool) -> str:
        """The choice in a sentence, with R² of the best form and of the plainest, or without figures."""
        if not self.folds:
            return f"too few train images to choose a form by: {self.best}"
        told = f"{self.best} has the least error for held-out train images, of {len(self.forms)} forms"
        if not self.certain:
            told = f"{self.best} is kept: none of {len(self.forms)} forms is surely better for held-out train images"
        if not figures:
            return told
        return f"{told} (R² {max(self.r2):.3f}; {self.forms[0]} {self.r2[0]:.3f})"

    def as_dict(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        tried = [form.as_dict() | {"r2": round(r2, 4)} for form, r2 in zip(self.forms, self.r2, strict=False)]
        return {"rows": self.rows, "folds": self.folds, "tried": tried}


@dataclass(frozen=True)
class _Rows:
    """Some train rows in memory: betas [r, p], components of the targets [s, k], and which of them each row shows."""

    source: Matrix
    """The betas of all train rows, and which of them are ``picked``."""
    picked: Array
    betas: Matrix
    targets: Array
    stimulus: Array
    fold: Array
    """The fold of each image."""


def choose(
    forms: Sequence[Form],
    betas: Matrix,
    targets: Array,
    pairing: Pairing,
    *,
    scale: bool,
    alpha: float | None,
    alphas: Sequence[float] | None,
    reliability: Array | None,
    seed: int,
    kept: Kept | None = None,
) -> Choice:
    """Try ``forms`` on train rows of ``betas`` [n, p] and projected targets [s, k]; see the module.

    ``reliability`` is the share of each voxel's variance that all train rows say is signal: it knows no targets.
    ``kept`` holds what fits of the same betas to other targets left.
    With fewer than five images there is nothing to choose by, and the plainest form is taken.
    """
    rows = _some_rows(betas, targets, pairing, seed)
    folds = int(rows.fold.max()) + 1
    if len(rows.targets) < FEWEST_IMAGES:
        return Choice(forms, [], len(rows.stimulus), 0)
    count = len(default_alphas(1.0)) if alphas is None else len(alphas)
    by_fold, total = np.zeros((folds, len(forms), 1 if alpha is not None else count)), 0.0
    for k in range(folds):
        held = rows.fold[rows.stimulus] == k
        fold = _Fold.of(rows, held, alpha, alphas)
        total += fold.error_of_mean
        shares: dict[Source, Array] = {} if reliability is None else {"reliability": reliability}
        if any(form.source == "accuracy" for form in forms):
            shares["accuracy"] = fold.accuracy(rows)
        for by in dict.fromkeys((form.source, form.power) for form in forms):
            chosen = [i for i, form in enumerate(forms) if (form.source, form.power) == by]
            weights = None if by[0] is None or by[1] is None else weights_of(shares[by[0]], by[1])
            by_fold[k, chosen] = fold.errors([forms[i] for i in chosen], rows, scale, weights, kept)
    errors = by_fold.sum(axis=0)
    errors = np.where(np.isfinite(errors), errors, np.inf)
    r2 = 1 - errors.min(axis=1) / max(total, 1e-300)
    alpha_of = errors.argmin(axis=1)
    best = int(r2.argmax())
    gains = by_fold[:, 0, alpha_of[0]] - by_fold[:, best, alpha_of[best]]
    certain = bool(gains.mean() > gains.std(ddof=1) / np.sqrt(folds))
    return Choice(forms, [float(value) for value in r2], len(rows.stimulus), folds, certain)


def _some_rows(betas: Matrix, targets: Array, pairing: Pairing, seed: int) -> _Rows:
    """Rows of evenly spread images, with the leading principal components of the targets."""
    p = betas.shape[1]
    picked = group_rows(pairing, choice_rows(p))
    index = picked if pairing.index is None else pairing.index[picked]
    images, stimulus = np.unique(index, return_inverse=True)
    wide = betas.dtype.kind == "f" and betas.dtype.itemsize == 8
    held = buffer((len(picked), p), np.float64 if wide else np.float32)
    subset = RowSubset(betas, picked)
    for rows in panels(len(picked)):
        for columns in column_blocks(betas):
            subset.read(rows, columns, held[rows.start : rows.stop, columns.start : columns.stop])
    z = targets[images].astype(np.float64)
    z -= z.mean(axis=0)
    if z.shape[1] > COMPONENTS:
        z = z @ np.linalg.eigh(z.T @ z)[1][:, -COMPONENTS:]
    folds = min(len(images), FOLDS if len(images) > ONE_EACH else ONE_EACH)
    fold = np.empty(len(images), np.int64)
    fold[np.random.default_rng([seed, _STREAM]).permutation(len(images))] = np.arange(len(images)) % folds
    return _Rows(betas, picked, as_matrix(held), z, stimulus, fold)


@dataclass(frozen=True)
class _Fold:
    """One fold: the rows that are learned from, those that are held out, and the targets of both."""

    learned: Array
    moments: Moments
    """Of the learned rows."""
    held: Array
    pairing: Pairing
    images: Array
    targets: Array
    """Of the learned rows, centred."""
    mean: Array
    expected: Array
    """Of the held rows, less that mean."""
    alpha: float | None
    alphas: Sequence[float] | None

    @classmethod
    def of(cls, rows: _Rows, held: Array, alpha: float | None, alphas: Sequence[float] | None) -> "_Fold":
        learned = np.flatnonzero(~held)
        images, stimulus = np.unique(rows.stimulus[learned], return_inverse=True)
        targets = rows.targets[rows.stimulus[learned]]
        mean = targets.mean(axis=0)
        expected = rows.targets[rows.stimulus[held]] - mean
        pairing, found = Pairing.of(stimulus, len(learned), len(images)), moments(RowSubset(rows.betas, learned))
        parts = (learned, found, np.flatnonzero(held), pairing, images, targets - mean, mean, expected)
        return cls(*parts, alpha, alphas)

    @property
    def error_of_mean(self) -> float:
        return float(np.square(self.expected).sum())

    def accuracy(self, rows: _Rows) -> Array:
        """How much of each voxel's variance the learned images explain."""
        targets = as_matrix(rows.targets[self.images])
        return carried("accuracy", targets, RowSubset(rows.betas, self.learned), self.pairing, self.moments)

    def errors(
        self, forms: Sequence[Form], rows: _Rows, scale: bool, weights: Array | None, kept: Kept | None
    ) -> Array:
        """Squared errors [forms, alphas] of forms that weigh voxels by these weights.

        Without any, the kernels are those of other targets too, which find them in ``kept``.
        """

        def make() -> list[Turned]:
            return list(self._kernels(forms, rows, scale, weights))

        if weights is not None or kept is None:
            kernels = make()
        else:
            kernels = kernels_of(kept, rows.source, [rows.picked, self.learned], [*forms, scale], make)
        return np.stack([one.errors(self.targets, self.expected, self._grid(one)) for one in kernels])

    def _kernels(self, forms: Sequence[Form], rows: _Rows, scale: bool, weights: Array | None) -> Iterator[Turned]:
        betas, test = RowSubset(rows.betas, self.learned), RowSubset(rows.betas, self.held)
        x, t = (Centred(a, self.moments, scale=scale, weights=weights, dual=True) for a in (betas, test))
        dtype = rows.betas.dtype  # float32 moves R² in its sixth digit; what is solved is float64
        kernel, cross = gram(x, dtype, test=t)
        assert cross is not None
        squares = squared_norms(t, range(len(self.held)), dtype)
        median = median_distance(kernel) if any(form.gamma is not None for form in forms) else 0.0
        for form in forms:
            if form.gamma is None:
                yield Turned.of(kernel, cross)
                continue
            copy, products = placed(kernel, None), cross.copy()
            into_rbf(copy, form.gamma, median).of_test(products, squares)
            yield Turned.of(copy, products)

    def _grid(self, kernel: Turned) -> Array:
        if self.alpha is not None:
            return np.array([self.alpha])
        return default_alphas(kernel.mean_eigenvalue) if self.alphas is None else np.sort(np.asarray(self.alphas))
