"""Simulated subjects in the layout of Deep Image Reconstruction (Shen et al. 2019): BData files, and a folder of images.

What is simulated is described in ``datasets.simulated``. Subjects look at the same drawn scenes, each with its own brain.
"""

from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.layouts.bdpy import SIMULATED
from leanrecon.datasets.simulated.cortex import PANEL, Cortex, trial_numbers, words_of
from leanrecon.datasets.simulated.scenes import TEST, compose, paint
from leanrecon.errors import SettingsError
from leanrecon.places.files import write_json
from leanrecon.progress import Progress

Array = np.ndarray[Any, Any]

FORMAT = 1

SPLITS = {"train": ("Training", 0), "test": ("Test", TEST)}
"""How each split's file is called, and its first scene."""

REPEATS = {"train": 5, "test": 24}
"""Trials of an image, as Shen et al. (2019) have them."""

SYNSETS = {"train": 90_000_001, "test": 90_000_002}
"""Numbers of WordNet that stand for all scenes of a split; no real synset has them."""

RUN = 55
"""Trials of a run."""

AREAS = {"V1": ("V1",), "V2": ("V2",), "V3": ("V3",), "V4": ("hV4",), "ventral": ("HVC", "LOC")}
"""The names of Deep Image Reconstruction for the areas of the simulated cortex."""

_SILENT = Progress()


def simulate_bdpy(
    folder: Path,
    *,
    subjects: int = 1,
    train: int = 1200,
    test: int = 50,
    voxels: int = 4000,
    size: int = 64,
    noise: float = 2.0,
    seed: int = 0,
    progress: Progress = _SILENT,
) -> None:
    """Write subjects into ``folder``: two BData files each, of single trials, and the folder ``images``.

    ``train`` and ``test`` count images of ``size`` pixels; ``noise`` is the median over voxels of a trial's noise relative
    to the signal. Existing files of the same names are replaced.
    """
    for name, value, most in (("subjects", subjects, 9), ("train", train, 50_000), ("test", test, 50_000)):
        if not 1 <= value <= most:
            raise SettingsError(f"{name} = {value}", expected=f"a number from 1 to {most}")
    images = {"train": train, "test": test}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_json(folder / SIMULATED, {"format": FORMAT, "subjects": subjects, **images, "voxels": voxels, "seed": seed})
    trials = trial_numbers(seed, train * REPEATS["train"] + test * REPEATS["test"], 1)[:, 0]
    with progress.task("BData", total=subjects * len(SPLITS), unit="files") as advance:
        for subject in range(1, subjects + 1):
            cortex = Cortex(10 * seed + subject, size, voxels, noise, len(trials))
            start = 0
            for split, n in images.items():
                own = trials[start : start + n * REPEATS[split]].reshape(n, -1)
                clean = _look(folder / "images" if subject == 1 else None, split, n, size, seed, cortex)
                name = f"sub-{subject:02}_perceptionNaturalImage{SPLITS[split][0]}_original_VC.h5"
                _save(folder / name, split, clean, own, cortex)
                start += own.size
                advance(1)


def image_name(split: str, image: int) -> str:
    """The name of an image's file without its ending, as ImageNet's are called."""
    return f"n{SYNSETS[split]:08}_{image + 1}"


def _look(folder: Path | None, split: str, n: int, size: int, seed: int, cortex: Cortex) -> Array:
    """Paint the images of a split, into files where a folder is given; returns responses without noise [images, voxels]."""
    from PIL import Image

    responses = np.empty((n, len(cortex.voxels.area)), np.float32)
    for start in range(0, n, PANEL):
        of = range(start, min(start + PANEL, n))
        scenes = [compose(seed, SPLITS[split][1] + image) for image in of]
        images = [paint(scene, size) for scene in scenes]
        for image, pixels in zip(of, images, strict=True):
            if folder is not None:
                Image.fromarray(pixels).save(folder / f"{image_name(split, image)}.png")
        responses[of.start : of.stop] = cortex.respond(np.stack(images), words_of(scenes), of)
    return responses


def _save(path: Path, split: str, clean: Array, trials: Array, cortex: Cortex) -> None:
    """Write one BData file as bdpy does: a row a trial in the order of presentation, voxels and labels side by side."""
    import h5py

    n, repeats = trials.shape
    order = np.argsort(trials, axis=None)
    image, repeat = np.divmod(order, repeats)
    voxels = clean.shape[1]
    columns = {"Run": 1, "Block": 1, "stimulus_id": 1, "Label": 2}
    with h5py.File(path, "w") as file:
        matrix = file.create_dataset("dataset", (n * repeats, voxels + sum(columns.values())), "f8", chunks=True)
        for start in range(0, len(order), RUN):
            rows = slice(start, min(start + RUN, len(order)))
            block = np.empty((rows.stop - start, matrix.shape[1]))
            for k, row in enumerate(range(start, rows.stop)):
                shown, number = int(image[row]), int(repeat[row])
                noise = cortex.noise(split == "test", shown, [int(trials[shown, number])], first=number)
                block[k, :voxels] = clean[shown] + noise
                stimulus = SYNSETS[split] + (shown + 1) / 1e6
                block[k, voxels:] = (row // RUN + 1, row % RUN + 1, stimulus, shown + 1, stimulus)
            matrix[rows] = block
        keys, flags = _flags(columns, cortex)
        file["metadata/key"] = np.array([key.encode() for key in keys])
        file["metadata/description"] = np.array([b"simulated" for _ in keys])
        file["metadata/value"] = flags


def _flags(columns: dict[str, int], cortex: Cortex) -> tuple[list[str], Array]:
    """The rows of metadata: which columns are voxels, of which areas and where, and which are labels."""
    voxels = len(cortex.voxels.area)
    total = voxels + sum(columns.values())
    rows: dict[str, Array] = {}
    for key in ("VoxelData", "ROI_VC"):
        rows[key] = np.r_[np.ones(voxels), np.full(total - voxels, np.nan)]
    for area, names in AREAS.items():
        for name in names:
            rows[f"ROI_{name}"] = np.r_[(cortex.voxels.area == area) * 1.0, np.full(total - voxels, np.nan)]
    for axis, place in zip("xyz", cortex.voxels.coordinates.T, strict=True):
        rows[f"voxel_{axis}"] = np.r_[place, np.full(total - voxels, np.nan)]
    at = voxels
    for key, width in columns.items():
        rows[key] = np.where((np.arange(total) >= at) & (np.arange(total) < at + width), 1.0, np.nan)
        at += width
    return list(rows), np.array(list(rows.values()))
