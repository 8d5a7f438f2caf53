"""Networks trained from stores: beside a loop written out by hand, beside the ridge, stopped and continued."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from support.memory import held

from leanrecon.errors import InputError, StoreError
from leanrecon.progress import PlainProgress, Progress
from leanrecon.regression.mlp.batches import Batches, Held, split
from leanrecon.regression.mlp.mlp import StreamingMLP
from leanrecon.regression.mlp.network import residual_mlp
from leanrecon.regression.mlp.training import WEIGHTS
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.stores import RowSubset, Store, as_matrix
from leanrecon.weights.seeds import seeded_weights

pytestmark = [pytest.mark.slow, pytest.mark.networks]

SMALL = {
    "hidden": 24, "blocks": 1, "epochs": 3, "batch_size": 16, "alpha": 30.0,
    "inputs": "betas", "whiten": True, "noise": 0.1, "voxel_dropout": 0.1,
}  # fmt: skip


def plain_training(inputs, targets, *, seed, epochs, batch, rate, decay, clip, warmup, hidden, blocks, learned):
    """The training as a loop of plain PyTorch without accelerate or fused steps, over the same batches."""
    with seeded_weights(seed, WEIGHTS):
        network = residual_mlp(inputs.shape[1], targets.shape[1], hidden=hidden, blocks=blocks, dropout=0.0)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    )
    batches = Batches([Held(inputs), Held(targets)], learned, batch=batch, window=1024, seed=seed)
    steps, k = epochs * batches.steps, 0
    rising = round(warmup * steps)
    for epoch in range(epochs):
        for _, (x, y) in batches.epoch(epoch):
            factor = (k + 1) / rising if k < rising else (1 + math.cos(math.pi * (k - rising) / (steps - rising))) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            loss = ((network(torch.tensor(x)) - torch.tensor(y)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            k += 1
    return network.eval()


def test_a_full_head_learns_as_a_loop_written_out_by_hand(study):
    X, Y, T = study(200, 30, dtype=np.float32)
    how = {"hidden": 24, "blocks": 2, "epochs": 4, "clip": 0.5, "warmup": 0.25}
    fitted = StreamingMLP(
        **how, head="full", skip="none", inputs="betas", whiten=True, batch_size=16, learning_rate=3e-3,
        weight_decay=0.3, dropout=0.0, validation=0.0, seed=5, budget="4GB",
    ).fit(X, Y)  # fmt: skip
    mean, std, target_mean, target_std = X.mean(0), X.std(0, ddof=1), Y.mean(0), Y.std(0, ddof=1)
    network = plain_training(
        (X - mean) / std, (Y - target_mean) / target_std, seed=5, batch=16, rate=3e-3, decay=0.3, learned=np.arange(200), **how
    )  # fmt: skip
    with torch.no_grad():
        expected = network(torch.tensor((T - mean) / std)).numpy() * target_std + target_mean
    np.testing.assert_allclose(fitted.predict(T), expected, atol=2e-4)
    assert np.abs(expected - target_mean).max() > 0.1


@pytest.mark.parametrize("whiten", [True, False])
def test_with_all_components_the_pca_head_answers_in_the_targets_own_space(study, whiten):
    """Prediction through coordinates and hat matrices, beside the network's own answers times the components."""
    X, Y, T = study(200, 30, dtype=np.float32, far=20.0)
    fitted = StreamingMLP(**SMALL | {"skip": "none", "components": 9, "whiten": whiten, "learning_rate": 3e-3}).fit(
        X, Y
    )
    with torch.no_grad():
        z = fitted.network_(torch.tensor((T - X.mean(0)) / X.std(0, ddof=1))).numpy()
    centred = Y - Y.mean(0, dtype=np.float64)
    components = fitted._head.coding.coordinates.T @ centred / len(X)  # [k, t], each as long as its spread
    lengths = np.linalg.norm(components, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.svd(centred, compute_uv=False)[:9] / np.sqrt(len(X)), rtol=1e-4)
    scale = 1.0 if whiten else np.sqrt((lengths**2).mean()) / lengths[:, None]
    np.testing.assert_allclose(fitted.predict(T), Y.mean(0) + z @ (components * scale), atol=1e-3)


@pytest.mark.parametrize("inputs", ["betas", "ridge"])
@pytest.mark.parametrize("components", [4, 1024])
def test_before_it_has_learned_anything_a_network_beside_a_ridge_is_the_ridge(study, inputs, components):
    X, Y, T = study(120, 200, dtype=np.float32)
    how = SMALL | {"learning_rate": 1e-30, "components": components, "inputs": inputs}
    found = StreamingMLP(**how).fit(X, Y).predict(T)
    expected = StreamingRidge(30.0, standardize=True).fit(X, Y).predict(T)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("order", [False, True])
def test_the_network_learns_what_the_ridge_leaves_of_rows_predicted_from_all_others(study, closed_form, order):
    """Validation rows are predicted from the others, and none of the others from them."""
    X, Y, _ = study(60, 90)
    fitted = StreamingMLP(**SMALL, components=6).fit(X, Y)
    if order:
        fitted = fitted.shuffled(3)
    paired = np.arange(60) if fitted._order is None else fitted._order
    C = fitted._head.coding.coordinates[paired].astype(np.float64)
    learned, held = split(60, 0.1, 0)
    scale = X[learned].std(axis=0, ddof=1)
    for row in (*learned[[0, 31, -1]], *held):
        others = np.setdiff1d(learned, [row])
        expected = closed_form(X[others] / scale, C[others], X[[row]] / scale, 30.0)[0]
        np.testing.assert_allclose(fitted._offset[row], expected, atol=1e-5)
    assert order is bool((paired != np.arange(60)).any())


def test_it_learns_what_no_ridge_can():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1300, 8)).astype(np.float32)
    Y = np.abs(X[:, :4]) @ rng.standard_normal((4, 12)).astype(np.float32)  # even: no linear part
    fitted = StreamingMLP(
        hidden=128, blocks=1, epochs=40, batch_size=32, learning_rate=3e-3, dropout=0.0, inputs="betas", whiten=True,
        alpha=1.0,
    ).fit(X[:1000], Y[:1000])  # fmt: skip
    ridge = StreamingRidge(1.0, standardize=True).fit(X[:1000], Y[:1000])
    assert ridge.score(X[1000:], Y[1000:]) < 0.05
    assert fitted.score(X[1000:], Y[1000:]) > 0.8
    assert fitted.history_.validation[fitted.history_.best] == min(fitted.history_.validation)


def test_targets_that_do_not_vary_are_predicted_by_their_mean(study):
    X, Y, T = study(120, 30, dtype=np.float32)
    Y[:, 3] = 7.25
    for how in ({"head": "full", "skip": "none"}, {"head": "full", "skip": "none", "whiten": False}, {}):
        found = StreamingMLP(**SMALL | how).fit(X, Y).predict(T)
        np.testing.assert_allclose(found[:, 3], 7.25, atol=1e-5)
        assert found[:, 4].std() > 0


@pytest.mark.parametrize("how", [{}, {"head": "full", "skip": "none"}, {"skip": "none"}])
def test_restandardised_predictions_have_the_spread_of_the_train_targets(study, how):
    X, Y, T = study(200, 30, dtype=np.float32)
    fitted = StreamingMLP(**SMALL | how, learning_rate=3e-3, restandardize="transductive").fit(X, Y)
    found = fitted.predict(T)
    np.testing.assert_allclose(found.mean(0), Y.mean(0), atol=1e-3)
    np.testing.assert_allclose(found.std(0), Y.std(0), rtol=1e-3)
    plain, inductive = (
        StreamingMLP(**SMALL | how, learning_rate=3e-3, restandardize=kind).fit(X, Y) for kind in ("none", "inductive")
    )
    # From the moments of the validation rows' predictions (with a ridge: of that without them) to those of the targets.
    raw, moved = plain.predict(T), inductive.predict(T)
    if how.get("skip") == "none":
        held = split(200, 0.1, 0)[1]
        like = plain.predict(X[held])
        expected = (raw - like.mean(0)) / like.std(0) * Y.std(0) + Y.mean(0)
        np.testing.assert_allclose(moved, expected, atol=2e-3)
    slopes = [np.corrcoef(raw[:, k], moved[:, k])[0, 1] for k in range(Y.shape[1])]
    np.testing.assert_allclose(slopes, 1, atol=1e-4)


def test_stores_arrays_folds_and_any_budget_give_the_same_bytes(study, stored):
    X, Y, T = study(300, 40, t=700, dtype=np.float32)
    x, y = stored(X, "x.zarr", chunk="9KB"), stored(Y, "y.zarr", chunk="20KB")
    first = StreamingMLP(**SMALL, budget=held() + 150_000_000).fit(x, y).predict(T)
    again = StreamingMLP(**SMALL, budget=held() + 6_000_000_000).fit(x, y).predict(T)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, StreamingMLP(**SMALL).fit(X, Y).predict(T), atol=1e-5)
    rows = np.arange(0, 300, 2)
    fold = StreamingMLP(**SMALL).fit(RowSubset(as_matrix(x), rows), RowSubset(as_matrix(y), rows)).predict(T)
    np.testing.assert_allclose(fold, StreamingMLP(**SMALL).fit(X[rows], Y[rows]).predict(T), atol=1e-5)


def test_predictions_fill_only_the_blocks_that_a_store_lacks(study, tmp_path):
    X, Y, T = study(100, 40, t=3000, dtype=np.float32)
    fitted = StreamingMLP(**SMALL).fit(X, Y)
    store = Store.create(tmp_path / "p.zarr", (40, 3000), np.float32, made_of={}, chunk="100KB")
    done = []
    fitted.predict_into(T, store, advance=done.append)
    store.finish()
    assert len(done) == store.column_groups > 2
    in_blocks = [values.copy() for _, _, values in fitted.predict_blocks(T, block=store.chunk_columns)]
    np.testing.assert_array_equal(store[0:40], np.hstack(in_blocks))
    np.testing.assert_allclose(store[0:40], fitted.predict(T), atol=3e-6)  # wider blocks round differently
    content = store.content
    store.discard([(0, 1)])
    untouched = store.chunk_path(0, 0).stamp()
    fitted.predict_into(T, store, advance=done.append)
    store.finish()
    assert store.content == content
    assert store.chunk_path(0, 0).stamp() == untouched
    with pytest.raises(InputError, match=r"a store of \(40, 3000\) can't take predictions of 39 rows"):
        fitted.predict_into(T[1:], store)


class StoppedError(Exception):
    pass


class StopsAfter(Progress):
    """Interrupts a training after some steps."""

    def __init__(self, steps):
        self.left = steps

    def task(self, name, *, total, unit, done=0, note=None):
        import contextlib

        @contextlib.contextmanager
        def counting():
            yield self.advance if unit == "steps" else lambda n: None

        return counting()

    def advance(self, n):
        self.left -= n
        if self.left < 0:
            raise StoppedError


@pytest.mark.parametrize(
    "how", [{}, {"head": "full", "skip": "none"}, {"validation": 0.0}, {"patience": 1, "epochs": 9}]
)
def test_a_training_that_was_stopped_ends_with_the_same_bytes(study, tmp_path, how):
    X, Y, T = study(150, 40, dtype=np.float32)
    how = SMALL | {"dropout": 0.3, "checkpoint_minutes": 0, "learning_rate": 3e-3} | how
    whole = StreamingMLP(**how, folder=tmp_path / "whole").fit(X, Y)
    stopped = tmp_path / "stopped"
    for steps in (0, 1, 4, 11, 2):
        try:
            StreamingMLP(**how, folder=stopped, progress=StopsAfter(steps)).fit(X, Y)
        except StoppedError:
            assert (stopped / "checkpoint.safetensors").exists() or steps == 0
    fitted = StreamingMLP(**how, folder=stopped).fit(X, Y)
    for name in {path.name for path in (tmp_path / "whole").iterdir()}:
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in stopped.iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    assert fitted.history_ == whole.history_
    np.testing.assert_array_equal(fitted.predict(T), whole.predict(T))


def test_what_was_trained_is_loaded_and_not_trained_again(study, tmp_path):
    X, Y, T = study(150, 40, dtype=np.float32)
    first = StreamingMLP(**SMALL, folder=tmp_path / "a").fit(X, Y)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert set(files) == {"coordinates.safetensors", "network.safetensors", "ridge.safetensors"}
    again = StreamingMLP(**SMALL, folder=tmp_path / "a", checkpoint_minutes=3, progress=StopsAfter(-1)).fit(X, Y)
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    np.testing.assert_array_equal(first.predict(T), again.predict(T))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hidden": 16}, "hidden was 24, is 16"),
        ({"learning_rate": 1e-3}, "learning_rate was 0.0003, is 0.001"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"betas": True}, "betas was "),
    ],
)
@pytest.mark.parametrize("left", ["network", "checkpoint"])
def test_another_setting_refuses_what_was_trained_by_its_name(study, tmp_path, change, found, left):
    X, Y, _ = study(150, 40, dtype=np.float32)
    how = SMALL | {"checkpoint_minutes": 0}
    if left == "network":
        StreamingMLP(**how, folder=tmp_path / "a").fit(X, Y)
    else:
        with pytest.raises(StoppedError):
            StreamingMLP(**how, folder=tmp_path / "a", progress=StopsAfter(5)).fit(X, Y)
    change = dict(change)
    if change.pop("betas", False):
        X = X + 1
    with pytest.raises(StoreError, match=rf"safetensors was trained with other settings: {found}.*--overwrite"):
        StreamingMLP(**how | change, folder=tmp_path / "a").fit(X, Y)
    replaced = StreamingMLP(**how | change, folder=tmp_path / "a", overwrite=True).fit(X, Y)
    fresh = StreamingMLP(**how | change, folder=tmp_path / "b").fit(X, Y)
    for name, tensor in fresh.network_.state_dict().items():
        assert torch.equal(tensor, replaced.network_.state_dict()[name])


def test_only_predictions_depend_on_how_they_are_restandardised(study, tmp_path):
    X, Y, _ = study(150, 40, dtype=np.float32)
    StreamingMLP(**SMALL, folder=tmp_path / "a").fit(X, Y)
    StreamingMLP(**SMALL, folder=tmp_path / "a", restandardize="inductive", progress=StopsAfter(-1)).fit(X, Y)


def test_shuffled_pairs_leave_nothing_to_learn(study, tmp_path):
    X, Y, T = study(400, 40, dtype=np.float32)
    for how in ({}, {"head": "full", "skip": "none", "alpha": "loo"}):
        fitted = StreamingMLP(
            **SMALL | how | {"epochs": 20, "learning_rate": 3e-3}, folder=tmp_path / str(len(how))
        ).fit(X, Y)
        shuffled = fitted.shuffled([0, 1], folder=tmp_path / f"s{len(how)}")
        assert not (tmp_path / f"s{len(how)}" / "coordinates.safetensors").exists()  # those of the first serve
        assert fitted.score(X, Y) > 0.2
        assert shuffled.predict(T).std(0).mean() < 0.8 * fitted.predict(T).std(0).mean()
        assert shuffled.score(T, fitted.predict(T)) < 0.1
        again = fitted.shuffled([0, 1], folder=tmp_path / f"s{len(how)}")
        np.testing.assert_array_equal(again.predict(T), shuffled.predict(T))
        assert not np.array_equal(fitted.shuffled([0, 2]).predict(T), shuffled.predict(T))


def test_the_curve_is_shown_while_it_learns(study, capsys, monkeypatch):
    monkeypatch.setattr("leanrecon.progress.LINE_EVERY", 0.0)
    X, Y, _ = study(150, 40, dtype=np.float32)
    StreamingMLP(**SMALL, progress=PlainProgress(), label="regression pca").fit(X, Y)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("regression pca: ") for line in lines)
    assert any("/24 steps" in line and "left, loss " in line and "validation " in line for line in lines)
    assert lines[-1].startswith("regression pca: 24 steps in ")
    assert "best" in lines[-1]


def test_random_numbers_of_others_are_left_alone(study):
    X, Y, _ = study(150, 40, dtype=np.float32)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    StreamingMLP(**SMALL).fit(X, Y)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore:.*does not inherit from.*BaseEstimator.*:UserWarning")
@parametrize_with_checks(
    [
        StreamingMLP(
            hidden=16,
            blocks=0,
            epochs=5,
            batch_size=8,
            skip="none",
            inputs="betas",
            learning_rate=3e-2,
            dropout=0.0,
            validation=0.0,
        ),
        StreamingMLP(hidden=8, blocks=1, epochs=2, batch_size=8, alpha=1.0),
    ]
)
def test_it_is_an_estimator_of_scikit_learn(estimator, check):
    check(estimator)
