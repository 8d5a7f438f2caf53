import numpy as np
import pytest
from PIL import Image

from leanrecon.errors import InputError
from leanrecon.features.space import make_space


def test_rows_are_pixels_divided_by_255_in_c_order(smooth_images):
    images = smooth_images(5, 6, 8)
    rows = make_space("pixels", {}).encode(images, range(5))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, images.reshape(5, -1).astype(np.float32) / np.float32(255))


def test_every_level_comes_back_as_it_was(smooth_images):
    space = make_space("pixels", {})
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(space.decode(space.encode(images, range(1)), range(1), (16, 16, 1)), images)


def test_what_lies_outside_of_black_and_white_is_clipped_and_the_rest_rounded():
    space = make_space("pixels", {})
    row = np.float32([[-3, 1.4, 0.5, 100.4 / 255]])
    assert space.decode(row, range(1), (2, 2, 1)).ravel().tolist() == [0, 255, 128, 100]


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        (6, (12, 12, 3), (6, 6, 3)),
        (6, (12, 8, 1), (6, 4, 1)),  # the longer side, the ratio kept
        (24, (12, 12, 1), (24, 24, 1)),
        ([6, 10], (12, 12, 3), (6, 10, 3)),
        ("original", (12, 8, 3), (12, 8, 3)),
        (2, (100, 1, 1), (2, 1, 1)),
    ],
)
def test_images_are_resized_as_pillow_does(smooth_images, size, shape, expected):
    images = smooth_images(2, *shape)
    space = make_space("pixels", {"size": size})
    assert space.decoded_shape(shape) == expected
    assert space.dims(shape) == np.prod(expected)
    decoded = space.decode(space.encode(images, range(2)), range(2), shape)
    for image, found in zip(images, decoded, strict=True):
        picture = Image.fromarray(image.squeeze(-1) if shape[2] == 1 else image)
        reference = picture.resize((expected[1], expected[0]), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(reference).reshape(expected))


def test_rows_of_another_length_are_refused():
    with pytest.raises(InputError, match="rows of 5 numbers"):
        make_space("pixels", {}).decode(np.zeros((1, 5), np.float32), range(1), (2, 2, 1))
