from pathlib import Path

import numpy as np
import pytest
from sklearn import decomposition

from leanrecon.context import Context
from leanrecon.errors import BudgetError, InputError, StoreError
from leanrecon.features.space import make_space
from leanrecon.progress import Progress
from leanrecon.stores import Store


@pytest.fixture
def fitted(store_of, smooth_images, tmp_path):
    """A space that learned 20 components from 700 images, and those images."""
    images = smooth_images(700)
    space = make_space("pca", {"components": 20})
    space.fit(store_of(images), tmp_path / "fitted.npz")
    return space, images


def test_one_batch_gives_the_components_of_a_full_decomposition(store_of, smooth_images, tmp_path):
    images = smooth_images(200)
    space = make_space("pca", {"components": 30})
    space.fit(store_of(images), tmp_path / "fitted.npz")
    reference = decomposition.PCA(30, svd_solver="full").fit(images.reshape(200, -1) / 255)
    np.testing.assert_allclose(space.fitted.mean, reference.mean_, rtol=1e-5)
    np.testing.assert_allclose(space.fitted.explained, reference.explained_variance_ratio_, rtol=1e-6)
    alike = np.abs(space.fitted.components @ reference.components_.T)
    np.testing.assert_allclose(alike, np.eye(30), atol=1e-5)  # but for the sign


def test_many_batches_lose_little_against_a_full_decomposition(fitted):
    space, images = fitted
    pixels = images.reshape(700, -1) / 255
    reference = decomposition.PCA(20, svd_solver="full").fit(pixels)
    best = np.square(pixels - reference.inverse_transform(reference.transform(pixels))).sum()
    rows = space.encode(images, range(700))
    found = np.square(pixels - (rows @ space.fitted.components + space.fitted.mean)).sum()
    assert best <= found <= 1.02 * best


def test_rows_are_coordinates_along_the_components(fitted):
    space, images = fitted
    mean, components = space.fitted.mean.astype(np.float64), space.fitted.components.astype(np.float64)
    np.testing.assert_allclose(components @ components.T, np.eye(20), atol=1e-6)
    expected = (images.reshape(700, -1) / 255 - mean) @ components.T
    np.testing.assert_allclose(space.encode(images, range(700)), expected, atol=2e-6)


def test_all_components_give_the_images_back(store_of, smooth_images, tmp_path):
    images = smooth_images(300, 8, 8, 1)
    space = make_space("pca", {"components": 100})
    space.fit(store_of(images), tmp_path / "fitted.npz")
    assert space.dims((8, 8, 1)) == 64
    rows = space.encode(images, range(300))
    np.testing.assert_array_equal(space.decode(rows, range(300), (8, 8, 1)), images)


@pytest.mark.parametrize("batch", [1, 7, 64, 100, 700])
def test_the_batch_changes_no_byte_of_a_row_or_an_image(fitted, batch):
    space, images = fitted
    whole = space.encode(images, range(700))
    pieces = [range(a, min(a + batch, 700)) for a in range(0, 700, batch)]
    parts = [space.encode(images[p.start : p.stop], p) for p in pieces]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    decoded = [space.decode(whole[p.start : p.stop], p, (12, 12, 3)) for p in pieces]
    assert np.concatenate(decoded).tobytes() == space.decode(whole, range(700), (12, 12, 3)).tobytes()


def test_rows_need_not_lie_side_by_side(fitted):
    space, images = fitted
    some = np.array([3, 4, 70, 130, 131, 699])
    np.testing.assert_array_equal(space.encode(images[some], some), space.encode(images, range(700))[some])
    with pytest.raises(ValueError, match="ascending"):
        space.encode(images[:2], np.array([5, 5]))


def test_larger_images_are_made_smaller_first_and_smaller_ones_are_kept(store_of, smooth_images, tmp_path):
    large = smooth_images(20, 40, 20)
    space = make_space("pca", {"components": 5, "size": 16})
    assert space.decoded_shape((40, 20, 3)) == (16, 8, 3)
    assert space.decoded_shape((16, 16, 3)) == (16, 16, 3)
    space.fit(store_of(large), tmp_path / "fitted.npz")
    small = make_space("pixels", {"size": 16}).encode(large, range(20))
    reference = decomposition.PCA(5, svd_solver="full").fit(small)
    assert space.encode(large, range(20)).shape == (20, 5)
    np.testing.assert_allclose(space.fitted.explained, reference.explained_variance_ratio_, rtol=1e-4)


def test_few_train_images_give_fewer_components_and_a_note(store_of, smooth_images, tmp_path):
    class Said(Progress):
        lines: list[str] = []  # noqa: RUF012

        def say(self, text):
            self.lines.append(text)

    space = make_space("pca", {})
    assert space.dims((12, 12, 3)) == 256
    space.fit(store_of(smooth_images(30)), tmp_path / "fitted.npz", Context.of(progress=Said()))
    assert space.dims((12, 12, 3)) == 29
    assert Said.lines == ["pca: 29 components instead of 256, as the train images have no more"]


def test_a_plan_for_few_train_images_counts_no_more_components_than_these_have():
    space = make_space("pca", {"components": 256})
    space.expect(75)
    assert space.dims((64, 64, 3)) == 74
    space.expect(1000)
    assert space.dims((64, 64, 3)) == 256
    assert space.dims((8, 8, 3)) == 192


def test_repeated_images_add_no_components_of_rounding_noise(store_of, smooth_images, tmp_path):
    space = make_space("pca", {})
    space.fit(store_of(np.tile(smooth_images(10), (40, 1, 1, 1))), tmp_path / "fitted.npz")
    assert space.dims((12, 12, 3)) == 9


@pytest.mark.parametrize("images", [np.zeros((50, 4, 4, 1), np.uint8), np.zeros((1, 4, 4, 1), np.uint8)])
def test_images_without_differences_are_refused(store_of, tmp_path, images):
    with pytest.raises(InputError, match="principal components"):
        make_space("pca", {}).fit(store_of(images), tmp_path / "fitted.npz")
    assert not (tmp_path / "fitted.npz").exists()


def test_a_fold_learns_from_its_rows_only(store_of, smooth_images, tmp_path):
    images = smooth_images(600)
    rows = np.nonzero(np.arange(600) % 3 != 0)[0]
    fold, alone = make_space("pca", {"components": 10}), make_space("pca", {"components": 10})
    fold.fit(store_of(images, chunk="5kB"), tmp_path / "fold.npz", rows=rows)
    alone.fit(store_of(images[rows], "alone.zarr"), tmp_path / "alone.npz")
    assert fold.made_of() == alone.made_of()
    with pytest.raises(StoreError, match=r'rows was "400 of 600 \([0-9a-f]{16}\)", is "all"'):
        fold.fit(store_of(images, chunk="5kB"), tmp_path / "fold.npz")


@pytest.mark.parametrize("rows", [[3, 2], [1, 1], [-1, 5], [0, 600]])
def test_rows_that_are_not_there_are_refused(store_of, smooth_images, tmp_path, rows):
    with pytest.raises(InputError, match="do not ascend, or lie outside it"):
        make_space("pca", {}).fit(store_of(smooth_images(600)), tmp_path / "fitted.npz", rows=rows)


def test_the_same_images_give_the_same_file_whatever_the_chunks_and_the_budget(store_of, smooth_images, tmp_path):
    images = smooth_images(600)
    for name, chunk, budget in (("a", "8MB", None), ("b", "20kB", "3GB")):
        store = store_of(images, "images.zarr", chunk=chunk)
        make_space("pca", {"components": 10}).fit(store, tmp_path / f"{name}.npz", Context.of(budget))
        Path(store.path).rename(tmp_path / f"{name}.zarr")
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert all(a[key].tobytes() == b[key].tobytes() for key in ("mean", "components", "explained", "shape"))


def test_fitting_again_writes_the_same_bytes_and_a_complete_fit_is_taken_up(store_of, smooth_images, tmp_path):
    train, path = store_of(smooth_images(100)), tmp_path / "features" / "pca" / "fitted.npz"
    make_space("pca", {}).fit(train, path)
    first, written = path.read_bytes(), path.stat().st_mtime_ns
    again = make_space("pca", {})
    again.fit(train, path)
    assert path.stat().st_mtime_ns == written
    path.with_name("fitted.npz.0123.partial").write_bytes(first[:100])  # of a run that was killed
    make_space("pca", {}).fit(train, path, Context.of(overwrite=True))
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]
    loaded = make_space("pca", {})
    loaded.load(path)
    assert loaded.made_of() == again.made_of()


def test_a_fit_of_other_settings_or_images_is_refused_by_name(store_of, smooth_images, tmp_path):
    train, path = store_of(smooth_images(100)), tmp_path / "fitted.npz"
    make_space("pca", {"components": 8}).fit(train, path)
    other = make_space("pca", {"components": 9, "size": 32})
    with pytest.raises(StoreError, match=r"components was 8, is 9; size was 64, is 32"):
        other.fit(train, path)
    with pytest.raises(StoreError, match=r"components was 8, is 9"):
        other.load(path)
    with pytest.raises(StoreError, match='images was "'):
        make_space("pca", {"components": 8}).fit(store_of(smooth_images(100, seed=1), "other.zarr"), path)
    other.fit(train, path, Context.of(overwrite=True))
    assert other.dims((12, 12, 3)) == 9


@pytest.mark.parametrize("damage", ["truncated", "altered", "nonsense", "empty"])
def test_a_damaged_fit_is_refused_by_its_name(store_of, smooth_images, tmp_path, damage):
    train, path = store_of(smooth_images(100)), tmp_path / "fitted.npz"
    make_space("pca", {}).fit(train, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(
        {"truncated": bytes(data[:-500]), "altered": bytes(data), "nonsense": b"hello", "empty": b""}[damage]
    )
    with pytest.raises(StoreError, match=r"fitted\.npz is damaged"):
        make_space("pca", {}).fit(train, path)
    with pytest.raises(StoreError, match=r"fitted\.npz is damaged"):
        make_space("pca", {}).load(path)


def test_nothing_can_be_encoded_before_something_was_learned(tmp_path):
    space = make_space("small", {"kind": "pca"})
    for use in (space.made_of, lambda: space.encode(np.zeros((1, 4, 4, 1), np.uint8), range(1))):
        with pytest.raises(InputError, match="small is not fitted"):
            use()
    with pytest.raises(StoreError, match="there is no fitted feature space"):
        space.load(tmp_path / "fitted.npz")


def test_images_of_another_shape_are_refused(fitted):
    space, _ = fitted
    with pytest.raises(InputError, match="was fitted to images of 12×12×3 pixels, these have 12×12×1"):
        space.encode(np.zeros((1, 12, 12, 1), np.uint8), range(1))
    with pytest.raises(InputError, match="20 components"):
        space.decode(np.zeros((1, 21), np.float32), range(1), (12, 12, 3))


def test_too_small_a_budget_is_refused_before_an_image_is_read(store_of, smooth_images, tmp_path, monkeypatch):
    train = store_of(smooth_images(100))
    monkeypatch.setattr(Store, "read_chunk", None)
    with pytest.raises(BudgetError, match=r"features pca \(fit\) needs at least"):
        make_space("pca", {}).fit(train, tmp_path / "fitted.npz", Context.of("1MB"))
