"""Images that are shown several times: the targets hold each once, and the ridge is that of targets repeated row by row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from leanrecon.errors import InputError, SettingsError, StoreError
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge.hat import gram
from leanrecon.regression.ridge.loo import loo_errors
from leanrecon.regression.ridge.pairing import Groups, Pairing
from leanrecon.regression.ridge.restandardise import group_rows, restandardise
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.ridge.spectrum import eigenvectors
from leanrecon.stores import RowSubset, Store, as_matrix

FORMS = [
    pytest.param(90, 150, 40, id="dual"),
    pytest.param(150, 90, 40, id="primal"),
    pytest.param(150, 20, 700, id="through weights"),
]
GRID = np.logspace(-1, 4, 11)


@pytest.fixture
def shown(study):
    """Betas [n, p] of images that are shown once to four times in random order, their targets [s, t], and test betas."""

    def draw(n, p, *, m=40, t=23, far=3.0, seed=0, dtype=np.float64):
        X, Y, T = study(n, p, m=m, t=t, far=far, seed=seed, dtype=dtype)
        rng = np.random.default_rng(seed + 1)
        sizes = []
        while sum(sizes) < n:
            sizes.append(min(int(rng.integers(1, 5)), n - sum(sizes)))
        stimulus = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        y = np.stack([Y[stimulus == j].mean(axis=0) for j in range(len(sizes))]).astype(dtype)
        return X, y, T, stimulus

    return draw


def left_out(X, Y, groups, alpha):
    """Every row predicted by a ridge that was fitted without its group."""
    return cross_val_predict(Ridge(alpha, solver="svd"), X, Y, groups=groups, cv=LeaveOneGroupOut())


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("far", [0, 1000])
@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_predictions_are_those_of_repeated_targets(shown, closed_form, off_by, n, p, m, standardize, far, known):
    X, y, T, stimulus = shown(n, p, m=m, far=far)
    fitted = StreamingRidge(7.0, standardize=standardize).fit(X, y, stimulus=stimulus, test=T if known else None)
    assert off_by(fitted.predict(T), closed_form(X, y[stimulus], T, 7.0, standardize=standardize), y) < 1e-9


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize(("n", "p", "m"), FORMS)
@pytest.mark.usefixtures("in_float32")
def test_float32_predictions_of_repeats(shown, closed_form, off_by, n, p, m, known):
    X, y, T, stimulus = shown(n, p, m=m, far=100, dtype=np.float32)
    fitted = StreamingRidge(30.0, standardize=False).fit(X, y, stimulus=stimulus, test=T if known else None)
    found = fitted.predict(T)
    assert found.dtype == np.float32
    assert off_by(found, closed_form(X, y[stimulus], T, 30.0), y) < 5e-5


@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_each_image_s_targets_are_read_once(shown, stored, monkeypatch, tmp_path, n, p, m):
    X, y, T, stimulus = shown(n, p, m=m, t=1100, dtype=np.float32)
    path, read, chunks = stored(y, "y.zarr", chunk="40kB"), Store.read_chunk, []

    def counted(self, i, j, *rest, **options):
        if str(self.path) == str(path):
            chunks.append((i, j))
        return read(self, i, j, *rest, **options)

    monkeypatch.setattr(Store, "read_chunk", counted)
    fitted = StreamingRidge(5.0).fit(as_matrix(X), path, stimulus=stimulus, test=as_matrix(T))
    out = Store.create(tmp_path / "out.zarr", (m, 1100), np.float32, made_of={})
    fitted.predict_into(as_matrix(T) if fitted._known is None else fitted._known.source, out)
    store = Store.open(path)
    if m < 700:
        assert sorted(chunks) == [(i, j) for i in range(store.row_groups) for j in range(store.column_groups)]


@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_where_every_image_is_shown_once_in_order_nothing_changes(study, n, p, m):
    X, Y, T = study(n, p, m=m)
    plain = StreamingRidge(5.0, restandardize="inductive").fit(X, Y)
    numbered = StreamingRidge(5.0, restandardize="inductive").fit(X, Y, stimulus=np.arange(n))
    assert numbered.predict(T).tobytes() == plain.predict(T).tobytes()


@pytest.mark.parametrize("restandardize", ["none", "inductive", "transductive"])
@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_images_in_another_order_than_the_rows(study, off_by, n, p, m, restandardize):
    X, Y, T = study(n, p, m=m)
    order = np.random.default_rng(0).permutation(n)
    plain = StreamingRidge(5.0, restandardize=restandardize).fit(X, Y[order]).predict(T)
    found = StreamingRidge(5.0, restandardize=restandardize).fit(X, Y, stimulus=order).predict(T)
    assert off_by(found, plain, Y) < 1e-10


def test_images_that_no_row_shows_count_for_nothing(shown, off_by):
    X, y, T, stimulus = shown(90, 150)
    more = np.vstack([np.full((1, 23), 1e3), y, np.full((2, 23), -1e3)])
    for settings in ({}, {"restandardize": "inductive"}, {"restandardize": "transductive"}, {"per_target": True}):
        alpha = {"alpha": "loo" if settings.get("per_target") else 5.0, "alphas": GRID}
        fitted = StreamingRidge(**alpha, **settings).fit(X, y, stimulus=stimulus)
        found = StreamingRidge(**alpha, **settings).fit(X, more, stimulus=stimulus + 1)
        assert off_by(found.predict(T), fitted.predict(T), y) < 1e-8


# All rows of an image are left out together


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60), (90, 5)])
@pytest.mark.parametrize("pairs", [7, 4096])
@pytest.mark.parametrize("depth", [16, 512])
def test_errors_equal_those_of_refitting_without_each_image(shown, constants, n, p, pairs, depth):
    constants(PAIRS=pairs, DEPTH=depth)
    X, y, _, stimulus = shown(n, p, t=5)
    pairing = Pairing.of(stimulus, n, len(y))
    betas = Centred(as_matrix(X), moments(as_matrix(X)), scale=False)
    spectrum = eigenvectors(gram(betas, np.float64)[0], deflate=n <= p)
    found = loo_errors(betas, spectrum, y - y[stimulus].mean(axis=0), GRID, pairing)
    expected = [np.square(left_out(X, y[stimulus], stimulus, a) - y[stimulus]).sum(axis=0) for a in GRID]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("t", [5, 700])
@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60)])
def test_alpha_is_the_one_of_least_error_on_images_left_out(shown, off_by, closed_form, n, p, t):
    X, y, T, stimulus = shown(n, p, t=t, far=30)
    errors = [np.square(left_out(X, y[stimulus], stimulus, a) - y[stimulus]).mean() for a in GRID]
    fitted = StreamingRidge("loo", alphas=GRID, standardize=False).fit(X, y, stimulus=stimulus)
    assert fitted.alpha_ == GRID[np.argmin(errors)]
    np.testing.assert_allclose(fitted.loo_errors_, errors, rtol=1e-8 if t < 512 else 0.1)
    assert off_by(fitted.predict(T), closed_form(X, y[stimulus], T, fitted.alpha_), y) < 1e-9


@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60)])
def test_copies_of_a_row_choose_no_smaller_alpha(study, n, p):
    """What leaving single rows out would get wrong: a copy of a row tells its targets, whatever the betas are worth."""
    X, Y, _ = study(n // 3, p)
    betas, noise = np.tile(X, (3, 1)), np.random.default_rng(0).standard_normal(Y.shape)
    stimulus = np.tile(np.arange(n // 3), 3)
    ridge = StreamingRidge("loo", alphas=np.logspace(0, 4, 9), standardize=False)
    assert ridge.fit(betas, noise[stimulus]).alpha_ == 1
    assert ridge.fit(betas, noise, stimulus=stimulus).alpha_ >= 300


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60)])
@pytest.mark.parametrize("block", [7, 512])
def test_an_alpha_for_every_target_with_repeats(shown, closed_form, constants, n, p, block):
    constants(WEIGHT_BLOCK=block)
    X, y, T, stimulus = shown(n, p, t=9)
    y[:, 3] = np.random.default_rng(0).standard_normal(len(y))
    errors = [np.square(left_out(X, y[stimulus], stimulus, a) - y[stimulus]).sum(axis=0) for a in GRID]
    for known in (None, T):
        fitted = StreamingRidge("loo", alphas=GRID, per_target=True, standardize=False)
        fitted.fit(X, y, stimulus=stimulus, test=known)
        np.testing.assert_array_equal(fitted.alpha_, GRID[np.argmin(errors, axis=0)])
        for k, alpha in enumerate(fitted.alpha_):
            expected = closed_form(X, y[stimulus][:, k : k + 1], T, alpha)
            np.testing.assert_allclose(fitted.predict(T)[:, k : k + 1], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("known", [False, True], ids=["any test betas", "known test betas"])
@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60)])
def test_inductive_moments_are_those_of_images_left_out(shown, closed_form, off_by, n, p, known):
    X, y, T, stimulus = shown(n, p)
    expected, repeated = closed_form(X, y[stimulus], T, 20.0), y[stimulus]
    restandardise(expected, left_out(X, repeated, stimulus, 20.0), repeated.mean(axis=0), repeated.std(axis=0))
    fitted = StreamingRidge(20.0, standardize=False, restandardize="inductive")
    fitted.fit(X, y, stimulus=stimulus, test=T if known else None)
    assert off_by(fitted.predict(T), expected, y) < 1e-8


@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_transductive_moments_count_rows(shown, closed_form, off_by, n, p, m):
    X, y, T, stimulus = shown(n, p, m=m)
    expected, repeated = closed_form(X, y[stimulus], T, 20.0), y[stimulus]
    restandardise(expected, expected.copy(), repeated.mean(axis=0), repeated.std(axis=0))
    fitted = StreamingRidge(20.0, standardize=False, restandardize="transductive").fit(X, y, stimulus=stimulus)
    assert off_by(fitted.predict(T), expected, y) < 1e-8


@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60)])
def test_the_hat_matrix_of_rows_left_out_leaves_out_their_images(shown, n, p):
    X, y, _, stimulus = shown(n, p)
    fitted = StreamingRidge(5.0, standardize=False).fit(X, y, stimulus=stimulus)
    rows = np.array([3, 17, 40])
    found = fitted.left_out(rows) @ y[stimulus]
    np.testing.assert_allclose(found, left_out(X, y[stimulus], stimulus, 5.0)[rows], atol=1e-8)


# Random pairings, weights, other targets


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("n", "p", "m"), FORMS)
def test_a_random_pairing_is_a_permutation_of_the_rows(shown, closed_form, off_by, n, p, m, known):
    X, y, T, stimulus = shown(n, p, m=m)
    ridge = StreamingRidge(3.0, standardize=False)
    ridge.fit(X, y, stimulus=stimulus, test=T if known else None, shuffled=True)
    for seed in (0, 1):
        repeated = y[stimulus][np.random.default_rng(seed).permutation(n)]
        assert off_by(ridge.shuffled(seed).predict(T), closed_form(X, repeated, T, 3.0), y) < 1e-9
    assert off_by(ridge.predict(T), closed_form(X, y[stimulus], T, 3.0), y) < 1e-9


def test_a_random_pairing_after_a_fit_for_the_measured_one_is_refused(shown):
    X, y, T, stimulus = shown(60, 90)
    with pytest.raises(SettingsError, match=r"measured pairing alone. Set shuffled=True in fit"):
        StreamingRidge(3.0).fit(X, y, stimulus=stimulus, test=T).shuffled(0)


def test_random_pairings_with_an_alpha_for_every_target(shown):
    X, y, T, stimulus = shown(60, 90)
    ridge = StreamingRidge("loo", alphas=GRID, per_target=True, standardize=False).fit(X, y, stimulus=stimulus)
    repeated = y[stimulus][np.random.default_rng(4).permutation(60)]
    expected = Ridge(ridge.alpha_).fit(X, repeated).predict(T)
    np.testing.assert_allclose(ridge.shuffled(4).predict(T), expected, atol=1e-8)


@pytest.mark.parametrize(("n", "p"), [(60, 90), (90, 60)])
def test_weights_are_those_of_repeated_targets(shown, tmp_path, n, p):
    X, y, _, stimulus = shown(n, p)
    fitted = StreamingRidge(5.0, standardize=False).fit(X, y, stimulus=stimulus)
    reference = Ridge(5.0, solver="svd").fit(X, y[stimulus])
    ((_, coef, intercept),) = fitted.weight_blocks()
    np.testing.assert_allclose(coef, reference.coef_, atol=1e-10)
    np.testing.assert_allclose(intercept, reference.intercept_, atol=1e-9)
    fitted.write_weights(tmp_path / "weights.zarr")
    other = StreamingRidge(5.0, standardize=False).fit(X, y, stimulus=stimulus[::-1])
    with pytest.raises(StoreError, match="stimulus"):
        other.write_weights(tmp_path / "weights.zarr")


def test_other_targets_of_the_same_images_share_the_factor(shown, closed_form, off_by):
    X, y, T, stimulus = shown(60, 90)
    others = y[:, ::-1] * 2 + 5
    fitted = StreamingRidge(3.0, standardize=False).fit(X, y, stimulus=stimulus, test=T)
    assert off_by(fitted.with_targets(others).predict(T), closed_form(X, others[stimulus], T, 3.0), others) < 1e-9
    with pytest.raises(InputError, match=f"60 rows of betas of {len(y)} images and 60 rows of targets"):
        fitted.with_targets(others[stimulus])


@pytest.mark.parametrize(("n", "p"), [(200, 300), (300, 200)])
def test_rows_of_a_fold_are_paired_with_all_images(shown, closed_form, off_by, n, p):
    X, y, _, stimulus = shown(n, p)
    test = np.flatnonzero(np.isin(stimulus, np.arange(0, len(y), 3)))
    train = np.setdiff1d(np.arange(n), test)
    fold = StreamingRidge(2.0, standardize=False)
    fold.fit(RowSubset(as_matrix(X), train), as_matrix(y), stimulus=stimulus[train])
    expected = closed_form(X[train], y[stimulus[train]], X[test], 2.0)
    assert off_by(fold.predict(RowSubset(as_matrix(X), test)), expected, y) < 1e-9


# Bad input


@pytest.mark.parametrize("lazy", [np.asarray, as_matrix])
@pytest.mark.parametrize(
    ("stimulus", "found"),
    [
        (
            np.zeros(59, int),
            r"stimulus of shape \(59,\) and type int64 for 60 rows of betas. Expected one whole number",
        ),
        (np.zeros(60), r"stimulus of shape \(60,\) and type float64"),
        (np.full(60, 23), "row 0 shows stimulus 23, and the targets have rows 0 to 22"),
        (np.r_[np.zeros(59, int), -1], "row 59 shows stimulus -1"),
    ],
)
def test_stimuli_that_are_no_rows_of_the_targets_are_refused(study, stimulus, found, lazy):
    X, Y, _ = study(60, 90)
    with pytest.raises(InputError, match=found):
        StreamingRidge(1.0).fit(lazy(X), lazy(Y[:23]), stimulus=stimulus)


def test_targets_of_another_number_of_rows_need_their_stimuli(study):
    X, Y, _ = study(60, 90)
    with pytest.raises(InputError, match="60 rows of betas and 23 rows of targets. Expected the same number of each"):
        StreamingRidge(1.0).fit(as_matrix(X), as_matrix(Y[:23]))


# The pieces


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60))
def test_groups_hold_each_row_once_with_the_rows_of_its_image(index):
    index = np.array(index)
    groups = Groups.of(index)
    assert sorted(np.concatenate([rows.ravel() for rows in groups.sizes])) == list(range(len(index)))
    for rows in groups.sizes:
        assert (index[rows] == index[rows[:, :1]]).all()
    left, right = groups.pairs
    assert len(left) == sum(c * (c + 1) // 2 for c in np.unique(index, return_counts=True)[1])
    assert (index[left] == index[right]).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 9))
def test_a_folded_hat_matrix_predicts_the_same(index, depth):
    index = np.array(index)
    rng = np.random.default_rng(0)
    hat, targets = rng.standard_normal((3, len(index))), rng.standard_normal((7, 2))
    pairing = Pairing.of(index, len(index), 7)
    folded = np.zeros((3, 7))
    for start in range(0, len(index), depth):
        rows = range(start, min(start + depth, len(index)))
        pairing.fold(folded, hat[:, rows.start : rows.stop], rows)
    np.testing.assert_allclose(folded @ targets, hat @ targets[index], atol=1e-12)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=300))
def test_rows_that_give_the_moments_are_those_of_whole_images(sizes):
    stimulus = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    pairing = Pairing.of(stimulus, len(stimulus), len(sizes))
    rows = group_rows(pairing)
    assert len(rows) <= 1000
    assert (np.diff(rows) > 0).all()
    if pairing.repeats:
        np.testing.assert_array_equal(pairing.companions(rows), rows)
        assert len(rows) >= min(len(stimulus), 1000 - 2 * max(sizes)) * 0.4 or len(np.unique(stimulus[rows])) == 1


def test_reordering_keeps_a_block_in_place():
    block = np.arange(12.0).reshape(4, 3)
    assert Pairing.of(np.array([2, 0, 3, 1]), 4, 4).expanded(block) is block
    np.testing.assert_array_equal(block[:, 0], [6, 0, 9, 3])
