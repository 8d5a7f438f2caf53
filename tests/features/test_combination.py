"""The weights with which patches are added: SciPy's least squares, kept near their scales', from the right rows."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear, nnls

from leanrecon.context import Context
from leanrecon.errors import BudgetError, InputError, StoreError
from leanrecon.features import combination
from leanrecon.features.combination import Normal, largest_not_worse, learned_weights, near_scales, non_negative
from leanrecon.features.space import make_space
from leanrecon.stores import as_matrix

CELLS = (6, 5)
SCALES = [[1, 1], [1, 2], [2, 2]]


def space(combine="scale", scales=SCALES, **settings):
    return make_space("patches", {"scales": scales, "combine": combine, **settings})


@pytest.fixture
def data():
    """Noisy predictions [60, patches] of 20 patterns that three rows each show."""
    rng = np.random.default_rng(0)
    images = rng.choice(np.array([0, 255], np.uint8), (20, *CELLS, 1))
    stimulus = np.repeat(np.arange(20), 3)
    true = space().encode(images, range(20))[stimulus]
    predictions = (0.5 * true + 0.25 + 0.3 * rng.standard_normal(true.shape)).astype(np.float32)
    return images, predictions, stimulus


def design(of, predictions):
    """The image of each scale of each row, [rows · pixels, scales], pixel by pixel."""
    columns = []
    for (h, w), part in zip(of.scales, of.slices(CELLS), strict=True):
        drawn, count = np.zeros((len(predictions), *CELLS)), np.zeros(CELLS)
        for k, patch in enumerate(predictions[:, part].T.astype(float)):
            y, x = divmod(k, CELLS[1] - w + 1)
            drawn[:, y : y + h, x : x + w] += patch[:, None, None]
            count[y : y + h, x : x + w] += 1
        columns.append((drawn / count).ravel())
    return np.stack(columns, axis=1)


def weights_of(of, predictions, images, stimulus):
    pixels = images.reshape(len(images), -1) / 255
    return learned_weights(of, as_matrix(predictions), pixels, stimulus, CELLS)


def test_one_weight_a_scale_is_scipys(data):
    images, predictions, stimulus = data
    found = weights_of(space(), predictions, images, stimulus)
    seen = images.reshape(20, -1)[stimulus].ravel() / 255
    expected = nnls(design(space(), predictions), seen)[0]
    assert expected.max() > 0
    np.testing.assert_allclose(found, np.repeat(expected, [30, 24, 20]), atol=1e-8)


def test_one_weight_a_patch_is_scipys_where_nothing_pulls(data):
    images, predictions, stimulus = data
    of = space("patch")
    shares = combination._shares(of, CELLS)
    pixels = images.reshape(20, -1) / 255
    normal = combination._by_patch(as_matrix(predictions), pixels, stimulus, shares, np.ones(60, bool))
    rows = (predictions[:, :, None].astype(float) * shares).transpose(0, 2, 1).reshape(-1, shares.shape[0])
    expected, error = nnls(rows, pixels[stimulus].ravel())
    found = non_negative(normal)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert normal.error(found) == pytest.approx(error**2)
    assert (found == 0).any()


@pytest.mark.parametrize("scales", [SCALES, [[1, 1]], [[1, 1], [1, 3], [3, 1], [3, 3]], [[1, 1], [5, 5]]])
@pytest.mark.parametrize("measure", ["mean", "count"])
@pytest.mark.parametrize("combine", ["scale", "patch"])
def test_true_patches_give_the_image_back(scales, measure, combine, data, store_of, tmp_path):
    images = data[0]
    of = space(combine, scales, measure=measure)
    rows = of.encode(images, range(20))
    stored = store_of(images)
    of.calibrate(as_matrix(store_of(rows, "predictions/train.zarr")), stored, np.arange(20), tmp_path / "weights.npz")
    np.testing.assert_array_equal(of.decode(rows, range(20), (*CELLS, 1)), images)


def test_weights_of_patches_stay_near_their_scales_and_below_the_cap(data):
    images, predictions, stimulus = data
    of = space("patch")
    predictions = predictions.copy()
    predictions[:, 3] *= 1e-4  # a patch that decoders predict next to nothing of would take a weight of thousands
    members = np.repeat(np.eye(3), [30, 24, 20], axis=0)
    shares = combination._shares(of, CELLS)
    pixels = images.reshape(20, -1) / 255
    normal = combination._by_patch(as_matrix(predictions), pixels, stimulus, shares, np.ones(60, bool))
    assert non_negative(normal)[3] > 100
    by_scale = near_scales(normal, members, np.inf)
    for shrink in (1e-9, 0.1, 10):
        found = near_scales(normal, members, shrink)
        assert found.max() <= combination.CAP * by_scale.max() * (1 + 1e-9)
        assert found.min() >= 0
    np.testing.assert_allclose(near_scales(normal, members, 1e6), by_scale, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cap", [0.05, 0.5, 100.0])
def test_bounded_weights_are_scipys(seed, cap):
    rng = np.random.default_rng(seed)
    B, y = rng.standard_normal((80, 40)) + rng.standard_normal((80, 1)), rng.standard_normal(80)
    found = combination.bounded(Normal(B.T @ B, B.T @ y, float(y @ y)), cap)
    expected = lsq_linear(B, y, bounds=(0, cap), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert (found == 0).any()


def test_a_larger_pull_is_left_only_where_it_is_clearly_worse():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((10, 1))
    same = 5 + noise + 0.01 * rng.standard_normal((10, 3))
    assert largest_not_worse(same + [0, 0.001, 0.001]) == 2
    assert largest_not_worse(same + [0, 0, 1]) == 1
    assert largest_not_worse(same + [0.5, 0, 0.5]) == 1


def test_a_calibration_is_kept_and_another_one_refused(data, store_of, tmp_path):
    images, predictions, stimulus = data
    stored, matrix = store_of(images), as_matrix(store_of(predictions, "predictions/train.zarr"))
    path, first, second = tmp_path / "weights.npz", space(), space()
    first.calibrate(matrix, stored, stimulus, path, Context.of())
    written = path.stat().st_mtime_ns
    second.calibrate(matrix, stored, stimulus, path, Context.of())
    assert path.stat().st_mtime_ns == written
    loaded = space()
    loaded.load_calibration(path)
    assert loaded.decode_made_of() == first.decode_made_of() == second.decode_made_of() != space().decode_made_of()
    assert sum(loaded.learned()["weights"].values()) == pytest.approx(1, abs=0.5)
    with pytest.raises(StoreError, match="learned from other predictions or settings"):
        space("patch").calibrate(matrix, stored, stimulus, path, Context.of())
    space("patch").calibrate(matrix, stored, stimulus, path, Context.of(overwrite=True))
    assert path.stat().st_mtime_ns > written


def test_damage_is_named(data, store_of, tmp_path):
    images, predictions, stimulus = data
    (tmp_path / "weights.npz").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="is damaged"):
        space().calibrate(as_matrix(predictions), store_of(images), stimulus, tmp_path / "weights.npz")
    with pytest.raises(StoreError, match="there are no learned weights"):
        space().load_calibration(tmp_path / "absent.npz")


def test_too_small_a_budget_is_refused(data, store_of, tmp_path):
    images, predictions, stimulus = data
    with pytest.raises(BudgetError, match="calibration of patches needs at least"):
        space().calibrate(as_matrix(predictions), store_of(images), stimulus, tmp_path / "w.npz", Context.of("1MB"))


def test_predictions_of_nothing_are_refused(data):
    images, predictions, stimulus = data
    for combine in ("scale", "patch"):
        with pytest.raises(InputError, match="all predictions out of fold are 0"):
            weights_of(space(combine), np.zeros_like(predictions), images, stimulus)


def test_equal_weights_are_not_learned():
    assert not space("equal").calibrates
    assert space("equal").weights((*CELLS, 1)) == pytest.approx(1 / 3)
    assert space("scale").calibrates


def test_normal_equations_add_up():
    rng = np.random.default_rng(0)
    B, y, w = rng.standard_normal((30, 4)), rng.standard_normal(30), rng.standard_normal(4)
    parts = [Normal(b.T @ b, b.T @ v, float(v @ v)) for b, v in ((B[:10], y[:10]), (B[10:], y[10:]))]
    assert (parts[0] + parts[1]).error(w) == pytest.approx(float(((B @ w - y) ** 2).sum()))
