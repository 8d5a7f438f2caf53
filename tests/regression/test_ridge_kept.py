"""What ridges of one study have in common is computed once, and to the same bytes as alone."""

from dataclasses import replace

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.regression.kept import KEPT, KERNELS, Kept, KeptArray
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.regression.ridge import choice, kept_parts, learned
from leanrecon.regression.ridge import ridge as module
from leanrecon.regression.ridge.form import forms
from leanrecon.regression.ridge.plan import Shapes
from leanrecon.regression.ridge.plan_form import kernels_nbytes
from leanrecon.regression.ridge.regressor import RidgeRegressor
from leanrecon.regression.ridge.settings import RidgeSettings
from leanrecon.stores import ColumnSubset, Store, as_matrix
from leanrecon.validation import validate

GRID = [1.0, 10.0, 100.0, 1000.0]

FORMS = {
    "dual": {},
    "rbf": {"kernel": "rbf", "gamma": 1.0},
    "inductive": {"restandardize": "inductive"},
    "per target": {"alpha": "loo", "alphas": GRID, "per_target": True},
    "eigenvectors": {"alpha": "loo", "alphas": GRID},
    "reliability": {"voxel_weights": "reliability", "voxel_power": 1.0},
}


@pytest.fixture
def context(tmp_path):
    return Context.of("4GB", seed=3, scratch=tmp_path)


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    return Kept(folder)


@pytest.fixture
def counted(monkeypatch):
    """Counts calls of what is to be done once."""
    counts = {}

    def count(owner, name):
        whole = getattr(owner, name)

        def counting(*args, **options):
            counts[name] = counts.get(name, 0) + 1
            return whole(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((module, "gram"), (module, "eigenvectors"), (learned, "project")):
        count(owner, name)
    return counts


class Read:
    """An array that notes the parts that are read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.parts = array, array.shape, array.dtype, []

    def __getitem__(self, part):
        self.parts.append(part)
        return self.array[part]


def predicted(context, X, Y, T, table, name, kept=None, pairings=0, shared=None):
    """The contents of the stores that a regressor fills."""
    folder = context.scratch / name
    folder.mkdir(exist_ok=True)
    out = [
        Output(Store.create(folder / f"{k}.zarr", (len(T), Y.shape[1]), np.float32, made_of={}), folder, number)
        for k, number in enumerate([None, *range(pairings)])
    ]
    regressor = RidgeRegressor(validate(RidgeSettings, {"alpha": 20.0} | table, "regression."))
    reliability = np.linspace(0.1, 1, X.shape[1])
    data = RegressionData(as_matrix(X), as_matrix(Y), as_matrix(T), [""] * len(X), reliability=reliability)
    shared = {} if shared is None else shared
    if kept is not None:
        shared[KEPT] = kept
    regressor.predict(data, out, context, shared)
    return [output.store.content for output in out]


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)], ids=["rows", "voxels"])
@pytest.mark.parametrize("form", list(FORMS))
def test_spaces_of_one_study_share_what_depends_on_betas(study, context, kept, counted, form, shape):
    X, Y, T = study(*shape, m=5)
    other = Y[:, ::-1] ** 2
    tables = [FORMS[form], FORMS[form] | ({} if "alpha" in FORMS[form] else {"alpha": 50.0})]
    alone = [
        predicted(context, X, y, T, table, f"alone{k}")
        for k, (y, table) in enumerate(zip((Y, other), tables, strict=True))
    ]
    each = counted["gram"], counted.get("eigenvectors", 0)
    assert each[0] == 2
    shared = {}
    for k, (y, table) in enumerate(zip((Y, other), tables, strict=True)):
        kept.to_come = 1 - k
        assert predicted(context, X, y, T, table, f"shared{k}", kept, shared=shared) == alone[k]
    assert counted["gram"] == 3
    assert counted.get("eigenvectors", 0) == each[1] * 3 // 2
    assert not any(kept.folder.iterdir())


def test_a_gram_matrix_on_disk_is_kept_and_found_there(study, context, kept, counted, monkeypatch):
    X, Y, T = study(600, 900, m=5)
    alone = predicted(context, X, Y, T, {"alpha": 50.0}, "alone")
    plan = module.plan_fit
    monkeypatch.setattr(module, "plan_fit", lambda shapes, free, **how: plan(shapes, 0, **how))
    kept.to_come = 1
    predicted(context, X, Y, T, {}, "first", kept)
    assert predicted(context, X, Y, T, {"alpha": 50.0}, "second", kept) == alone
    assert counted["gram"] == 2


AUTO = {"alpha": "loo", "alphas": GRID, "kernel": "auto", "gamma": 1.0, "voxel_weights": "auto", "voxel_power": 1.0}


@pytest.mark.parametrize("how", [{}, {"standardize": False}, {"gamma": "loo"}], ids=["same", "scale", "gamma"])
def test_targets_share_the_kernels_that_their_forms_are_compared_by(study, context, kept, monkeypatch, how):
    """Of five folds each with equal voxels, and each weighed by how well they carry these targets."""
    X, Y, T = study(60, 90, m=5)
    formed, whole = [], choice.Centred

    def centred(matrix, train, *, weights, **how):
        formed.append(weights is None)
        return whole(matrix, train, weights=weights, **how)

    monkeypatch.setattr(choice, "Centred", centred)
    alone = [predicted(context, X, y, T, AUTO | how, f"alone{k}") for k, y in enumerate((Y, Y[:, ::-1] ** 2))]
    assert (formed.count(True), formed.count(False)) == (
        20,
        20,
    )  # train and held-out rows of five folds, of two targets
    formed.clear()
    kept.to_come = 2
    predicted(context, X, Y, T, AUTO, "first", kept)
    assert (formed.count(True), formed.count(False)) == (10, 10)
    nbytes = sum(array.nbytes for one in kept._found[KERNELS] for pair in one.arrays for array in pair)
    shapes = Shapes(60, 90, 5, 23, 23)
    assert nbytes == 5 * 2 * (48 * 48 + 12 * 48) * 8 <= kernels_nbytes(shapes, forms("auto", 1.0, "auto", 1.0), 2)
    assert kernels_nbytes(shapes, forms("auto", 1.0, "auto", 1.0), 1) == 0  # nothing is kept for a single space
    formed.clear()
    again = [predicted(context, X, y, T, AUTO | how, f"shared{k}", kept) for k, y in enumerate((Y, Y[:, ::-1] ** 2))]
    assert again == alone
    assert (formed.count(True), formed.count(False)) == (0 if how == {} else 10, 20)


def test_other_voxels_rows_scales_and_types_have_their_own(study, context, kept, counted):
    X, Y, T = study(60, 90, m=5)
    kept.to_come = 1
    predicted(context, X, Y, T, {}, "first", kept)
    voxels = np.arange(0, 90, 2)
    some = (ColumnSubset(as_matrix(a), voxels) for a in (X, T))
    regressor = RidgeRegressor(validate(RidgeSettings, {"alpha": 20.0}, "regression."))
    out = Output(Store.create(context.scratch / "area.zarr", (5, 23), np.float32, made_of={}), context.scratch)
    x, t = some
    regressor.predict(RegressionData(x, as_matrix(Y), t, [""] * 60), [out], context, {KEPT: kept})
    predicted(context, X, Y, T, {"standardize": False}, "plain", kept)
    predicted(context, X[::-1].copy(), Y, T, {}, "rows", kept)
    assert counted["gram"] == 4
    predicted(context, X[::-1].copy(), Y, T, {"voxel_weights": "accuracy", "voxel_power": 1.0}, "by target", kept)
    assert counted["gram"] == 5


def test_nothing_large_is_kept_for_the_last_space(study, context, kept):
    X, Y, T = study(60, 90, m=5)
    predicted(context, X, Y, T, {}, "only", kept)
    assert kept.find("gram matrix", lambda one: True) is None


def test_areas_share_projections_of_their_targets(study, context, kept, counted):
    X, Y, T = study(60, 90, m=5, t=600)
    table = {"alpha": "loo", "alphas": GRID}
    alone = predicted(context, X[:, :70].copy(), Y, T[:, :70].copy(), table, "alone")
    predicted(context, X, Y, T, table, "whole", kept)
    assert predicted(context, X[:, :70].copy(), Y, T[:, :70].copy(), table, "area", kept) == alone
    assert counted["project"] == 2
    y = as_matrix(Y)

    def projections(seed, dtype, weights):
        make = lambda: learned.project(y, seed, dtype, weights)  # noqa: E731
        return kept_parts.projections(kept, y, seed, dtype, weights, make)

    one, two = (projections(3, np.float64, None) for _ in range(2))
    assert np.array_equal(one, two)
    assert counted["project"] == 2
    two += 1  # it may be used up
    assert np.array_equal(projections(3, np.float64, None), one)
    for seed, dtype, weights in ((4, np.float64, None), (3, np.float32, None), (3, np.float64, np.full(60, 2.0))):
        projections(seed, dtype, weights)
    assert counted["project"] == 5


@pytest.mark.parametrize("restandardize", ["none", "inductive", "transductive"])
@pytest.mark.parametrize("sets", [1, 2, 8])
def test_random_pairings_share_a_pass_over_the_targets(study, context, monkeypatch, restandardize, sets):
    X, Y, T = study(60, 90, m=5, t=600)
    table, parts = {"restandardize": restandardize}, {}
    for most in (1, sets):
        monkeypatch.setattr("leanrecon.regression.ridge.plan_form.MOST_SETS", most)
        y = Read(Y)
        parts[most] = y.parts
        name = f"at most {most}"
        contents = predicted_of(context, X, as_matrix(y), T, table, name, pairings=3)
        if most == 1:
            alone = contents
    assert contents == alone
    assert len(set(alone)) == 4
    assert len(parts[sets]) * min(sets, 4) == len(parts[1])


def predicted_of(context, X, y, T, table, name, pairings):
    out = outputs_of(context, name, len(T), y.shape[1], pairings)
    fill(context, X, y, T, table, out)
    return [output.store.content for output in out]


def outputs_of(context, name, m, t, pairings):
    folder = context.scratch / name
    folder.mkdir(exist_ok=True)
    return [
        Output(Store.create(folder / f"{k}.zarr", (m, t), np.float32, made_of={}, chunk=4096), folder, number)
        for k, number in enumerate([None, *range(pairings)])
    ]


def fill(context, X, y, T, table, out):
    regressor = RidgeRegressor(validate(RidgeSettings, {"alpha": 20.0} | table, "regression."))
    data = RegressionData(as_matrix(X), y, as_matrix(T), [""] * len(X))
    regressor.predict(data, out, context, {})


def test_pairings_that_were_killed_at_different_blocks_end_with_the_same_bytes(study, context):
    X, Y, T = study(60, 90, m=5, t=4000)
    y = as_matrix(Y)
    out = outputs_of(context, "killed", 5, 4000, 2)
    fill(context, X, y, T, {}, out)
    contents = [output.store.content for output in out]
    assert out[0].store.column_groups == 4
    out[0].store.discard([(0, 1)])
    out[2].store.discard([(0, 1), (0, 3)])
    again = outputs_of(context, "killed", 5, 4000, 2)
    assert [one.store.missing_column_groups() for one in again] == [[1], [], [1, 3]]
    fill(context, X, y, T, {}, again)
    assert [output.store.content for output in again] == contents


def test_a_kept_array_comes_back_as_it_was(tmp_path):
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((700, 300)))
    kept = KeptArray(array, tmp_path)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        assert np.array_equal(kept.load(), array)


NSD = RegressionShapes(n=8859, p=15_724, m=982, s=8859, t=91_168, x_block=7862, y_block=7824, pairings=5)


def test_the_plan_has_room_for_the_pairings_that_share_a_pass():
    regressor = RidgeRegressor(RidgeSettings(alpha=5e4))
    alone = regressor.plan(replace(NSD, pairings=0), 4 * 10**9).work
    wide, least = regressor.plan(NSD, 4 * 10**9).work, regressor.plan(NSD, 0).work
    hat = 982 * 8859 * 4
    assert wide > 6 * hat
    assert wide >= alone
    for free in (least, 250 * 10**6, 400 * 10**6):
        assert regressor.plan(NSD, free).work <= free
    assert regressor.plan(replace(NSD, m=2000), 4 * 10**9).work < wide + 2000 * 8859 * 8  # several passes in any case


def test_the_plan_counts_what_is_kept_on_disk_for_other_spaces_and_areas():
    regressor, loo = (RidgeRegressor(RidgeSettings(alpha=alpha)) for alpha in (5e4, "loo"))
    triangle, cross = 8859 * 8860 // 2 * 4, 982 * 8859 * 4
    only, several = (regressor.plan(replace(NSD, fits=fits), 4 * 10**9) for fits in (1, 3))
    assert only.scratch == 0
    assert triangle + cross <= several.scratch < 1.1 * (triangle + cross)
    assert (only.kept, loo.plan(NSD, 4 * 10**9).kept) == (0, 8859 * 512 * 12)
    weighed = RidgeRegressor(RidgeSettings(alpha=5e4, voxel_weights="accuracy", voxel_power=1.0))
    assert weighed.plan(replace(NSD, fits=3), 4 * 10**9).scratch == 0  # each space has voxel weights of its own
