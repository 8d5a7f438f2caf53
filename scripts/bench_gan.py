"""Seconds a step and memory of the end-to-end decoder on random betas and images: by default at the published size.

    python scripts/bench_gan.py --rows 6000 --images 1200 --voxels 9919 --size 256 --crop 227 --jitter 21 --steps 3

It says what was planned, and what was measured in each phase: CPU seconds, as other programs don't lengthen these.
"""

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.decoders.decoder import DecoderData, DecoderShapes
from leanrecon.decoders.gan import gan, learning, training
from leanrecon.decoders.gan.plan import phases
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.memory import PeakMemory, format_bytes, process_memory
from leanrecon.stores import Store
from leanrecon.stores.matrix import as_matrix


class EnoughError(Exception):
    """As many steps as were asked for."""


def store(path: Path, shape: tuple[int, ...], dtype: Any) -> Store:
    """Random numbers."""
    made = Store.create(path, shape, dtype, made_of={"of": path.name}, chunk=8_000_000)
    rng = np.random.default_rng(0)
    for i in made.missing_row_groups():
        rows = made.group_rows(i)
        size = (len(rows), *shape[1:])
        block = rng.integers(0, 256, size, np.uint8) if dtype == np.uint8 else rng.standard_normal(size, np.float32)
        made.write_rows(i, block)
    made.finish()
    return made


def timed(name: str, run: Any) -> Any:
    """Run something and say what it took."""
    before, started = process_memory(), time.process_time()
    with PeakMemory() as peak:
        result = run()
    seconds = time.process_time() - started
    print(f"{name}: {seconds:.1f} CPU s, {format_bytes(peak.peak - before)} beside {format_bytes(before)}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"rows": 6000, "images": 1200, "voxels": 9919, "size": 256, "crop": 227, "jitter": 21}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"width": 256, "hidden": 4096, "batch": 64, "at-once": 64, "steps": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--reduction", default="exact")
    parser.add_argument("--recompute", action="store_true")
    asked = parser.parse_args()
    settings = GANSettings(
        size=asked.size, crop=asked.crop, jitter=asked.jitter, width=asked.width, hidden=asked.hidden,
        batch_size=asked.batch, at_once=asked.at_once, reduction=asked.reduction, losses="published", validation=0.0,
        recompute=asked.recompute,
    )  # fmt: skip
    decoder, side = gan.GAN(settings), settings.framed
    planned = phases(decoder._sizes(DecoderShapes(asked.rows, asked.voxels, 0, asked.images, (side, side, 3))))
    print("planned:", ", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in planned.items()), flush=True)
    taken: list[float] = []
    step, reduced = training.one_step, learning.reduced

    def one_step(*given: Any) -> dict[str, float]:
        if len(taken) == asked.steps:
            raise EnoughError
        started = time.process_time()
        result = step(*given)
        taken.append(time.process_time() - started)
        print(f"step {len(taken)}: {taken[-1]:.1f} CPU s, {format_bytes(process_memory())} held", flush=True)
        return result

    training.one_step = one_step  # type: ignore[assignment]
    learning.reduced = lambda *given: timed("reduction", lambda: reduced(*given))  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        betas = as_matrix(store(Path(folder) / "betas.zarr", (asked.rows, asked.voxels), np.float32))
        images = store(Path(folder) / "images.zarr", (asked.images, side, side, 3), np.uint8)
        shown = np.arange(asked.rows) % asked.images
        data = DecoderData(betas, images, shown, list(map(str, shown)), "random")

        def train() -> None:
            with contextlib.suppress(EnoughError):
                decoder.train(data, Path(folder) / "network", Context.of("100GB", label="bench"))

        timed("all", train)


if __name__ == "__main__":
    main()
