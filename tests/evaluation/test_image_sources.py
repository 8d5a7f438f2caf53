"""Baselines without a brain, and the train image nearest to a prediction, against plain NumPy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.evaluation import plan
from leanrecon.evaluation.image_sources import (
    ConstantImage,
    EveryFold,
    Reconstructions,
    StoredImages,
    mean_image,
    nearest_rows,
    random_images,
)
from leanrecon.evaluation.source_from import source_from
from leanrecon.stores import RowSubset, Store, as_matrix
from leanrecon.stores.pictures import Pictures

Array = np.ndarray[Any, Any]


@pytest.fixture
def store_of(tmp_path: Path) -> Callable[..., Store]:
    def write(rows: Array, name: str = "rows", *, chunk: str | int = "8MB") -> Store:
        store = Store.create(tmp_path / f"{name}.zarr", rows.shape, rows.dtype, made_of={"test": name}, chunk=chunk)
        for i in range(store.row_groups):
            store.write_rows(i, rows[store.group_rows(i).start : store.group_rows(i).stop])
        store.finish()
        return store

    return write


def images(n: int, height: int = 6, width: int = 5, channels: int = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), np.uint8)


def nearest(predicted: Array, train: Array) -> Array:
    """By NumPy's correlation of every pair; a constant row correlates with nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(predicted.astype(np.float64), train.astype(np.float64))[: len(predicted), len(predicted) :]
    r[:, train.min(axis=1) == train.max(axis=1)] = -np.inf
    found: Array = np.argmax(r, axis=1)
    return found


@pytest.mark.parametrize("chunk", ["300B", "8MB"])
@pytest.mark.parametrize("rows", [range(40), [0], [39], [3, 4, 5, 17, 38]])
def test_the_mean_image_is_the_mean_of_the_train_rows_alone(
    store_of: Callable[..., Store], rows: Any, chunk: str
) -> None:
    pixels = images(40)
    expected = np.rint(pixels[list(rows)].astype(np.float64).mean(axis=0))
    np.testing.assert_array_equal(mean_image(store_of(pixels, chunk=chunk), list(rows)), expected.astype(np.uint8))


def test_the_mean_of_white_images_is_white(store_of: Callable[..., Store]) -> None:
    assert (mean_image(store_of(np.full((300, 2, 2, 1), 255, np.uint8)), range(300)) == 255).all()


def test_an_image_shown_twice_counts_twice_in_the_mean(store_of: Callable[..., Store]) -> None:
    pixels, rows = images(40), [7, 3, 3, 39, 7, 7]
    expected = np.rint(pixels[rows].astype(np.float64).mean(axis=0))
    np.testing.assert_array_equal(mean_image(store_of(pixels, chunk="300B"), rows), expected.astype(np.uint8))


def test_random_images_are_train_rows_and_the_same_every_time() -> None:
    train = np.array([2, 3, 5, 7, 11, 13])
    drawn = random_images(train, 500, seed=4)
    assert set(drawn.tolist()) == set(train.tolist())
    np.testing.assert_array_equal(drawn, random_images(train, 500, seed=4))
    assert not np.array_equal(drawn, random_images(train, 500, seed=5))


@pytest.mark.parametrize("chunk", ["1kB", "8MB"])
@pytest.mark.parametrize("at_once", [1, 4 * 300 * 7, 64_000_000])
@pytest.mark.parametrize(("n", "m", "d"), [(300, 33, 20), (600, 9, 2100), (5, 4, 3)])
def test_the_nearest_train_row_correlates_best(
    store_of: Callable[..., Store], n: int, m: int, d: int, at_once: int, chunk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "CORRELATED", at_once)
    rng = np.random.default_rng(n)
    train = (rng.random((n, d)) + rng.normal(0, 5, d)).astype(np.float32)
    predicted = train[rng.integers(0, n, m)] + rng.normal(0, 0.3, (m, d)).astype(np.float32)
    found = nearest_rows(as_matrix(store_of(predicted, "p", chunk=chunk)), as_matrix(store_of(train, "t", chunk=chunk)))
    np.testing.assert_array_equal(found, nearest(predicted, train))


def test_the_nearest_row_of_a_fold_is_counted_among_its_train_rows(store_of: Callable[..., Store]) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((50, 12)).astype(np.float32)
    train = [k for k in range(50) if k % 3]
    predicted = features[::3] + rng.normal(0, 0.1, (17, 12)).astype(np.float32)
    store = store_of(features, chunk="200B")
    found = nearest_rows(as_matrix(predicted), RowSubset(as_matrix(store), train))
    np.testing.assert_array_equal(found, nearest(predicted, features[train]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("d", [12, 768, 3000])
def test_a_constant_train_row_is_never_the_nearest(d: int, scale: float) -> None:
    """A black image among the stimuli, in a feature space of pixels."""
    rng = np.random.default_rng(d)
    train = rng.random((40, d)).astype(np.float32)
    train[::4] = np.array([0, 1, 1 / 3, 0.7, 0.1, 0.2, 0.55, 0.9, 0.31, 0.77], np.float32)[:, None]
    predicted = train[1::4] + rng.normal(0, 0.5, (10, d)).astype(np.float32)
    train, predicted = train * np.float32(scale), predicted * np.float32(scale)
    np.testing.assert_array_equal(nearest_rows(as_matrix(predicted), as_matrix(train)), nearest(predicted, train))


def test_images_of_a_store_are_those_of_the_chosen_rows(store_of: Callable[..., Store]) -> None:
    pixels = images(30)
    rows = [29, 0, 3, 3, 17]
    chosen = StoredImages(store_of(pixels, chunk="400B"), rows)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(chosen.read(place), pixels[row])
    np.testing.assert_array_equal(chosen.read(0), pixels[29])  # and back again


def test_folds_number_images_by_their_store_and_place(store_of: Callable[..., Store]) -> None:
    one, two = (store_of(images(9, seed=k), name=f"s{k}") for k in range(2))
    every = EveryFold([(one, np.array([4, 1])), (two, np.array([4])), (one, np.array([1, 8]))])
    numbers = every.numbers(5).tolist()
    assert numbers[1] == numbers[3]
    assert len(set(numbers)) == 4
    np.testing.assert_array_equal(every.read(2), images(9, seed=1)[4])
    np.testing.assert_array_equal(every.read(4), images(9)[8])
    assert every.content != EveryFold([(one, np.array([4, 1]))]).content


def test_reconstructions_are_enlarged_as_first_images_are(tmp_path: Path) -> None:
    from PIL import Image

    pixels = images(2, 4, 6, 3)
    pictures = Pictures.create(tmp_path / "stage1", 2, (4, 6, 3), made_of={})
    for row, image in enumerate(pixels):
        pictures.write(row, image)
    np.testing.assert_array_equal(Reconstructions(pictures).read(1), pixels[1])
    expected = np.asarray(Image.fromarray(pixels[1]).resize((15, 10), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Reconstructions(pictures, (10, 15, 3)).read(1), expected)


def test_one_image_serves_all_rows() -> None:
    image = images(1)[0]
    np.testing.assert_array_equal(ConstantImage(image).read(0), ConstantImage(image).read(99))


def test_sources_of_stores_and_folds_come_back_from_plain_values(store_of: Callable[..., Store]) -> None:
    first, second = images(9), images(7, seed=1)
    stores = store_of(first, "first"), store_of(second, "second")
    folds = EveryFold([(stores[0], np.array([4, 1])), (stores[1], np.array([6])), (stores[0], np.array([8]))])
    expected = [first[4], first[1], second[6], first[8]]
    for source, shown in ((StoredImages(stores[1], np.array([5, 2])), [second[5], second[2]]), (folds, expected)):
        again = source_from(json.loads(json.dumps(source.plain())))
        np.testing.assert_array_equal([again.read(row) for row in range(len(shown))], shown)
        np.testing.assert_array_equal(again.numbers(len(shown)), source.numbers(len(shown)))
        assert again.content == source.content
