"""First images: predicted features, decoded by their feature space into PNG files."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from leanrecon.context import Context
from leanrecon.errors import SettingsError
from leanrecon.features.space import FeatureSpace, ImageShape
from leanrecon.images import Array, fitted_into, resize

if TYPE_CHECKING:
    from leanrecon.stores import Store
    from leanrecon.stores.pictures import Pictures


def decoding_space(spaces: Mapping[str, FeatureSpace], name: str | None) -> FeatureSpace:
    """The feature space of this name, or the first one that decodes; raises SettingsError if it has no decoder."""
    for space in spaces.values():
        if space.decodes and name in (None, space.name):
            return space
    raise SettingsError(
        f"images can't be decoded from {name or ', '.join(spaces)}",
        expected="a feature space with a decoder, such as pca",
        todo="add one, as in [features.pca], or stop before this stage with --until regression",
    )


def picture_shape(space: FeatureSpace, size: int | tuple[int, int] | str, images: ImageShape) -> ImageShape:
    """The shape of first images, where the stimuli have the shape ``images``."""
    decoded = space.decoded_shape(images)
    if size == "decoded":
        return decoded
    if size == "stimuli":
        return (*images[:2], decoded[2])
    return fitted_into(decoded, size) if isinstance(size, int) else (int(size[0]), int(size[1]), decoded[2])


def draw(
    space: FeatureSpace,
    features: "Store",
    pictures: "Pictures",
    images: ImageShape,
    context: Context,
    *,
    rows: Sequence[int] | None = None,
    calibrated: Callable[[Array], Array] | None = None,
) -> None:
    """Decode rows of a store into the pictures that are missing, and finish ``pictures``.

    Picture i shows row ``rows[i]`` of ``features``, by default row i. ``images`` is the shape of the stimuli. Decoded
    images are ``calibrated``, and resized by Pillow's BICUBIC, as in Brain-Diffuser. Raises BudgetError before any work.
    """
    from leanrecon.features.extract import decode_rows

    missing = pictures.missing()
    pictures_of: dict[int, list[int]] = {}
    for picture in missing:
        pictures_of.setdefault(picture if rows is None else int(rows[picture]), []).append(picture)
    done = pictures.rows - len(missing)
    with context.progress.task(context.label, total=pictures.rows, unit="images", done=done) as advance:
        if missing:
            for row, image in decode_rows(space, features, images, context, rows=sorted(pictures_of)):
                mended = image if calibrated is None else calibrated(image)
                for picture in pictures_of[row]:
                    pictures.write(picture, resize(mended, pictures.shape, bicubic=True))
                advance(len(pictures_of[row]))
    pictures.finish()
