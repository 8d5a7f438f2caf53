"""Which way leads better from a new subject to images: through the group's space, or from its own voxels.

Both are tried on the subject's own train images, left out in turn, by what they tell of small versions of them. An image
that is left out is so for every subject: the group's scores of it train no decoder either.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.alignment.ridge import left_out_predictions, predict
from leanrecon.datasets.group.joined import SIDE
from leanrecon.stores.images import small_images

if TYPE_CHECKING:
    from leanrecon.datasets.group.join import IntoGroup, Pair
    from leanrecon.datasets.group.members import Members

Array = np.ndarray[Any, Any]

FOLDS = 5


def try_routes(pair: "Pair", maps: "IntoGroup", seed: int) -> dict[str, float]:
    """The mean correlation of left-out images with their predictions, by route, penalties chosen by leave-one-out."""
    tried = {name: k for k, name in enumerate(pair.tried)}
    folds = np.random.default_rng([seed, len(tried)]).permutation(len(tried)) % FOLDS
    own, group = pair.members("own"), pair.members("group")
    numbers = {name: k for k, name in enumerate(own.images["train"])}
    targets = _small_images(own)[[numbers[name] for name in pair.tried]]
    betas = _mean_rows(pair, tried)
    scores = maps.transform(pair.own.name, betas).astype(np.float64)
    place = {name: k for k, name in enumerate(pair.common)}
    changes = maps.left_out(pair.own.name)
    assert changes is not None
    for name, k in tried.items():
        if name in place:
            scores[k] += changes[place[name]]
    betas[:, np.isnan(betas[0])] = 0  # voxels outside of the mask
    betas -= betas.mean(axis=0)
    deviation = np.sqrt(np.einsum("ij,ij->j", betas, betas, dtype=np.float64) / len(betas))
    betas *= np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1), 0).astype(np.float32)
    gram = (betas @ betas.T).astype(np.float64)
    del betas
    of_group = _small_images(group)
    rows = np.asarray(pair.group.betas["train"][0 : len(of_group)], np.float64)
    rows[:, np.isnan(rows[0])] = 0
    fold_of_group = np.array([folds[tried[name]] if name in tried else -1 for name in group.images["train"]])
    through_group = np.zeros(targets.shape)
    for fold in np.unique(folds):
        new, kept = folds == fold, fold_of_group != fold
        through_group[new] = _by_scores(rows[kept], of_group[kept], scores[new], seed)
    predicted = {"own": left_out_predictions(gram, targets, folds, seed), "group": through_group}
    return {route: _correlation(images, targets) for route, images in predicted.items()}


def _by_scores(rows: Array, targets: Array, new: Array, seed: int) -> Array:
    """Predictions of new scores [m, k] by a ridge on the group's scores [n, k]."""
    mean = rows.mean(axis=0)
    left, singular, right = np.linalg.svd(rows - mean, full_matrices=False)
    through = (new - mean) @ right.T * singular
    return predict(np.square(singular), left, through, targets, seed)


def _correlation(predicted: Array, true: Array) -> float:
    """The mean over rows of Pearson's r; 0 for rows that are constant."""
    a = predicted - predicted.mean(axis=1, keepdims=True)
    b = true - true.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return float(np.mean((a * b).sum(axis=1) / np.where(norms > 0, norms, np.inf)))


def _mean_rows(pair: "Pair", tried: dict[str, int]) -> Array:
    """The subject's train betas of some images, averaged over the rows of each: float32 [images, voxels]."""
    betas, names = pair.own.betas["train"], pair.own.rows.stimulus_ids("train")
    sums = np.zeros((len(tried), pair.own.voxels), np.float32)
    counts = np.zeros(len(tried), np.float32)
    for start in range(0, len(names), 256):
        block = betas[start : start + 256]
        for row, name in zip(block, names[start : start + 256], strict=True):
            if name in tried:
                sums[tried[name]] += row
                counts[tried[name]] += 1
    sums /= counts[:, None]
    return sums


def _small_images(members: "Members") -> Array:
    """All train images of what is put together, which lie in its first member: float32 [images, pixels]."""
    rows = [row for _, row in members.images["train"].values()]
    return small_images(members.each[0].stimuli["train"], rows, SIDE)
