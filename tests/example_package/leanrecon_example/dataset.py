"""Dataset ``blobs``: images of coloured blobs, seen by voxels that respond linearly, with noise."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from leanrecon.context import Context
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.images import Array
from leanrecon.places.files import write_json
from leanrecon.stores.layout import store_nbytes
from leanrecon.study.layout import Study

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
    """Standard deviation of the noise, where the signal has 1."""

    @property
    def simulated(self) -> bool:
        return True

    def shapes(self, split: str) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """Shapes of a split's betas and stimuli."""
        rows = self.n_train if split == "train" else self.n_test
        return (rows, self.voxels), (rows, self.size, self.size, 3)


class Blobs:
    """Every row is drawn from (seed, split, row), so any part can be made again, in any order."""

    Settings = BlobsSettings

    def __init__(self, settings: BlobsSettings) -> None:
        self.settings = settings

    @classmethod
    def notes(cls, settings: BlobsSettings) -> Iterable[str]:
        return ("Betas are simulated: voxels respond linearly to pixels, with white noise.",)

    def plan(self, *, base_dir: Path | None, chunk: int, free: int) -> DatasetPlan:
        shapes = [self.settings.shapes(split) for split in SPLITS]
        disk = sum(
            store_nbytes(betas, np.float32, chunk) + store_nbytes(images, np.uint8, chunk) for betas, images in shapes
        )
        weights = 8 * 3 * self.settings.size**2 * self.settings.voxels
        work = 20_000_000 + weights + 4 * chunk  # a group of rows, and a chunk of it
        return DatasetPlan(
            self.settings.n_train, self.settings.n_test, self.settings.voxels, shapes[0][1][1:], None, work, disk
        )

    def ingest(self, study: Study, *, base_dir: Path | None, context: Context) -> None:
        context.require("simulating blobs", self.plan(base_dir=base_dir, chunk=context.chunk, free=0).work)
        pixels = 3 * self.settings.size**2
        weights = np.random.default_rng([context.seed, 1]).standard_normal((pixels, self.settings.voxels)) / pixels**0.5
        for split in SPLITS:
            betas, images = self.settings.shapes(split)
            self._fill(
                study.stimuli(split),
                images,
                np.uint8,
                lambda row, split=split: self._image(context, split, row),
                context,
            )
            self._fill(
                study.betas(split),
                betas,
                np.float32,
                lambda row, split=split: self._response(context, split, row, weights),
                context,
            )
        ids = {split: [f"{split} blob {row}" for row in range(self.settings.shapes(split)[0][0])] for split in SPLITS}
        write_json(study.ids, ids)
        rows = {split: {"stimulus": [*range(len(ids[split]))], "repeats": [1] * len(ids[split])} for split in SPLITS}
        write_json(study.rows, {"format": 2, **rows})  # last: it says that all is there

    def _fill(
        self, path: Path, shape: tuple[int, ...], dtype: type, make: Callable[[int], Array], context: Context
    ) -> None:
        """Write the groups of rows that a store lacks, each as soon as it is made."""
        from leanrecon.stores.store import Store  # where it is used: planning imports no Zarr

        made_of = {"dataset": self.settings.model_dump(), "seed": context.seed}
        store = Store.create(path, shape, dtype, made_of=made_of, chunk=context.chunk, overwrite=context.overwrite)
        for group in store.missing_row_groups():
            store.write_rows(group, np.stack([make(row) for row in store.group_rows(group)]).astype(dtype))
        store.finish()

    def _image(self, context: Context, split: str, row: int) -> Array:
        """One image uint8 [size, size, 3]: three blobs of random colours on grey."""
        random = np.random.default_rng([context.seed, 2, SPLITS.index(split), row])
        place = np.mgrid[: self.settings.size, : self.settings.size] / self.settings.size
        image = np.full((*place.shape[1:], 3), 0.5)
        for _ in range(3):
            distance = ((place - random.random((2, 1, 1))) ** 2).sum(axis=0)
            image += np.exp(-distance / 0.03)[:, :, None] * random.uniform(-0.5, 0.5, 3)
        return (image.clip(0, 1) * 255).astype(np.uint8)

    def _response(self, context: Context, split: str, row: int, weights: Array) -> Array:
        """The response [voxels] to an image: pixels times weights, and noise of its own."""
        noise = np.random.default_rng([context.seed, 3, SPLITS.index(split), row]).standard_normal(self.settings.voxels)
        contrast = self._image(context, split, row).reshape(-1) / 127.5 - 1
        return 8 * contrast @ weights + self.settings.noise * noise
