"""Decoder ``linear``: one linear layer from betas to small images, trained by gradient descent with checkpoints."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.context import Context
from leanrecon.decoders.decoder import DecoderData, DecoderPlan, DecoderShapes
from leanrecon.errors import StoreError
from leanrecon.images import Array, ImageShape, fitted_into, from_pixels, resize, to_pixels
from leanrecon.stores.pictures import Pictures
from leanrecon.weights.tensors import TensorFile, write_tensors


class LinearSettings(BaseModel):
    """``[decode]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["linear"] = "linear"
    size: int = Field(default=12, ge=2, le=64)
    """The longer side in pixels of the images that are learned; they are enlarged to the size of the stimuli."""
    steps: int = Field(default=200, ge=1)
    """Steps of gradient descent over all train rows; stopping early keeps the weights small."""
    checkpoint: int = Field(default=20, ge=1)
    """Steps between two checkpoints."""


class Linear:
    """Minimises ‖B·W − P‖² for standardised betas B [n, p] and centred pixels P [n, d], from W = 0."""

    Settings = LinearSettings

    def __init__(self, settings: LinearSettings) -> None:
        self.settings = settings
        self._trained: TensorFile | None = None

    def image_shape(self, images: ImageShape) -> ImageShape:
        return images

    def made_of(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude={"checkpoint"})

    def plan(self, shapes: DecoderShapes, free: int) -> DecoderPlan:
        d = int(np.prod(fitted_into(shapes.image, self.settings.size)))
        numbers = 4 * max(shapes.n, shapes.m) * shapes.p + 3 * shapes.n * d + 4 * shapes.p * d + shapes.s * d
        work = 4 * numbers + 20_000_000
        return DecoderPlan(work, f"{self.settings.steps} steps of gradient descent", disk=4 * (shapes.p * (d + 2) + d))

    def train(self, data: DecoderData, folder: Path, context: Context) -> dict[str, Any]:
        (n, p), (s, *image) = data.betas.shape, data.images.shape
        shape = (image[0], image[1], image[2])
        context.require(context.label, self.plan(DecoderShapes(n, p, 0, s, shape), context.budget.free).work)
        small = fitted_into(shape, self.settings.size)
        path, trained_on = folder / "network.safetensors", {**self.made_of(), "data": data.content}
        state = self._found(path, trained_on, context.overwrite) or self._begin(data, small)
        done = int(state["step"][0])
        if done < self.settings.steps:
            betas = _standardised(_read(data.betas), state)
            pixels = _pixels(data.images, small)[data.stimulus] - state["pixels"]
            rate = np.float32(1 / np.linalg.norm(betas, 2) ** 2)
            with context.task(total=self.settings.steps, unit="steps", done=done) as advance:
                for step in range(done + 1, self.settings.steps + 1):
                    state["weights"] -= rate * (betas.T @ (betas @ state["weights"] - pixels))
                    if step % self.settings.checkpoint == 0 or step == self.settings.steps:
                        state["step"][0] = step
                        write_tensors(path, state, {"trained on": trained_on, "small": small, "image": shape})
                    advance(1)
        self._trained = TensorFile(path)
        return {"steps": self.settings.steps}

    def decode(self, betas: Any, out: Pictures, context: Context) -> None:
        assert self._trained is not None, "train() first: it takes up what is there"
        state = {name: self._trained.read(name) for name in self._trained.names}
        small = self._trained.record["small"]
        for row in out.missing():  # a run that was killed continues with these
            response = _standardised(_read(betas, range(row, row + 1)), state)
            image = from_pixels((response @ state["weights"] + state["pixels"])[0], tuple(small))
            out.write(row, resize(image, out.shape, bicubic=True))
        out.finish()

    def _begin(self, data: DecoderData, small: ImageShape) -> dict[str, Array]:
        betas, pixels = _read(data.betas), _pixels(data.images, small)[data.stimulus]
        weights = np.zeros((betas.shape[1], pixels.shape[1]), np.float32)
        return {
            "step": np.zeros(1, np.int64),
            "mean": betas.mean(axis=0),
            "deviation": betas.std(axis=0),
            "pixels": pixels.mean(axis=0),
            "weights": weights,
        }

    def _found(self, path: Path, trained_on: dict[str, Any], overwrite: bool) -> dict[str, Array] | None:
        """The last checkpoint, or None; raises StoreError where it was trained on something else."""
        if not path.exists():
            return None
        file = TensorFile(path)
        if file.record["trained on"] == trained_on:
            return {name: file.read(name) for name in file.names}
        if overwrite:
            return None
        raise StoreError(
            f"{path} was trained on other data or with other settings", todo="use --overwrite to replace it"
        )


def _read(matrix: Any, rows: range | None = None) -> Array:
    rows = range(matrix.shape[0]) if rows is None else rows
    out = np.empty((len(rows), matrix.shape[1]), np.float32)
    matrix.read(rows, range(matrix.shape[1]), out)
    return out


def _standardised(betas: Array, state: dict[str, Array]) -> Array:
    """Betas less the train mean, over the train deviation; 0 for constant voxels and those outside the mask (NaN)."""
    usable = state["deviation"] > 0
    out = np.zeros_like(betas)
    out[:, usable] = (betas[:, usable] - state["mean"][usable]) / state["deviation"][usable]
    return out


def _pixels(images: Any, small: ImageShape) -> Array:
    """Pixels float32 [images, d] of all images of a store, from 0 to 1."""
    out = np.empty((images.rows, int(np.prod(small))), np.float32)
    for group in range(images.row_groups):
        rows = images.group_rows(group)
        for row, image in zip(rows, images[rows.start : rows.stop], strict=True):
            to_pixels(image, small, out[row])
    return out
