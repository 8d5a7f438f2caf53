"""Batches from disk: every row once an epoch, whole chunks once, the same from any step on."""

import numpy as np
import pytest

from leanrecon.regression.mlp.batches import Batches, Held, Shuffled, paired_at_random, split, take
from leanrecon.regression.normalise import Centred, moments
from leanrecon.stores import Store, as_matrix


class Counted(Held):
    """A source that notes which rows were read."""

    def __init__(self, array):
        super().__init__(array)
        self.reads = []

    def read(self, rows, columns, memory, dtype):
        self.reads.append(rows)
        return super().read(rows, columns, memory, dtype)


def numbered(n, columns=3):
    """Rows that hold their own number."""
    return (np.arange(n)[:, None] + np.zeros((1, columns))).astype(np.float32)


@pytest.mark.parametrize(("n", "batch", "window"), [(1000, 32, 512), (1000, 7, 256), (300, 300, 4096), (700, 64, 1)])
def test_an_epoch_takes_every_row_once_and_reads_every_panel_once(n, batch, window):
    source = Counted(numbered(n))
    rows = np.setdiff1d(np.arange(n), np.arange(0, n, 9)) if batch < 300 else np.arange(n)
    batches = Batches([source, Held(numbered(n, 1))], rows, batch=batch, window=window, seed=3)
    taken = []
    for numbers, (a, b) in batches.epoch(5):
        np.testing.assert_array_equal(a, numbered(n)[numbers])
        np.testing.assert_array_equal(b[:, 0], numbers)
        taken += numbers.tolist()
    assert len(taken) == batches.steps * batch == len(rows) // batch * batch
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(rows.tolist())
    assert len(source.reads) <= -(-n // 256)
    assert len({r.start for r in source.reads}) == len(source.reads)


def order(batches, epoch, start=0):
    return [numbers.tolist() for numbers, _ in batches.epoch(epoch, start)]


def test_order_follows_from_seed_and_epoch_and_goes_on_from_any_step():
    def batches(seed=1):
        return Batches([Held(numbered(900))], np.arange(5, 870), batch=20, window=256, seed=seed)

    whole = order(batches(), 2)
    assert whole == order(batches(), 2)
    assert whole != order(batches(), 3)
    assert whole != order(batches(2), 2)
    rows = [row for numbers in whole for row in numbers]
    assert sorted(rows) != rows
    for start in (0, 1, 12, 13, 42, batches().steps - 1, batches().steps):
        assert order(batches(), 2, start) == whole[start:]


def test_rows_come_from_one_window_at_a_time():
    batches = Batches([Held(numbered(2048))], np.arange(2048), batch=64, window=512, seed=0)
    spread = [len({row // 256 for row in numbers}) for numbers in order(batches, 0)]
    assert set(spread) == {2}


def test_stores_and_folds_give_centred_rows(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.standard_normal((600, 50)).astype(np.float32) + 4
    store = Store.create(tmp_path / "x.zarr", array.shape, np.float32, made_of={}, chunk="4KB")
    for i in range(store.row_groups):
        store.write_rows(i, array[store.group_rows(i).start : store.group_rows(i).stop])
    store.finish()
    matrix = as_matrix(store)
    source = Centred(matrix, moments(matrix), scale=True)
    expected = (array - array.mean(axis=0)) / array.std(axis=0, ddof=1)
    for numbers, (values,) in Batches([source], np.arange(600), batch=50, window=256, seed=0).epoch(0):
        np.testing.assert_allclose(values, expected[numbers], atol=1e-5)
    some = np.array([0, 5, 255, 256, 599])
    np.testing.assert_allclose(take([source], some)[0], expected[some], atol=1e-5)


def test_validation_rows_are_the_share_asked_for_and_follow_from_the_seed():
    learned, held = split(1000, 0.1, 0)
    assert len(held) == 100
    np.testing.assert_array_equal(np.sort(np.concatenate([learned, held])), np.arange(1000))
    np.testing.assert_array_equal(held, split(1000, 0.1, 0)[1])
    assert not np.array_equal(held, split(1000, 0.1, 1)[1])
    assert len(split(1000, 0.0, 0)[1]) == 0
    assert len(split(30_000, 0.5, 0)[1]) == 1024
    assert len(split(2, 0.5, 0)[0]) == 1


def test_repeats_of_a_stimulus_stay_together():
    groups = [f"image{k % 40}" for k in range(200)]
    learned, held = split(200, 0.2, 7, groups)
    assert len(held) == 40
    assert {groups[k] for k in learned}.isdisjoint({groups[k] for k in held})
    learned, held = split(30, 0.5, 0, ["one"] * 30)
    assert len(learned) == 30  # there would be nothing to learn from


def test_pairs_at_random_are_permutations_and_stay_in_panels_where_asked():
    for within in (False, True):
        order = paired_at_random(700, [3, 1], within_panels=within)
        np.testing.assert_array_equal(np.sort(order), np.arange(700))
        assert not np.array_equal(order, np.arange(700))
        assert bool((order // 256 == np.arange(700) // 256).all()) is within
    shuffled = Shuffled(Held(numbered(700)), order)
    for numbers, (values,) in Batches([shuffled], np.arange(700), batch=50, window=512, seed=0).epoch(0):
        np.testing.assert_array_equal(values[:, 0], order[numbers])
