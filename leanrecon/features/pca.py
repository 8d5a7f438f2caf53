"""Principal components of the train images, decoded by a matrix product."""

import hashlib
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.context import Context
from leanrecon.errors import InputError, StoreError
from leanrecon.features.pixels import Side
from leanrecon.features.plan import FLOAT, Cost
from leanrecon.features.space import Array, FixedSpace, ImageShape, Rows
from leanrecon.images import fitted_into, from_pixels, to_pixels
from leanrecon.memory import buffer
from leanrecon.places import LocationLike, as_location
from leanrecon.places.files import sweep, write_whole
from leanrecon.stores.fingerprint import differences

if TYPE_CHECKING:
    from leanrecon.stores import Store

FORMAT = 1
"""Of the fitted file, and of the arithmetic that leads to it."""

PANEL = 64
"""Rows of every product. Row r is always at r mod 64, so that BLAS sums it in the same order in any batch."""

BATCH = 256

FIT_BATCH = 256
"""Images in one update of the components; more if there are more components."""

SPARE = 32
"""Components that are learned beyond those kept, as each update truncates the last ones a little. Against a full
decomposition, 128 components of images with a 1/f spectrum lost 0.9 % in squared error without spare ones, 0.6 %
with 16 and 0.2 % with 64."""

_DOUBLE = 8
_IMPORT_NBYTES = 90_000_000  # importing scikit-learn 1.9 with SciPy's linear algebra
_FIT_NBYTES = 60_000_000  # buffers of LAPACK and BLAS, measured at 784 to 27,648 dims


class PCASettings(BaseModel):
    """``[features.pca]``"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["pca"] = "pca"
    components: Annotated[int, Field(strict=True, ge=1)] = 256
    """Number of components; n train images have at most n - 1, and at most as many as an image has pixels."""
    size: Side | Literal["original"] = 64
    """Longer side in pixels to which larger images are reduced first; "original": no reduction."""


@dataclass(frozen=True)
class Fit:
    """Fitted components: a row is (pixels - mean) · componentsᵀ."""

    mean: Array
    """float32 [pixels]"""
    components: Array
    """float32 [components, pixels], orthonormal rows, by decreasing variance"""
    explained: Array
    """float64 [components], the share of the train images' variance along each"""
    shape: ImageShape
    """Height, width and channels of the images that the pixels form."""

    @property
    def content(self) -> str:
        """SHA-256 of all that decides rows and decoded images."""
        digest = hashlib.sha256(repr((self.shape, self.components.shape)).encode())
        digest.update(np.ascontiguousarray(self.mean, "<f4").data)
        digest.update(np.ascontiguousarray(self.components, "<f4").data)
        return digest.hexdigest()


class PCA(FixedSpace):
    """Rows of coordinates along the principal components of the train images' pixels (0 to 1)."""

    Settings: ClassVar[type[BaseModel]] = PCASettings
    learns = True
    decodes = True
    library = "sklearn"

    def __init__(self, settings: PCASettings, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        super().__init__(settings, name=name, seed=seed, device=device)
        self._fit: Fit | None = None
        self._content = ""
        self._most = self.settings.components

    @property
    def fitted(self) -> Fit:
        """The components; raises InputError before ``fit`` or ``load``."""
        if self._fit is None:
            raise InputError(
                f"the feature space {self.name} is not fitted to the train images yet",
                todo="call fit or load first",
            )
        return self._fit

    @property
    def note(self) -> str | None:
        """Why there are fewer components than asked for, where there are."""
        if self._fit is None or (kept := len(self._fit.components)) == self.settings.components:
            return None
        asked = self.settings.components
        return f"{self.name}: {kept} components instead of {asked}, as the train images have no more"

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        size = self.settings.size
        return image_shape if size == "original" or max(image_shape[:2]) <= size else fitted_into(image_shape, size)

    def dims(self, image_shape: ImageShape) -> int:
        if self._fit is not None:
            return len(self._fit.components)
        return min(int(self._most), _pixels(self.decoded_shape(image_shape)))

    def expect(self, images: int) -> None:
        self._most = max(min(self.settings.components, images - 1), 1)

    def cost(self, image_shape: ImageShape) -> Cost:
        pixels, dims = _pixels(self.decoded_shape(image_shape)), self.dims(image_shape)
        to_load = 0 if self._fit else (dims + 1) * pixels * FLOAT
        held = to_load + PANEL * (pixels + dims) * FLOAT
        return Cost(held=held, per_image=0, batch=BATCH, operations=2.0 * pixels * dims)

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        cost = self.cost(image_shape)
        return replace(cost, held=cost.held + 4 * _pixels(self.decoded_shape(image_shape)) * FLOAT)

    # Learning

    def fit_nbytes(self, shape: Sequence[int], chunk_rows: int) -> int:
        height, width, channels = shape[1:]
        pixels = _pixels(self.decoded_shape((height, width, channels)))
        components = max(learned_components(self.settings.components, shape[0], pixels), 1)
        largest = max(map(len, fit_batches(shape[0], components)), default=0)
        work = fit_nbytes(pixels, components, largest) + chunk_rows * height * width * channels
        return work if "sklearn.decomposition" in sys.modules else work + _IMPORT_NBYTES

    def fitted_nbytes(self, image_shape: ImageShape) -> int:
        return (self.dims(image_shape) + 1) * _pixels(self.decoded_shape(image_shape)) * FLOAT

    def fit(
        self, images: "Store", path: LocationLike, context: Context | None = None, rows: Rows | None = None
    ) -> None:
        from leanrecon.stores.images import image_shape, row_numbers

        context = (context or Context.of()).refreshed()
        shape = image_shape(images)
        index = row_numbers(rows, images)
        digits = hashlib.sha256(index.astype("<i8").data).hexdigest()[:16]
        record = self._record | {
            "images": images.content,
            "rows": "all" if len(index) == images.rows else f"{len(index)} of {images.rows} ({digits})",
        }
        path = as_location(path)
        sweep(path.parent)
        if path.exists():
            try:
                self.load(path, record)
                return
            except StoreError:
                if not context.overwrite:
                    raise
        context.require(f"features {self.name} (fit)", self.fit_nbytes((len(index), *shape), images.chunk_rows))
        with context.progress.task(f"{self.name}, fit", total=len(index), unit="images") as advance:
            fit = _principal_components(images, index, self.decoded_shape(shape), self.settings.components, advance)
        _save(path, fit, record)
        self._take(fit)
        if self.note:
            context.progress.say(self.note)

    def load(self, path: LocationLike, record: dict[str, Any] | None = None) -> None:
        fit, found = _load(path)
        expected = record or self._record
        if changed := list(differences({key: found.get(key) for key in expected}, expected)):
            raise StoreError(
                f"{path} was fitted with other settings: {'; '.join(changed)}",
                todo="go back to those settings, choose another --study, or replace it with --overwrite",
            )
        self._take(fit)

    @property
    def _record(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.settings.model_dump(mode="json")}

    def _take(self, fit: Fit) -> None:
        self._fit, self._content = fit, fit.content

    # Encoding and decoding

    def made_of(self) -> dict[str, Any]:
        _ = self.fitted
        return {**self.settings.model_dump(mode="json"), "fitted": self._content}

    def encode(self, images: Array, rows: Rows) -> Array:
        """Float32 rows [b, components] of uint8 images [b, height, width, channels]."""
        fit = self.fitted
        self._expect(images.shape[1:])
        out = np.empty((len(images), len(fit.components)), np.float32)
        pixels = buffer((PANEL, len(fit.mean)), np.float32)
        product = buffer((PANEL, out.shape[1]), np.float32)
        for place, slots in panels(rows, len(images)):
            for image, slot in zip(images[place], slots, strict=True):
                to_pixels(image, fit.shape, pixels[slot])
                pixels[slot] -= fit.mean
            np.matmul(pixels, fit.components.T, out=product)
            out[place] = product[slots]
        return out

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        fit = self.fitted
        self._expect(image_shape)
        if features.shape[1] != len(fit.components):
            raise InputError(
                f"rows of {features.shape[1]} numbers do not fit {self.name}",
                expected=f"{len(fit.components)} components",
            )
        out = np.empty((len(features), *fit.shape), np.uint8)
        coordinates = buffer((PANEL, features.shape[1]), np.float32)
        product = buffer((PANEL, len(fit.mean)), np.float32)
        for place, slots in panels(rows, len(features)):
            coordinates[slots] = features[place]
            np.matmul(coordinates, fit.components, out=product)
            for k, slot in zip(range(place.start, place.stop), slots, strict=True):
                out[k] = from_pixels(product[slot] + fit.mean, fit.shape)
        return out

    def _expect(self, shape: Sequence[int]) -> None:
        height, width, channels = shape
        if self.decoded_shape((height, width, channels)) != self.fitted.shape:
            raise InputError(
                f"{self.name} was fitted to images of {'×'.join(map(str, self.fitted.shape))} pixels, these have "
                f"{'×'.join(map(str, shape))}",
                expected="images of the same shape in training and testing",
            )


def learned_components(kept: int, n: int, pixels: int) -> int:
    """The number of components that are learned from ``n`` images to keep ``kept``: with spare ones where possible."""
    return min(kept + SPARE, n - 1, pixels)


def fit_batches(n: int, components: int) -> list[range]:
    """Cut ``range(n)`` into batches to update the components with, none smaller than their number.

    Other batches give slightly other components, so that batches depend on nothing else.
    """
    size = max(FIT_BATCH, components)
    count = max(n // size + (n % size >= components), 1)  # a remainder that is too short joins the last batch
    starts = [k * size for k in range(count)]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def fit_nbytes(pixels: int, components: int, largest_batch: int) -> int:
    """Bytes of scikit-learn's update of the components, and of the batch that is read meanwhile.

    Measured, in float64 rows of pixels: 5.5 for each image of a batch and 5 for each component.
    """
    rows = int(6.5 * largest_batch + 6 * components + 2)
    return rows * pixels * _DOUBLE + _FIT_NBYTES


def panels(rows: Rows, n: int) -> Iterator[tuple[slice, Array]]:
    """Cut ``n`` rows at multiples of 64 of their numbers; yields their places in ``rows`` and in the panel."""
    index = np.asarray(rows, dtype=np.int64)
    if len(index) != n or np.any(np.diff(index) <= 0):
        raise ValueError(f"{n} rows need as many ascending row numbers, not {rows}")
    cuts = [0, *(np.nonzero(np.diff(index // PANEL))[0] + 1).tolist(), n]
    for a, b in pairwise(cuts):
        if b > a:
            yield slice(a, b), index[a:b] % PANEL


def _principal_components(store: "Store", index: Array, shape: ImageShape, kept: int, advance: Any) -> Fit:
    """IncrementalPCA over fixed batches, in float64; directions without variance are left out."""
    pixels = _pixels(shape)
    components = learned_components(kept, len(index), pixels)
    if components < 1:
        raise InputError(f"{len(index)} train images have no principal components", expected="2 images or more")
    from sklearn.decomposition import IncrementalPCA

    from leanrecon.stores import read_ahead
    from leanrecon.stores.images import ImageReader

    model = IncrementalPCA(n_components=components)
    reader = ImageReader(store)
    batches = fit_batches(len(index), components)
    memories = [buffer((max(map(len, batches)), pixels), np.float64) for _ in batches[:2]]

    def read(batch: range, memory: Array) -> Array:
        for place, images in reader.runs(index[batch.start : batch.stop]):
            for image, row in zip(images, memory[place], strict=True):
                to_pixels(image, shape, row)
        return memory[: len(batch)]

    for batch, block in read_ahead(batches, read, memories):
        with np.errstate(invalid="ignore"):  # the share of the variance, where all images are equal
            model.partial_fit(block, check_input=False)
        model.components_ = model.components_.copy()  # not a view that holds the rest of the decomposition
        advance(len(batch))
    values = model.singular_values_
    kept = min(int(np.count_nonzero(values > values[0] * np.finfo(np.float32).eps)), kept)
    if kept == 0:
        raise InputError(
            f"all {len(index)} train images are equal and have no principal components", expected="images that differ"
        )
    return Fit(
        model.mean_.astype(np.float32),
        model.components_[:kept].astype(np.float32),
        model.explained_variance_ratio_[:kept].astype(np.float64),
        shape,
    )


def _save(path: LocationLike, fit: Fit, record: dict[str, Any]) -> None:
    arrays = {"shape": np.array(fit.shape), "mean": fit.mean, "components": fit.components, "explained": fit.explained}
    arrays["record"] = np.array(json.dumps(record, sort_keys=True))
    write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def _load(path: LocationLike) -> tuple[Fit, dict[str, Any]]:
    try:
        with as_location(path).open() as opened, np.load(opened, allow_pickle=False) as file:
            height, width, channels = file["shape"].tolist()
            record: dict[str, Any] = json.loads(str(file["record"]))
            return Fit(file["mean"], file["components"], file["explained"], (height, width, channels)), record
    except FileNotFoundError:
        raise StoreError(f"there is no fitted feature space at {path}", todo="run the stage features first") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} is damaged: {error}",
            todo=f"remove it, or run with --overwrite, to fit again ({as_location(path).name})",
        ) from error


def _pixels(shape: ImageShape) -> int:
    height, width, channels = shape
    return height * width * channels
