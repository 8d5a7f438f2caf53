"""The weights with which patches are added to an image, by non-negative least squares on out-of-fold predictions.

With the predicted patches f of a row, an image is Σ λ_m f_m φ_m, where φ_m is the patch's share of each pixel (one over
the number of patches of its scale that cover it). λ ≥ 0 minimises the squared difference to the images that the rows
show: one λ a scale, or one a patch. Miyawaki et al. (2008) learn one a patch; with few images that overfits, so here

    Σ ‖y − Σ λ_m f_m φ_m‖² + μ Σ (λ_m − λ of its scale)²,   0 ≤ λ_m ≤ CAP · (largest λ of a scale)

and μ is the largest of ``SHRINK`` whose error on rows of other images is not clearly above the least one. (The decoders
of a row have seen the images that its weights are judged by, so the least error alone would trust single patches too much.)
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import InputError, StoreError
from leanrecon.images import Array
from leanrecon.places import LocationLike, as_location
from leanrecon.places.files import write_whole
from leanrecon.stores.fingerprint import differences

if TYPE_CHECKING:
    from leanrecon.features.patches import Patches
    from leanrecon.stores import Matrix, Store

FORMAT = 1

PANEL = 256
"""Rows whose products are added at once."""

FOLDS = 10
"""Folds of the images by which μ is chosen, or as many as there are images."""

CLEARLY = 2.0
"""Standard errors of the paired difference over folds by which a larger μ has to be worse to be left."""

SHRINK = (0.1, 1.0, 10.0, 100.0, np.inf)
"""Values of μ, in units of the mean of the diagonal of the normal equations times patches / images. With ten images and
hundreds of patches a weight of its own says nothing of a patch. Infinite: the scales' weights alone."""

CAP = 2.0
"""The largest weight of a patch, in units of the largest weight of a scale."""

_PATIENCE = 10  # pivots of many weights that may fail to make the violations fewer
_DOUBLE = 8
_IMPORT = 60_000_000  # bytes of scipy.optimize

Learned = tuple[Array, tuple[int, int]]
"""The weight of every patch, float64 [patches], and the rows and columns of cells."""


@dataclass(frozen=True)
class Normal:
    """The normal equations of some rows: ‖y − Bλ‖² = λᵀ gram λ − 2 λᵀ moment + total."""

    gram: Array
    moment: Array
    total: float

    def __add__(self, other: "Normal") -> "Normal":
        return Normal(self.gram + other.gram, self.moment + other.moment, self.total + other.total)

    def error(self, weights: Array) -> float:
        """The squared error of these rows with some weights."""
        return float(weights @ self.gram @ weights - 2 * weights @ self.moment + self.total)

    def joined(self, members: Array) -> "Normal":
        """The same where unknowns share a weight; ``members`` is 0 and 1, [unknowns, groups]."""
        return Normal(members.T @ self.gram @ members, members.T @ self.moment, self.total)


def plan_combination(rows: int, dims: int, scales: int, pixels: int, combine: str) -> int:
    """Bytes of memory that learning the weights takes, of ``rows`` predictions of ``dims`` patches."""
    images = rows * pixels * _DOUBLE
    panel = PANEL * (dims + (scales + 2) * pixels) * 3 * _DOUBLE
    normal = (FOLDS + 6) * dims * dims * _DOUBLE if combine == "patch" else 0
    return _IMPORT + images + panel + normal + dims * pixels * _DOUBLE * (combine == "patch")


def calibrate(
    space: "Patches",
    predictions: "Matrix",
    images: "Store",
    stimulus: Array,
    path: LocationLike,
    context: Context | None = None,
) -> Learned:
    """Learn the weights of a space and keep them at ``path``, or load those that are there.

    Raises StoreError where others are there, unless ``context.overwrite``; InputError where every prediction is 0.
    """
    from leanrecon.stores.images import image_shape

    context = (context or Context.of()).refreshed()
    shape = image_shape(images)
    context.require(f"calibration of {space.name}", space.calibrate_nbytes(predictions.shape, shape))
    record = {
        "format": FORMAT,
        "settings": space.settings.model_dump(mode="json"),
        "images": images.content,
        "stimulus": hashlib.sha256(stimulus.astype("<i8").tobytes()).hexdigest(),
        "predictions": _content(predictions),
    }
    path = as_location(path)
    if path.exists():
        try:
            learned, found = load(path)
            if not (changed := list(differences(found, record))):
                return learned
            raise StoreError(
                f"{path} was learned from other predictions or settings: {'; '.join(changed)}",
                todo="go back to those settings, choose another --study, or replace it with --overwrite",
            )
        except StoreError:
            if not context.overwrite:
                raise
    rows, columns, _ = space.decoded_shape(shape)
    weights = learned_weights(space, predictions, _cells(space, images), stimulus, (rows, columns))
    grid, text = np.array([rows, columns]), np.array(json.dumps(record, sort_keys=True))
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, weights=weights, grid=grid, record=text))
    return weights, (rows, columns)


def load(path: LocationLike) -> tuple[Learned, dict[str, Any]]:
    """Weights that were learned, and what from."""
    try:
        with as_location(path).open() as opened, np.load(opened, allow_pickle=False) as file:
            rows, columns = file["grid"].tolist()
            record: dict[str, Any] = json.loads(str(file["record"]))
            return (file["weights"], (rows, columns)), record
    except FileNotFoundError:
        raise StoreError(f"there are no learned weights at {path}", todo="run the stage stage1 first") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged: {error}", todo="remove it and run stage1 again") from error


def learned_weights(
    space: "Patches", predictions: "Matrix", images: Array, stimulus: Array, cells: tuple[int, int]
) -> Array:
    """The weight of every patch, float64 [patches]; ``images`` [s, pixels] are from 0 to 1, row i shows ``stimulus[i]``."""
    members = np.zeros((predictions.shape[1], len(space.scales)))
    for k, part in enumerate(space.slices(cells)):
        members[part, k] = 1
    if space.settings.combine == "scale":
        return members @ non_negative(_refuse_empty(_by_scale(space, predictions, images, stimulus, cells)))
    folds = np.searchsorted(np.unique(stimulus), stimulus) % FOLDS
    shares = _shares(space, cells)
    parts = [_by_patch(predictions, images, stimulus, shares, folds == k) for k in range(int(folds.max()) + 1)]
    whole = _refuse_empty(sum(parts[1:], parts[0]))
    few = len(members) / len(np.unique(stimulus))
    shrink = _best_shrink(parts, members, few) if len(parts) > 1 else np.inf
    return near_scales(whole, members, shrink)


def non_negative(normal: Normal) -> Array:
    """The weights λ ≥ 0 of least error, by SciPy's active-set algorithm on a square root of the normal equations."""
    from scipy.optimize import nnls

    root, moment = _square_root(normal)
    weights: Array = nnls(root, moment)[0]
    return weights


def near_scales(normal: Normal, members: Array, shrink: float) -> Array:
    """One weight a patch, pulled to its scale's by ``shrink`` times the mean diagonal, and capped."""
    by_scale = non_negative(normal.joined(members))
    towards = members @ by_scale
    if shrink == np.inf:
        return towards
    strength = shrink * float(np.trace(normal.gram)) / len(normal.gram)
    pulled = Normal(normal.gram + strength * np.eye(len(normal.gram)), normal.moment + strength * towards, normal.total)
    return bounded(pulled, CAP * float(by_scale.max(initial=0)))


def bounded(normal: Normal, cap: float) -> Array:
    """The weights from 0 to ``cap`` of least error, for a positive definite Gram matrix, by block principal pivoting.

    Every weight is free or at a bound. All that violate the conditions of a minimum change sides together; if that does not
    make them fewer for a while, only the last one does, which ends (Júdice & Pires 1994).
    """
    gram, moment = normal.gram, normal.moment
    side = np.zeros(len(moment), np.int64)  # -1: at 0, 1: at the cap, 0: free
    tolerance = 1e-12 * max(float(np.abs(moment).max()), float(np.trace(gram)) * cap / len(gram), np.finfo(float).tiny)
    fewest, patience = len(moment) + 1, _PATIENCE
    while True:
        weights = np.where(side == 1, cap, 0.0)
        free = side == 0
        weights[free] = np.linalg.solve(gram[np.ix_(free, free)], moment[free] - gram[free] @ weights)
        slope = gram @ weights - moment
        low, high = free & (weights < -1e-12 * cap), free & (weights > cap * (1 + 1e-12))
        inward = ((side == -1) & (slope < -tolerance)) | ((side == 1) & (slope > tolerance))
        wrong = np.flatnonzero(low | high | inward)
        if not len(wrong):
            found: Array = np.clip(weights, 0, cap)
            return found
        if len(wrong) < fewest:
            fewest, patience = len(wrong), _PATIENCE
        elif patience > 0:
            patience -= 1
        else:
            wrong = wrong[-1:]
        side[wrong] = np.where(low[wrong], -1, np.where(high[wrong], 1, 0))


def _best_shrink(parts: list[Normal], members: Array, few: float) -> float:
    """The largest shrinkage that is not clearly worse than the best, on the rows of each fold's images."""
    errors = np.empty((len(parts), len(SHRINK)))
    for k, held in enumerate(parts):
        others = [part for j, part in enumerate(parts) if j != k]
        rest = sum(others[1:], others[0])
        errors[k] = [held.error(near_scales(rest, members, shrink * few)) for shrink in SHRINK]
    return float(SHRINK[largest_not_worse(errors)]) * few


def largest_not_worse(errors: Array) -> int:
    """The last column of errors [folds, k] that is not clearly above the column of the least sum."""
    excess = errors - errors[:, [int(errors.sum(axis=0).argmin())]]
    limit = CLEARLY * excess.std(axis=0, ddof=1) * np.sqrt(len(errors))
    return int(np.flatnonzero(excess.sum(axis=0) <= limit)[-1])


def _square_root(normal: Normal) -> tuple[Array, Array]:
    """A root R and a vector q with ‖Rλ − q‖² = λᵀ gram λ − 2 λᵀ moment, but for a constant."""
    values, vectors = np.linalg.eigh(normal.gram)
    kept = values > values[-1] * len(values) * np.finfo(float).eps
    scale = np.sqrt(values[kept])
    return scale[:, None] * vectors[:, kept].T, (vectors[:, kept].T @ normal.moment) / scale


def _refuse_empty(normal: Normal) -> Normal:
    if not np.trace(normal.gram) > 0:
        raise InputError(
            "all predictions out of fold are 0, so no weights can be learned from them",
            expected="predictions that vary with the images",
            todo='set combine = "equal", or look at the images: nothing can be learned from images that are all black',
        )
    return normal


def _by_scale(
    space: "Patches", predictions: "Matrix", images: Array, stimulus: Array, cells: tuple[int, int]
) -> Normal:
    count = len(space.scales)
    gram, moment, total = np.zeros((count, count)), np.zeros(count), 0.0
    for rows, block in _panels(predictions):
        drawn = space.spread(block, cells).reshape(len(block), count, -1)
        seen = images[stimulus[rows]]
        gram += np.einsum("isp,itp->st", drawn, drawn)
        moment += np.einsum("isp,ip->s", drawn, seen)
        total += float(np.einsum("ip,ip->", seen, seen))
    return Normal(gram, moment, total)


def _by_patch(predictions: "Matrix", images: Array, stimulus: Array, shares: Array, wanted: Array) -> Normal:
    """The equations of some rows: the Gram matrix of predictions, times the overlap of every two patches."""
    dims = predictions.shape[1]
    gram, moment, total = np.zeros((dims, dims)), np.zeros(dims), 0.0
    for rows, block in _panels(predictions):
        chosen = wanted[rows]
        some, seen = block[chosen], images[stimulus[rows][chosen]]
        gram += some.T @ some
        moment += np.einsum("im,im->m", some, seen @ shares.T)
        total += float(np.einsum("ip,ip->", seen, seen))
    gram *= shares @ shares.T
    return Normal(gram, moment, total)


def _shares(space: "Patches", cells: tuple[int, int]) -> Array:
    """The share that each patch has of each pixel, float64 [patches, pixels]."""
    dims = space.slices(cells)[-1].stop
    result = np.empty((dims, cells[0] * cells[1]))
    for start in range(0, dims, PANEL):
        some = np.zeros((min(PANEL, dims - start), dims))
        some[np.arange(len(some)), start + np.arange(len(some))] = 1
        result[start : start + len(some)] = space.spread(some, cells).sum(axis=1).reshape(len(some), -1)
    return result


def _panels(predictions: "Matrix") -> Any:
    n, dims = predictions.shape
    for start in range(0, n, PANEL):
        rows = range(start, min(start + PANEL, n))
        block = np.empty((len(rows), dims))
        predictions.read(rows, range(dims), block)
        yield slice(rows.start, rows.stop), block


def _cells(space: "Patches", images: "Store") -> Array:
    """The cells of every image, from 0 to 1: float64 [images, pixels]."""
    from leanrecon.stores.images import ImageReader

    rows, columns, _ = space.decoded_shape(images.shape[1:])  # type: ignore[arg-type]
    result = np.empty((images.rows, rows * columns))
    for place, block in ImageReader(images).runs(np.arange(images.rows)):
        sums, full = space.sums(block)
        result[place] = (sums / full).reshape(len(block), -1)
    return result


def _content(predictions: "Matrix") -> str:
    digest = hashlib.sha256(repr(predictions.shape).encode())
    for _, block in _panels(predictions):
        digest.update(block.tobytes())
    return digest.hexdigest()
