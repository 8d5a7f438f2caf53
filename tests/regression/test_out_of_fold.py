"""Out-of-fold predictions: beside scikit-learn's, without leaks, killed anywhere, planned."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from support.kills import StoppedError, stopping
from support.memory import held

from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.places import Location
from leanrecon.regression.out_of_fold import FOLDER, assign_folds, fold_data, out_of_fold, plan_out_of_fold
from leanrecon.regression.regressor import RegressionData, RegressionPlan, RegressionShapes
from leanrecon.stores import Store, as_matrix

FOLDS = 5


def whole(matrix):
    out = np.empty(matrix.shape, np.float64)
    for start in range(0, len(out), 256):
        rows = range(start, min(start + 256, len(out)))
        matrix.read(rows, range(out.shape[1]), out[rows.start : rows.stop])
    return out


class PlainRidge:
    """A ridge by the normal equations, in memory; keeps what it was given."""

    def __init__(self):
        self.fits = []

    def plan(self, shapes, free):
        self.shapes = shapes
        return RegressionPlan(8 * shapes.n * (shapes.p + shapes.t), "by hand", disk=3, scratch=5, held=7)

    def predict(self, data, outputs, context, shared):
        X, Y, T = (whole(matrix) for matrix in (data.betas, data.targets, data.test))
        Y = Y if data.stimulus is None else Y[data.stimulus]
        self.fits.append((X, Y, data.groups, context.label))
        mean = X.mean(0)
        centred = X - mean
        weights = np.linalg.solve(centred.T @ centred + 10 * np.eye(X.shape[1]), centred.T @ (Y - Y.mean(0)))
        predicted = (Y.mean(0) + (T - mean) @ weights).astype(np.float32)
        (output,) = outputs
        for j in output.store.missing_column_groups():
            columns = output.store.group_columns(j)
            output.store.write_columns(j, predicted[:, columns.start : columns.stop])
        output.store.finish()
        return {}


@pytest.fixture
def repeated(study):
    """600 rows of 250 images in random order, every image in one to four rows of its own run."""
    X, Y, T = study(600, 12, t=3000, dtype=np.float32)
    stimulus = np.random.default_rng(1).integers(0, 250, 600)
    stimulus[:250] = np.random.default_rng(2).permutation(250)
    data = RegressionData(as_matrix(X), as_matrix(Y[:250]), as_matrix(T), [f"image {i}" for i in stimulus], stimulus)
    return X, Y[:250], data


def create(path, data, **made_of):
    shape = (data.betas.shape[0], data.targets.shape[1])
    return Store.create(path / "train.zarr", shape, np.float32, made_of={"folds": FOLDS} | made_of, chunk=300_000)


def context(**options):
    return Context.of(held() + 2_000_000_000, seed=3, chunk=300_000, label="regression pca", **options)


def test_predictions_are_those_of_scikit_learn_fitted_on_the_other_folds(repeated, tmp_path):
    X, Y, data = repeated
    store = create(tmp_path, data)
    assert store.row_groups > 2
    assert store.column_groups > 2
    record = out_of_fold(PlainRidge(), data, store, FOLDS, context())
    fold = assign_folds(data.groups, FOLDS, 3)
    expected = cross_val_predict(Ridge(alpha=10.0), X.astype(float), Y[data.stimulus], cv=PredefinedSplit(fold))
    np.testing.assert_allclose(store[0:600], expected, atol=1e-4)
    assert store.complete
    assert record == {"folds": FOLDS, "rows": np.bincount(fold).tolist()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.zarr"]


def test_images_shown_once_need_no_index(study, tmp_path):
    X, Y, T = study(90, 12, dtype=np.float32)
    data = RegressionData(as_matrix(X), as_matrix(Y), as_matrix(T), [str(i) for i in range(90)])
    store = create(tmp_path, data)
    out_of_fold(PlainRidge(), data, store, FOLDS, context())
    fold = assign_folds(data.groups, FOLDS, 3)
    expected = cross_val_predict(Ridge(alpha=10.0), X.astype(float), Y, cv=PredefinedSplit(fold))
    np.testing.assert_allclose(store[0:90], expected, atol=1e-4)
    assert fold_data(data, fold, 0).stimulus is None


def test_folds_hold_whole_groups_and_as_many_rows_and_follow_from_the_seed():
    groups = [f"run {i // 3}" for i in range(299)]
    fold = assign_folds(groups, 5, 0)
    for name in set(groups):
        assert len({int(k) for k, group in zip(fold, groups, strict=True) if group == name}) == 1
    assert np.ptp(np.bincount(fold)) <= 3
    np.testing.assert_array_equal(fold, assign_folds(groups, 5, 0))
    assert (fold != assign_folds(groups, 5, 1)).any()
    assert np.any(np.diff(fold) < 0)  # drawn, not cut


@pytest.mark.parametrize("grouped", ["image", "run"])
def test_the_target_of_a_held_out_image_never_changes_its_own_prediction(repeated, tmp_path, grouped):
    """Also where runs are the groups, and an image is shown in several of them."""
    _, Y, data = repeated
    if grouped == "run":
        data = RegressionData(data.betas, data.targets, data.test, [str(i // 40) for i in range(600)], data.stimulus)
    before, image = create(tmp_path / "before", data), 17
    out_of_fold(PlainRidge(), data, before, FOLDS, context())
    changed = Y.copy()
    changed[image] += 1000
    other = RegressionData(data.betas, as_matrix(changed), data.test, data.groups, data.stimulus)
    after = create(tmp_path / "after", other)
    out_of_fold(PlainRidge(), other, after, FOLDS, context())
    shows = data.stimulus == image
    assert shows.sum() > 1
    np.testing.assert_array_equal(before[0:600][shows], after[0:600][shows])
    assert (before[0:600][~shows] != after[0:600][~shows]).any()


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 7])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(repeated, tmp_path, every):
    _, _, data = repeated
    known = create(tmp_path / "whole", data)
    out_of_fold(PlainRidge(), data, known, FOLDS, context())
    runs = 0
    while True:
        runs, regressor = runs + 1, PlainRidge()
        try:
            with stopping(every, StoppedError):
                out_of_fold(regressor, data, create(tmp_path / "killed", data), FOLDS, context())
            break
        except StoppedError:
            continue
    assert runs > 6
    assert not regressor.fits  # the last run only merged
    assert Store.open(tmp_path / "killed" / "train.zarr").content == known.content
    assert not (tmp_path / "killed" / FOLDER).exists()


def test_what_other_settings_left_of_folds_is_replaced(repeated, tmp_path, monkeypatch):
    _, _, data = repeated
    with monkeypatch.context() as patched:
        patched.setattr("leanrecon.regression.out_of_fold._merge", lambda *_: (_ for _ in ()).throw(StoppedError))
        with pytest.raises(StoppedError):
            out_of_fold(PlainRidge(), data, create(tmp_path, data, alpha=1), FOLDS, context())
    assert (tmp_path / FOLDER / "04.zarr").exists()
    regressor, store = PlainRidge(), create(tmp_path, data, alpha=2)
    out_of_fold(regressor, data, store, FOLDS, context())
    assert [label for *_, label in regressor.fits] == [f"regression pca, fold {k} of 5" for k in range(1, 6)]
    out_of_fold(regressor, data, store, FOLDS, context())
    assert len(regressor.fits) == 5


def test_too_few_groups_or_folds_are_refused(repeated, tmp_path):
    X, Y, data = repeated
    with pytest.raises(InputError, match="2 groups of train rows for 5 folds"):
        assign_folds(["a"] * 30 + ["b"] * 30, 5, 0)
    with pytest.raises(SettingsError, match="1 fold for out-of-fold predictions"):
        assign_folds(["a", "b"], 1, 0)
    same = RegressionData(
        as_matrix(X[:20]), as_matrix(Y[:2]), data.test, [str(i) for i in range(20)], np.arange(20) % 2
    )
    with pytest.raises(InputError, match=r"no train rows are left for fold 1.*[Gg]roup train rows by stimulus"):
        out_of_fold(PlainRidge(), same, create(tmp_path, same), 5, context())


def test_the_plan_covers_the_largest_fold_and_merging(repeated, tmp_path):
    _, _, data = repeated
    regressor = PlainRidge()
    shapes = RegressionShapes(n=600, p=12, m=40, s=250, t=3000, x_block=12, y_block=1000, pairings=2)
    largest = int(np.bincount(data.stimulus).max())
    plan = plan_out_of_fold(regressor, shapes, FOLDS, 10**9, chunk=300_000, largest=largest)
    fold = assign_folds(data.groups, FOLDS, 3)
    for k in range(FOLDS):
        part = fold_data(data, fold, k)
        assert part.betas.shape[0] <= regressor.shapes.n <= 600
        assert part.test.shape[0] <= regressor.shapes.m < 200
        assert part.targets.shape[0] <= regressor.shapes.s < 250
    assert regressor.shapes.subset
    assert regressor.shapes.pairings == 0
    assert plan.summary == "out of fold, 5 folds, each by hand"
    assert (plan.disk, plan.held) == (0, 7)
    chunks = [path.stat().st_size - 4 for path in _kept_folds(data, tmp_path)]  # without their checksums
    assert sum(chunks) <= plan.scratch <= 1.1 * sum(chunks)


def _kept_folds(data, tmp_path):
    """The chunk files of all folds, as they lie there before they are merged."""
    store = create(tmp_path, data)
    made = []

    class Keeps(PlainRidge):
        def predict(self, data, outputs, context, shared):
            super().predict(data, outputs, context, shared)
            made.extend(path for path in Path(outputs[0].store.path).glob("c/**/*") if path.is_file())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Location, "delete_tree", lambda folder: None)
        out_of_fold(Keeps(), data, store, FOLDS, context())
    return made


@pytest.mark.alone
@pytest.mark.slow
def test_merging_takes_no_more_than_was_planned(tmp_path):
    n, t = 4000, 60_000
    rng = np.random.default_rng(0)

    class Noise:
        def plan(self, shapes, free):
            return RegressionPlan(0, "noise")

        def predict(self, data, outputs, context, shared):
            (output,) = outputs
            for j in output.store.missing_column_groups():
                width = len(output.store.group_columns(j))
                output.store.write_columns(j, rng.standard_normal((output.store.rows, width), np.float32))
            output.store.finish()

    data = RegressionData(
        as_matrix(np.zeros((n, 2), np.float32)), as_matrix(np.zeros((n, t), np.int8)),
        as_matrix(np.zeros((1, 2), np.float32)), [str(i) for i in range(n)],
    )  # fmt: skip
    chunk = 32_000_000
    store = Store.create(tmp_path / "train.zarr", (n, t), np.float32, made_of={}, chunk=chunk)
    shapes = RegressionShapes(n=n, p=2, m=1, s=n, t=t, x_block=2, y_block=store.chunk_columns)
    planned = plan_out_of_fold(Noise(), shapes, 10, 10**9, chunk=chunk).work
    from leanrecon.regression import out_of_fold as module

    peaks, merge = [], module._merge

    def measured(*given):
        before = process_memory()
        with PeakMemory() as memory:
            merge(*given)
        peaks.append(memory.peak - before)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_merge", measured)
        out_of_fold(Noise(), data, store, 10, Context.of("6GB", chunk=chunk))
    assert 0.6 * planned <= peaks[0] <= planned
