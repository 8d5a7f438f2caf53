"""The regressor ``ridge``: stores of predictions, their record, what is planned, and factors that spaces share."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import SettingsError
from leanrecon.progress import Progress
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.regression.ridge import ridge as module
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan_form import shapes_of_regression
from leanrecon.regression.ridge.regressor import RidgeRegressor
from leanrecon.regression.ridge.settings import RidgeSettings
from leanrecon.regression.ridge.shapes import shapes_of
from leanrecon.stores import ColumnSubset, RowSubset, Store, as_matrix
from leanrecon.validation import validate


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def context(tmp_path):
    return Context.of("4GB", seed=3, scratch=tmp_path, progress=Said(), label="regression pca")


@pytest.fixture
def outputs(tmp_path):
    """Makes empty stores of predictions [m, t]: of the measured pairing, and of some random ones."""

    def make(m, t, pairings=0, name="out"):
        return [
            Output(Store.create(tmp_path / f"{name}{k}.zarr", (m, t), np.float32, made_of={}), tmp_path / "net", number)
            for k, number in enumerate([None, *range(pairings)])
        ]

    return make


def regressor(**table):
    return RidgeRegressor(validate(RidgeSettings, table, "regression."))


def data(X, y, T, stimulus=None):
    return RegressionData(as_matrix(X), as_matrix(y), as_matrix(T), [""] * len(X), stimulus)


@pytest.mark.parametrize("repeated", [False, True])
def test_predictions_and_those_of_random_pairings_fill_their_stores(study, off_by, context, outputs, repeated):
    X, Y, T = study(60, 90, m=5)
    stimulus = np.arange(60) // 3 if repeated else None
    y = Y[:20] if repeated else Y
    out = outputs(5, 23, pairings=2)
    record = regressor(alpha=20.0).predict(data(X, y, T, stimulus), out, context, {})
    rows = y if stimulus is None else y[stimulus]
    scale = X.std(axis=0, ddof=1)
    for k, output in enumerate(out):
        order = np.arange(60) if k == 0 else np.random.default_rng([3, k - 1]).permutation(60)
        expected = Ridge(20.0).fit(X / scale, rows[order]).predict(T / scale)
        assert off_by(output.store[:], expected, Y) < 1e-5
        assert Store.open(output.store.path).complete
    assert record == {
        "settings": {
            "kind": "ridge", "alpha": 20.0, "per_target": False, "standardize": True, "restandardize": "none",
        },
        "alpha": 20.0,
        "voxels_left_out": 0,
    }  # fmt: skip
    assert context.peaks.largest > 0


def test_what_was_chosen_and_left_out_is_said(study, context, outputs, monkeypatch):
    X, Y, T = study(60, 90, m=5)
    X[:, 3] = 1
    record = regressor(alphas=[1.0, 10.0, 100.0, 1000.0]).predict(data(X, Y, T), outputs(5, 23), context, {})
    assert context.progress.lines == [
        "regression pca: 1 of 90 voxels do not vary and are left out",
        f"regression pca: leave-one-out chose alpha = {record['alpha']:.4g}",
    ]
    assert record["alpha_chosen"] == {"of": 4, "by": "eigenvectors"}
    monkeypatch.setattr("leanrecon.regression.ridge.plan.SEARCH_ROWS", 50)
    record = regressor(alphas=[1.0, 10.0, 100.0, 1000.0]).predict(
        data(X, Y, T), outputs(5, 23, name="few"), context, {}
    )
    assert record["alpha_chosen"]["by"] == "Cholesky factors"
    assert record["alpha_chosen"]["begun_with_rows"] == []
    assert 1 < record["alpha_chosen"]["tried"] <= record["alpha_chosen"]["of"] == 4
    each = regressor(alphas=[1.0, 10.0, 100.0, 1000.0], per_target=True)
    record = each.predict(data(X, Y, T), outputs(5, 23, name="each"), context, {})
    assert context.progress.lines[-1].endswith(f"alpha = {record['alpha']['median']:.4g} (median over targets)")


@pytest.mark.parametrize("repeated", [False, True])
def test_spaces_with_the_same_alpha_share_a_factor(study, context, outputs, monkeypatch, repeated):
    X, Y, T = study(60, 90, m=5)
    stimulus = np.arange(60) // 3 if repeated else None
    y = Y[:20] if repeated else Y
    fits, gram = [], module.gram
    monkeypatch.setattr(module, "gram", lambda *args, **options: fits.append(1) or gram(*args, **options))
    shared = {}
    regressor(alpha=20.0).predict(data(X, y, T, stimulus), outputs(5, 23), context, shared)
    second = outputs(5, 23, name="second")
    regressor(alpha=20.0).predict(data(X, y[:, ::-1], T, stimulus), second, context, shared)
    assert len(fits) == 1
    alone = outputs(5, 23, name="alone")
    regressor(alpha=20.0).predict(data(X, y[:, ::-1], T, stimulus), alone, context, {})
    assert alone[0].store.content == second[0].store.content
    assert len(context.peaks.projected) == 5  # two fits, three predictions
    third = outputs(5, 23, pairings=1, name="third")
    regressor(alpha=20.0).predict(data(X, y, T, stimulus), third, context, shared)
    assert len(fits) == (3 if repeated else 2)  # a folded hat matrix can't be paired at random
    regressor(alpha=30.0).predict(data(X, y, T, stimulus), outputs(5, 23, name="fourth"), context, shared)
    assert len(fits) == (4 if repeated else 3)
    assert len(shared) == 1


def test_only_missing_blocks_are_predicted_again(study, context, outputs):
    X, Y, T = study(60, 90, m=5, t=2000)
    out = outputs(5, 2000)
    regressor(alpha=5.0).predict(data(X, Y, T), out, context, {})
    content = out[0].store.content
    out[0].store.discard([(0, 0)])
    again = [Output(Store.create(out[0].store.path, (5, 2000), np.float32, made_of={}), out[0].folder)]
    regressor(alpha=5.0).predict(data(X, Y, T), again, context, {})
    assert again[0].store.content == content


def test_what_decides_predictions_names_the_grid_only_where_it_is_searched():
    assert "alphas" not in regressor(alpha=5.0, alphas=[1.0, 2.0]).made_of()
    assert regressor(alphas=[1.0, 2.0]).made_of()["alphas"] == [1.0, 2.0]
    assert regressor(alpha=5.0).made_of() != regressor(alpha=6.0).made_of()


def test_a_transductive_ridge_has_a_note_for_the_reader():
    (note,) = RidgeRegressor.notes(RidgeSettings(restandardize="transductive"), "vdvae")
    assert note.startswith("Predictions of vdvae were re-standardised")
    assert not [*RidgeRegressor.notes(RidgeSettings(restandardize="inductive"), "vdvae")]


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"alpha": 1.0, "per_target": True}, 'per_target chooses an alpha for every target, which needs alpha = "loo"'),
        ({"alpha": -1}, "regression.alpha = -1: a number, 0 or more"),
        ({"alphas": [0.0]}, "regression.alphas = .*: a list of numbers above 0"),
        ({"alpa": 1.0}, r"regression.alpa is unknown \(did you mean alpha\?\)"),
    ],
)
def test_settings_out_of_range_are_refused(table, found):
    with pytest.raises(SettingsError, match=found):
        regressor(**table)


# The plan

NSD = RegressionShapes(n=8859, p=15_724, m=982, s=8859, t=91_168, x_block=7862, y_block=7824)
TRIALS = RegressionShapes(n=27_000, p=15_724, m=1000, s=9000, t=91_168, x_block=7862, y_block=7824)


def test_the_plan_says_where_the_gram_matrix_goes():
    planned = regressor(alpha=5e4).plan(NSD, 4 * 10**9)
    assert planned.summary == "Gram matrix of order 8859 in memory, 7824 targets a block"
    assert planned.scratch == 0
    small = regressor(alpha=5e4).plan(NSD, planned.work - 1)
    assert small.summary == "Gram matrix of order 8859 on disk, 7824 targets a block"
    assert small.scratch > 10**8
    assert small.work < planned.work


def test_single_trials_take_the_primal_side_and_a_column_of_the_hat_matrix_for_each_image():
    planned = regressor(alpha=5e4).plan(TRIALS, 4 * 10**9)
    assert planned.summary.startswith("Gram matrix of order 15724")
    assert planned.work < 800_000_000  # half of the square is 494 MB; 27,000 columns of H would be 108 MB
    shapes = shapes_of_regression(TRIALS)
    assert (shapes.width, shapes.largest, shapes.dual, shapes.through_hat) == (9000, 3, False, True)


@pytest.mark.parametrize("subset", [False, True])
def test_stages_plan_from_shapes_what_the_fit_plans_from_stores(tmp_path, subset):
    betas = Store.create(tmp_path / "x.zarr", (600, 5000), np.float32, made_of={}, chunk="1MB")
    targets = Store.create(tmp_path / "y.zarr", (300, 3000), np.float32, made_of={}, chunk="1MB")
    for store in (betas, targets):
        for i in range(store.row_groups):
            store.write_rows(i, np.zeros((len(store.group_rows(i)), store.columns), np.float32))
        store.finish()
    x, y = as_matrix(betas), as_matrix(targets)
    shapes = RegressionShapes(600, 5000, 40, 300, 3000, betas.chunk_columns, targets.chunk_columns, subset)
    if subset:
        x, y = RowSubset(ColumnSubset(x, np.arange(0, 5000, 5)), np.arange(0, 600, 2)), RowSubset(y, np.arange(200))
        shapes = RegressionShapes(300, 1000, 40, 200, 3000, betas.chunk_columns, targets.chunk_columns, subset)
    pairing = Pairing.of(np.arange(x.shape[0]) * y.shape[0] // x.shape[0], x.shape[0], y.shape[0])
    planned = shapes_of_regression(shapes)
    real = shapes_of(x, y, 40, pairing, "none", shuffled=False)
    for name in ("n", "p", "m", "t", "s", "block", "largest", "y_itemsize"):
        assert getattr(planned, name) == getattr(real, name), name
    for name in ("x_tile", "y_tile", "scratch", "y_scratch"):
        assert getattr(real, name) <= getattr(planned, name) <= 2 * getattr(real, name) + 8192, (
            name
        )  # tiles of half as many rows


def test_planning_loads_no_libraries():
    script = (
        "import sys; from leanrecon import kinds; from leanrecon.regression.regressor import RegressionShapes\n"
        "ridge = kinds.get('regressors', 'ridge'); ridge(ridge.Settings()).plan("
        "RegressionShapes(8859, 15724, 982, 8859, 91168, 7862, 7824), 10**9)\n"
        "print(*sorted({'zarr', 'scipy', 'torch', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
    assert kinds.get("regressors", "ridge") is RidgeRegressor


def test_transductive_moments_of_one_test_row_are_refused(study, context, outputs):
    X, Y, T = study(60, 90, m=1)
    with pytest.raises(SettingsError, match="inductive"):
        regressor(alpha=20.0, restandardize="transductive").predict(data(X, Y, T), outputs(1, 23), context, {})


def test_betas_beyond_reason_are_said_and_recorded(study, context, outputs):
    X, Y, T = study(60, 90, m=5)
    record = regressor(alpha=20.0).predict(data(X, Y, 300 * T), outputs(5, 23), context, {})
    (sentence,) = record["unreasonable_betas"]
    assert "of different scale" in sentence
    assert f"regression pca: {sentence}" in context.progress.lines
