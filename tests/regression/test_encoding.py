"""Leave-one-out R² of voxels equals that of encoding ridges which are fitted anew without each image."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

from leanrecon.errors import BudgetError, InputError
from leanrecon.regression.encoding import encoding
from leanrecon.regression.ridge.limits import WORKSPACE
from leanrecon.stores import as_matrix

SHAPES = [pytest.param(60, 20, id="many images"), pytest.param(30, 90, id="many targets")]
ALPHAS = [0.3, 3.0, 30.0, 300.0]


@pytest.fixture
def seen():
    """Targets [s, t], betas [n, p] that follow some of them, and the image that each row shows (1 to 3 rows an image)."""

    def draw(s, t, p=150, *, repeats=True, seed=0):
        rng = np.random.default_rng(seed)
        Z = rng.standard_normal((s, t)) + 5
        stimulus = rng.permutation(np.repeat(np.arange(s), rng.integers(1, 4, s))) if repeats else np.arange(s)
        noise = np.linspace(0.5, 8, p)
        betas = Z[stimulus] @ rng.standard_normal((t, p)) / np.sqrt(t) * 2
        return Z, betas + noise * rng.standard_normal(betas.shape) + 40, stimulus

    return draw


def squared_errors(Z, betas, stimulus, alpha):
    """Squares of z-scored betas less predictions from all other images, [n, p]."""
    b = (betas - betas.mean(axis=0)) / betas.std(axis=0, ddof=1)
    how = {"groups": stimulus, "cv": LeaveOneGroupOut()}
    return (b - cross_val_predict(Ridge(alpha, solver="svd"), Z[stimulus], b, **how)) ** 2, b


@pytest.mark.parametrize("repeats", [False, True], ids=["once", "repeated"])
@pytest.mark.parametrize(("s", "t"), SHAPES)
def test_r2_is_that_of_ridges_fitted_without_each_image(seen, s, t, repeats):
    Z, betas, stimulus = seen(s, t, repeats=repeats)
    expected = [squared_errors(Z, betas, stimulus, alpha)[0] for alpha in ALPHAS]
    found = encoding(Z, betas, stimulus=stimulus, alphas=ALPHAS)
    np.testing.assert_allclose(found.errors, [errors.mean() for errors in expected], rtol=1e-9)
    best = int(np.argmin([errors.sum() for errors in expected]))
    assert found.alpha == ALPHAS[best]
    total = len(betas) - 1
    np.testing.assert_allclose(found.r2, 1 - expected[best].sum(axis=0) / total, rtol=1e-9)
    fixed = encoding(Z, betas, stimulus=stimulus, alpha=30.0)
    np.testing.assert_allclose(fixed.r2, 1 - expected[2].sum(axis=0) / total, rtol=1e-9)


@pytest.mark.parametrize("repeats", [False, True], ids=["once", "repeated"])
@pytest.mark.parametrize(("s", "t"), SHAPES)
def test_betas_in_float32_have_the_r2_of_float64(seen, s, t, repeats):
    Z, betas, stimulus = seen(s, t, p=700, repeats=repeats)  # several blocks of voxels in either precision
    betas = betas.astype(np.float32)  # the same numbers for both
    exact, found = (encoding(Z, betas.astype(dtype), stimulus=stimulus) for dtype in (np.float64, np.float32))
    assert found.alpha == exact.alpha
    np.testing.assert_allclose(found.r2, exact.r2, atol=1e-5)
    np.testing.assert_allclose(found.errors, exact.errors, rtol=1e-5)


def test_voxels_that_follow_the_images_have_the_larger_r2(seen):
    Z, betas, stimulus = seen(200, 10)
    r2 = encoding(Z, betas, stimulus=stimulus).r2
    explained = 1 - np.linspace(0.5, 8, 150) ** 2 / betas.var(axis=0)  # by the noise that was added
    np.testing.assert_allclose(r2, explained, atol=0.2)
    assert np.corrcoef(r2, explained)[0, 1] > 0.97


def test_random_projections_stand_for_many_targets(seen):
    Z, betas, stimulus = seen(120, 8)
    wide = Z @ np.random.default_rng(3).standard_normal((8, 3000))
    few, many = (encoding(z, betas, stimulus=stimulus).r2 for z in (wide[:, :500], wide))
    assert np.corrcoef(few, many)[0, 1] > 0.99
    assert np.array_equal(many, encoding(wide, betas, stimulus=stimulus).r2)
    assert not np.array_equal(many, encoding(wide, betas, stimulus=stimulus, seed=1).r2)


def test_stores_in_blocks_give_what_arrays_give(seen, stored):
    Z, betas, stimulus = (a.astype(np.float32) if a.dtype == float else a for a in seen(90, 30, 700))
    found = encoding(stored(Z, "z.zarr", chunk="1kB"), stored(betas, "b.zarr", chunk="40kB"), stimulus=stimulus)
    expected = encoding(as_matrix(Z), as_matrix(betas), stimulus=stimulus)
    assert found.r2.tobytes() == expected.r2.tobytes()
    assert found.alpha == expected.alpha


def test_images_that_no_row_shows_change_nothing(seen):
    Z, betas, stimulus = seen(40, 12)
    more = np.vstack([Z[:7], np.full((3, 12), 1e3), Z[7:]])
    found = encoding(more, betas, stimulus=np.where(stimulus < 7, stimulus, stimulus + 3), alpha=3.0)
    np.testing.assert_allclose(found.r2, encoding(Z, betas, stimulus=stimulus, alpha=3.0).r2, rtol=1e-9)


def test_voxels_that_do_not_vary_have_no_r2(seen):
    Z, betas, stimulus = seen(40, 12)
    betas[:, 3], betas[:, 140] = 7.0, np.nan
    r2 = encoding(Z, betas, stimulus=stimulus).r2
    assert np.flatnonzero(np.isnan(r2)).tolist() == [3, 140]


def test_targets_that_do_not_vary_explain_nothing(seen):
    _, betas, stimulus = seen(40, 12)
    found = encoding(np.ones((40, 5)), betas, stimulus=stimulus)
    assert np.all(found.r2 < 0)


def test_bad_input_is_refused(seen):
    Z, betas, stimulus = seen(40, 12)
    with pytest.raises(InputError, match="show 1 image"):
        encoding(Z, betas, stimulus=np.zeros(len(betas), int))
    with pytest.raises(InputError, match="none of the 150 voxels varies"):
        encoding(Z, np.ones_like(betas), stimulus=stimulus)
    Z[5, 2] = np.nan
    with pytest.raises(InputError, match="target column 2"):
        encoding(Z, betas, stimulus=stimulus)
    with pytest.raises(BudgetError):
        encoding(Z, betas, stimulus=stimulus, budget="1MB")


MEASURED = """
import sys
import numpy as np
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.regression.encoding import encoding, plan_encoding
from leanrecon.stores.matrix import as_matrix
n, p, s, t = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
Z, B = (as_matrix(rng.standard_normal(shape, dtype=np.float32)) for shape in ((s, t), (n, p)))
encoding(np.eye(3), rng.standard_normal((3, 4)))
held = process_memory()
with PeakMemory() as memory:
    encoding(Z, B, stimulus=np.arange(n) % s)
planned = plan_encoding(n, p, s, t, block=Z.block, x_tile=B.tile_nbytes, y_tile=Z.tile_nbytes)
print(memory.peak - held, planned)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6000, 900, 2000, 2000), (4000, 600, 4000, 300), (900, 4000, 300, 9000)])
def test_it_takes_no_more_memory_than_planned(shape):
    command = [sys.executable, "-c", MEASURED, *map(str, shape)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured, planned = map(int, done.stdout.split())
    assert 0.5 * (planned - WORKSPACE) <= measured <= planned
