"""Patches of several scales: what they hold, and the images that they are put together to."""

import numpy as np
import pytest

from leanrecon.errors import InputError, SettingsError
from leanrecon.features.patches import coverage
from leanrecon.features.space import make_space

SETS = [
    [[1, 1]],
    [[1, 1], [1, 2], [2, 1], [2, 2]],
    [[1, 1], [1, 3], [3, 1], [3, 3]],
    [[1, 1], [1, 5], [5, 1], [5, 5]],
    [[2, 2]],
    [[10, 7]],
]


def patches(scales=None, **settings):
    return make_space("patches", settings | ({} if scales is None else {"scales": scales}))


def images(n=12, height=10, width=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(np.array([0, 255], np.uint8), (n, height, width, 1))


@pytest.mark.parametrize("scales", SETS)
@pytest.mark.parametrize("measure", ["mean", "count"])
def test_a_row_holds_every_patch_of_every_scale(scales, measure):
    shown = images()
    rows = patches(scales, measure=measure).encode(shown, range(12))
    expected = [
        [
            (image[y : y + h, x : x + w, 0] / 255).mean() * (h * w if measure == "count" else 1)
            for h, w in scales
            for y in range(10 - h + 1)
            for x in range(7 - w + 1)
        ]
        for image in shown
    ]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [(1, 1), (1, 2), (2, 2), (5, 5), (4, 7), (10, 7)])
def test_coverage_counts_the_patches_over_each_pixel(scale):
    counted = np.zeros((10, 7))
    for y in range(10 - scale[0] + 1):
        for x in range(7 - scale[1] + 1):
            counted[y : y + scale[0], x : x + scale[1]] += 1
    np.testing.assert_array_equal(coverage((10, 7), scale), counted)


@pytest.mark.parametrize("scales", SETS)
@pytest.mark.parametrize("measure", ["mean", "count"])
def test_an_even_image_comes_back_to_its_borders(scales, measure):
    shown = np.stack([np.full((10, 7, 1), level, np.uint8) for level in (0, 255)])
    space = patches(scales, measure=measure, combine="equal")
    np.testing.assert_array_equal(space.decode(space.encode(shown, range(2)), range(2), (10, 7, 1)), shown)


def test_equal_weights_are_those_of_nilearns_example():
    """Averages over covering patches, a quarter of each scale; the border counts whole (its plot_miyawaki example)."""
    shown = images(5, 10, 10)
    space = patches(combine="equal")
    rows = space.encode(shown, range(5)).astype(float)
    one, wide, tall, big = (rows[:, part] for part in space.slices((10, 10)))

    def across(a):  # [n, rows, 9] to [n, rows, 10]: means of neighbours, whole at the ends
        left, right = np.pad(a, ((0, 0), (0, 0), (0, 1))), np.pad(a, ((0, 0), (0, 0), (1, 0)))
        share = np.r_[1, np.full(8, 0.5), 1]
        return (left + right) * share

    def down(a):
        return across(a.transpose(0, 2, 1)).transpose(0, 2, 1)

    expected = one.reshape(-1, 10, 10) + across(wide.reshape(-1, 10, 9)) + down(tall.reshape(-1, 9, 10))
    expected = (expected + across(down(big.reshape(-1, 9, 9)))) / 4
    found = space.decode(rows.astype(np.float32), range(5), (10, 10, 1))
    np.testing.assert_allclose(found[..., 0], np.rint(expected * 255), atol=1)


def test_images_are_averaged_to_cells_first():
    fine = np.random.default_rng(0).integers(0, 256, (3, 20, 21, 1), np.uint8)
    coarse = fine.reshape(3, 10, 2, 7, 3).mean(axis=(2, 4)) / 255
    space = patches([[1, 1], [2, 3]], grid=[10, 7], combine="equal")
    assert space.decoded_shape((20, 21, 1)) == (10, 7, 1)
    rows = space.encode(fine, range(3))
    np.testing.assert_allclose(rows[:, :70], coarse.reshape(3, -1), atol=1e-6)
    np.testing.assert_allclose(rows[:, 70], coarse[:, :2, :3].mean(axis=(1, 2)), atol=1e-6)


def test_colour_counts_as_grey():
    grey = images(2)
    np.testing.assert_allclose(
        patches().encode(np.repeat(grey, 3, axis=3), range(2)), patches().encode(grey, range(2)), atol=1e-6
    )


def test_scales_are_named_groups():
    space = patches()
    assert space.dims((10, 10, 1)) == 361
    assert {name: part.stop - part.start for name, part in space.groups().items()} == {
        "1 × 1": 100,
        "1 × 2": 90,
        "2 × 1": 90,
        "2 × 2": 81,
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"scales": [[1, 1], [11, 1]]}, "patches of 11 × 1 are larger than the image of 10 × 7 cells"),
        ({"grid": [5, 2]}, "images of 10 × 7 pixels can't be cut into 5 × 2 cells"),
        ({"scales": []}, "features.patches.scales"),
        ({"scales": [[1, 0]]}, "features.patches.scales"),
        ({"scales": [[1, 2], [1, 2]]}, r"the scale \[1, 2\] is named twice"),
        ({"combine": "best"}, "features.patches.combine"),
    ],
)
def test_scales_that_do_not_fit_are_refused(settings, found):
    with pytest.raises(SettingsError, match=found):
        make_space("patches", settings).dims((10, 7, 1))


def test_lit_cells_of_grey_images_are_not_counted():
    shown = images(3)
    shown[1, 2, 2] = 100
    with pytest.raises(InputError, match="image 8 is not black and white"):
        patches(measure="count").encode(shown, [7, 8, 9])


def test_rows_of_another_length_are_refused():
    with pytest.raises(InputError, match="do not hold the patches"):
        patches().decode(np.zeros((2, 3), np.float32), range(2), (10, 7, 1))
