"""A simulated subject in the layout of nilearn's ``fetch_miyawaki2008``: random patterns, figures, and raw volumes.

Voxels see the patterns through receptive fields that lie and grow as in the visual cortex (Dumoulin & Wandell 2008),
add up what they see with a compressive exponent (Kay et al. 2013), answer late, and drift. Noise is tuned to the V1 of the
figure session of Miyawaki et al. (2008), where responses to repeats of an image, less the mean response, correlate by 0.33.
"""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.nifti import nibabel_library
from leanrecon.datasets.layouts.miyawaki import AREAS, RINGS, SIMULATED
from leanrecon.datasets.layouts.miyawaki_figures import KINDS, SIDE, figures
from leanrecon.errors import SettingsError
from leanrecon.places.files import write_json
from leanrecon.progress import Progress

Array = np.ndarray[Any, Any]

FORMAT = 1

VOXEL_MM = 3.0
BOX = (33, 21, 18)
"""Voxels of the volume at scale 1; its mask has about as many voxels as nilearn's, 5,438."""

RANDOM, FIGURE = (20, 22, 3, 3), (12, 10, 6, 6)
"""Runs of a session, images a run, volumes of an image, volumes of rest after it."""

REST_BEFORE, REST_AFTER = 10, 6
"""Volumes of rest before the first image; and after the last one of a random run."""

LEVEL = 6000.0
"""Mean raw signal."""

FARTHEST = 7.0
"""Eccentricity in patches where the outermost receptive fields lie: the corners of an image lie at 7."""

PERCENT = 3.2
"""Median percent signal change of a voxel that is wholly lit."""

NOISE = 1.1
"""Standard deviation of a volume's own noise in percent."""

SHARED = 0.7
"""The same of noise that voxels share."""

_SIZE = {"V1": 0.55, "V2": 0.8, "V3": 1.1, "VP": 1.1, "V3A": 1.6, "V4v": 1.6}
"""Standard deviation of a receptive field in patches at the centre of the field; it grows by a seventh a patch."""

_SHARE = {"V4v": 0.12, "VP": 0.11, "V2v": 0.15, "V1v": 0.09, "V1d": 0.09, "V2d": 0.15, "V3": 0.12, "V3A": 0.17}
"""The share of each area among the voxels of a hemisphere, from its lower end to its upper end."""

_RESPONSE = np.array([0.0, 0.08, 0.3, 0.3, 0.18, 0.09, 0.05])
"""Response in percent at 0, 2, … seconds to an image of 2 s: it peaks after two to three volumes."""

_AR = 0.3  # correlation of a voxel's noise from volume to volume
_SOURCES = 8  # time courses of shared noise
_UNRESPONSIVE = 0.2  # share of voxels that see nothing
_EXPONENT = 0.7  # of what a receptive field adds up
_SURROUND = 0.35  # share of a wide surround that is taken off
_STREAM = 41

_SILENT = Progress()


@dataclass(frozen=True)
class Voxels:
    """Voxels of a simulated visual cortex, in the order of the flattened mask."""

    mask: Array
    """bool [x, y, z]"""
    left: Array
    """Whether a voxel lies in the left hemisphere, bool [voxels]."""
    area: Array
    """The name of each voxel's area."""
    eccentricity: Array
    fields: Array
    """What each voxel sees of each patch, float64 [voxels, 100] in C order."""
    gain: Array
    """Percent signal change where all is lit."""


def simulate_miyawaki(
    folder: Path,
    *,
    scale: float = 1.0,
    random_runs: int = RANDOM[0],
    figure_runs: int = FIGURE[0],
    seed: int = 0,
    progress: Progress = _SILENT,
) -> None:
    """Write a simulated subject into ``folder``: raw runs, labels, masks of areas and of rings of eccentricity.

    ``scale`` shrinks the volume along each side. Existing files of the same names are replaced.
    """
    if not 0.2 <= scale <= 1:
        raise SettingsError(f"scale = {scale}", expected="a number from 0.2 to 1")
    for name, runs, most in (("random_runs", random_runs, RANDOM[0]), ("figure_runs", figure_runs, FIGURE[0])):
        if not 1 <= runs <= most:
            raise SettingsError(f"{name} = {runs}", expected=f"a number from 1 to {most}")
    if seed < 0:
        raise SettingsError(f"seed = {seed}", expected="a whole number, 0 or more")
    for name in ("func", "label", "mask"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "scale": scale, "random_runs": random_runs, "figure_runs": figure_runs, "seed": seed}
    write_json(folder / SIMULATED, about)
    voxels = draw_voxels(scale, seed)
    _save_masks(folder / "mask", voxels)
    _save_volume(folder / "bg.nii.gz", np.where(voxels.mask, LEVEL, LEVEL / 10).astype(np.int16))
    with progress.task("runs", total=random_runs + figure_runs, unit="runs") as advance:
        for session, runs in (("random", random_runs), ("figure", figure_runs)):
            for number in range(1, runs + 1):
                patterns = patterns_of(session, number, seed)
                labels = labels_of(session, patterns)
                rng = np.random.default_rng([_STREAM, seed, session == "figure", number])
                _save_volume(folder / "func" / f"data_{session}_run{number:02}.nii.gz", _volumes(voxels, labels, rng))
                table = folder / "label" / f"data_{session}_run{number:02}_label.csv"
                np.savetxt(table, labels, fmt="%d", delimiter=",")
                advance(1)


def patterns_of(session: str, number: int, seed: int) -> list[Array]:
    """The patterns of a run in their order, bool [10, 10] each; ``number`` counts from 1."""
    rng = np.random.default_rng([_STREAM, seed, 2 + (session == "figure"), number])
    if session == "random":
        return [rng.random((SIDE, SIDE)) < 0.5 for _ in range(RANDOM[1])]
    shown = figures(KINDS[(number - 1) % len(KINDS)]) * (FIGURE[1] // 5)
    return [shown[k] for k in rng.permutation(len(shown))]


def labels_of(session: str, patterns: list[Array]) -> Array:
    """The pattern at each volume, int [volumes, 100] in column-major order; rest is -1."""
    _, _, shown, pause = RANDOM if session == "random" else FIGURE
    lines = [np.full((REST_BEFORE, SIDE * SIDE), -1)]
    for k, pattern in enumerate(patterns):
        last = session == "random" and k == len(patterns) - 1
        lines.append(np.tile(pattern.reshape(-1, order="F").astype(int), (shown, 1)))
        lines.append(np.full((REST_AFTER if last else pause, SIDE * SIDE), -1))
    return np.concatenate(lines)


def draw_voxels(scale: float, seed: int) -> Voxels:
    """Voxels in a shell around the back of a box: areas from below to above, eccentricity from the back to the front."""
    shape = tuple(max(round(n * scale), 6) for n in BOX)
    x, y, z = ((np.arange(n) + 0.5) / n * 2 - 1 for n in shape)
    distance = np.sqrt(x[:, None, None] ** 2 + ((y + 1) / 2)[None, :, None] ** 2 + z[None, None, :] ** 2)
    mask = (distance < 0.98) & (distance > 0.5)
    place = np.argwhere(mask)
    rng = np.random.default_rng([_STREAM, seed, 9])
    left = place[:, 0] < shape[0] / 2
    area = np.empty(len(place), "<U3")
    for side in (True, False):
        own = np.flatnonzero(left == side)
        order = own[np.lexsort((own, place[own, 1], place[own, 2]))]
        cuts = np.round(np.cumsum([0, *_SHARE.values()]) / sum(_SHARE.values()) * len(order)).astype(int)
        for name, a, b in zip(_SHARE, cuts, cuts[1:], strict=False):
            area[order[a:b]] = name
    depth = (place[:, 1] + rng.random(len(place))) / shape[1]
    eccentricity = FARTHEST * (np.exp(2.2 * depth) - 1) / (np.exp(2.2) - 1)
    angle = np.pi * (rng.random(len(place)) - 0.5)  # from the lower to the upper end of the vertical meridian
    centre_x = eccentricity * np.cos(angle) * np.where(left, 1, -1)  # the left hemisphere sees the right half
    centre_y = eccentricity * np.sin(angle)
    fields = _fields(area, centre_x, centre_y, eccentricity)
    gain = PERCENT * np.exp(0.5 * rng.standard_normal(len(place))) * (rng.random(len(place)) > _UNRESPONSIVE)
    return Voxels(mask, left, area, eccentricity, fields, gain)


def _fields(area: Array, x: Array, y: Array, eccentricity: Array) -> Array:
    """Receptive fields over the patches: a Gaussian of area one, less a share of one three times as wide."""
    size = np.array([_SIZE.get(name, _SIZE.get(name[:2], 1.0)) for name in area]) * (1 + eccentricity / 7)
    at = np.arange(SIDE) - (SIDE - 1) / 2
    squares = (at[None, :, None] - y[:, None, None]) ** 2 + (at[None, None, :] - x[:, None, None]) ** 2
    fields = np.zeros_like(squares)
    for width, share in ((1.0, 1.0), (3.0, -_SURROUND)):
        sd = (width * size)[:, None, None]
        fields += share * np.exp(-squares / (2 * sd**2)) / (2 * np.pi * sd**2)
    return fields.reshape(len(area), -1)


def _volumes(voxels: Voxels, labels: Array, rng: np.random.Generator) -> Array:
    """The raw volumes of a run: int16 [x, y, z, volumes]."""
    lit = np.where(labels < 0, 0, labels).reshape(-1, SIDE, SIDE).transpose(0, 2, 1).reshape(len(labels), -1)
    seen = np.maximum(lit @ voxels.fields.T, 0) ** _EXPONENT * voxels.gain
    late = sum(weight * np.roll(seen, k, axis=0) for k, weight in enumerate(_RESPONSE))  # a run ends with rest
    percent = late + _noise(seen.shape, rng)
    volumes = np.zeros((*voxels.mask.shape, len(labels)), np.int16)
    level = LEVEL * (0.7 + 0.6 * np.random.default_rng([_STREAM, len(voxels.gain)]).random(len(voxels.gain)))
    volumes[voxels.mask] = np.rint(level * (1 + percent / 100)).T.astype(np.int16)
    outside = ~voxels.mask
    volumes[outside] = rng.integers(0, 60, (int(outside.sum()), len(labels)), np.int16)
    return volumes


def _noise(shape: tuple[int, int], rng: np.random.Generator) -> Array:
    """Percent: each voxel's own noise, which goes on for a while, noise that voxels share, and drift."""
    n, voxels = shape
    own = rng.standard_normal(shape)
    for k in range(1, n):
        own[k] = _AR * own[k - 1] + np.sqrt(1 - _AR**2) * own[k]
    sources = rng.standard_normal((n, _SOURCES)) @ rng.standard_normal((_SOURCES, voxels)) / np.sqrt(_SOURCES)
    time = np.linspace(-1, 1, n)[:, None]
    drift = time * rng.standard_normal(voxels) + 0.4 * np.cos(np.pi * time) * rng.standard_normal(voxels)
    noise: Array = NOISE * own + SHARED * sources + drift
    return noise


def _save_masks(folder: Path, voxels: Voxels) -> None:
    ring = np.minimum((voxels.eccentricity / FARTHEST * len(RINGS)).astype(int), len(RINGS) - 1)
    parts = {name: voxels.area == name for name in AREAS} | {name: ring == k for k, name in enumerate(RINGS)}
    masks = {"mask": np.ones(len(ring), bool)}
    for side, own in (("LH", voxels.left), ("RH", ~voxels.left)):
        masks |= {f"{side}{name}": part & own for name, part in parts.items()}
    for name, chosen in masks.items():
        volume = np.zeros(voxels.mask.shape, np.uint8)
        volume[voxels.mask] = chosen
        _save_volume(folder / f"{name}.nii.gz", volume)


def _save_volume(path: Path, volume: Array) -> None:
    affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    image = nibabel_library().Nifti1Image(volume, affine)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as file:
        image.to_stream(file)
