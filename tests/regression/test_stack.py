"""Stacked regressors: weights of SciPy's non-negative least squares, predictions by scikit-learn, killed anywhere."""

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import Ridge
from support.kills import StoppedError, stopping
from support.memory import held

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.regression.out_of_fold import assign_folds, out_of_fold
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.regression.stack.regressor import StackRegressor
from leanrecon.regression.stack.weights import NormalEquations, nnls
from leanrecon.stores import Store, as_matrix

ALPHAS = (3.0, 3000.0)
FOLDS = 4


def make(**changes):
    table = {"kind": "stack", "folds": FOLDS, "members": [{"kind": "ridge", "alpha": alpha} for alpha in ALPHAS]}
    settings = kinds.settings_of("regressors", table | changes, "regression.", default="ridge")
    return StackRegressor(settings)


def context(**options):
    return Context.of(held() + 2_000_000_000, seed=3, chunk=300_000, label="regression pca", **options)


@pytest.fixture
def repeated(study):
    """300 rows of 120 images, and 40 test rows."""
    X, Y, T = study(300, 20, t=1500, dtype=np.float32)
    stimulus = np.random.default_rng(1).integers(0, 120, 300)
    stimulus[:120] = np.random.default_rng(2).permutation(120)
    return RegressionData(
        as_matrix(X), as_matrix(Y[:120] + 5), as_matrix(T), [f"image {i}" for i in stimulus], stimulus
    )


def outputs_of(path, data, pairings=0):
    found = []
    for pairing in (None, *range(pairings)):
        folder = path if pairing is None else path / f"shuffled{pairing:02d}"
        shape = (data.test.shape[0], data.targets.shape[1])
        store = Store.create(folder / "test.zarr", shape, np.float32, made_of={"pairing": pairing}, chunk=300_000)
        found.append(Output(store, folder / "network", pairing))
    return found


def whole(matrix):
    out = np.empty(matrix.shape, np.float64)
    for start in range(0, len(out), 256):
        rows = range(start, min(start + 256, len(out)))
        matrix.read(rows, range(out.shape[1]), out[rows.start : rows.stop])
    return out


def by_hand(data, block=None):
    """Weights and predictions by scikit-learn's ridge and SciPy's least squares, all in memory."""
    X, Y, T = whole(data.betas), whole(data.targets)[data.stimulus], whole(data.test)
    fold = assign_folds(data.groups, FOLDS, 3)
    folded, tested = [], []
    for alpha in ALPHAS:
        rows = np.empty_like(Y)
        for k in range(FOLDS):
            rows[fold == k] = fitted(X[fold != k], Y[fold != k], X[fold == k], alpha)
        folded.append(rows)
        tested.append(fitted(X, Y, T, alpha))
    mean, size = Y.mean(0), block or Y.shape[1]
    weights, predicted = [], np.empty((len(T), Y.shape[1]))
    for start in range(0, Y.shape[1], size):
        part = slice(start, start + size)
        design = np.stack([(rows - mean)[:, part].ravel() for rows in folded], axis=1)
        weights.append(scipy.optimize.nnls(design, (Y - mean)[:, part].ravel())[0])
        predicted[:, part] = mean[part] + sum(
            w * (one - mean)[:, part] for w, one in zip(weights[-1], tested, strict=True)
        )
    return np.array(weights), predicted


def fitted(X, Y, T, alpha):
    mean, spread = X.mean(axis=0), X.std(axis=0, ddof=1)
    return Ridge(alpha).fit((X - mean) / spread, Y).predict((T - mean) / spread)


@pytest.mark.parametrize("rows", [40, 3])
def test_weights_are_those_of_scipy(rows):
    """Also where there are fewer rows than members, or two members agree."""
    rng = np.random.default_rng(rows)
    for _ in range(20):
        predicted, true = rng.standard_normal((5, rows, 1)), rng.standard_normal((rows, 1))
        predicted[3] = predicted[1]
        sums = NormalEquations.zeros(1, 5)
        for part in (slice(0, rows // 2), slice(rows // 2, rows)):
            sums.add(0, predicted[:, part], true[part])
        (found,) = sums.weights()
        design = predicted[:, :, 0].T
        expected = scipy.optimize.nnls(design, true[:, 0])[0]
        assert (found >= 0).all()
        np.testing.assert_allclose(design @ found, design @ expected, atol=1e-7)
    np.testing.assert_array_equal(nnls(np.zeros((2, 2)), np.zeros(2)), [0, 0])


@pytest.mark.parametrize("block", [None, 400])
def test_predictions_are_those_of_scikit_learn_and_scipy(repeated, tmp_path, block):
    outputs = outputs_of(tmp_path, repeated)
    assert outputs[0].store.column_groups > 1
    record = make(block=block).predict(repeated, outputs, context(), {})
    weights, predicted = by_hand(repeated, block)
    np.testing.assert_allclose(np.atleast_2d(record["weights"]), weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs[0].store[0:40], predicted, atol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["test.zarr"]
    (note,) = record["notes"]
    assert note.startswith(f"{weights.mean(0)[0]:.2f} × member 1 (ridge) + ")


def test_random_pairings_are_combined_by_the_same_weights(repeated, tmp_path):
    outputs = outputs_of(tmp_path, repeated, pairings=2)
    record = make().predict(repeated, outputs, context(), {})
    members = []
    for k, alpha in enumerate(ALPHAS):
        settings = kinds.settings_of("regressors", {"alpha": alpha}, "", default="ridge")
        own = outputs_of(tmp_path / f"alone{k}", repeated, pairings=2)
        kinds.kind_of("regressors", settings)(settings).predict(repeated, own, context(), {})
        members.append(own)
    mean = whole(repeated.targets)[repeated.stimulus].mean(0)
    for output, *alone in zip(outputs, *members, strict=True):
        parts = [w * (one.store[0:40] - mean) for w, one in zip(record["weights"], alone, strict=True)]
        np.testing.assert_allclose(output.store[0:40], mean + sum(parts), atol=1e-4)


def test_out_of_fold_predictions_of_a_stack_leave_the_row_out_of_its_weights(repeated, tmp_path):
    """The target of a held-out image changes none of its own predictions, though weights are learned from targets."""
    image, before = 17, None
    for change in (0, 1000):
        targets = whole(repeated.targets)
        targets[image] += change
        data = RegressionData(repeated.betas, as_matrix(targets), repeated.test, repeated.groups, repeated.stimulus)
        store = Store.create(tmp_path / str(change) / "train.zarr", (300, 1500), np.float32, made_of={}, chunk=300_000)
        out_of_fold(make(), data, store, 3, context())
        assert [path.name for path in (tmp_path / str(change)).iterdir()] == ["train.zarr"]
        rows = store[0:300]
        if before is not None:
            np.testing.assert_array_equal(rows[repeated.stimulus == image], before[repeated.stimulus == image])
            assert (rows != before).any()
        before = rows


def test_test_rows_do_not_change_the_weights(repeated, tmp_path):
    other = RegressionData(
        repeated.betas, repeated.targets, as_matrix(whole(repeated.test)[:7] * 9), repeated.groups, repeated.stimulus
    )
    weights = [
        make().predict(data, outputs_of(tmp_path / str(k), data), context(), {})["weights"]
        for k, data in enumerate((repeated, other))
    ]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_run_killed_anywhere_ends_with_the_same_bytes(repeated, tmp_path):
    known = outputs_of(tmp_path / "whole", repeated, pairings=1)
    make().predict(repeated, known, context(), {})
    runs = 0
    while True:
        runs += 1
        outputs = outputs_of(tmp_path / "killed", repeated, pairings=1)
        try:
            with stopping(5, StoppedError):
                make().predict(repeated, outputs, context(), {})
            break
        except StoppedError:
            continue
    assert runs > 6
    for one, other in zip(outputs, known, strict=True):
        assert one.store.content == other.store.content
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["shuffled00", "test.zarr"]


def test_settings_are_checked_by_the_kind_of_each_member():
    settings = make().settings
    assert kinds.settings_of("regressors", settings.model_dump(), "", default="ridge") == settings
    with pytest.raises(SettingsError, match=r"members\[1\]\.alpah is unknown \(did you mean alpha"):
        make(members=[{"kind": "ridge"}, {"kind": "ridge", "alpah": 1}])
    with pytest.raises(SettingsError, match=r"members\[0\]\.kind = 'rigde'"):
        make(members=[{"kind": "rigde"}, {"kind": "ridge"}])
    with pytest.raises(SettingsError, match="members"):
        make(members=[{"kind": "ridge"}])
    with pytest.raises(SettingsError, match=r"members\[0\] is not a table"):
        make(members=["ridge", {"kind": "ridge"}])
    notes = list(StackRegressor.notes(make(members=[{"restandardize": "transductive"}, {}]).settings, "pca"))
    assert any("transductive" in note for note in notes)
    assert any("combine 2 regressors" in note for note in notes)


def test_fewer_images_than_folds_are_refused(repeated, tmp_path):
    same = RegressionData(repeated.betas, repeated.targets, repeated.test, ["a", "b"] * 150, repeated.stimulus)
    with pytest.raises(InputError, match="2 groups of train rows for 4 folds"):
        make().predict(same, outputs_of(tmp_path, same), context(), {})


@pytest.mark.alone
@pytest.mark.slow
def test_predicting_takes_no_more_than_was_planned(study, tmp_path):
    n, p, m, t = 1500, 400, 200, 20_000
    X, Y, T = study(n, p, t=t, dtype=np.float32)
    stores = []
    for name, rows in (("x", X), ("y", Y), ("t", T[:m])):
        store = Store.create(tmp_path / f"{name}.zarr", rows.shape, np.float32, made_of={}, chunk=4_000_000)
        for i in range(store.row_groups):
            group = store.group_rows(i)
            store.write_rows(i, rows[group.start : group.stop])
        store.finish()
        stores.append(store)
    m = stores[2].rows
    data = RegressionData(*(as_matrix(store) for store in stores), [str(i) for i in range(n)])
    shapes = RegressionShapes(
        n=n, p=p, m=m, s=n, t=t, x_block=stores[0].chunk_columns, y_block=stores[1].chunk_columns, subset=True
    )
    del X, Y, T
    stack = make()
    plan = stack.plan(shapes, 10**9)
    out = Store.create(tmp_path / "test.zarr", (m, t), np.float32, made_of={}, chunk=4_000_000)
    before = process_memory()
    with PeakMemory() as peak:
        stack.predict(data, [Output(out, tmp_path / "network")], Context.of("4GB", chunk=4_000_000), {})
    print(peak.peak - before, plan.work)
    assert peak.peak - before <= plan.work
