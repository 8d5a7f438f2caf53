"""What a calibration of first images is: it learns from first images of train rows, predicted without their own images.

Such images are as far from the true ones as first images of test rows are. One learned on fitted images would not be.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leanrecon.context import Context
from leanrecon.images import Array, ImageShape
from leanrecon.weights.checkpoint import Folder
from leanrecon.weights.tensors import TensorFile

if TYPE_CHECKING:
    from leanrecon.stores.store import Store

FORMAT = 1
"""Of the learned file, and of the arithmetic that leads to it."""

FILE = "calibration"

WHILE_LEARNING = ("best", "checkpoint")
"""Files of a training that are removed when it is done."""

Contrast = Literal["mse", "match"]

Model = Callable[[Array], Array]
"""From a first image, float32 [height, width, channels] in 0 to 1, to its calibrated one."""


class CalibrationSettings(BaseModel):
    """Keys that every calibration has."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    contrast: Contrast = "mse"
    """Contrast of calibrated images: that of the least squared error, which is flat, or stretched to match true ones."""
    validation: Annotated[float, Field(gt=0, le=0.5)] = 0.15
    """Share of the train images that are held out, to see whether calibration lowers the error at all."""


@dataclass(frozen=True)
class CalibrationShapes:
    """Shapes of one calibration, known before anything is read."""

    rows: int
    """Train rows: first images to learn from."""
    images: int
    """Distinct train images."""
    image: ImageShape
    """Shape of decoded images."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration will hold and write."""

    work: int
    """Bytes of memory at the peak of learning, beside what the process holds."""
    applying: int
    """Bytes of memory that calibrating an image takes, with what was learned."""
    summary: str
    disk: int = 0
    """Bytes of what was learned."""
    scratch: int = 0
    """Bytes of checkpoints while it learns."""
    held: int = 0
    """Bytes of libraries that stay in the process."""


@dataclass(frozen=True)
class CalibrationData:
    """First images of the train rows, and the true images beside them."""

    first: "Store"
    """uint8 [n, height, width, channels], predicted out of fold"""
    true: "Store"
    """uint8 of the same shape: row i holds the image that row i shows"""
    stimulus: Array
    """int [n], the number of the image of each row: rows of an image are never torn apart"""


class Calibration(Protocol):
    """A kind of calibration of first images.

    It is made from its settings, and cheap until it learns. ``LearnedCalibration`` has all but the model.
    """

    Settings: ClassVar[type[BaseModel]]
    calibrates: ClassVar[bool]
    """Whether it changes first images at all: it needs predictions of train rows then."""
    least: ClassVar[int]
    """The fewest distinct train images that it can use; with fewer, first images are left as they are."""

    def __init__(self, settings: Any, *, seed: int = 0, device: str = "cpu") -> None: ...

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    def made_of(self) -> dict[str, Any]:
        """All settings that decide what is learned, and the seed, as plain values."""

    def plan(self, shapes: CalibrationShapes) -> CalibrationPlan:
        """Plan the learning: arithmetic only."""

    def find(self, folder: Path, made_of: Mapping[str, Any], context: Context) -> bool:
        """Load what was learned in ``folder`` from data of this description; whether it was there."""

    def learn(self, data: CalibrationData, folder: Path, made_of: Mapping[str, Any], context: Context) -> None:
        """Learn from train rows and keep it in ``folder``; continues what an earlier run began there."""

    def record(self) -> dict[str, Any]:
        """What run.json keeps of what was learned; ``used`` says whether first images are changed."""

    def apply(self, image: Array) -> Array:
        """The calibrated image of a first image, both uint8 [height, width, channels]."""


class LearnedCalibration:
    """The base of calibrations: it keeps what was learned, and asks held-out train images whether it helps.

    A subclass gives ``Settings``, ``plan``, ``_fit`` and ``_model``. ``least`` is the fewest distinct train images.
    """

    Settings: ClassVar[type[BaseModel]]
    calibrates: ClassVar[bool] = True
    least: ClassVar[int] = 20
    refits: ClassVar[bool] = True
    """Whether it is fitted again to all train images, unless it is worse for held-out ones by more than chance.

    That is by more than two standard errors of the difference. What does not fit again has to be better for them.
    """

    def __init__(self, settings: Any, *, seed: int = 0, device: str = "cpu") -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self._record: dict[str, Any] = {}
        self._apply: Model | None = None

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        yield (
            f"First images were calibrated ({settings.kind}): what maps first images of train rows, predicted without "
            "their own image, to true images was applied to test rows, and to shuffled betas alike. Upper bounds are left "
            "as they are."
        )
        if settings.contrast == "match":
            yield (
                'Calibrated images were stretched to the contrast of true images (contrast = "match"), which raises their '
                "squared error."
            )

    def made_of(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "seed": self.seed,
            **self.settings.model_dump(mode="json", exclude={"checkpoint_minutes"}),
        }

    def plan(self, shapes: CalibrationShapes) -> CalibrationPlan:
        raise NotImplementedError

    def _fit(self, data: CalibrationData, rows: Array, held: Array, folder: Folder, context: Context) -> dict[str, Any]:
        """Arrays and plain values learned from some rows; ``held`` rows may only stop a training early."""
        raise NotImplementedError

    def _model(self, learned: Mapping[str, Any]) -> Model:
        """What was learned as a function on images."""
        raise NotImplementedError

    def find(self, folder: Path, made_of: Mapping[str, Any], context: Context) -> bool:
        files = self._folder(folder, made_of, context)
        known = files.find(FILE)
        if known is not None:
            files.forget(*WHILE_LEARNING)
            self._take(known)
        return known is not None

    def learn(self, data: CalibrationData, folder: Path, made_of: Mapping[str, Any], context: Context) -> None:
        images = np.unique(data.stimulus)
        height, width, channels = data.first.shape[1:]
        plan = self.plan(CalibrationShapes(data.first.rows, len(images), (height, width, channels)))
        context.refreshed().require(context.label, plan.work)
        files = self._folder(folder, made_of, context)
        held_images = held_out_images(images, self.settings.validation, self.seed)
        is_held = np.isin(data.stimulus, held_images)
        rows, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
        learned = self._fit(data, rows, held, files, context)
        before, after, error, gain = judged(self._model(learned), data, held)
        used = after < before or (self.refits and after - before < 2 * error)
        record = {
            "rows": data.first.rows, "images": len(images), "held_out_images": len(held_images), "used": used,
            "held_out_mse": {"before": before, "after": after}, "gain": gain,
        }  # fmt: skip
        if record["used"] and self.refits:
            learned = self._fit(data, np.arange(data.first.rows), held[:0], files, context)
        arrays = {name: value for name, value in learned.items() if isinstance(value, np.ndarray)}
        record |= {name: value for name, value in learned.items() if name not in arrays}
        files.write(FILE, arrays, result=record)
        files.forget(*WHILE_LEARNING)
        known = files.find(FILE)
        assert known is not None, "it was written a moment ago"
        self._take(known)

    def record(self) -> dict[str, Any]:
        return self._record

    def apply(self, image: Array) -> Array:
        if self._apply is None:
            return image
        calibrated = self._apply(image.astype(np.float32) / np.float32(255))
        if self.settings.contrast == "match":
            mean = calibrated.mean()
            calibrated = mean + np.float32(self._record["gain"]) * (calibrated - mean)
        result: Array = np.rint(np.clip(calibrated, 0, 1) * 255).astype(np.uint8)
        return result

    def _folder(self, folder: Path, made_of: Mapping[str, Any], context: Context) -> Folder:
        return Folder(folder, {**made_of, **self.made_of()}, overwrite=context.overwrite)

    def _take(self, file: TensorFile) -> None:
        self._record = dict(file.record["result"])
        learned = {name: file.read(name) for name in file.names} | self._record
        self._apply = self._model(learned) if self._record["used"] else None


def held_out_images(images: Array, share: float, seed: int) -> Array:
    """The images that are held out, by their numbers: at least two, at most 512, drawn from the seed."""
    count = min(max(round(share * len(images)), 2), 512)
    return np.sort(np.random.default_rng([seed, 30]).permutation(images)[:count])


def pairs(data: CalibrationData, rows: Array) -> Iterable[tuple[int, Array, Array]]:
    """Yield ``(row, first, true)`` of some rows, ascending: images as float32 [height, width, channels] from 0 to 1."""
    from leanrecon.stores.images import ImageReader

    first, true = ImageReader(data.first), ImageReader(data.true)
    for (place, some), (_, others) in zip(first.runs(rows), true.runs(rows), strict=True):
        for row, image, shown in zip(rows[place].tolist(), some, others, strict=True):
            yield row, image.astype(np.float32) / np.float32(255), shown.astype(np.float32) / np.float32(255)


def judged(model: Model, data: CalibrationData, held: Array) -> tuple[float, float, float, float]:
    """Mean squared errors of held-out rows before and after calibration, and the standard error of their difference.

    Last comes the gain that matches contrast: the ratio of the deviations of true and calibrated pixels from the mean of
    their image.
    """
    errors, spread, true_spread = np.empty((2, len(held))), 0.0, 0.0
    for k, (_, first, true) in enumerate(pairs(data, held)):
        calibrated = np.clip(model(first), 0, 1)
        for row, image in zip(errors, (first, calibrated), strict=True):
            row[k] = np.mean((image - true) ** 2, dtype=np.float64)
        spread += float(np.var(calibrated, dtype=np.float64))
        true_spread += float(np.var(true, dtype=np.float64))
    before, after = errors.mean(axis=1).tolist()
    error = float((errors[1] - errors[0]).std(ddof=1) / len(held) ** 0.5)
    return before, after, error, (true_spread / spread) ** 0.5 if spread > 0 else 1.0
