"""Hat matrices that a fit leaves in a file: what is streamed through them is what the ridge itself predicts."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.errors import StoreError
from leanrecon.places import as_location
from leanrecon.regression.ridge import StreamingRidge
from leanrecon.regression.ridge.hats import Hats
from leanrecon.stores import Store, as_matrix

RNG = np.random.default_rng(11)
N, P, M, T, S = 60, 25, 9, 700, 40


def data(*, dual: bool, repeats: bool) -> dict[str, Any]:
    p = 4 * N if dual else P
    given = {"X": RNG.standard_normal((N, p), np.float32), "test": RNG.standard_normal((M, p), np.float32)}
    given["y"] = RNG.standard_normal((S if repeats else N, T), np.float32) + 3
    if repeats:
        given["stimulus"] = np.concatenate([np.arange(S), RNG.integers(0, S, N - S)])
    return given


def store(path: Path) -> Store:
    return Store.create(path, (M, T), np.float32, made_of={"ridge": 1}, chunk=1000)


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("kind", ["none", "inductive", "transductive"])
def test_targets_streamed_by_others_are_predicted_to_the_same_bytes(
    kind: Any, dual: bool, repeats: bool, tmp_path: Path
) -> None:
    given = data(dual=dual, repeats=repeats)
    ridge = StreamingRidge(10.0, restandardize=kind).fit(**given, shuffled=True)
    for k, fitted in enumerate((ridge, ridge.shuffled([0, 1]))):
        alone, shared = store(tmp_path / f"alone{k}.zarr"), store(tmp_path / f"shared{k}.zarr")
        fitted.predict_into(given["test"], alone)
        hats = fitted.known_hats(shared.chunk_columns)
        assert hats is not None
        path = as_location(tmp_path / "hats" / "test.hats")
        hats.write(path)
        read = Hats.read(path)
        assert (read.rows, read.restandardize, read.work, read.nbytes) == (M, kind, hats.work, hats.nbytes)
        for j in reversed(range(shared.column_groups)):
            read.stream_into(shared, as_matrix(given["y"]), [j])
        for one in (alone, shared):
            one.finish()
        assert alone.content == shared.content
        np.testing.assert_array_equal(alone[0:M], shared[0:M])
    assert all(a.stop == b.start for a, b in pairwise(map(shared.group_columns, range(shared.column_groups))))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_damaged_file_is_refused_wherever_the_damage_is(weighted: bool, tmp_path: Path) -> None:
    given = data(dual=True, repeats=weighted)
    hats = StreamingRidge(10.0).fit(**given).known_hats(512)
    assert hats is not None
    path = as_location(tmp_path / "test.hats")
    hats.write(path)
    whole = path.read_bytes()
    places = [0, 1, 9, whole.index(b"\n") - 1, *np.linspace(whole.index(b"\n") + 1, len(whole) - 1, 40).astype(int)]
    for place in places:
        harmed = bytearray(whole)
        harmed[place] ^= 4
        path.write_bytes(bytes(harmed))
        with pytest.raises(StoreError, match="damaged"):
            Hats.read(path)
    for length in (0, 3, whole.index(b"\n"), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="damaged"):
            Hats.read(path)
    huge = whole.replace(b'"arrays": [[[', b'"arrays": [[[99999999999, ', 1)
    path.write_bytes(huge)
    with pytest.raises(StoreError, match="its size differs from that in its first line"):
        Hats.read(path)
    path.write_bytes(whole)
    assert Hats.read(path).nbytes == hats.nbytes
    path.unlink()
    with pytest.raises(StoreError, match="no hat matrices"):
        Hats.read(path)


def test_a_fit_that_knows_no_test_betas_leaves_no_hat_matrices() -> None:
    given = data(dual=True, repeats=False)
    assert StreamingRidge(10.0).fit(given["X"], given["y"]).known_hats(512) is None
