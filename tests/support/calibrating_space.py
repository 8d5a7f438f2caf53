"""A feature space of pixels that learns how much predictions shrink, and undoes that when it decodes."""

from typing import Any, Literal

import numpy as np

from leanrecon.context import Context
from leanrecon.errors import StoreError
from leanrecon.features.pixels import Pixels, PixelsSettings
from leanrecon.images import to_pixels
from leanrecon.places.files import read_json, write_json
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
        predicted = np.asarray(predictions[0 : shape[0]]) - MIDDLE
        made_of = fingerprint(
            {"images": images.content, "stimulus": list(map(int, stimulus)), "predictions": predicted.tolist()}
        )
        known = read_json(path)
        if known is None or (known["made_of"] != made_of and context and context.overwrite):
            seen = np.empty_like(predicted)
            for place, block in ImageReader(images).runs(np.arange(images.rows)):
                for number, image in zip(range(place.start, place.stop), block, strict=True):
                    row = np.empty(shape[1], np.float32)
                    to_pixels(image, self.decoded_shape(image_shape), row)
                    seen[np.asarray(stimulus) == number] = row - MIDDLE
            gain = float(np.vdot(predicted, seen) / np.vdot(predicted, predicted))
            write_json(path, {"made_of": made_of, "gain": gain})
        elif known["made_of"] != made_of:
            raise StoreError(f"{path} holds another calibration", todo="run with --overwrite")
        self.load_calibration(path)

    def load_calibration(self, path: Any) -> None:
        self.gain = float(read_json(path)["gain"])  # type: ignore[index]
