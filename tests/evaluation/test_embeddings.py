"""Embeddings of sources of images by a network that is plain arithmetic: what it is shown, what is kept, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.errors import InputError
from leanrecon.evaluation.image_sources import ConstantImage, Reconstructions, StoredImages
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.evaluation.plan import EMBEDDED, embed_nbytes
from leanrecon.images import ImageShape, resize
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures

Array = np.ndarray[Any, Any]

SHAPE = (12, 8, 3)


class Corners:
    """Describes an image by four of its pixels, and remembers what it was shown."""

    name = "corners"
    measure: Measure = "two_way"
    model = "corners"
    batch = 8
    dims = 12
    staying_nbytes = 1000

    def __init__(self, version: int = 0) -> None:
        self.version = version
        self.shown: list[Array] = []
        self.released = 0

    def work_nbytes(self, shape: ImageShape) -> int:
        return 10**6

    def made_of(self) -> dict[str, Any]:
        return {"version": self.version}

    def encode(self, images: Array) -> Array:
        self.shown.append(images)
        return images[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(len(images), -1).astype(np.float32)

    def release(self) -> None:
        self.released += 1


def images(n: int, shape: ImageShape = SHAPE, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def stored(path: Path, rows: Array) -> Store:
    store = Store.create(path, rows.shape, rows.dtype, made_of={"pixels": rows.sum().item()})
    for i in range(store.row_groups):
        store.write_rows(i, rows[store.group_rows(i).start : store.group_rows(i).stop])
    store.finish()
    return store


def drawn(path: Path, rows: Array) -> Pictures:
    pictures = Pictures.create(path, len(rows), rows.shape[1:], made_of={})
    for row, image in enumerate(rows):
        pictures.write(row, image)
    pictures.finish()
    return pictures


def described(encoder: Corners, sources: Any, m: int, folder: Path, shape: ImageShape = SHAPE) -> dict[str, Array]:
    found = embed(encoder, sources, m, shape, folder / "embeddings", Context.of())
    return {name: one.rows() for name, one in found.items()}


def corners(rows: Array) -> Array:
    return Corners().encode(rows)


def test_every_row_has_the_embedding_of_its_image_and_each_image_is_shown_once(tmp_path: Path) -> None:
    pixels, rows = images(50), [7, 3, 3, 49, 7, 0]
    encoder = Corners()
    sources = {"few": StoredImages(stored(tmp_path / "s.zarr", pixels), rows), "one": ConstantImage(pixels[5])}
    found = described(encoder, sources, 6, tmp_path)
    np.testing.assert_array_equal(found["few"], corners(pixels[rows]))
    np.testing.assert_array_equal(found["one"], corners(pixels[[5] * 6]))
    assert sum(map(len, encoder.shown)) == 4 + 1
    assert encoder.released == 1


def test_images_whose_sides_have_another_ratio_are_brought_to_that_of_the_stimuli(tmp_path: Path) -> None:
    square, larger, rounded = images(2, (10, 10, 3)), images(2, (24, 16, 3)), images(2, (14, 9, 3))
    for k, (rows, expected) in enumerate(
        ((square, np.stack([resize(image, SHAPE) for image in square])), (larger, larger), (rounded, rounded))
    ):
        encoder = Corners()
        described(encoder, {"final": Reconstructions(drawn(tmp_path / f"p{k}", rows))}, 2, tmp_path)
        np.testing.assert_array_equal(encoder.shown[0], expected)


def test_only_what_other_images_or_another_network_make_is_made_again(tmp_path: Path) -> None:
    pixels = images(EMBEDDED + 5)
    store = stored(tmp_path / "s.zarr", pixels)
    every = {STIMULI: StoredImages(store, range(EMBEDDED + 5)), "mean": ConstantImage(pixels[0])}

    def shown(version: int = 0) -> int:
        encoder = Corners(version)
        described(encoder, every, EMBEDDED + 5, tmp_path)
        return sum(map(len, encoder.shown))

    assert shown() == EMBEDDED + 6
    assert shown() == 0
    every["mean"] = ConstantImage(pixels[1])
    assert shown() == 1
    every[STIMULI] = StoredImages(store, [*range(EMBEDDED + 4), 0])
    assert shown() == EMBEDDED + 4
    assert shown(version=1) == EMBEDDED + 5
    del every["mean"]
    assert shown(version=1) == 0
    assert [path.stem for path in (tmp_path / "embeddings").iterdir()] == [STIMULI]


def test_embeddings_that_are_not_finite_are_refused_and_what_came_before_is_kept(tmp_path: Path) -> None:
    class Broken(Corners):
        def encode(self, images: Array) -> Array:
            rows = super().encode(images)
            return rows if sum(map(len, self.shown)) <= EMBEDDED else rows * np.float32(np.nan)

    sources = {STIMULI: StoredImages(stored(tmp_path / "s.zarr", images(EMBEDDED + 5)), range(EMBEDDED + 5))}
    broken = Broken()
    with pytest.raises(InputError, match="corners gives embeddings that are NaN or infinite"):
        described(broken, sources, EMBEDDED + 5, tmp_path)
    assert broken.released == 1
    whole = Corners()
    described(whole, sources, EMBEDDED + 5, tmp_path)
    assert sum(map(len, whole.shown)) == 5


def test_identification_is_none_where_all_rows_show_one_stimulus(tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", images(4))
    sources = {STIMULI: StoredImages(store, range(4)), "stage1": StoredImages(store, [1, 0, 3, 2])}
    found = embed(Corners(), sources, 4, SHAPE, tmp_path / "embeddings", Context.of())
    assert judge_scores(Corners(), found, ["a"] * 4) == {}
    scores = judge_scores(Corners(), found, list("abcd"))
    assert list(scores) == ["stage1"]
    r = np.corrcoef(corners(images(4))[[1, 0, 3, 2]], corners(images(4)))[:4, 4:]
    wins = [np.mean([r[i, i] > r[i, j] for j in range(4) if j != i]) for i in range(4)]
    np.testing.assert_allclose(scores["stage1"].rows["two_way_corners"], wins)


def test_repeats_of_a_stimulus_are_no_distractors(tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", images(2))
    sources = {STIMULI: StoredImages(store, [0, 0, 1]), "stage1": StoredImages(store, [0, 0, 1])}
    found = embed(Corners(), sources, 3, SHAPE, tmp_path / "embeddings", Context.of())
    assert judge_scores(Corners(), found, ["a", "a", "b"])["stage1"].rows["two_way_corners"].tolist() == [1, 1, 1]


def test_a_judge_of_distances_gives_the_distance_of_each_reconstruction(tmp_path: Path) -> None:
    store = stored(tmp_path / "s.zarr", images(4))
    sources = {STIMULI: StoredImages(store, range(4)), "stage1": StoredImages(store, [1, 0, 2, 3])}
    judge = Corners()
    judge.measure = "distance"
    found = embed(judge, sources, 4, SHAPE, tmp_path / "embeddings", Context.of())
    scores = judge_scores(judge, found, list("abcd"))["stage1"]
    r = np.corrcoef(corners(images(4))[[1, 0, 2, 3]], corners(images(4)))[:4, 4:]
    np.testing.assert_allclose(scores.rows["distance_corners"], 1 - np.diag(r), atol=1e-6)
    assert scores.chance["distance_corners"] == pytest.approx(1 - (r.sum() - np.trace(r)) / 12, abs=1e-6)


def test_memory_grows_with_images_rows_and_the_network() -> None:
    few = embed_nbytes(Corners(), [(64, 64, 3)], 100, 10**6)
    assert few >= 10**6 + 2 * 8 * 64 * 64 * 3 + 3 * 10**6
    assert embed_nbytes(Corners(), [(64, 64, 3), (512, 512, 3)], 100, 10**6) - few == 18 * 3 * (512**2 - 64**2)
    assert embed_nbytes(Corners(), [(64, 64, 3)], 10**6, 10**6) > 16 * 8 * 10**6
