"""What a feature space is: it turns images or captions into rows of numbers, and some turn rows back into images."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import SettingsError
from leanrecon.features.plan import Cost
from leanrecon.images import Array, ImageShape
from leanrecon.places import LocationLike
from leanrecon.weights.needs import Need

if TYPE_CHECKING:
    from leanrecon.stores import Matrix, Store

__all__ = ["Array", "FeatureSpace", "FixedSpace", "ImageShape", "Inputs", "Rows", "make_space"]

Rows = Sequence[int] | Array
"""Row numbers in their store, ascending: noise is drawn from (seed, row), never from a place in a batch."""

Inputs = Literal["images", "captions", "ids"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class FeatureSpace(Protocol):
    """A kind of feature space: it describes images, or their captions, by float32 rows of a fixed length.

    A row depends on its image (or captions), its row number and ``made_of()`` alone: not on the batch it came in, nor
    on the budget. Weights are loaded when they are first needed, so that a space is cheap to make and to plan with.
    A kind derives from ``FixedSpace``, which has defaults for all but ``Settings``, ``dims``, ``cost``, ``encode`` and
    ``made_of``.
    """

    Settings: ClassVar[type[BaseModel]]
    inputs: ClassVar[Inputs]
    """What ``encode`` takes: uint8 images, or lists of captions; "ids" of rows that lie in files, and nothing is encoded."""
    learns: ClassVar[bool]
    """Whether rows depend on the train images, so that every fold fits its own (``fit``, ``load``)."""
    decodes: ClassVar[bool]
    """Whether rows can be turned back into images (``decode``)."""
    conditions: ClassVar[bool]
    """Whether there is an unconditional embedding for classifier-free guidance (``unconditional``)."""
    differentiable: ClassVar[bool]
    """Whether images can be searched through it by gradients (``features.gradients.Differentiable``)."""
    calibrates: ClassVar[bool]
    """Whether ``decode`` is learned from out-of-fold predictions (``calibrate``)."""
    family: ClassVar[str | None]
    """The family of networks that it belongs to, such as "clip": a judge of the same family is not independent of it."""
    library: str | None
    """The large library that stays in the process after use: "sklearn", "torch", "transformers" or "diffusers"."""
    settings: Any
    name: str
    """The space's name in settings, ``[features.NAME]``, and of its folder."""

    def __init__(self, settings: Any, *, name: str = "", seed: int = 0, device: str = "cpu") -> None: ...

    @classmethod
    def needs(cls, settings: Any, prefix: str) -> Iterable[Need]:
        """The published weights that it reads; ``prefix`` is what its settings are called, as ``features.NAME.``."""

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""

    def expect(self, images: int) -> None:
        """Plan for so many train images, where rows are no longer than these allow."""

    def dims(self, image_shape: ImageShape) -> int:
        """The length of a row; before ``fit``, its largest possible length."""

    def cost(self, image_shape: ImageShape) -> Cost:
        """The memory that encoding takes beyond what the space holds already."""

    def made_of(self) -> dict[str, Any]:
        """All that decides the rows, as plain values: settings, contents, seeds; never paths or the device's name."""

    def encode(self, inputs: Any, rows: Rows) -> Array:
        """Float32 rows [b, dims] of images or captions with these row numbers.

        ``inputs`` is uint8 [b, height, width, channels], or for each row a list of captions.
        """

    def examine(self, inputs: Any) -> dict[str, Any]:
        """What is to be known of all captions of a split: counts for the stage's record, and a sentence, ``said``."""

    def groups(self) -> dict[str, slice]:
        """Named runs of columns that belong together, such as latents of one resolution; empty where there are none."""

    def release(self) -> None:
        """Free weights that can be loaded again."""

    # Spaces that learn

    def fit_nbytes(self, shape: Sequence[int], chunk_rows: int) -> int:
        """Memory that ``fit`` takes on images [n, height, width, channels] in chunks of ``chunk_rows``."""

    def fitted_nbytes(self, image_shape: ImageShape) -> int:
        """Bytes of the file that ``fit`` saves."""

    def fit(
        self, images: "Store", path: LocationLike, context: Context | None = None, rows: Rows | None = None
    ) -> None:
        """Learn from train images and save the result at ``path``, or load what is there.

        ``rows`` are the train images of a fold, unique and ascending; None: all. Raises StoreError if ``path`` holds a
        fit of other settings or images, unless ``context.overwrite``.
        """

    def load(self, path: LocationLike) -> None:
        """Load what an earlier ``fit`` saved at ``path``."""

    # Spaces that decode

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        """The shape of decoded images, where the encoded ones had ``image_shape``."""

    def decode_made_of(self) -> dict[str, Any]:
        """All that decides decoded images beyond their rows and ``made_of()``; of a calibrated space, its calibration."""

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        """The memory that decoding takes beyond what the space holds already."""

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        """Uint8 images [b, *decoded_shape] of float32 rows [b, dims] with these row numbers."""

    # Spaces with an unconditional embedding

    def unconditional(self) -> Array:
        """The row [dims] in float32 of an empty caption, or of a black image."""

    # Spaces that calibrate

    def calibrate_nbytes(self, shape: Sequence[int], image_shape: ImageShape) -> int:
        """Memory that ``calibrate`` takes on predictions [n, dims]."""

    def calibrate(
        self, predictions: "Matrix", images: "Store", stimulus: Rows, path: LocationLike, context: Context | None = None
    ) -> None:
        """Learn to decode from predicted features of train rows, and save the result at ``path``, or load what is there.

        ``predictions`` [n, dims] are out of fold: no row was in the training set of the regression that predicted it.
        Row i shows image ``stimulus[i]`` of the store. Raises StoreError as ``fit`` does.
        """

    def load_calibration(self, path: LocationLike) -> None:
        """Load what an earlier ``calibrate`` saved at ``path``."""

    def learned(self) -> dict[str, Any]:
        """What the study's record keeps of a calibration, as plain values."""


class FixedSpace:
    """The base of feature spaces: defaults for one that learns nothing and has no decoder.

    A subclass gives ``Settings``, ``dims``, ``cost``, ``encode`` and ``made_of``; for an optional part it sets the flag
    (``learns``, ``decodes``, ``conditions``, ``calibrates``) and overrides the methods.
    """

    Settings: ClassVar[type[BaseModel]]
    inputs: ClassVar[Inputs] = "images"
    learns: ClassVar[bool] = False
    decodes: ClassVar[bool] = False
    conditions: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False
    family: ClassVar[str | None] = None
    library: str | None = None

    def __init__(self, settings: Any, *, name: str = "", seed: int = 0, device: str = "cpu") -> None:
        self.settings = settings
        self.name = name or str(settings.kind)
        self.seed = seed
        self.device = device

    @classmethod
    def needs(cls, settings: Any, prefix: str) -> Iterable[Need]:
        return ()

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        return ()

    def expect(self, images: int) -> None:
        return None

    def examine(self, inputs: Any) -> dict[str, Any]:
        return {}

    def groups(self) -> dict[str, slice]:
        return {}

    def release(self) -> None:
        """There are no weights."""

    def fit_nbytes(self, shape: Sequence[int], chunk_rows: int) -> int:
        return 0

    def fitted_nbytes(self, image_shape: ImageShape) -> int:
        return 0

    def fit(
        self, images: "Store", path: LocationLike, context: Context | None = None, rows: Rows | None = None
    ) -> None:
        """Nothing is learned."""

    def load(self, path: LocationLike) -> None:
        """Nothing was learned."""

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        raise self._lacks("a decoder")

    def decode_made_of(self) -> dict[str, Any]:
        return {}

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        raise self._lacks("a decoder")

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        raise self._lacks("a decoder")

    def unconditional(self) -> Array:
        raise self._lacks("an unconditional embedding")

    def calibrate_nbytes(self, shape: Sequence[int], image_shape: ImageShape) -> int:
        return 0

    def calibrate(
        self, predictions: "Matrix", images: "Store", stimulus: Rows, path: LocationLike, context: Context | None = None
    ) -> None:
        """Nothing is calibrated."""

    def load_calibration(self, path: LocationLike) -> None:
        """Nothing was calibrated."""

    def learned(self) -> dict[str, Any]:
        return {}

    def _lacks(self, part: str) -> SettingsError:
        return SettingsError(f"the feature space {self.name} does not have {part}")


def make_space(
    name: str, settings: BaseModel | Mapping[str, Any], *, seed: int = 0, device: str = "cpu"
) -> FeatureSpace:
    """Make the feature space of a table ``[features.NAME]``, whose ``kind`` is NAME unless it says otherwise.

    ``seed`` is for spaces that draw noise, and part of what their rows are made of; ``device`` is where models run.
    No weights are loaded. Raises SettingsError with every problem of a table.
    """
    if not _NAME.fullmatch(name):  # it names a folder
        raise SettingsError(f"features.{name} is not a name", expected="letters, digits, _, - and .")
    if isinstance(settings, Mapping):
        settings = kinds.settings_of("features", settings, f"features.{name}.", default=name)
    space: FeatureSpace = kinds.kind_of("features", settings)(settings, name=name, seed=seed, device=device)
    return space
