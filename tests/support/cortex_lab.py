"""A simulated subject as a lab has it: NIfTI betas of leanrecon's simulated cortex, its voxels at known places of a volume."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from leanrecon.datasets.simulated.cortex import PANEL, Cortex, words_of
from leanrecon.datasets.simulated.scenes import compose, paint

SHAPE = (30, 20, 18)
AFFINE = np.array([[-4.0, 0, 0, 58], [0, 4, 0, -114], [0, 0, 4, -38], [0, 0, 0, 1]])
"""4 mm voxels, x running to the left as in many scanners' files."""

NOWHERE = "nowhere"
"""The area of voxels that answer to no image."""


@dataclass
class CortexLab:
    """Where the files are, and the truth."""

    folder: Path
    mask: np.ndarray
    """bool [x, y, z]"""
    area: np.ndarray
    """str [voxels of the mask in C order]"""
    betas: np.ndarray
    """float32 [trials, voxels]"""
    stimulus: list[str]
    split: list[str]
    images: dict[str, np.ndarray]
    luminance: np.ndarray
    """float32 [voxels]: how strongly each voxel answers to luminance"""
    prf: np.ndarray
    """float32 [voxels, 3]: x, y and size of its receptive field, in image widths; NaN nowhere"""
    constant: np.ndarray
    """bool [voxels]: those that never change"""

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Values of the voxels in the volume, 0 elsewhere."""
        full = np.zeros(SHAPE, values.dtype)
        full[self.mask] = values
        return full


def write_cortex_lab(
    folder: Path,
    *,
    images: int = 240,
    repeats: int = 2,
    voxels: int = 900,
    size: int = 64,
    noise: float = 1.0,
    seed: int = 3,
) -> CortexLab:
    """Each image is shown ``repeats`` times over two runs; a sixth of the images are for testing."""
    import nibabel

    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    order = rng.permutation(np.repeat(np.arange(images), repeats))
    cortex = Cortex(seed, size, voxels, noise, len(order))
    responses = np.empty((images, voxels), np.float32)
    pixels = {}
    for start in range(0, images, PANEL):
        own = range(start, min(start + PANEL, images))
        scenes = [compose(seed, k) for k in own]
        painted = np.stack([paint(scene, size) for scene in scenes])
        responses[own.start : own.stop] = cortex.respond(painted, words_of(scenes), own)
        for k, image in zip(own, painted, strict=True):
            pixels[f"scene_{k:03}.png"] = image
            Image.fromarray(image).save(folder / "images" / f"scene_{k:03}.png")
    names = list(pixels)
    trials = np.stack([responses[k] + cortex.noise(0, t, [t]) for t, k in enumerate(order)])

    # Each voxel of the cortex goes to the voxel of the volume that it lies in; the first one of each stays.
    to_grid = np.linalg.inv(AFFINE)
    corner = np.rint(cortex.voxels.coordinates @ to_grid[:3, :3].T + to_grid[:3, 3]).astype(int)
    inside = np.flatnonzero(((corner >= 0) & (corner < SHAPE)).all(axis=1))
    place, first = np.unique(np.ravel_multi_index(corner[inside].T, SHAPE), return_index=True)
    chosen = inside[first]
    free = np.setdiff1d(np.arange(np.prod(SHAPE)), place)
    noisy = rng.choice(free, 300, replace=False)
    every = np.concatenate([place, noisy])
    c_order = np.argsort(every)
    area = np.concatenate([cortex.voxels.area[chosen], np.full(len(noisy), NOWHERE)])[c_order]
    betas = np.concatenate(
        [trials[:, chosen], rng.normal(0, 2, (len(order), len(noisy))).astype("f4")], axis=1
    )[:, c_order]  # fmt: skip
    constant = np.zeros(len(every), bool)
    constant[np.flatnonzero(area == NOWHERE)[:3]] = True
    betas[:, constant] = 1.5
    prf = np.concatenate([cortex.voxels.prf[chosen], np.full((len(noisy), 3), np.nan)])[c_order]
    luminance = np.concatenate([cortex.voxels.luminance[chosen], np.zeros(len(noisy))])[c_order]

    mask = np.zeros(SHAPE, bool)
    mask.reshape(-1)[every] = True
    for run, rows in enumerate(np.array_split(np.arange(len(order)), 2), start=1):
        volume = np.zeros((*SHAPE, len(rows)), "f4")
        volume[mask] = betas[rows].T
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), folder / f"run-{run}_betas.nii.gz")
    nibabel.save(nibabel.Nifti1Image(mask.astype("u1"), AFFINE), folder / "mask.nii.gz")
    (folder / "areas").mkdir()
    for name in np.unique(area[area != NOWHERE]):
        own = np.zeros(SHAPE, "u1")
        own[mask] = area == name
        nibabel.save(nibabel.Nifti1Image(own, AFFINE), folder / "areas" / f"{name}.nii.gz")
    stimulus = [names[k] for k in order]
    split = ["test" if k < images // 6 else "train" for k in order]
    with (folder / "trials.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["stimulus", "split"])
        writer.writerows(zip(stimulus, split, strict=True))
    (folder / "s.toml").write_text(SETTINGS)
    return CortexLab(folder, mask, area, betas, stimulus, split, pixels, luminance, prf, constant)


SETTINGS = """
[dataset]
kind = "nifti"
betas = "run-*_betas.nii.gz"
mask = "mask.nii.gz"
trials = "trials.tsv"
images = "images"
areas = "areas/*.nii.gz"

[features.pca]
components = 24
size = 16

[features.pixels]
size = 6

[evaluate]
permutations = 0
resamples = 100
"""
