"""The random numbers of a VDVAE: each depends on seed, row and block alone.

Philox is a counter-based generator (Salmon et al. 2011). (seed, stream, row, block) select a range of its numbers without
drawing earlier ones, so that neither batches, kills nor the device change the numbers of a row.
"""

from collections.abc import Sequence

import numpy as np

from leanrecon.errors import SettingsError
from leanrecon.features.space import Array, Rows

POSTERIOR, PRIOR, MIXTURE, PIXELS = range(4)
"""Streams of numbers: for latents of an image, latents from the prior, mixture components, and pixels."""

_EDGE = 1e-5  # margin of uniform numbers, as published, for finite logarithms


def normals(seed: int, rows: Rows, block: int, shape: tuple[int, ...], stream: int) -> Array:
    """Standard normal float32 numbers [rows, *shape]."""
    out = np.empty((len(rows), *shape), np.float32)
    for row, numbers in zip(rows, out, strict=True):
        _generator(seed, int(row), block, stream).standard_normal(dtype=np.float32, out=numbers)
    return out


def uniforms(seed: int, rows: Rows, shape: Sequence[int], stream: int) -> Array:
    """Float32 numbers [rows, *shape] between 0.00001 and 0.99999."""
    out = np.empty((len(rows), *shape), np.float32)
    for row, numbers in zip(rows, out, strict=True):
        _generator(seed, int(row), 0, stream).random(dtype=np.float32, out=numbers)
    return out * np.float32(1 - 2 * _EDGE) + np.float32(_EDGE)


def _generator(seed: int, row: int, block: int, stream: int) -> np.random.Generator:
    if not (0 <= seed < 2**64 and row >= 0):
        raise SettingsError(f"noise for seed {seed} and row {row}", expected="a seed from 0 to 2⁶⁴ - 1, rows from 0")
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, 0, row, block], np.uint64)  # a range of 2¹²⁸ numbers for each row and block
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
