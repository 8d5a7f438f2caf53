"""How reliable each voxel is: whether it answers alike when an image is shown again."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.files.rows import Rows
from leanrecon.errors import InputError
from leanrecon.places import Location
from leanrecon.places.files import write_whole
from leanrecon.stores.fingerprint import fingerprint

Array = np.ndarray[Any, Any]

FEWEST = 10
"""Repeated images below which a correlation over them says nothing."""

AT_ONCE = 64
"""Images whose responses are read together."""


def select_nbytes(voxels: int) -> int:
    """Bytes that ``voxel_reliability`` takes: a block of responses as read and centred, and sums."""
    return (3 * 2 * AT_ONCE * 4 + 10 * 8) * voxels


def voxel_reliability(responses: Rows, trials: Sequence[Sequence[int]]) -> Array:
    """Pearson's r, over images that were shown at least twice, of each voxel's responses to the first and the second
    showing: float32 [voxels]; NaN for a voxel that is constant or NaN.

    ``trials`` holds the rows of each image, ascending. One pass is made over these rows.
    """
    pairs = [(rows[0], rows[1]) for rows in trials if len(rows) > 1]
    voxels = responses.shape[1]
    shift, sums, squares, products = np.zeros(voxels), np.zeros((2, voxels)), np.zeros((2, voxels)), np.zeros(voxels)
    for start in range(0, len(pairs), AT_ONCE):
        some = pairs[start : start + AT_ONCE]
        index = np.array(some, np.int64)
        order = np.unique(index)
        block = np.empty((len(order), voxels), np.float32)
        responses.read(order, block)
        if not start:
            shift[:] = block[0]  # correlations don't change with it, but sums keep their digits
        for one, other in np.searchsorted(order, index).tolist():
            a, b = block[one] - shift, block[other] - shift
            for k, values in enumerate((a, b)):
                sums[k] += values
                squares[k] += values * values
            products += a * b
    responses.release()
    n = max(len(pairs), 1)
    spread = squares - sums * sums / n
    with np.errstate(invalid="ignore", divide="ignore"):
        varies = (spread > 1e-10 * squares).all(axis=0)  # less is what rounding leaves of a constant voxel
        r = np.where(varies, (products - sums[0] * sums[1] / n) / np.sqrt(spread[0] * spread[1]), np.nan)
    found: Array = r.astype(np.float32)
    return found


def reliable_voxels(
    path: Location,
    responses: Callable[[], Rows],
    trials: Sequence[Sequence[int]],
    least: float,
    made_of: Mapping[str, Any],
    context: Context,
) -> tuple[Array, Array]:
    """The voxels whose reliability is at least ``least``, ascending, and the reliability of all.

    What was found is kept at ``path`` for later runs with the same ``made_of``; how many are left out is said. Raises
    InputError where too few images were repeated, and where no voxel is left.
    """
    repeated, content = check_repeats(trials), fingerprint(made_of)
    found = read_reliability(path, content)
    if found is None:
        found = voxel_reliability(responses(), trials)
        arrays: dict[str, Any] = {"reliability": found, "made_of": np.array(content)}
        write_whole(path, lambda file: np.savez(file, **arrays))
    kept = reliable(found, least)
    context.progress.say(left_out(found, kept, repeated, least))
    return kept, found


def read_reliability(path: Location, made_of: str) -> Array | None:
    """The reliability of each voxel that an earlier run wrote; None where it is of other responses, or can't be read."""
    try:
        with path.open() as file, np.load(file, allow_pickle=False) as there:
            found: Array = there["reliability"]
            return found if str(there["made_of"]) == made_of else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def check_repeats(trials: Sequence[Sequence[int]]) -> int:
    """How many images were shown at least twice; raises InputError where they are too few to choose voxels by."""
    repeated = sum(len(rows) > 1 for rows in trials)
    if repeated < FEWEST:
        raise InputError(
            f"dataset.min_reliability needs repeats, and {repeated} train images were shown more than once",
            expected=f"at least {FEWEST} images with two trials or more",
            todo="leave min_reliability out; areas or a mask choose voxels as well",
        )
    return repeated


def reliable(found: Array, least: float) -> Array:
    """The voxels whose reliability is at least ``least``, ascending; raises InputError where none is left."""
    kept = np.flatnonzero(found >= least)
    if not len(kept):
        best = f", the best by {float(np.nanmax(found)):.3f}" if np.isfinite(found).any() else ""
        raise InputError(
            f"no voxel answers to repeats alike by {least:g} or more{best}",
            expected="a lower dataset.min_reliability",
        )
    return kept


def left_out(found: Array, kept: Array, repeated: int, least: float) -> str:
    """A sentence on how many voxels are left out."""
    return (
        f"{len(found) - len(kept)} of {len(found)} voxels are left out: over the {repeated} train images that were shown "
        f"more than once, their responses to the first and second showing correlate by less than {least:g}"
    )
