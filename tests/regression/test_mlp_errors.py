"""What a network refuses, and how it names it."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError
from leanrecon.regression.mlp.mlp import StreamingMLP
from leanrecon.stores import as_matrix

pytestmark = pytest.mark.networks

SMALL = {
    "hidden": 24, "blocks": 1, "epochs": 3, "batch_size": 16, "alpha": 30.0,
    "inputs": "betas", "whiten": True, "noise": 0.1, "voxel_dropout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"hidden": 0}, "hidden = 0: input should be greater than or equal to 1"),
        ({"head": "pcs"}, "head = 'pcs': input should be 'pca' or 'full'"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"validation": 0.7}, "validation = 0.7"),
        ({"learning_rate": float("nan")}, "learning_rate = nan"),
        ({"alpha": -1.0}, 'alpha = -1.0: a number, 0 or more, or "loo" is expected'),
        ({"skip": "ridge", "head": "full"}, 'skip = "ridge" needs head = "pca"'),
        ({"skip": "none", "inputs": "ridge"}, 'inputs = "ridge" needs skip = "ridge"'),
        ({"restandardize": "inductive", "validation": 0.0}, "takes its moments from validation rows"),
        ({"precision": "float16"}, "precision = 'float16' on a CPU"),
        ({"device": "cuda"}, 'device = "cuda", but here there is cpu'),
        ({"budget": "4 elephants"}, "'4 elephants' is not a size"),
    ],
)
def test_settings_out_of_range_are_refused(study, settings, found):
    X, Y, _ = study(60, 30)
    with pytest.raises(SettingsError, match=found):
        StreamingMLP(**SMALL | settings).fit(X, Y)


def test_fewer_rows_than_a_batch_are_refused(study):
    X, Y, _ = study(70, 30)
    with pytest.raises(
        InputError, match=r"63 train rows to learn from \(70 less 7 for validation\) are fewer than a batch of 64"
    ):
        StreamingMLP(**SMALL | {"batch_size": 64}).fit(X, Y)
    StreamingMLP(**SMALL | {"batch_size": 63, "epochs": 1}).fit(X, Y)


@pytest.mark.parametrize("how", [{}, {"head": "full", "skip": "none"}])
def test_targets_without_variance_are_refused(study, how):
    X, Y, _ = study(60, 30)
    with pytest.raises(InputError, match="none of the 23 targets varies over the 60 train rows"):
        StreamingMLP(**SMALL | how).fit(X, np.ones_like(Y))
    with pytest.raises(InputError, match="none of the 30 voxels varies over the 60 train rows"):
        StreamingMLP(**SMALL | how).fit(np.ones_like(X), Y)


@pytest.mark.parametrize("how", [{}, {"head": "full", "skip": "none"}])
def test_nan_is_refused_before_anything_is_learned(study, how):
    X, Y, T = study(60, 30)
    fitted = StreamingMLP(**SMALL | how).fit(X, Y)
    T[7, 5] = np.nan
    with pytest.raises(InputError, match="test betas hold NaN or infinite values in row 7"):
        fitted.predict(T)
    Y[3, 5] = np.inf
    with pytest.raises(InputError, match="targets are infinite at row 3, column 5"):
        StreamingMLP(**SMALL | how).fit(as_matrix(X), as_matrix(Y))
    X[3, 5] = np.nan
    with pytest.raises(InputError, match="column 5 in 1 rows, row 3 first"):
        StreamingMLP(**SMALL | how).fit(as_matrix(X), as_matrix(Y))


def test_a_loss_that_is_not_finite_stops_with_its_rows_and_keeps_the_last_checkpoint(study, tmp_path, monkeypatch):
    X, Y, _ = study(60, 30)
    fine, calls = torch.nn.functional.mse_loss, []

    def breaks(predicted, true):
        calls.append(1)
        return fine(predicted, true) * (float("nan") if torch.is_grad_enabled() and len(calls) > 8 else 1.0)

    how = SMALL | {"checkpoint_minutes": 0, "folder": tmp_path / "a"}
    monkeypatch.setattr(torch.nn.functional, "mse_loss", breaks)
    with pytest.raises(
        InputError, match=r"the loss became nan in epoch \d, step \d: its batch is of rows [\d, …]+\. .*learning_rate"
    ):
        StreamingMLP(**how).fit(X, Y)
    kept = (tmp_path / "a" / "checkpoint.safetensors").read_bytes()
    monkeypatch.undo()
    assert b"NaN" not in kept
    ended = StreamingMLP(**how).fit(X, Y)  # from the checkpoint on
    whole = StreamingMLP(**how | {"folder": None}).fit(X, Y)
    for name, tensor in whole.network_.state_dict().items():
        assert torch.equal(tensor, ended.network_.state_dict()[name])


def test_rows_that_are_not_finite_are_named(monkeypatch):
    from leanrecon.regression.mlp.training import _not_finite
    from leanrecon.weights.checkpoint import Place

    rows = np.array([40, 7, 9])
    x, y = np.zeros((3, 4)), np.zeros((3, 2))
    x[1, 2] = np.nan
    assert "rows 7 hold values that are not finite" in str(_not_finite(float("nan"), Place(), rows, [x, y]))


@pytest.mark.parametrize("how", [{}, {"head": "full", "skip": "none"}])
def test_a_budget_too_small_is_refused_with_what_would_do(study, tmp_path, how):
    X, Y, _ = study(60, 30)
    how = SMALL | how | {"hidden": 3000, "folder": tmp_path / "a"}
    with pytest.raises(
        BudgetError, match=r"mlp: training the network \(training\) needs at least .* Raise the budget to \"\d+MB\""
    ) as refused:
        StreamingMLP(**how, budget="200MB").fit(X, Y)
    assert not (tmp_path / "a").exists()
    enough = refused.value.todo.split('"')[1]
    StreamingMLP(**how | {"epochs": 1}, budget=enough).fit(X, Y)


def test_rows_and_voxels_that_differ_in_number_are_refused(study):
    X, Y, T = study(60, 30)
    with pytest.raises(InputError, match="60 rows of betas and 59 rows of targets"):
        StreamingMLP(**SMALL).fit(as_matrix(X), as_matrix(Y[:-1]))
    fitted = StreamingMLP(**SMALL).fit(X, Y)
    with pytest.raises(InputError, match="test betas of 29 voxels. Expected 30, as in training"):
        fitted.predict(as_matrix(T[:, 1:]))
    with pytest.raises(NotFittedError, match="call fit first"):
        StreamingMLP().predict(T)


@pytest.mark.parametrize("name", ["network", "coordinates", "ridge"])
def test_damaged_files_are_refused_by_name(study, tmp_path, name):
    X, Y, _ = study(60, 30)
    StreamingMLP(**SMALL, folder=tmp_path).fit(X, Y)
    path = tmp_path / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=f"{name}.safetensors is damaged .*. Remove it and run again"):
        StreamingMLP(**SMALL, folder=tmp_path).fit(X, Y)
    path.unlink()
    StreamingMLP(**SMALL, folder=tmp_path).fit(X, Y)
