"""A simulated visual cortex: what each of its voxels answers to an image, and the noise of a trial.

An image is described by local luminance, by Gabor energies (Adelson and Bergen 1985: the length of a quadrature
pair), by opponent colours, by its coarse layout and by the words that tell what it shows. A voxel is a weighted sum
of these, z-scored over a fixed set of scenes that no study trains on or tests; weights follow a receptive field and
a tuning drawn for it. All of a voxel is decided by (seed, voxel), all of a trial's noise by (seed, split, row, repeat).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from leanrecon.datasets.simulated.scenes import WORDS, Scene, compose, content_words, paint

Array = np.ndarray[Any, Any]

PANEL = 16
"""Rows of every product: row r is always at r mod 16, so that BLAS adds it up in the same order in any block."""

BLOCK = 1024
"""Voxels whose weights are made at once, to hold little besides."""

AREAS = {"V1": 0.27, "V2": 0.23, "V3": 0.16, "V4": 0.16, "ventral": 0.18}
"""The areas in order, and their shares of the voxels."""

BANDS = ((4, 6), (8, 10), (16, 12))
"""Cycles an image of the Gabor filters, and at how many places across and down each band is taken."""
ORIENTATIONS = 4
LUMINANCE, COLOUR, LAYOUT = 12, 8, 4
"""At how many places across and down these are taken."""

CALIBRATION = range(2_000_000_000, 2_000_000_256)
"""Scenes of seed 0 that fix the mean and the spread of every voxel, so that no row depends on the others."""

CALIBRATION_SIZE = 128
"""Largest size at which they are painted: at 256 pixels the voxels' spreads are the same within about 1 %."""

SIGNAL_CHANGE = 1.5
"""Median over voxels of the responses' standard deviation over images, in percent."""

DRIFT = 0.15
"""Share of a trial's noise variance that drifts slowly, together in groups of voxels."""
GROUPS, WAVES, FASTEST = 12, 3, 8  # groups of voxels, waves a group, cycles of the fastest over the experiment

NCSNR_SPREAD = 0.5
"""Standard deviation over voxels of log ncsnr: NSD's visual voxels lie between about a third and three times the median."""

_VOXELS, _NOISE, _TRIALS, _WAVES = range(1, 5)  # streams of random numbers
_PRF = {"V1": 0.05, "V2": 0.07, "V3": 0.10, "V4": 0.15, "ventral": 0.3}  # median receptive field, in image widths
_CENTRE = {"V1": (8, -88, 4), "V2": (14, -90, 8), "V3": (22, -88, 12), "V4": (28, -76, -12), "ventral": (34, -56, -16)}

N_FEATURES = LUMINANCE**2 + ORIENTATIONS * sum(n * n for _, n in BANDS) + 2 * COLOUR**2 + 3 * LAYOUT**2 + len(WORDS)


@dataclass(frozen=True)
class Voxels:
    """What is drawn for each voxel; every array has one row a voxel."""

    area: Array
    """str"""
    coordinates: Array
    """float32 [voxels, 3]: millimetres to the right, to the front and up"""
    ncsnr: Array
    """float32: standard deviation of the response over images / that of one trial's noise, as in NSD"""
    signal: Array
    """float32: standard deviation of the response over images, in percent signal change"""
    offset: Array
    """float32: mean response, in percent signal change"""
    group: Array
    """Which group it drifts with."""
    prf: Array
    """float32 [voxels, 3]: x, y and size of the receptive field, in image widths from the top left"""
    tuning: Array
    """float32 [voxels, 2]: preferred log2 of cycles an image, and orientation in radians"""
    luminance: Array
    energy: Array
    colour: Array
    """float32 [voxels, 2]: weights of red-green and blue-yellow"""
    words: Array
    """float32 [voxels, words]"""
    layout: Array
    """float32 [voxels, 3 · LAYOUT²]"""

    def __getitem__(self, block: slice) -> "Voxels":
        return Voxels(**{field.name: getattr(self, field.name)[block] for field in fields(self)})


def area_of(voxels: int) -> Array:
    """The area of every voxel: one run of voxels an area."""
    ends = np.rint(np.cumsum(list(AREAS.values())) * voxels).astype(int)
    areas: Array = np.repeat(list(AREAS), np.diff(ends, prepend=0))
    return areas


def draw_voxels(seed: int, voxels: int, noise: float) -> Voxels:
    """Draw all voxels; ``noise`` is the median over voxels of a trial's noise relative to the signal."""
    n_layout = 3 * LAYOUT**2
    uniform = np.empty((voxels, 8), np.float32)
    normal = np.empty((voxels, 10 + len(WORDS) + n_layout), np.float32)
    for voxel in range(voxels):
        rng = np.random.default_rng([_VOXELS, seed, voxel])
        rng.random(dtype=np.float32, out=uniform[voxel])
        rng.standard_normal(dtype=np.float32, out=normal[voxel])
    area = area_of(voxels)
    early, v4, ventral = np.isin(area, ("V1", "V2", "V3")), area == "V4", area == "ventral"

    eccentricity, angle = 0.68 * uniform[:, 0] ** 0.75, 2 * np.pi * uniform[:, 1]  # more of the centre than of the rim
    size = np.array([_PRF[a] for a in area], np.float32) * (0.6 + eccentricity) * np.exp(0.25 * normal[:, 0])
    x, y = (np.clip(0.5 + eccentricity * f(angle), 0, 1) for f in (np.cos, np.sin))
    centre = np.array([_CENTRE[a] for a in area], np.float32)
    side = np.where(x < 0.5, 1, -1)  # the left of the image is seen by the right hemisphere, what is above lies below
    scatter = normal[:, 1:4] * (2.5, 3, 2.5)
    retinotopic = np.stack([np.zeros(voxels), 22 * eccentricity, 14 * (y - 0.5)], axis=1)
    coordinates = (centre + np.where(ventral[:, None], 0, retinotopic)) * np.where(side[:, None] < 0, (-1, 1, 1), 1)

    words, layout = normal[:, 10 : 10 + len(WORDS)], normal[:, 10 + len(WORDS) :]
    return Voxels(
        area=area,
        coordinates=(coordinates + scatter).astype(np.float32),
        ncsnr=np.exp(NCSNR_SPREAD * normal[:, 4]) / np.float32(noise),
        signal=np.float32(SIGNAL_CHANGE) * np.exp(0.2 * normal[:, 5]),
        offset=0.5 * normal[:, 6],
        group=(uniform[:, 2] * GROUPS).astype(int),
        prf=np.stack([x, y, size], axis=1).astype(np.float32),
        tuning=np.stack([2 + 2 * uniform[:, 3], np.pi * uniform[:, 4]], axis=1),
        luminance=np.where(ventral, 0, np.copysign(0.35 + 0.6 * uniform[:, 5], uniform[:, 6] - 0.5)),
        energy=np.where(early, 1.0, np.where(v4, 0.35, 0)),
        colour=np.where(v4[:, None], normal[:, 7:9], 0),
        words=np.where(ventral[:, None], _largest(words, 4), 0),
        layout=np.where(ventral[:, None], _largest(layout, 6) * 0.4, 0),
    )


def _largest(values: Array, n: int) -> Array:
    """The ``n`` largest of each row by amount, and zeros."""
    size = np.abs(values)
    kept: Array = np.where(size >= np.sort(size, axis=1)[:, -n, None], values, 0)
    return kept


class Retina:
    """Describes square images of one size by ``N_FEATURES`` numbers each."""

    def __init__(self, size: int) -> None:
        self.size = size
        at = (np.arange(size) + 0.5) / size
        self.luminance = _pool(at, LUMINANCE, 0.5 / LUMINANCE)
        self.colour = _pool(at, COLOUR, 0.6 / COLOUR)
        self.layout = _pool(at, LAYOUT, 0.5 / LAYOUT)
        self.gabors: list[tuple[Array, Array]] = []  # (down, across) of every band and orientation, complex
        for cycles, n in BANDS:
            away = at - _places(n)[:, None]
            hull = _pool(at, n, 0.45 / cycles)  # about an octave of bandwidth
            for k in range(ORIENTATIONS):
                theta = np.pi * k / ORIENTATIONS
                down, across = (hull * np.exp(2j * np.pi * cycles * f(theta) * away) for f in (np.sin, np.cos))
                self.gabors.append((down.astype(np.complex64), across.T.astype(np.complex64)))

    def describe(self, images: Array, words: Array) -> Array:
        """Features, float32 [rows, N_FEATURES], of uint8 ``images`` [rows, size, size, 3] and ``words`` [rows, words].

        The last digits depend on the number of rows and on an image's place among them, hence whole panels.
        """
        rgb = np.ascontiguousarray(images.transpose(3, 0, 1, 2), np.float32)
        rgb /= 255
        red, green, blue = rgb
        light = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
        found = [_through(self.luminance, light, self.luminance.T)]
        complex_light = (light - np.float32(0.5)).astype(np.complex64)
        for down, across in self.gabors:
            energy = np.abs(_through(down, complex_light, across))
            found.append(np.log1p(25 * energy))  # contrast responses saturate
        found += [_through(self.colour, c, self.colour.T) for c in (red - green, blue - (red + green) / 2)]
        found += [_through(self.layout, c, self.layout.T) for c in (red, green, blue)]
        return np.concatenate([*found, words.astype(np.float32)], axis=1)


def _places(n: int) -> Array:
    return (np.arange(n) + 0.5) / n


def _pool(at: Array, n: int, width: float) -> Array:
    """Gaussian weights of every pixel around ``n`` places: float32 [n, size], each row's sum 1."""
    weights = np.exp(-(((at - _places(n)[:, None]) / width) ** 2) / 2)
    shares: Array = weights / weights.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def _through(down: Array, images: Array, across: Array) -> Array:
    """``down`` @ image @ ``across`` of all images, [rows, down · across], in two products rather than two an image."""
    rows, size, places = len(images), images.shape[1], across.shape[1]
    halfway = (images.reshape(-1, size) @ across).reshape(rows, size, places).transpose(1, 0, 2)
    found: Array = (down @ halfway.reshape(size, -1)).reshape(-1, rows, places).transpose(1, 0, 2)
    flat: Array = found.reshape(rows, -1)
    return flat


def word_rows(seed: int, rows: range) -> Array:
    """Which of ``WORDS`` each scene shows: bool [rows, words]."""
    return words_of(compose(seed, i) for i in rows)


def words_of(scenes: Iterable[Scene]) -> Array:
    """Which of ``WORDS`` each scene shows: bool [scenes, words]."""
    shown = [content_words(scene) for scene in scenes]
    return np.array([[word in words for word in WORDS] for words in shown])


@lru_cache(maxsize=2)
def _calibration(size: int) -> Array:
    """Features of the scenes of ``CALIBRATION``, the same for every subject."""
    retina, found = Retina(size), []
    for start in CALIBRATION[::PANEL]:
        rows = range(start, start + PANEL)
        found.append(retina.describe(np.stack([paint(compose(0, i), size) for i in rows]), word_rows(0, rows)))
    features = np.concatenate(found)
    features.flags.writeable = False
    return features


class Cortex:
    """The voxels of one subject, calibrated: ``respond`` gives their answers without noise, ``noise`` that of trials."""

    def __init__(self, seed: int, size: int, voxels: int, noise: float, trials: int) -> None:
        self.seed = seed
        self.trials = trials
        self.voxels = draw_voxels(seed, voxels, noise)
        self.retina = Retina(size)
        self.mixing = _mixing(self.voxels)
        self.mean, self.spread = np.zeros(N_FEATURES, np.float32), np.ones(N_FEATURES, np.float32)
        self._calibrate()
        self.noise_level = self.voxels.signal / self.voxels.ncsnr
        self.cycles, self.phases = _drift(seed)

    def _calibrate(self) -> None:
        features = _calibration(min(self.retina.size, CALIBRATION_SIZE))
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread = features.std(axis=0, dtype=np.float64).astype(np.float32)
        self.spread = np.where(spread > 0, spread, np.float32(1))
        squares = np.zeros(len(self.voxels.area))
        for start in range(0, len(features), PANEL):
            squares += np.square(self._mix(features[start : start + PANEL]), dtype=np.float64).sum(axis=0)
        self.mixing *= (self.voxels.signal / np.sqrt(squares / len(features))).astype(np.float32)

    def _mix(self, features: Array) -> Array:
        mixed: Array = ((features - self.mean) / self.spread) @ self.mixing
        return mixed

    def respond(self, images: Array, words: Array, rows: range) -> Array:
        """Responses without noise to ``rows`` of one panel, in percent signal change: float32 [rows, voxels]."""
        own = slice(rows.start % PANEL, rows.start % PANEL + len(rows))
        panel = np.zeros((PANEL, *images.shape[1:]), np.uint8), np.zeros((PANEL, len(WORDS)), bool)
        panel[0][own], panel[1][own] = images, words
        answers: Array = self._mix(self.retina.describe(*panel))[own] + self.voxels.offset
        return answers

    def noise(self, split: int, row: int, trials: Sequence[int], *, first: int = 0) -> Array:
        """The noise of the mean over ``trials`` of one image, numbered as they were presented: float32 [voxels].

        ``row`` is the image; ``first`` says which of its presentations the first of these trials is.
        """
        total = np.zeros(len(self.voxels.area), np.float32)
        for repeat, trial in enumerate(trials, start=first):
            rng = np.random.default_rng([_NOISE, self.seed, split, row, repeat])
            total += np.float32((1 - DRIFT) ** 0.5) * rng.standard_normal(len(total), np.float32)
            total += np.float32(DRIFT**0.5) * self.drift(trial)[self.voxels.group]
        return total * (self.noise_level / np.float32(len(trials)))

    def drift(self, trial: int) -> Array:
        """The drift of every group at a trial, of variance 1 over the experiment: float32 [groups]."""
        turns = self.cycles * ((trial + 0.5) / self.trials) + self.phases
        waves: Array = np.cos(2 * np.pi * turns).sum(axis=1) * (2 / WAVES) ** 0.5
        return waves.astype(np.float32)


def _drift(seed: int) -> tuple[Array, Array]:
    """Whole cycles over the experiment and phases of every group's waves: [groups, waves] each."""
    rng = np.random.default_rng([_WAVES, seed])
    cycles = np.array([rng.permutation(FASTEST)[:WAVES] + 1 for _ in range(GROUPS)])
    return cycles, rng.random((GROUPS, WAVES))


def trial_numbers(seed: int, rows: int, repeats: int) -> Array:
    """When each row was presented: int [rows, repeats], ascending; all trials of the experiment in a drawn order."""
    order = np.random.default_rng([_TRIALS, seed]).permutation(rows * repeats)
    return np.sort(order.reshape(rows, repeats), axis=1)


def _mixing(voxels: Voxels) -> Array:
    """Weights of the z-scored features: float32 [N_FEATURES, voxels]."""
    n = len(voxels.area)
    weights = np.empty((N_FEATURES, n), np.float32)
    for start in range(0, n, BLOCK):
        v = voxels[slice(start, start + BLOCK)]
        parts = [_field(v.prf, LUMINANCE) * v.luminance]
        octaves = np.array([np.log2(cycles) for cycles, _ in BANDS])[:, None]
        of_band = np.exp(-(((octaves - v.tuning[:, 0]) / 0.6) ** 2) / 2)
        theta = np.arange(ORIENTATIONS)[:, None] * np.pi / ORIENTATIONS
        of_theta = 0.1 + np.exp(2 * (np.cos(2 * (theta - v.tuning[:, 1])) - 1))
        for k, (_, places) in enumerate(BANDS):
            field = _field(v.prf, places) * (v.energy * of_band[k] / of_band.sum(axis=0))
            parts += [field * (weight / of_theta.sum(axis=0)) for weight in of_theta]
        parts += [_field(v.prf, COLOUR) * v.colour[:, k] for k in range(2)]
        parts += [v.layout.T, v.words.T]
        np.concatenate(parts, out=weights[:, start : start + BLOCK], casting="unsafe")
    return weights


def _field(prf: Array, places: int) -> Array:
    """Receptive fields over a grid of places, down then across: [places², voxels], each voxel's sum 1."""
    at, width = _places(places)[:, None], np.maximum(prf[:, 2], 0.5 / places)
    across, down = (np.exp(-(((at - prf[:, k]) / width) ** 2) / 2) for k in range(2))
    field: Array = (down / down.sum(axis=0))[:, None] * (across / across.sum(axis=0))
    return field.reshape(places**2, -1)


def making_nbytes(size: int, voxels: int) -> int:
    """Most bytes of memory that making a cortex takes, with what it holds then."""
    features = 4 * N_FEATURES * len(CALIBRATION)
    calibrating = features + max(panel_nbytes(min(size, CALIBRATION_SIZE)), 3 * features)
    mixing = 11 * N_FEATURES * min(voxels, BLOCK)  # a block's weights in float64, then its receptive fields
    return max(_DRAWING * voxels, _held_nbytes(size, voxels) + max(mixing, calibrating))


def responding_nbytes(size: int, voxels: int) -> int:
    """Most bytes of memory that a cortex takes while it responds to a panel of images, and holds."""
    features = 4 * N_FEATURES * len(CALIBRATION)  # kept for other subjects
    answers = voxels * (12 * PANEL + 24)  # a panel's, joined and picked; the noise of a row
    return _held_nbytes(size, voxels) + features + max(panel_nbytes(size), answers)


def panel_nbytes(size: int) -> int:
    """Bytes that describing a panel of images takes: 40 a pixel beside the images, which are there twice, and places."""
    return PANEL * size**2 * (41 + 2 * 3) + 200_000


def _held_nbytes(size: int, voxels: int) -> int:
    """Bytes of a cortex: its weights, what was drawn for its voxels, and its filters."""
    return 4 * N_FEATURES * voxels + _DRAWN * voxels + 2000 * size


_DRAWN, _DRAWING = 410, 1150  # bytes of a voxel as it is kept, and while it is drawn: 380 and 1,130 measured
