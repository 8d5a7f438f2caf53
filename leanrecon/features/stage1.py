"""First images: predicted feature rows drawn by their space's own decoder, as PNG files."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from leanrecon.errors import SettingsError
from leanrecon.features.extract import decode_rows
from leanrecon.features.space import DecodingSpace, FeatureSpace, ImageShape
from leanrecon.images import fitted_into, resize
from leanrecon.memory import MemoryBudget
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures

Side = Annotated[int, Field(strict=True, ge=1, le=8192)]


class StageOneSettings(BaseModel):
    """``[stage1]``"""

    model_config = ConfigDict(extra="forbid")

    space: str | None = None
    """The feature space that first images are decoded from; by default the first one with a decoder."""
    size: Side | tuple[Side, Side] | Literal["stimuli", "decoded"] = "stimuli"
    """The longer side of first images in pixels, or their [height, width]; "stimuli": as large as the stimuli."""


def decoding_space(spaces: Sequence[FeatureSpace], wanted: str | None) -> DecodingSpace:
    """The feature space that first images come from; raises SettingsError where it has no decoder."""
    for space in spaces:
        if isinstance(space, DecodingSpace) and wanted in (None, space.name):
            return space
    raise SettingsError(
        f"no images can be decoded from {wanted or ', '.join(space.name for space in spaces)}",
        expected="a feature space with a decoder, such as pca",
        todo="add one, as in [features.pca], or stop before with --until regression",
    )


def picture_shape(space: DecodingSpace, size: int | tuple[int, int] | str, images: ImageShape) -> ImageShape:
    """The shape of first images, where the stimuli have the shape ``images``."""
    decoded = space.decoded_shape(images)
    if size == "decoded":
        return decoded
    if size == "stimuli":
        return (*images[:2], decoded[2])
    return fitted_into(decoded, size) if isinstance(size, int) else (int(size[0]), int(size[1]), decoded[2])


def draw(
    space: DecodingSpace,
    features: Store,
    pictures: Pictures,
    images: ImageShape,
    *,
    rows: Sequence[int] | None = None,
    budget: MemoryBudget,
    progress: Progress,
    label: str,
) -> None:
    """Decode rows of a store (all, or ``rows``) into the images that a folder lacks, and complete it.

    ``images`` is the shape of the stimuli. Images are enlarged by Pillow's BICUBIC, as Brain-Diffuser does.
    """
    missing = pictures.missing()
    at = {row if rows is None else rows[row]: row for row in missing}
    with progress.task(label, total=pictures.rows, unit="images", done=pictures.rows - len(missing)) as advance:
        if missing:
            for row, image in decode_rows(space, features, images, rows=sorted(at), budget=budget):
                pictures.write(at[row], resize(image, pictures.shape, bicubic=True))
                advance(1)
    pictures.finish()
