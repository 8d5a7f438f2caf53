"""A feature space of pixels that learns how much predictions shrink, and undoes that when it decodes."""

from typing import Any, Literal

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import StoreError
from leanrecon.features.pixels import Pixels, PixelsSettings
from leanrecon.images import to_pixels
from leanrecon.places import as_location
from leanrecon.places.files import write_whole
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader

MIDDLE = np.float32(0.5)


class ShrunkenSettings(PixelsSettings):
    kind: Literal["shrunken"] = "shrunken"  # type: ignore[assignment]


class Shrunken(Pixels):
    """Pixels whose decode multiplies the distance from grey by a gain, the least-squares one of train rows."""

    Settings = ShrunkenSettings
    calibrates = True
    gain = 1.0

    def decode_made_of(self) -> dict[str, Any]:
        return {"gain": self.gain}

    def decode(self, features: Any, rows: Any, image_shape: Any) -> Any:
        return super().decode((features - MIDDLE) * np.float32(self.gain) + MIDDLE, rows, image_shape)

    def calibrate_nbytes(self, shape: Any, image_shape: Any) -> int:
        return 3 * shape[0] * shape[1] * 4

    def calibrate(self, predictions: Any, images: Any, stimulus: Any, path: Any, context: Any = None) -> None:
        shape, image_shape = predictions.shape, images.shape[1:]
        (context or Context.of()).refreshed().require(
            f"calibration of {self.name}", self.calibrate_nbytes(shape, image_shape)
        )
        predicted = np.empty(shape, np.float32)
        predictions.read(range(shape[0]), range(shape[1]), predicted)
        predicted -= MIDDLE
        made_of = fingerprint(
            {"images": images.content, "stimulus": list(map(int, stimulus)), "predictions": predicted.tolist()}
        )
        known = _load(path)[1]
        if known and known != made_of and not (context and context.overwrite):
            raise StoreError(f"{path} holds another calibration", todo="run with --overwrite")
        if known != made_of:
            gain = self._fitted(predicted, images, np.asarray(stimulus))
            write_whole(as_location(path), lambda file: np.savez(file, gain=gain, made_of=made_of))
        self.load_calibration(path)

    def load_calibration(self, path: Any) -> None:
        self.gain = _load(path)[0]

    def _fitted(self, predicted: Any, images: Any, stimulus: Any) -> float:
        seen = np.empty_like(predicted)
        for place, block in ImageReader(images).runs(np.arange(images.rows)):
            for number, image in zip(range(place.start, place.stop), block, strict=True):
                row = np.empty(predicted.shape[1], np.float32)
                to_pixels(image, self.decoded_shape(images.shape[1:]), row)
                seen[stimulus == number] = row - MIDDLE
        return float(np.vdot(predicted, seen) / np.vdot(predicted, predicted))


def _load(path: Any) -> tuple[float, str]:
    """The gain and what it was learned from; 1 and "" where there is no file."""
    if not as_location(path).exists():
        return 1.0, ""
    with as_location(path).open() as opened, np.load(opened, allow_pickle=False) as file:
        return float(file["gain"]), str(file["made_of"])
