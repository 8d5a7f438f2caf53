"""The ridge on a GPU: the same code on PyTorch's CPU device, beside scikit-learn, LAPACK and the ridge on the CPU."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from support.kills import StoppedError

from leanrecon.context import Context
from leanrecon.errors import BudgetError
from leanrecon.progress import Progress
from leanrecon.regression.regressor import Output, RegressionData, RegressionShapes
from leanrecon.regression.ridge import blas, on_torch, streamed, vram
from leanrecon.regression.ridge.arithmetic import ON_CPU
from leanrecon.regression.ridge.on_torch import OnMPS, OnTorch, arithmetic_on
from leanrecon.regression.ridge.pairing import Pairing
from leanrecon.regression.ridge.plan import Shapes
from leanrecon.regression.ridge.regressor import RidgeRegressor
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.ridge.settings import RidgeSettings
from leanrecon.regression.ridge.vram import ASIDE, plan_vram
from leanrecon.stores import Store, as_matrix
from leanrecon.weights.libraries import exact_inference

SPREAD = 1e-4
"""The largest difference to the CPU, in standard deviations of the targets."""


@pytest.fixture
def there(monkeypatch):
    """GPUs that are PyTorch's CPU: all of their code but the streams runs, on memory of its own."""
    monkeypatch.setattr(OnTorch, "__init__", lambda self, device: setattr(self, "device", "cpu"))
    monkeypatch.setattr(streamed, "choose", lambda wanted: wanted)
    monkeypatch.setattr(vram, "choose", lambda wanted: wanted)
    monkeypatch.setattr(vram, "free_vram", lambda: 10**12)


@pytest.fixture(params=["cuda", "mps"])
def device(request, there):
    return request.param


# Operators


@pytest.mark.parametrize("kind", [OnTorch, OnMPS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operators_agree_with_blas(kind, dtype):
    on, rng = kind("cpu"), np.random.default_rng(0)
    tolerance = {"rtol": 2e-5, "atol": 2e-4} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-11}
    a, b, c = (rng.standard_normal(shape).astype(dtype) for shape in ((70, 90), (50, 90), (70, 60)))
    for options in ({}, {"alpha": -1.0}, {"beta": 0.0}):
        expected, found = c.copy(), on.put(c)
        blas.gemm(a, b, expected[:, 3:53], tb=True, **options)
        on.gemm(on.put(a), on.put(b), found[:, 3:53], tb=True, **options)
        np.testing.assert_allclose(on.host(found), expected, **tolerance)
    expected, found = np.zeros((90, 90), dtype), on.zeros((90, 90), dtype)
    blas.syrk(a, expected, ta=True)
    on.syrk(on.put(a), found, ta=True)
    np.testing.assert_allclose(np.tril(on.host(found)), np.tril(expected), **tolerance)
    square = expected + np.diag(np.arange(10, 100, dtype=dtype))
    factor, on_factor = square.copy(), on.put(square)
    assert blas.potrf(factor) == on.potrf(on_factor) == 0
    np.testing.assert_allclose(np.tril(on.host(on_factor)), np.tril(factor), **tolerance)
    assert on.potrf(on.put(-square)) == 1
    np.testing.assert_allclose(on.diagonal(on_factor), np.diagonal(factor), **tolerance)
    for transpose in (False, True):
        rows, on_rows = a.copy(), on.put(a)
        blas.trsm(factor, rows, transpose=transpose)
        on.trsm(on_factor, on_rows, transpose=transpose)
        np.testing.assert_allclose(on.host(on_rows), rows, **tolerance)
    left, right = rng.integers(90, size=40), rng.integers(90, size=40)
    expected = (a[:, left].astype(np.float64) * a[:, right]).sum(axis=0)
    np.testing.assert_allclose(on.products(on.put(a), on.put(a), left, right), expected, **tolerance)
    values, vectors = np.linalg.eigh(square + np.tril(square, -1).T - np.triu(square, 1))
    np.testing.assert_allclose(on.syevd(square), values, rtol=1e-4 if dtype == np.float32 else 1e-10)
    np.testing.assert_allclose(np.abs(np.einsum("ij,ji->i", square, vectors)), 1, rtol=1e-3)


def test_apples_gpus_leave_float64_to_the_cpu(there):
    assert arithmetic_on("mps", np.float64) is ON_CPU
    assert isinstance(arithmetic_on("mps", np.float32), OnMPS)
    assert isinstance(arithmetic_on("cuda", np.float64), OnTorch)


def test_what_was_fed_stays_until_the_call_after_the_next():
    memory = np.empty(40, np.float32)
    with OnTorch("cpu").feeding([memory]) as feed:
        fed = []
        for k, size in enumerate([40, 40, 24, 32, 40]):
            part = memory[:size].reshape(-1, 8)
            part[:] = k
            fed.append(feed(part, part[:1]))
            for number, (whole, row) in list(enumerate(fed))[-2:]:
                assert (whole.numpy() == number).all()
                assert row.shape == (1, 8)
                assert (row.numpy() == number).all()
        part[:] = -1  # the memory may be filled again
        assert (fed[-1][0].numpy() == 4).all()


def test_products_are_whole_on_cuda_and_other_code_keeps_its_choice():
    torch.set_float32_matmul_precision("high")
    try:
        with exact_inference("cuda"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


# Predictions


def fits(X, Y, *, stimulus=None, **settings):
    """The same ridge on a device, and on the CPU."""
    device = settings.pop("device")
    return [StreamingRidge(**settings, device=on).fit(X, Y, stimulus=stimulus) for on in (device, "cpu")]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("n", "p"), [(150, 201), (191, 70), (5, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_are_scikit_learns(study, off_by, constants, stored, device, dtype, n, p, repeated, known):
    constants(WIDTH=64, DEPTH=32, **({"FLOAT64_ORDER": 0} if dtype == np.float32 else {}))
    X, Y, T = study(n, p, t=600, dtype=dtype)
    stimulus = np.arange(n) * 2 // 3 if repeated else None
    rows = Y if stimulus is None else Y[stimulus]
    y = stored(Y if stimulus is None else Y[: stimulus[-1] + 1], "y.zarr", chunk="64kB")
    fitted = StreamingRidge(20.0, standardize=False, device=device)
    fitted.fit(as_matrix(X), y, stimulus=stimulus, test=as_matrix(T) if known else None)
    expected = Ridge(20.0).fit(X.astype(np.float64), rows.astype(np.float64)).predict(T.astype(np.float64))
    found = fitted.predict(fitted._known.betas if known else as_matrix(T))
    assert off_by(found, expected, rows) < (3e-5 if dtype == np.float32 else 1e-10)
    assert (fitted.device_, fitted.device_note_) == (device, None)


@pytest.mark.parametrize(("n", "p"), [(150, 201), (191, 70)])
@pytest.mark.parametrize(
    "settings",
    [
        {"restandardize": "inductive"},
        {"restandardize": "transductive"},
        {"kernel": "rbf", "gamma": 0.5, "alpha": 0.1},
        {"alpha": "loo"},
        {"alpha": "loo", "kernel": "rbf", "gamma": 1.0, "voxel_weights": "accuracy", "voxel_power": 1.0},
    ],
    ids=str,
)
def test_every_form_gives_what_the_cpu_gives(study, off_by, constants, device, n, p, settings):
    constants(FLOAT64_ORDER=0, WIDTH=64, DEPTH=32, SEARCH_ROWS=40, PROJECTIONS=64)
    X, Y, T = study(n, p, t=90, dtype=np.float32)
    stimulus = np.arange(n) // 2
    y = Y[::2]
    X = X[2 * stimulus] + np.random.default_rng(1).normal(0, 0.3, X.shape).astype(np.float32)
    on_gpu, on_cpu = fits(X, y, stimulus=stimulus, device=device, **({"alpha": 30.0} | settings))
    assert on_gpu.alpha_ == pytest.approx(on_cpu.alpha_, rel=1e-5)
    assert off_by(on_gpu.predict(T), on_cpu.predict(T), Y) < SPREAD
    if settings.get("alpha") == "loo":
        assert (on_gpu.search_ is None) == (on_cpu.search_ is None) == (n > p and "kernel" not in settings)
        np.testing.assert_allclose(on_gpu.loo_errors_, on_cpu.loo_errors_, rtol=1e-4)
    some = np.arange(20, 50)
    np.testing.assert_allclose(on_gpu.left_out(some), on_cpu.left_out(some), atol=1e-4)
    shuffled = [fitted.shuffled(3).predict(T) for fitted in (on_gpu, on_cpu)]
    assert off_by(*shuffled, Y) < SPREAD


def test_targets_far_from_zero_keep_their_digits(study, off_by, device, in_float32):
    X, Y, T = study(120, 150, far=1000.0, dtype=np.float32)
    on_gpu, on_cpu = fits(X, Y, device=device, alpha=20.0, restandardize="inductive")
    assert off_by(on_gpu.predict(T), on_cpu.predict(T), Y) < 2e-4  # of rounding: the mean is 1,000 deviations


def test_the_disk_changes_no_bit(study, device, in_float32, tmp_path, nothing_held):
    X, Y, T = study(150, 2000, dtype=np.float32)
    inside, outside = (
        StreamingRidge(30.0, device=device, budget=budget, scratch=tmp_path).fit(X, Y) for budget in ("4GB", 10**9)
    )
    kernel = outside._factor
    outside._factor = type(kernel)(kernel.order, kernel.dtype, directory=tmp_path)
    for j in range(len(kernel.columns)):
        outside._factor.save(j, kernel.load(j))
    assert outside._factor.on_disk
    assert not inside._factor.on_disk
    np.testing.assert_array_equal(inside.predict(T), outside.predict(T))


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize(("n", "p"), [(90, 120), (120, 50)])
def test_all_alphas_and_one_for_every_target(study, off_by, constants, device, n, p, per_target, repeated):
    constants(FLOAT64_ORDER=0, WIDTH=64, DEPTH=32, WEIGHT_BLOCK=40)
    X, Y, T = study(n, p, t=90, dtype=np.float32)
    stimulus = np.arange(n) // 2 if repeated else None
    if repeated:
        X = X[2 * stimulus] + np.random.default_rng(1).normal(0, 0.3, X.shape).astype(np.float32)
    grid = [1.0, 10.0, 100.0, 1000.0, 1e4]
    how = {"device": device, "alpha": "loo", "alphas": grid, "per_target": per_target, "restandardize": "transductive"}
    on_gpu, on_cpu = fits(X, Y[::2] if repeated else Y, stimulus=stimulus, **how)
    assert (on_gpu.device_, on_gpu.device_note_) == (device, None)
    np.testing.assert_array_equal(on_gpu.alpha_, on_cpu.alpha_)
    assert off_by(on_gpu.predict(T), on_cpu.predict(T), Y) < SPREAD
    if per_target:
        assert pickle.loads(pickle.dumps(on_gpu))._spectrum.on_device is None
    else:
        np.testing.assert_allclose(on_gpu.loo_errors_, on_cpu.loo_errors_, rtol=1e-4)


def test_infinite_targets_and_small_alphas_are_refused_as_on_the_cpu(study, device, in_float32):
    X, Y, T = study(150, 60, dtype=np.float32)
    X[:, 1] = X[:, 0]
    messages = []
    for on in (device, "cpu"):
        with pytest.raises(Exception, match="too small for these betas") as refused:
            StreamingRidge(0.0, device=on).fit(X, Y)
        messages.append(str(refused.value).partition("alpha to")[0])
    assert messages[0] == messages[1]
    Y[5, 3] = np.inf
    with pytest.raises(Exception, match="target column 3"):
        StreamingRidge(5.0, device=device).fit(as_matrix(X), as_matrix(Y)).predict(T)


def test_a_pickled_fit_keeps_no_memory_of_the_gpu(study, device, in_float32, monkeypatch):
    X, Y, T = study(150, 201, dtype=np.float32)
    fitted = StreamingRidge(20.0, device=device).fit(X, Y)
    before = fitted.predict(T)
    assert len(fitted._factor.on_device) == 3  # panels of the factor, there for the next test rows
    again = pickle.loads(pickle.dumps(fitted))
    assert again._factor.on_device == {}
    np.testing.assert_array_equal(again.predict(T), before)
    fitted._factor.save(1, np.zeros_like(fitted._factor.load(1)))
    assert set(fitted._factor.on_device) == {0, 2}  # a panel that changed is not there any more


# Memory


def test_too_little_memory_is_refused_with_both_numbers(study, there, monkeypatch):
    X, Y, T = study(60, 90)
    monkeypatch.setattr(vram, "free_vram", lambda: 100_000_000)
    with pytest.raises(BudgetError, match=r"the ridge needs 20\d MB on the GPU \(.*\), where 100 MB are free"):
        StreamingRidge(20.0, device="cuda").fit(X, Y)
    monkeypatch.setattr(vram, "free_vram", lambda: 10**12)
    on_gpu = StreamingRidge(20.0, device="cuda").fit(X, Y)
    monkeypatch.setattr(vram, "free_vram", lambda: 100_000_000)
    with pytest.raises(BudgetError, match="predicting 40 rows needs"):
        on_gpu.predict(T)


NSD = RegressionShapes(n=8859, p=15_724, m=982, s=8859, t=91_168, x_block=7862, y_block=7824, device="cuda")


def test_the_plan_counts_pytorch_beside_the_ridge(there, monkeypatch):
    ridge = RidgeRegressor(RidgeSettings(alpha=50_000.0))
    on_gpu, on_cpu = ridge.plan(NSD, 10**9), ridge.plan(replace(NSD, device="cpu"), 10**9)
    assert on_gpu.work == on_cpu.work + on_gpu.held
    assert on_gpu.held >= 40_000_000
    assert on_cpu.held == 0
    assert on_gpu.summary == f"{on_cpu.summary}, on cuda"
    shared = ridge.plan(replace(NSD, device="mps"), 10**9)  # Apple's GPUs work in the process's memory
    assert shared.work > on_gpu.work + 8859 * 8859 * 2
    monkeypatch.setattr(vram, "free_vram", lambda: 300_000_000)
    with pytest.raises(BudgetError, match="on the GPU"):
        ridge.plan(NSD, 10**9)
    assert ridge.plan(replace(NSD, device="auto"), 10**9) == on_cpu


def test_auto_stays_on_the_cpu(study, there):
    X, Y, T = study(60, 90)
    fitted = StreamingRidge(20.0, device="auto").fit(X, Y)
    assert (fitted.device_, fitted.device_note_) == ("cpu", None)
    np.testing.assert_array_equal(fitted.predict(T), StreamingRidge(20.0).fit(X, Y).predict(T))


def test_phases_at_the_size_of_nsd():
    """By hand: 9 panels of the triangle of order 8,859 in float32, and what each phase holds beside them."""
    shapes = Shapes(n=8859, p=15_724, m=982, t=91_168, block=7824)
    triangle = 4 * sum((8859 - j * 1024) * min(1024, 8859 - j * 1024) for j in range(9))
    phases = {name: work - ASIDE - triangle for name, work in plan_vram(shapes).items()}
    rows = 982 * 8859 * 4
    assert phases["gram"] == rows + 2 * 512 * 4 * (8859 + 982)
    assert phases["predictions"] == rows + (982 + 2 * 256) * 7824 * 4
    assert set(plan_vram(shapes, loo=True)) - set(phases) == {"search", "eigenvectors"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "n", "p", "m"),
    [({"alpha": 50.0}, 1550, 1700, 450), ({"alpha": "loo"}, 1550, 1700, 100), ({"alpha": 50.0}, 2000, 1500, 300)],
)
def test_tensors_stay_within_the_plan(study, there, constants, settings, n, p, m):
    """What PyTorch holds at its peak, by its own profiler."""
    constants(FLOAT64_ORDER=0, WIDTH=256, DEPTH=128, SEARCH_ROWS=500)
    X, Y, T = study(n, p, m=m, t=700, dtype=np.float32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        StreamingRidge(**settings, device="cuda").fit(as_matrix(X), as_matrix(Y)).predict(as_matrix(T))
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = np.cumsum([event.nbytes() for event in events]).max()
    shapes = Shapes(n=n, p=p, m=m, t=700, block=700)
    planned = max(plan_vram(shapes, loo=settings["alpha"] == "loo").values()) - ASIDE
    assert 0.6 * planned <= peak <= planned


# Studies


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_what_one_device_began_another_begins_again(study, tmp_path, there, monkeypatch, off_by):
    """Killed on the GPU, continued on the CPU: no mixture, and no refusal; what is complete stays."""
    X, Y, T = study(60, 90, m=5, t=3000, dtype=np.float32)
    data = RegressionData(as_matrix(X), as_matrix(Y), as_matrix(T), [""] * 60)
    ridge = RidgeRegressor(RidgeSettings(alpha=20.0))

    def predict(name, device, pairings=(None, 0)):
        said = Said()
        context = Context.of("4GB", seed=3, scratch=tmp_path, progress=said, label="regression a", device=device)
        outputs = [
            Output(
                Store.create(tmp_path / f"{name}{k}.zarr", (5, 3000), np.float32, made_of={}, chunk="8kB"),
                tmp_path / "net",
                k,
            )
            for k in pairings
        ]
        return ridge.predict(data, outputs, context, {}), said.lines, outputs

    write, written = Store.write_columns, []

    def killed(self, j, block, **options):
        if len(written) == self.column_groups + 1:  # of the second store
            raise StoppedError
        written.append(j)
        write(self, j, block, **options)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(Store, "write_columns", killed)
        predict("killed", "cuda")
    began = [Store.open(tmp_path / f"killed{k}.zarr", incomplete=True) for k in (None, 0)]
    whole, part = [len(store.missing()) for store in began]
    total = began[1].column_groups * began[1].row_groups
    assert whole == 0 < part < total
    record, lines, found = predict("killed", "auto")
    _, _, plain = predict("plain", "cpu")
    assert "device" not in record
    assert f"regression a: {total - part} of {total} chunks were made on cuda, and are made again on cpu" in lines
    np.testing.assert_array_equal(found[1].store[:], plain[1].store[:])
    assert found[1].store.notes == {"device": "cpu"}
    assert plain[1].store.notes == {}
    assert off_by(found[0].store[:], plain[0].store[:], Y) < SPREAD


def test_the_record_names_the_device(study, tmp_path, there):
    X, Y, T = study(60, 90, m=5)
    data = RegressionData(as_matrix(X), as_matrix(Y), as_matrix(T), [""] * 60)
    context = Context.of("4GB", scratch=tmp_path, progress=Said(), label="regression a", device="cuda")

    def record(name, context, **settings):
        store = Store.create(tmp_path / f"{name}.zarr", (5, 23), np.float32, made_of={})
        made = RidgeRegressor(RidgeSettings(**settings)).predict(data, [Output(store, tmp_path)], context, {})
        return made.get("device"), store.notes

    assert record("one", context, alpha=20.0) == ("cuda", {"device": "cuda"})
    assert record("alone", replace(context, device="auto"), alpha=20.0) == (None, {})
    store = Store.create(tmp_path / "train.zarr", (60, 23), np.float32, made_of={})
    assert RidgeRegressor(RidgeSettings(alpha=20.0)).predict_left_out(data, store, context, {})["device"] == "cuda"
    assert store.complete
    assert store.notes == {"device": "cuda"}


def test_without_repeats_no_pairing_is_expanded_on_the_device(study, off_by, device, in_float32):
    X, Y, T = study(150, 201, dtype=np.float32)
    order = np.random.default_rng(0).permutation(150)
    assert not Pairing.of(order, 150, 150).repeats
    found = StreamingRidge(20.0, device=device).fit(X, Y, stimulus=order).predict(T)
    assert off_by(found, StreamingRidge(20.0).fit(X, Y[order]).predict(T), Y) < SPREAD


def test_the_module_is_loaded_for_a_gpu_alone():
    assert on_torch.arithmetic_on("cpu", np.float32) is ON_CPU
