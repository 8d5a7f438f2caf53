"""How much of what voxels answer to images can be predicted at all: the noise ceiling of each area.

A voxel's ncsnr is the standard deviation of its response over images divided by that of one trial's noise. Of the variance
of the mean over n trials, ncsnr² / (ncsnr² + 1/n) is due to the image (Allen et al. 2022, Nature Neuroscience 25, 116-126).
"""

import zipfile
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from leanrecon.datasets.nsd.layout import ATLASES
from leanrecon.study.layout import Study
from leanrecon.study.voxels import MASK

Array = np.ndarray[Any, Any]

AREAS = ("V1", "V2", "V3", "V4", "hV4", "ventral")
"""The areas that are told of where names of voxels tell them; masks by name are all told of."""


@dataclass(frozen=True)
class Ceiling:
    """Of one area; its name is empty for all voxels together."""

    area: str
    voxels: int
    """Those whose ncsnr is known."""
    ncsnr: float
    """Median over them."""
    percent: float
    """Median over them of the noise ceiling, in percent of the variance of the averaged responses."""


def noise_ceiling(ncsnr: Array, repeats: Array) -> Array:
    """The noise ceiling of every voxel in percent: float64 [voxels], for rows that are means over ``repeats`` trials.

    Where these differ, 1/n is its mean over rows, as Allen et al. have it.
    """
    signal = np.square(ncsnr, dtype=np.float64)
    noise = np.mean(1 / np.asarray(repeats, np.float64))
    percent: Array = 100 * signal / (signal + noise)
    return percent


def area_ceilings(study: Study) -> dict[str, Any] | None:
    """The noise ceilings of the test rows as plain values, area by area and last of all voxels.

    ``repeats`` holds the fewest and the most trials of a row, ``areas`` a ``Ceiling`` each. None where the study's
    voxels come without ncsnr.
    """
    from leanrecon.places.files import read_json

    records = read_json(study.rows)
    try:
        with np.load(study.voxels, allow_pickle=False) as voxels:
            ncsnr = voxels["ncsnr"]
            masks = {name.removeprefix(MASK): voxels[name] for name in voxels.files if name.startswith(MASK)}
            if not masks and "areas" in voxels.files:
                masks = {area: voxels["areas"] == area for area in AREAS}
            if "streams" in voxels.files:  # its ventral voxels go by the name of the smaller area that they are in
                masks["ventral"] = voxels["streams"] == 1 + ATLASES["streams"].index("ventral")
        repeats = np.array(records["test"]["repeats"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    known = np.isfinite(ncsnr)
    masks[""] = np.ones(len(ncsnr), bool)
    found = []
    for area, mask in masks.items():
        own = ncsnr[mask & known]
        if len(own):
            percent = float(np.median(noise_ceiling(own, repeats)))
            found.append(asdict(Ceiling(area, len(own), float(np.median(own)), percent)))
    return {"repeats": [int(repeats.min()), int(repeats.max())], "areas": found} if found else None
