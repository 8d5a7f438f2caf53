"""A small Natural Scenes Dataset: files in NSD's layout, with drawn scenes and responses of a simulated cortex.

``cortex`` and ``scenes`` describe the simulation. The volume is NSD's, scaled down; sessions keep their 750
trials and the file of images its 73,000 places, of which only those that were shown are written.
"""

import gzip
import heapq
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.nifti import nibabel_library
from leanrecon.datasets.nsd.layout import (
    ATLASES,
    BETAS_KEY,
    DESIGN,
    GENERAL,
    SCALE,
    SESSIONS,
    SHARED,
    SIMULATED,
    SIMULATION,
    STIMULI,
    STIMULI_KEY,
    TRIALS,
    SubjectFiles,
    check_simulation,
    chosen_sessions,
)
from leanrecon.datasets.simulated.cortex import PANEL, Cortex, words_of
from leanrecon.datasets.simulated.scenes import TEST, Scene, compose, describe, paint
from leanrecon.errors import SettingsError
from leanrecon.images import resize
from leanrecon.places.files import write_json
from leanrecon.progress import Progress

Array = np.ndarray[Any, Any]

SHAPES = (
    (81, 104, 83), (82, 106, 84), (81, 106, 82), (85, 99, 80), (79, 97, 78), (85, 113, 83), (78, 95, 80), (80, 103, 78),
)  # fmt: skip
"""Voxels of the volumes of subjects 1 to 8."""

IMAGES = 73_000
PER_SUBJECT = 10_000
REPEATS = 3
SIDE = 425
"""Height and width of NSD's images."""

CAPTIONS = "COCO_73k_annots_curated.npy"
SENTENCES = ("{}", "There is this: {}", "A scene. {}", "{} That is all.", "Here one sees: {}")
"""NSD's images have five captions or more; a scene has one, in five ways."""

FORMATS = ("nii.gz", "hdf5")
"""The formats of published sessions of betas."""

VOXEL_MM = 1.8
SIGHT = 64  # height and width of the images that the simulated cortex sees
NOISE = 1.0  # median noise of a trial relative to the signal

_SILENT = Progress()
_DESIGN, _BRAIN = 11, 12  # streams of random numbers
_TO_AREAS = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d"), "V4": ("hV4",), "ventral": ("ventral",)}


def simulate_nsd(
    folder: Path,
    *,
    subject: int = 1,
    sessions: int | Sequence[int] = 2,
    scale: float = 0.25,
    seed: int = 0,
    formats: Sequence[str] = FORMATS,
    progress: Progress = _SILENT,
) -> None:
    """Write a small NSD into ``folder``: betas, design, masks, ncsnr, images and captions of one subject.

    ``scale`` shrinks the volume (at 1: subject 1's 81x104x83) and the images (425 pixels) along each side. The same
    seed gives the same design and images to all subjects. Existing files are replaced. Raises InputError if another
    version made them, because sessions that are left over would not match the images.
    """
    if not 1 <= subject <= len(SESSIONS):
        raise SettingsError(f"subject = {subject}", expected=f"a number from 1 to {len(SESSIONS)}")
    if seed < 0:
        raise SettingsError(f"seed = {seed}", expected="a whole number, 0 or more")
    if unknown := [name for name in formats if name not in FORMATS]:
        raise SettingsError(f"formats = {unknown[0]!r}", expected=f"some of {', '.join(FORMATS)}")
    numbers = chosen_sessions(subject, sessions if isinstance(sessions, int) else list(sessions))
    if not 0.1 <= scale <= 1:
        raise SettingsError(f"scale = {scale}", expected="a number from 0.1 to 1")
    check_simulation(folder)
    names = SubjectFiles(subject)
    order, images = draw_design(seed)
    about = {"format": SIMULATION, "subject": subject, "sessions": len(numbers), "scale": scale, "seed": seed}
    write_json(folder / SIMULATED, about)
    _save_design(folder / DESIGN, order, images)
    shape = tuple(max(round(n * scale), 4) for n in SHAPES[subject - 1])
    mask = _mask(shape)
    cortex = Cortex(seed * len(SESSIONS) + subject, SIGHT, int(mask.sum()), NOISE, len(order))
    # Voxels of the cortex come area by area, from the pole of the occipital lobe on.
    place = np.flatnonzero(mask)[np.argsort(np.argwhere(mask)[:, 1], kind="stable")]
    _save_masks(folder, names, mask, place, cortex)

    trials = np.concatenate([np.arange((s - 1) * TRIALS, s * TRIALS) for s in numbers])
    seen = images[subject - 1, order[trials] - 1] - 1
    shown = np.unique(seen)
    scenes = image_scenes(images, seed, shown)
    responses = _save_images(folder, shown, scenes, round(SIDE * scale), cortex, progress)
    with progress.task("betas", total=len(numbers), unit="sessions") as advance:
        for k, session in enumerate(numbers):
            own = slice(k * TRIALS, (k + 1) * TRIALS)
            percent = responses[np.searchsorted(shown, seen[own])]
            for row, trial in zip(percent, trials[own].tolist(), strict=True):
                row += cortex.noise(0, trial, [trial])
            volumes = _volumes(shape, mask, place, percent, (seed, subject, session))
            for form in formats:
                path = folder / names.betas(session, form)
                path.parent.mkdir(parents=True, exist_ok=True)
                (_save_hdf5 if form == "hdf5" else _save_nifti)(path, volumes)
            advance(1)


def draw_design(seed: int) -> tuple[Array, Array]:
    """The design, as in NSD: ``masterordering`` [30000], 1 to 10000 each three times; ``subjectim`` [8, 10000].

    Repeats come after lags from thirty trials to the whole experiment, as likely in each octave.
    """
    rng = np.random.default_rng([_DESIGN, seed])
    fresh = rng.permutation(PER_SUBJECT).tolist()
    due: list[tuple[int, int, int]] = []
    order = np.empty(PER_SUBJECT * REPEATS, np.int64)
    for trial in range(len(order)):
        if due and (due[0][0] <= trial or not fresh):
            _, image, left = heapq.heappop(due)
        else:
            image, left = fresh.pop(), REPEATS
        order[trial] = image + 1
        if left > 1:
            lag = math.exp(rng.uniform(math.log(30), math.log(len(order))))
            heapq.heappush(due, (trial + 1 + int(lag), image, left - 1))
    ids = rng.permutation(IMAGES) + 1
    own = ids[SHARED:].reshape(len(SESSIONS), PER_SUBJECT - SHARED)
    shared = np.broadcast_to(np.sort(ids[:SHARED]), (len(SESSIONS), SHARED))
    return order, np.concatenate([shared, np.sort(own, axis=1)], axis=1)


def image_scenes(images: Array, seed: int, numbers: Array) -> list[Scene]:
    """The scene on each of some of the 73,000 images, ``numbers`` from 0; ``images`` are those of ``draw_design``.

    The images that all subjects see are tested on, so no model may have been trained on their scenes.
    """
    first = np.where(np.isin(numbers, images[0, :SHARED] - 1), TEST, 0)
    return [compose(seed, index) for index in (first + numbers).tolist()]


def _save_design(path: Path, order: Array, images: Array) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    tables = {
        "masterordering": order[None].astype(np.float64),
        "subjectim": images.astype(np.float64),
        "sharedix": images[:1, :SHARED].astype(np.float64),
    }
    memory = io.BytesIO()
    savemat(memory, tables, do_compression=True)
    # The text at the start holds the date, which would make the same design other bytes.
    path.write_bytes(b"MATLAB 5.0 MAT-file, simulated".ljust(116) + memory.getvalue()[116:])


def _mask(shape: Sequence[int]) -> Array:
    """A shell around the back of the volume, like the visual cortex: about 2 % of the voxels, as in NSD."""
    x, y, z = ((np.arange(n) + 0.5) / n * 2 - 1 for n in shape)
    distance = np.sqrt((x / 0.8)[:, None, None] ** 2 + (y / 0.9)[:, None] ** 2 + ((z + 0.1) / 0.75) ** 2)
    behind: Array = (np.abs(distance - 0.85) < 0.11) & (y < -0.45)[:, None]
    return behind


def _save_masks(folder: Path, names: SubjectFiles, mask: Array, place: Array, cortex: Cortex) -> None:
    (folder / names.roi(GENERAL)).parent.mkdir(parents=True, exist_ok=True)
    general = np.where(mask, 1, -1).astype(np.int16)
    general[0] = 0
    _save_volume(folder / names.roi(GENERAL), np.where(mask, 1, general))
    for atlas, labels in ATLASES.items():
        volume = np.full(mask.size, -1, np.int16)
        volume[place] = 0
        for area, parts in _TO_AREAS.items():
            own = place[cortex.voxels.area == area]
            for part, voxels in zip(parts, np.array_split(own, len(parts)), strict=True):
                if part in labels:
                    volume[voxels] = labels.index(part) + 1
        if atlas.startswith("floc"):  # runs of the ventral voxels
            own = place[cortex.voxels.area == "ventral"]
            kind = sorted(name for name in ATLASES if name.startswith("floc")).index(atlas)
            for number, voxels in enumerate(np.array_split(np.array_split(own, 4)[kind], len(labels)), start=1):
                volume[voxels] = number
        _save_volume(folder / names.roi(atlas), volume.reshape(mask.shape))
    ncsnr = np.zeros(mask.size, np.float32)
    ncsnr[place] = cortex.voxels.ncsnr
    (folder / names.ncsnr).parent.mkdir(parents=True, exist_ok=True)
    _save_volume(folder / names.ncsnr, ncsnr.reshape(mask.shape))


def _save_images(
    folder: Path, shown: Array, scenes: list[Scene], side: int, cortex: Cortex, progress: Progress
) -> Array:
    """Paint and describe the images that were shown; returns the responses to them without noise [images, voxels]."""
    import h5py

    responses = np.empty((len(shown), len(cortex.voxels.area)), np.float32)
    path = folder / STIMULI
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        h5py.File(path, "w", libver="earliest") as file,
        progress.task("stimuli", total=len(shown), unit="images") as advance,
    ):
        bricks = file.create_dataset(STIMULI_KEY, (IMAGES, side, side, 3), np.uint8, chunks=(1, side, side, 3))
        for start in range(0, len(shown), PANEL):
            of = slice(start, min(start + PANEL, len(shown)))
            images = [paint(scene, side) for scene in scenes[of]]
            for number, image in zip(shown[of].tolist(), images, strict=True):
                # HDF5 holds small images back, and writes them in another order; it writes those of NSD's size at once.
                bricks.id.write_direct_chunk((number, 0, 0, 0), np.ascontiguousarray(image).tobytes())
            looked_at = np.stack([resize(image, (SIGHT, SIGHT, 3)) for image in images])
            responses[of] = cortex.respond(looked_at, words_of(scenes[of]), range(of.start, of.stop))
            advance(len(images))
    sentences = [describe(scene) for scene in scenes]
    longest = max(len(form.format(sentence)) for sentence in sentences for form in SENTENCES)
    captions = np.lib.format.open_memmap(folder / CAPTIONS, "w+", f"<U{longest}", (IMAGES, len(SENTENCES)))
    for number, sentence in zip(shown.tolist(), sentences, strict=True):
        captions[number] = [form.format(sentence) for form in SENTENCES]
    captions.flush()
    return responses


def _volumes(shape: Sequence[int], mask: Array, place: Array, percent: Array, key: tuple[int, int, int]) -> Array:
    """The trials of a session as NSD stores them: int16 [x, y, z, trials], in column-major order.

    Outside the mask lies noise without signal, and nothing in the outermost voxels.
    """
    rng = np.random.default_rng([_BRAIN, *key])
    volumes = np.zeros((len(percent), mask.size), np.int16)
    brain = np.zeros(mask.shape, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    inside = np.flatnonzero(brain & ~mask)
    for volume, row in zip(volumes, percent, strict=True):
        volume[inside] = rng.integers(-2 * SCALE, 2 * SCALE, len(inside), np.int16)
        volume[place] = np.clip(np.rint(row * SCALE), -32768, 32767)
    found: Array = np.asfortranarray(volumes.reshape(len(percent), *shape).transpose(1, 2, 3, 0))
    return found


def _save_hdf5(path: Path, volumes: Array) -> None:
    """Write betas as MATLAB's h5create does: axes reversed, a chunk a voxel, in the order of MATLAB's own arrays."""
    import h5py

    x, y, z, trials = volumes.shape
    with h5py.File(path, "w", libver="earliest") as file:
        betas = file.create_dataset(BETAS_KEY, (trials, z, y, x), "<i2", chunks=(trials, 1, 1, 1))
        for k in range(z):
            for j in range(y):
                line = np.ascontiguousarray(volumes[:, j, k])
                for i in range(x):
                    betas.id.write_direct_chunk((0, k, j, i), line[i].astype("<i2", copy=False).tobytes())


def _save_nifti(path: Path, volumes: Array) -> None:
    image = nibabel_library().Nifti1Image(volumes, np.eye(4))  # not the masks' affine, as some of NSD's betas
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        image.to_stream(file)


def _save_volume(path: Path, volume: Array) -> None:
    affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    affine[:3, 3] = -VOXEL_MM * (np.array(volume.shape) - 1) / 2
    image = nibabel_library().Nifti1Image(volume, affine)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        image.to_stream(file)
