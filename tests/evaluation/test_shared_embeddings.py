"""Embeddings that other processes make, from plain values that name their images: those of one process."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.errors import BudgetError, StoreError
from leanrecon.evaluation.image_sources import Blended, ConstantImage, Reconstructions, StoredImages
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, piece
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.evaluation.some_pictures import SomePictures
from leanrecon.images import Array, ImageShape
from leanrecon.memory import process_memory
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures

M, SHAPE = 70, (12, 8, 3)


class Sums:
    """Describes an image by the means of twelve parts of its levels."""

    name, model, batch, dims, staying_nbytes = "sums", "sums", 8, 12, 1000
    measure: Measure = "two_way"

    def work_nbytes(self, shape: ImageShape) -> int:
        return 10**6

    def made_of(self) -> dict[str, Any]:
        return {}

    def encode(self, images: Array) -> Array:
        return images.reshape(len(images), 12, -1).mean(axis=2).astype(np.float32)

    def release(self) -> None:
        pass


class Apart(Sums):
    """The mean difference of what describes two images."""

    name, dims = "apart", 2
    measure: Measure = "perceptual"

    def compare(self, drawn: Array, seen: Array, pairs: Array) -> Array:
        return np.abs(self.encode(seen)[pairs] - self.encode(drawn)[:, None]).mean(axis=2)


class Elsewhere:
    """An executor whose tasks know nothing but what could be sent."""

    workers, free = 2, 10**9

    def __init__(self, judge: Any, memory: str | None = None) -> None:
        self.judge, self.done = judge, 0
        self.memory = process_memory() + 10**9 if memory is None else memory

    def share(self, tasks: Sequence[Sequence[int]], given: Mapping[str, Any], arrived: Any) -> None:
        work = piece(self.judge, json.loads(json.dumps(given)), Context.of(self.memory, chunk=10_000))
        for task in reversed(tasks):
            arrived(task, work(task), "worker")
            self.done += 1


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    seen = Store.create(tmp_path / "seen.zarr", (50, *SHAPE), np.uint8, made_of={}, chunk=10_000)
    for i in range(seen.row_groups):
        seen.write_rows(i, rng.integers(0, 256, (len(seen.group_rows(i)), *SHAPE), np.uint8))
    seen.finish()
    folders = {}
    for name in ("stage1", "final"):
        folders[name] = Pictures.create(tmp_path / name, M + 5, SHAPE, made_of={})
        for row in range(M + 5):
            folders[name].write(row, rng.integers(0, 256, SHAPE, np.uint8))
        folders[name].finish()
    some = SomePictures(folders["stage1"], np.arange(M)[::-1] + 5)
    first, final = Reconstructions(some, (24, 16, 3)), Reconstructions(folders["final"])
    return {
        STIMULI: StoredImages(seen, rng.integers(0, 50, M)),
        "stage1": first,
        "final": Blended(final, first, 0.25),
        "mean": ConstantImage(seen[0:1][0]),
    }


@pytest.mark.parametrize("judge", [Sums(), Apart()])
def test_workers_embed_what_one_process_embeds(judge: Any, sources: dict[str, Any], tmp_path: Path) -> None:
    alone = embed(judge, sources, M, SHAPE, tmp_path / "alone", Context.of())
    executor = Elsewhere(judge)
    shared = embed(judge, sources, M, SHAPE, tmp_path / "shared", replace(Context.of(), executor=executor))
    assert executor.done >= 6, "all but the single image"
    assert alone.keys() == shared.keys()
    for name, one in alone.items():
        np.testing.assert_array_equal(shared[name].rows(), one.rows())
        assert shared[name].store.content == one.store.content
    executor.done = 0
    embed(judge, sources, M, SHAPE, tmp_path / "shared", replace(Context.of(), executor=executor))
    assert executor.done == 0, "what is there is kept"


def test_a_worker_refuses_what_it_can_not_hold_and_what_is_made_of_something_else(
    sources: dict[str, Any], tmp_path: Path
) -> None:
    small = replace(Context.of(), executor=Elsewhere(Sums(), "20MB"))
    with pytest.raises(BudgetError, match="embeddings by sums"):
        embed(Sums(), sources, M, SHAPE, tmp_path / "kept", small)
    store = embed(Sums(), sources, M, SHAPE, tmp_path / "kept", Context.of())["stage1"].store
    given = {"path": str(store.path), "of": "0", "m": M, "shape": SHAPE, "source": sources["stage1"].plain()}
    with pytest.raises(StoreError, match="is not what this task was made for"):
        piece(Sums(), given, Context.of())
