"""Networks where images are shown several times: each image's targets once, as if they were repeated for every row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory import held

from leanrecon.context import Context
from leanrecon.regression.mlp.batches import Batches, Gathered, Held
from leanrecon.regression.mlp.coding import code, mixing, target_moments
from leanrecon.regression.mlp.mlp import StreamingMLP
from leanrecon.regression.mlp.regressor import MLPRegressor
from leanrecon.regression.mlp.repeats import whole_images
from leanrecon.regression.mlp.settings import MLPSettings
from leanrecon.regression.regressor import Output, RegressionData
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.stores import Store, as_matrix

pytestmark = [pytest.mark.slow, pytest.mark.networks]

SMALL = {"hidden": 24, "blocks": 1, "epochs": 3, "batch_size": 16, "alpha": 30.0, "dropout": 0.0}
FULL = SMALL | {"head": "full", "skip": "none", "inputs": "betas"}


@pytest.fixture
def shown(study):
    """300 rows of 120 images in random order, each shown one to six times."""

    def draw(p=30, t=23):
        X, Y, T = study(300, p, t=t, dtype=np.float32)
        stimulus = np.random.default_rng(1).permutation(np.r_[np.arange(120), np.arange(120), np.arange(60) // 2])
        return X, Y[:120], T, stimulus

    return draw


@pytest.mark.parametrize("t", [23, 700])
def test_coordinates_of_images_are_those_of_repeated_rows(shown, t):
    _, Y, _, stimulus = shown(t=t)
    counts = np.bincount(stimulus).astype(float)
    rows, images = as_matrix(Y[stimulus]), as_matrix(Y)
    expected = code(rows, target_moments(rows), components=12, explained=1.0)
    found = code(images, target_moments(images, counts), counts, components=12, explained=1.0)
    np.testing.assert_allclose(found.spread, expected.spread, rtol=1e-6)
    np.testing.assert_allclose(found.explained, expected.explained, rtol=1e-6)
    sign = np.sign((found.coordinates[stimulus] * expected.coordinates).sum(axis=0))
    np.testing.assert_allclose(found.coordinates[stimulus] * sign, expected.coordinates, atol=1e-4)
    z = np.random.default_rng(0).standard_normal((7, 12)).astype(np.float32)
    for mean in (True, False):
        hat = mixing(z, found.coordinates, mean=mean, weights=counts)
        like = mixing(z * sign.astype(np.float32), expected.coordinates, mean=mean)
        np.testing.assert_allclose(hat @ Y, like @ Y[stimulus], atol=1e-4)


def test_moments_count_every_row_that_shows_an_image(shown):
    _, Y, _, stimulus = shown()
    found = target_moments(as_matrix(Y), np.bincount(stimulus).astype(float))
    repeated = Y[stimulus].astype(float)
    np.testing.assert_allclose(found.mean, repeated.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.std, repeated.std(axis=0, ddof=1), rtol=1e-6)
    assert found.rows == 300


@pytest.mark.parametrize("restandardize", ["none", "inductive", "transductive"])
def test_a_full_head_learns_as_from_repeated_rows(shown, restandardize):
    X, Y, T, stimulus = shown()
    how = FULL | {"restandardize": restandardize}
    found = StreamingMLP(**how).fit(X, Y, stimulus=stimulus)
    expected = StreamingMLP(**how).fit(X, Y[stimulus], groups=stimulus)
    np.testing.assert_allclose(found.predict(T), expected.predict(T), atol=2e-4)
    np.testing.assert_allclose(found.history_.train[1:], expected.history_.train[1:], rtol=1e-5)


@pytest.mark.parametrize("whiten", [True, False])
def test_the_pca_head_answers_in_the_space_of_repeated_rows(shown, whiten):
    X, Y, T, stimulus = shown()
    how = SMALL | {"skip": "none", "inputs": "betas", "components": 9, "learning_rate": 3e-3, "whiten": whiten}
    fitted = StreamingMLP(**how).fit(X, Y, stimulus=stimulus)
    with torch.no_grad():
        z = fitted.network_(torch.tensor((T - X.mean(0)) / X.std(0, ddof=1))).numpy()
    repeated = Y[stimulus].astype(np.float64)
    centred = repeated - repeated.mean(0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    lengths, axes = lengths[:9] / np.sqrt(300), axes[:9]
    sign = np.sign(((centred @ axes.T) * fitted._head.coding.coordinates[stimulus]).sum(axis=0))
    worth = lengths if whiten else np.full(9, np.sqrt((lengths**2).mean()))
    np.testing.assert_allclose(fitted.predict(T), repeated.mean(0) + (z * sign * worth) @ axes, atol=2e-3)


def test_before_it_has_learned_anything_it_is_the_ridge(shown, closed_form):
    X, Y, T, stimulus = shown()
    untrained = {
        kind: StreamingMLP(**SMALL | {"learning_rate": 1e-30, "restandardize": kind}).fit(X, Y, stimulus=stimulus)
        for kind in ("none", "inductive", "transductive")
    }
    repeated, scale = Y[stimulus], X.std(axis=0, ddof=1)
    raw = closed_form(X / scale, repeated, T / scale, 30.0)
    np.testing.assert_allclose(untrained["none"].predict(T), raw, atol=5e-5)
    # Validation rows predicted from all rows of other images give the moments of "inductive", test rows the others.
    like = []
    for row in untrained["inductive"]._held:
        others = stimulus != stimulus[row]
        like.append(closed_form(X[others] / scale, repeated[others], X[[row]] / scale, 30.0)[0])
    for kind, reference in (("inductive", np.array(like)), ("transductive", raw)):
        expected = (raw - reference.mean(0)) / reference.std(0) * repeated.std(0) + repeated.mean(0)
        np.testing.assert_allclose(untrained[kind].predict(T), expected, atol=1e-3)


@pytest.mark.parametrize("order", [False, True])
def test_the_ridge_leaves_out_all_rows_of_an_image(shown, closed_form, order):
    X, Y, _, stimulus = shown(p=60)
    fitted = StreamingMLP(**SMALL, components=6).fit(X, Y, stimulus=stimulus)
    if order:
        fitted = fitted.shuffled(3)
    index = stimulus if fitted._order is None else stimulus[fitted._order]
    C = fitted._head.coding.coordinates[index].astype(np.float64)
    held = fitted._held
    learned = np.setdiff1d(np.arange(300), held)
    assert not set(stimulus[learned]) & set(stimulus[held])
    scale = X[learned].std(axis=0, ddof=1)
    for row in (*learned[[0, 31, -1]], *held[:3]):
        others = learned[stimulus[learned] != stimulus[row]]
        assert len(others) < len(learned) or row in held
        expected = closed_form(X[others] / scale, C[others], X[[row]] / scale, 30.0)[0]
        np.testing.assert_allclose(fitted._offset[row], expected, atol=1e-4)


def test_images_that_no_row_shows_change_nothing(shown):
    X, Y, T, stimulus = shown()
    for how in (SMALL, FULL):
        expected = StreamingMLP(**how).fit(X, Y, stimulus=stimulus).predict(T)
        more = np.insert(Y, [0, 50, 120], np.nan, axis=0)
        moved = stimulus + 1 + (stimulus >= 50)
        found = StreamingMLP(**how).fit(as_matrix(X), as_matrix(more), stimulus=moved).predict(T)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_rows_of_images_in_order_are_the_plain_case(study):
    X, Y, T = study(120, 30, dtype=np.float32)
    plain = StreamingMLP(**SMALL).fit(X, Y).predict(T)
    np.testing.assert_array_equal(StreamingMLP(**SMALL).fit(X, Y, stimulus=np.arange(120)).predict(T), plain)
    order = np.random.default_rng(0).permutation(120)
    moved = StreamingMLP(**FULL).fit(X, Y[np.argsort(order)], stimulus=order).predict(T)
    np.testing.assert_allclose(moved, StreamingMLP(**FULL).fit(X, Y).predict(T), atol=1e-5)


def test_rows_of_validation_images_are_never_learned_from(shown, monkeypatch):
    """Also where runs are the groups, and an image is shown in several of them."""
    X, Y, _, stimulus = shown()
    learned = []

    class Spied(Batches):
        def __init__(self, sources, rows, **options):
            learned.append(rows)
            super().__init__(sources, rows, **options)

    monkeypatch.setattr("leanrecon.regression.mlp.mlp.Batches", Spied)
    for groups, left_out in ((None, 0), ([i // 30 for i in range(300)], 20)):
        held = StreamingMLP(**SMALL).fit(X, Y, stimulus=stimulus, groups=groups)._held
        assert len(held) >= 28
        assert not set(stimulus[learned[-1]]) & set(stimulus[held])
        assert 300 - len(learned[-1]) - len(held) >= left_out  # of other runs that show images of the validation run
    assert len(learned[0]) > len(learned[1])


@settings(deadline=None)
@given(
    n=st.integers(1, 400), s=st.integers(1, 60), at_once=st.integers(1, 80), seed=st.integers(0, 9), plain=st.booleans()
)
def test_rows_are_taken_once_and_with_all_rows_of_their_image(n, s, at_once, seed, plain):
    index = np.arange(n) if plain else np.random.default_rng(seed).integers(0, s, n)
    pairing = Pairing.of(index, n, n if plain else s)
    parts = list(whole_images(pairing, at_once))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    for part in parts:
        assert np.all(np.diff(part) > 0)
        assert len(part) < at_once + pairing.largest
        np.testing.assert_array_equal(np.flatnonzero(np.isin(index, index[part])), part)


def test_gathered_rows_are_those_of_their_images():
    values = np.random.default_rng(0).standard_normal((700, 50)).astype(np.float32)
    index = np.random.default_rng(1).integers(0, 700, 900)
    source = Gathered(Held(values), index, block=16)
    memory = np.empty(256 * 50 * 4, np.uint8)
    for rows in (range(256), range(256, 400), range(890, 900)):
        np.testing.assert_array_equal(
            source.read(rows, range(3, 45), memory, np.float32), values[index[rows.start : rows.stop], 3:45]
        )


@pytest.mark.parametrize("how", [{}, {"head": "full", "skip": "none", "inputs": "betas"}], ids=["ridge", "full"])
def test_the_regressor_fills_its_stores_and_records_what_it_learned(shown, stored, tmp_path, how):
    X, Y, T, stimulus = shown(t=3000)
    data = RegressionData(
        as_matrix(stored(X, "x.zarr")), as_matrix(stored(Y, "y.zarr", chunk="50KB")), as_matrix(stored(T, "t.zarr")),
        [f"image {i}" for i in stimulus], stimulus,
    )  # fmt: skip
    regressor = MLPRegressor(MLPSettings(**SMALL | how))
    made_of = {"regression": regressor.made_of()}
    assert "checkpoint_minutes" not in made_of["regression"]

    def outputs(name):
        folder = tmp_path / name
        stores = [
            Store.create(folder / f"{k}.zarr", (40, 3000), np.float32, made_of=made_of | {"k": k}, chunk="100KB")
            for k in range(2)
        ]
        return [Output(store, folder / f"n{k}", k - 1 if k else None) for k, store in enumerate(stores)]

    context = Context.of(held() + 2_000_000_000, seed=4, label="regression pca", scratch=tmp_path)
    first = outputs("a")
    record = regressor.predict(data, first, context, {"ridge": object()})
    assert all(output.store.complete for output in first)
    expected = StreamingMLP(**SMALL | how, seed=4).fit(X, Y, stimulus=stimulus, groups=data.groups)
    np.testing.assert_allclose(first[0].store[0:40], expected.predict(T), atol=1e-4)
    assert first[0].store.content != first[1].store.content
    assert record["epochs_trained"] == 3
    assert len(record["curve"]["train"]) == 4
    assert ("alpha" in record) == (not how)
    assert len(context.peaks.projected) >= 4
    assert context.peaks.largest <= context.budget.allowed
    again = outputs("a")
    weights = (tmp_path / "a" / "n0" / "network.safetensors").stat().st_mtime_ns
    regressor.predict(data, again, context, {})
    assert weights == (tmp_path / "a" / "n0" / "network.safetensors").stat().st_mtime_ns
    second = outputs("b")
    regressor.predict(data, second, context, {})
    assert [output.store.content for output in second] == [output.store.content for output in first]


def test_the_transductive_note_names_the_space():
    (note,) = MLPRegressor.notes(MLPSettings(restandardize="transductive"), "vdvae")
    assert note.startswith("Predictions of vdvae were re-standardised")
    assert not list(MLPRegressor.notes(MLPSettings(), "vdvae"))
