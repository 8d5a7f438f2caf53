"""The scenes that the models are trained on, drawn once and kept in two files: images and sentences."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.simulated.scenes import MODELS_SEED, TEST, draw_scene

Array = np.ndarray[Any, Any]

SIZE = 64
HELD_OUT_SCENES = 1_000
"""Scenes from ``TEST`` on that training never touches: losses and figures are measured on them."""

_BLOCK = 500


class Scenes:
    """``n`` scenes from number ``first`` on: uint8 images [n, 64, 64, 3], mapped, and a sentence for each."""

    def __init__(self, folder: Path, n: int, first: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"scenes-{MODELS_SEED}-{first}-{n}.npy"
        sentences = self.path.with_suffix(".json")
        if not sentences.exists():  # written last
            _draw(self.path, sentences, n, first)
        self.images: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self.captions: list[str] = json.loads(sentences.read_text())

    def __len__(self) -> int:
        return len(self.captions)


def training(folder: Path, n: int) -> Scenes:
    """The training scenes."""
    return Scenes(folder, n)


def held_out(folder: Path) -> Scenes:
    """The held-out scenes."""
    return Scenes(folder, HELD_OUT_SCENES, TEST)


def batches(n: int, batch: int, step: int, seed: int) -> Iterator[Array]:
    """Row numbers of batches from ``step`` on, without end; each row once in an epoch."""
    per_epoch = n // batch
    while True:
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(n)
        while within < per_epoch:
            yield np.sort(order[within * batch : (within + 1) * batch])
            within, step = within + 1, step + 1


def _draw(path: Path, sentences: Path, n: int, first: int) -> None:
    partial = path.with_suffix(".partial")
    images = np.lib.format.open_memmap(partial, "w+", np.uint8, (n, SIZE, SIZE, 3))
    captions: list[str] = []
    blocks = [range(first + at, first + min(at + _BLOCK, n)) for at in range(0, n, _BLOCK)]
    with multiprocessing.Pool() as pool:
        for block, drawn in zip(blocks, pool.imap(_draw_block, blocks), strict=True):
            images[block.start - first : block.stop - first] = drawn[0]
            captions += drawn[1]
    images.flush()
    partial.replace(path)
    sentences.write_text(json.dumps(captions))


def _draw_block(indices: range) -> tuple[Array, list[str]]:
    drawn = [draw_scene(MODELS_SEED, index, SIZE) for index in indices]
    return np.stack([image for image, _ in drawn]), [caption for _, caption in drawn]
