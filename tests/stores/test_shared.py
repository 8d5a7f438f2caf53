"""Stores and folders of images that several processes fill."""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.errors import StoreError
from leanrecon.stores import Store, shared
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.shared import (
    ALIGNED,
    MOST_IMAGES,
    PicturesPart,
    StorePart,
    confirm,
    identity,
    receipts_of,
    share_columns,
    share_pictures,
    share_rows,
    tasks_of_images,
)

ROWS = np.arange(600 * 3000, dtype=np.float32).reshape(600, 3000)
IMAGES = np.random.default_rng(3).integers(0, 256, (10, 4, 5, 3), np.uint8)


class Others:
    """An executor whose tasks are done by a function, the last one first, as by another process."""

    workers, free = 2, 10**9

    def __init__(self, work: Any) -> None:
        self.work = work
        self.tasks: list[list[int]] = []

    def share(self, tasks: Sequence[Sequence[int]], given: Mapping[str, Any], arrived: Any) -> None:
        self.tasks = [list(task) for task in tasks]
        for k, task in enumerate(reversed(self.tasks)):
            arrived(task, self.work(given, task), f"worker {k % 2}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "rows.zarr", ROWS.shape, np.float32, made_of={"alpha": 1}, chunk=1_200_000)


@pytest.mark.parametrize("share", [share_rows, share_columns])
def test_a_store_that_others_fill_is_that_of_one_process(share: Any, store: Store, tmp_path: Path) -> None:
    assert (store.row_groups, store.column_groups) == (3, 3)
    by_rows = share is share_rows

    def work(given: Mapping[str, Any], numbers: Sequence[int]) -> Any:
        theirs = StorePart.begun(store.path, given["of"])
        for k in numbers:
            if by_rows:
                theirs.write_rows(k, ROWS[theirs.group_rows(k).start : theirs.group_rows(k).stop])
            else:
                theirs.write_columns(k, ROWS[:, theirs.group_columns(k).start : theirs.group_columns(k).stop])
        return receipts_of(theirs, [(k, j) if by_rows else (j, k) for k in numbers for j in range(3)])

    told: list[int] = []
    store.write_rows(1, ROWS[256:512])
    others = Others(work)
    share(store, others, {}, told.append)
    store.finish()
    assert others.tasks == ([[0], [2]] if by_rows else [[0], [1], [2]])
    assert sum(told) == (256 + 88 if by_rows else 3)
    np.testing.assert_array_equal(store[0:600], ROWS)


def test_a_chunk_that_differs_from_its_receipt_is_refused(store: Store) -> None:
    store.write_rows(0, ROWS[:256])
    receipts = receipts_of(store, [(0, 0)])
    confirm(store, receipts)
    store.write_chunk(0, 0, ROWS[:256, : store.chunk_columns] + 1)
    with pytest.raises(StoreError, match="is not what a worker wrote"):
        confirm(store, receipts)


def test_chunks_that_are_seen_late_are_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_rows(0, ROWS[:256])
    receipts = receipts_of(store, [(0, 0)])
    hidden = store.chunk_path(0, 0).local_path()
    hidden.rename(hidden.with_name("hidden"))
    back = threading.Thread(target=lambda: (time.sleep(0.2), hidden.with_name("hidden").rename(hidden)))
    back.start()
    confirm(store, receipts)
    back.join()
    hidden.unlink()
    monkeypatch.setattr(shared, "VISIBLE_WITHIN", 0.1)
    with pytest.raises(StoreError, match="is not seen here after"):
        confirm(store, receipts)


def test_a_task_of_an_earlier_run_writes_into_no_store_that_was_begun_since(store: Store) -> None:
    of = identity(store.made_of)
    StorePart.begun(store.path, of)
    Store.create(store.path, ROWS.shape, np.float32, made_of={"alpha": 2}, chunk=1_200_000, overwrite=True)
    with pytest.raises(StoreError, match="another run began it"):
        StorePart.begun(store.path, of)


def test_images_that_others_draw_are_finished_here_by_their_receipts(tmp_path: Path) -> None:
    alone = Pictures.create(tmp_path / "alone", 10, IMAGES.shape[1:], made_of={"refine": 1})
    whole = Pictures.create(tmp_path / "shared", 10, IMAGES.shape[1:], made_of={"refine": 1})
    for row in range(10):
        alone.write(row, IMAGES[row])
    whole.write(3, IMAGES[3])

    def work(given: Mapping[str, Any], rows: Sequence[int]) -> Any:
        part = PicturesPart(whole.path, given["of"], rows)
        assert part.missing() == list(rows)
        for row in part.missing():
            part.write(row, IMAGES[row])
        part.finish()
        assert not part.missing()
        return part.receipts(), {"rows": list(rows)}

    told: list[int] = []
    others = Others(work)
    about = share_pictures(whole, others, {}, told.append)
    assert sum(told) == 9
    assert len(about) == 2
    for pictures in (alone, whole):
        pictures.finish()
    names = [f"{row:05d}.png" for row in range(10)]
    assert [(whole.path / name).read_bytes() for name in names] == [(alone.path / name).read_bytes() for name in names]
    assert (tmp_path / "alone.json").read_bytes() == (tmp_path / "shared.json").read_bytes()
    with pytest.raises(StoreError, match="another run began it"):
        PicturesPart(whole.path, identity({"refine": 2}), [0])


@pytest.mark.parametrize(
    ("images", "workers", "sizes"),
    [
        (982, 2, [32] * 27 + [24, 24, 16] + [8] * 6 + [6]),
        (160, 2, [32, 32, 24, 16] + [8] * 7),
        (60, 2, [16] + [8] * 5 + [4]),
        (12, 2, [2, 2, 2, 2, 2, 2]),
        (3, 8, [1, 1, 1]),
        (5, 0, [2, 2, 1]),
        (0, 2, []),
    ],
)
def test_tasks_of_images_become_smaller(images: int, workers: int, sizes: list[int]) -> None:
    tasks = tasks_of_images(range(images), workers)
    assert [len(task) for task in tasks] == sizes
    assert [row for task in tasks for row in task] == list(range(images))
    assert max(sizes, default=0) <= MOST_IMAGES


def test_tasks_of_images_that_are_left_keep_to_the_groups_of_all() -> None:
    missing = [row for row in range(200) if row % 5]
    tasks = tasks_of_images(missing, 2)
    assert sorted(row for task in tasks for row in task) == missing
    of_group = [{row // ALIGNED for row in task} for task in tasks]
    assert sum(map(len, of_group)) == len({row // ALIGNED for row in missing})


def test_a_task_of_a_run_that_is_over_writes_nothing_into_the_store_that_another_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(alpha: int) -> Store:
        return Store.create(tmp_path / "s", ROWS.shape, ROWS.dtype, made_of={"alpha": alpha}, overwrite=True)

    late = StorePart.begun(tmp_path / "s", identity(begun(1).made_of))
    group = late.group_rows(0)
    late.write_rows(0, ROWS[group.start : group.stop])
    new = begun(2)
    with pytest.raises(StoreError, match="another run began it since"):
        late.write_rows(0, ROWS[group.start : group.stop])
    assert len(new.missing()) == new.row_groups * new.column_groups
    # It stopped between its look at the store and its write.
    write = Store.write_chunk

    def slow(self: Store, i: int, j: int, block: Any) -> None:
        begun(3)
        write(self, i, j, block)

    late = StorePart.begun(tmp_path / "s", identity(new.made_of))
    monkeypatch.setattr(Store, "write_chunk", slow)
    with pytest.raises(StoreError, match="another run began it since"):
        late.write_rows(0, ROWS[group.start : group.stop])
    new = Store.open(tmp_path / "s", incomplete=True)
    assert new.made_of["alpha"] == 3
    assert len(new.missing()) == new.row_groups * new.column_groups


def test_images_of_a_run_that_is_over_stay_out_of_the_folder_that_another_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(alpha: int) -> Pictures:
        made_of = {"alpha": alpha}
        return Pictures.create(tmp_path / "p", len(IMAGES), IMAGES.shape[1:], made_of=made_of, overwrite=True)

    late = PicturesPart(tmp_path / "p", identity(begun(1).made_of), [0, 1])
    late.write(0, IMAGES[0])
    new = begun(2)
    with pytest.raises(StoreError, match="another run began it since"):
        late.write(1, IMAGES[1])
    write = Pictures.write

    def slow(self: Pictures, row: int, image: Any) -> None:
        begun(3)
        write(self, row, image)

    late = PicturesPart(tmp_path / "p", identity(new.made_of), [1])
    monkeypatch.setattr(Pictures, "write", slow)
    with pytest.raises(StoreError, match="another run began it since"):
        late.write(1, IMAGES[1])
    assert len(begun(3).missing()) == len(IMAGES)
