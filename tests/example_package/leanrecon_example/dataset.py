"""Dataset ``blobs``: images of coloured blobs, seen by voxels that respond linearly, with noise."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from leanrecon.context import Context
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.images import Array
from leanrecon.stores.layout import store_nbytes
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows, SplitRows

SPLITS = ("train", "test")


class BlobsSettings(DatasetSettings):
    """``[dataset]``"""

    kind: Literal["blobs"] = "blobs"
    n_train: int = Field(default=120, ge=2)
    """Train images."""
    n_test: int = Field(default=24, ge=2)
    """Test images."""
    voxels: int = Field(default=200, ge=1)
    """Voxels of the simulated subject."""
    size: int = Field(default=24, ge=8, le=256)
    """Sides of the images in pixels."""
    noise: float = Field(default=0.5, ge=0)
    """Standard deviation of the noise, where that of the signal is about 1."""

    @property
    def simulated(self) -> bool:
        return True

    @property
    def rows(self) -> dict[str, int]:
        """Images, and rows of betas, of each split."""
        return {"train": self.n_train, "test": self.n_test}


class Blobs:
    """Every row is drawn from (seed, split, row), so any part can be made again, in any order."""

    Settings = BlobsSettings

    def __init__(self, settings: BlobsSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: BlobsSettings) -> Iterable[str]:
        return ["Betas are simulated: voxels respond linearly to pixels, with white noise."]

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        settings = self.settings
        image = (settings.size, settings.size, 3)
        disk = sum(
            store_nbytes((n, settings.voxels), np.float32, chunk) + store_nbytes((n, *image), np.uint8, chunk)
            for n in settings.rows.values()
        )
        weights = 8 * 3 * settings.size**2 * settings.voxels
        work = 20_000_000 + weights + 4 * chunk  # a group of rows twice, and a chunk of it
        return DatasetPlan(
            n_train=settings.n_train,
            n_test=settings.n_test,
            train_images=settings.n_train,
            test_images=settings.n_test,
            voxels=settings.voxels,
            image_shape=image,
            folds=None,
            work=work,
            disk=disk,
        )

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> None:
        context.require(context.label, self.plan(base_dir=base_dir, chunk=context.chunk, free=0).work)
        seed, voxels, size, noise = context.seed, self.settings.voxels, self.settings.size, self.settings.noise
        weights = np.random.default_rng([seed, 0]).standard_normal((3 * size**2, voxels)) * 8 / (3 * size**2) ** 0.5

        def image(split: str, row: int) -> Array:
            return draw_image([seed, SPLITS.index(split), row], size)

        def response(split: str, row: int) -> Array:
            random = np.random.default_rng([seed, SPLITS.index(split), row, 1])
            signal: Array = (image(split, row).reshape(-1) / 127.5 - 1) @ weights
            return signal + noise * random.standard_normal(voxels)

        for split, n in self.settings.rows.items():
            self._fill(study.stimuli(split), (n, size, size, 3), np.uint8, partial(image, split), context)
            self._fill(study.betas(split), (n, voxels), np.float32, partial(response, split), context)
        self._rows().write(study)  # last: it says that all is there

    def _fill(
        self, path: Any, shape: tuple[int, ...], dtype: type, make: Callable[[int], Array], context: Context
    ) -> None:
        """Write the groups of rows that a store lacks, each as soon as it is made."""
        from leanrecon.stores.store import Store  # not at the top: planning imports no Zarr

        made_of = {"dataset": self.settings.model_dump(), "seed": context.seed}
        store = Store.create(path, shape, dtype, made_of=made_of, chunk=context.chunk, overwrite=context.overwrite)
        for group in store.missing_row_groups():
            store.write_rows(group, np.stack([make(row) for row in store.group_rows(group)]).astype(dtype))
        store.finish()

    def _rows(self) -> Rows:
        """Row i shows image i, in one trial."""
        splits, ids, first = {}, {}, 0
        for split, n in self.settings.rows.items():
            splits[split] = SplitRows(np.arange(n), trials=[[first + i] for i in range(n)], repeats=[1] * n)
            ids[split] = [f"{split} blobs {i}" for i in range(n)]
            first += n
        return Rows(splits, ids)


def draw_image(seed: list[int], size: int) -> Array:
    """One image uint8 [size, size, 3]: three blobs of random colours on grey."""
    random = np.random.default_rng(seed)
    place = np.mgrid[:size, :size] / size
    image = np.full((size, size, 3), 0.5)
    for _ in range(3):
        distance = ((place - random.random((2, 1, 1))) ** 2).sum(axis=0)
        image += np.exp(-distance / 0.03)[:, :, None] * random.uniform(-0.5, 0.5, 3)
    return (image.clip(0, 1) * 255).astype(np.uint8)
