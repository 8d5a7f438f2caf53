"""What a feature space is: images in, rows of numbers out, and, where it has a decoder, back again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from leanrecon.features.plan import Cost
from leanrecon.images import Array, ImageShape
from leanrecon.memory import MemoryBudget
from leanrecon.places import Location
from leanrecon.progress import Progress
from leanrecon.stores.images import Rows

if TYPE_CHECKING:
    from pydantic import BaseModel

    from leanrecon.stores import Store

__all__ = ["Array", "DecodingSpace", "FeatureSpace", "Given", "GuidingSpace", "ImageShape", "Rows"]


class FeatureSpace(Protocol):
    """A way to describe images by float32 rows of a fixed length.

    A row depends on its image, its row number and ``made_of()`` alone: not on the batch it came in, nor on the budget.
    Weights are loaded when they are first needed, so that a space is cheap to make and to plan with.
    """

    name: str
    learns: bool
    """Whether its rows depend on the train images, so that every fold needs its own."""

    library: str | None
    """The large library that stays in the process once the space was used: "sklearn", "torch", "transformers", "diffusers"."""

    @property
    def settings(self) -> "BaseModel": ...

    def dims(self, image_shape: ImageShape) -> int:
        """Length of a row; before ``fit``, the most it can be."""

    def cost(self, image_shape: ImageShape) -> Cost:
        """Memory that encoding takes beyond what the space holds already."""

    def fit_nbytes(self, shape: Sequence[int], chunk_rows: int) -> int:
        """Memory that ``fit`` takes on a store of [rows, height, width, channels]; 0 if nothing is learned."""

    def fit(
        self,
        train: "Store",
        path: Location,
        *,
        rows: Rows | None = None,
        budget: MemoryBudget | None = None,
        progress: Progress | None = None,
        overwrite: bool = False,
    ) -> None:
        """Learn from the train images (those of ``rows``, in a fold) and keep it at ``path``, or take up what is there.

        Raises StoreError if what is there was learned with other settings or from other images, unless ``overwrite``.
        """

    def load(self, path: Location) -> None:
        """Take up what an earlier ``fit`` left at ``path``, without the train images."""

    def made_of(self) -> dict[str, Any]:
        """All that decides the rows, as plain values: settings, contents, seeds; never paths or the device's name."""

    def groups(self) -> dict[str, slice]:
        """Named runs of columns that are alike, such as latents of one resolution; empty where there are none."""

    def release(self) -> None:
        """Drop weights that can be loaded again, so that the next stage has their memory."""

    def encode(self, images: Array, rows: Rows) -> Array:
        """Rows [b, dims] in float32 of images [b, height, width, channels] in uint8 with these row numbers."""


@runtime_checkable
class DecodingSpace(FeatureSpace, Protocol):
    """A feature space that can draw the images back."""

    def decoded_shape(self, image_shape: ImageShape) -> ImageShape:
        """The shape of decoded images, where the encoded ones had ``image_shape``."""

    def decode_made_of(self) -> dict[str, Any]:
        """All that decides decoded images beyond their rows and ``made_of()``."""

    def decode_cost(self, image_shape: ImageShape) -> Cost:
        """Memory that decoding takes beyond what the space holds already."""

    def decode(self, features: Array, rows: Rows, image_shape: ImageShape) -> Array:
        """Images [b, *decoded_shape] in uint8 of rows [b, dims] with these row numbers."""


@runtime_checkable
class GuidingSpace(FeatureSpace, Protocol):
    """A feature space that knows what describes nothing, for a generator to be led away from."""

    def unconditional(self) -> Array:
        """The row [dims] in float32 of an empty text, or of a black image."""


class Given:
    """What all feature spaces that learn nothing from the train images have in common."""

    learns = False

    def fit_nbytes(self, shape: Sequence[int], chunk_rows: int) -> int:
        return 0

    def fit(
        self,
        train: "Store",
        path: Location,
        *,
        rows: Rows | None = None,
        budget: MemoryBudget | None = None,
        progress: Progress | None = None,
        overwrite: bool = False,
    ) -> None:
        """Nothing is learned."""

    def load(self, path: Location) -> None:
        """Nothing was learned."""

    def groups(self) -> dict[str, slice]:
        return {}

    def release(self) -> None:
        """There are no weights."""
