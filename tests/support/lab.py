"""A lab's own study in NIfTI files, written with nibabel: betas a run, a mask, areas, a table and images."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHAPE = (7, 6, 5)
AFFINE = np.array([[-1.8, 0, 0, 90], [0, 1.8, 0, -126], [0, 0, 1.8, -72], [0, 0, 0, 1]])


@dataclass
class Lab:
    """Where the files are, and the truth."""

    folder: Path
    betas: np.ndarray
    """float32 [trials, voxels of the mask in C order]"""
    mask: np.ndarray
    stimulus: list[str]
    run: list[int]
    split: list[str]
    areas: dict[str, np.ndarray]
    images: dict[str, np.ndarray]


def write_lab(
    folder: Path,
    *,
    runs: int = 3,
    images: int = 16,
    repeats: int = 2,
    ending: str = "nii.gz",
    scaled: bool = False,
    big_endian: bool = False,
    nifti2: bool = False,
    noise: float = 0.4,
    seed: int = 0,
) -> Lab:
    """Each image is shown ``repeats`` times, in random order over the runs; a quarter of the images are for testing."""
    import nibabel

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    names = [f"scene_{k:02}.png" for k in range(images)]
    code = rng.standard_normal((images, 4))
    pixels = (
        np.clip(128 + 40 * code @ rng.standard_normal((4, 10 * 12 * 3)), 0, 255).astype("u1").reshape(-1, 10, 12, 3)
    )
    (folder / "images").mkdir()
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(folder / "images" / name)
    mask = rng.random(SHAPE) < 0.4
    n = int(mask.sum())
    order = rng.permutation(np.repeat(np.arange(images), repeats))
    run = np.sort(np.arange(len(order)) % runs)
    response = code @ rng.standard_normal((4, n))
    betas = (response[order] + noise * rng.standard_normal((len(order), n)) + 0.3 * run[:, None]).astype("f4")
    kind: Any = nibabel.Nifti2Image if nifti2 else nibabel.Nifti1Image
    for number in range(runs):
        own = betas[run == number]
        volume = np.full((*SHAPE, len(own)), np.nan, "f4")
        volume[mask] = own.T
        if scaled:
            volume = np.nan_to_num(volume)
        header = kind.header_class(endianness=">" if big_endian else "<")
        image = kind(volume, AFFINE, header)
        image.set_data_dtype(np.int16 if scaled else np.float32)
        nibabel.save(image, folder / f"sub-01_run-{number + 1}_betas.{ending}")
    nibabel.save(kind(mask.astype("u1"), AFFINE), folder / "mask.nii.gz")
    corner = np.zeros(SHAPE, bool)
    corner[:4] = True
    areas = {"V1": mask & corner, "ventral": mask & ~corner}
    (folder / "areas").mkdir()
    for name, area in areas.items():
        nibabel.save(kind(area.astype("u1"), AFFINE), folder / "areas" / f"{name}.nii.gz")
    stimulus = [names[k] for k in order]
    split = ["test" if k < images // 4 else "train" for k in order]
    with (folder / "trials.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["stimulus", "run", "split"])
        writer.writerows([stimulus[t], run[t] + 1, split[t]] for t in range(len(order)))
    (folder / "s.toml").write_text(SETTINGS.replace("ENDING", ending))
    kept = {name: area[mask] for name, area in areas.items()}
    return Lab(folder, betas, mask, stimulus, run.tolist(), split, kept, dict(zip(names, pixels, strict=True)))


SETTINGS = """
[dataset]
kind = "nifti"
betas = "sub-01_run-*_betas.ENDING"
mask = "mask.nii.gz"
trials = "trials.tsv"
images = "images"
areas = "areas/*.nii.gz"

[features.pca]
components = 4
size = 8
"""
