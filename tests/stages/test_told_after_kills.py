"""A kill between a stage's last chunk and run.json loses nothing of what the stage tells: notes, alpha, weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanrecon
from leanrecon.regression.local import regressor as local
from leanrecon.regression.stack.regressor import StackRegressor
from leanrecon.study import record
from leanrecon.study.layout import Study

pytestmark = pytest.mark.slow

Whole = Callable[[dict[str, Any]], Study]

N, M, VOXELS, DIMS = 60, 12, 15, 6
MEASURED = {"seconds", "peak_bytes", "peak_resident_bytes", "planned_bytes", "budget_bytes"}

AUTO = {"kernel": "auto"}
STACK = {"kind": "stack", "folds": 3, "members": [{"kind": "ridge", "alpha": 3.0}, {"kind": "ridge", "alpha": 300.0}]}
LOCAL = {"kind": "local", "estimator": "auto"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told")
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N + M, DIMS)).astype(np.float32)
    betas = np.tanh(features @ rng.standard_normal((DIMS, VOXELS))) + 0.3 * rng.standard_normal((N + M, VOXELS))
    for split, rows in (("train", slice(0, N)), ("test", slice(N, None))):
        np.save(folder / f"f_{split}.npy", features[rows])
        np.save(folder / f"b_{split}.npy", betas[rows].astype(np.float32))
    return folder


def run(data: Path, study: Path, regression: dict[str, Any], *, overwrite: bool = False) -> Study:
    settings = {
        "memory": "4GB",
        "dataset": {f"betas_{split}": str(data / f"b_{split}.npy") for split in ("train", "test")},
        "features": {"net": {"kind": "precomputed", "train": str(data / "f_train.npy"), "test": str(data / "f_test.npy")}},
        "regression": regression,
        "evaluate": {"resamples": 100},
    }  # fmt: skip
    leanrecon.run(settings, study=study, overwrite=overwrite)
    return Study(study)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run of a regression that nothing disturbs, made once."""
    known: dict[str, Study] = {}

    def of(regression: dict[str, Any]) -> Study:
        name = json.dumps(regression)
        known[name] = known.get(name) or run(data, tmp_path_factory.mktemp("whole") / "study", regression)
        return known[name]

    return of


def killed(data: Path, study: Path, regression: dict[str, Any], *, overwrite: bool = False) -> None:
    """A run that ends where it would write what the regression tells."""
    write = record.write_json

    def fragile(where: Any, content: Any, **options: Any) -> None:
        told = content.get("stages", {}).get("regression net")
        if told is not None and told != before:
            raise KeyboardInterrupt
        write(where, content, **options)

    before = record.stage_record(Study(study), "regression net") or None
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(record, "write_json", fragile)
        run(data, study, regression, overwrite=overwrite)
    assert record.is_complete(Study(study).predictions("net"))
    assert not Study(study).metrics.exists() or overwrite


def told(study: Study) -> dict[str, Any]:
    found = record.stage_record(study, "regression net")
    return {key: value for key, value in found.items() if key not in {*MEASURED, "members"}}


def files(study: Study) -> set[str]:
    return {str(path.relative_to(Path(study.root))) for path in Path(study.root).rglob("*")}


@pytest.mark.parametrize("regression", [AUTO, STACK, LOCAL], ids=["ridge", "stack", "local"])
def test_notes_and_figures_are_those_of_a_run_that_was_not_killed(
    data: Path, whole: Whole, tmp_path: Path, regression: Any
) -> None:
    killed(data, tmp_path / "study", regression)
    study = run(data, tmp_path / "study", regression)
    assert told(study) == told(whole(regression))
    assert study.metrics.read_bytes() == whole(regression).metrics.read_bytes()
    assert files(study) == files(whole(regression))
    if regression is not LOCAL:
        assert any(note.startswith("Regression of net: ") for note in json.loads(study.metrics.read_bytes())["notes"])
    written = study.record.read_bytes()
    run(data, tmp_path / "study", regression)
    assert study.record.read_bytes() == written


def test_what_an_earlier_run_told_is_not_taken_for_the_new_one(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "study", AUTO)
    fixed = {"alpha": 50.0}
    killed(data, tmp_path / "study", fixed, overwrite=True)
    study = run(data, tmp_path / "study", fixed, overwrite=True)
    assert told(study)["alpha"] == 50.0
    assert "notes" not in told(study)
    assert not any(note.startswith("Regression of net") for note in json.loads(study.metrics.read_bytes())["notes"])


@pytest.mark.parametrize("writes", range(3))
def test_members_of_a_stack_do_not_stay(
    data: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Killed before the members go, half through, and before the store is finished: nothing is learned again."""
    from leanrecon.stores.store import Store

    at = Study(tmp_path / "study").predictions("net").parent / "test-members"
    delete, finish = type(at).delete_tree, Store.finish

    def stop(self: Any) -> None:
        if writes == 1 and self == at:
            (at / "00" / "train.zarr" / "zarr.json").unlink()
        if writes < 2 and self == at:
            raise KeyboardInterrupt
        delete(self)

    def stop_finish(self: Store) -> None:
        if writes == 2 and self.path == at.parent / "test.zarr":
            raise KeyboardInterrupt
        finish(self)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(at), "delete_tree", stop)
        patched.setattr(Store, "finish", stop_finish)
        run(data, tmp_path / "study", STACK)
    monkeypatch.setattr(StackRegressor, "_weights", None)  # learning again would call it
    study = run(data, tmp_path / "study", STACK)
    assert files(study) == files(whole(STACK))
    assert told(study) == told(whole(STACK))
    assert study.metrics.read_bytes() == whole(STACK).metrics.read_bytes()


def test_shares_of_local_decoders_are_learned_once(
    data: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(local, "_fill", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        run(data, tmp_path / "study", LOCAL)
    monkeypatch.setattr(local, "shares_of", None)
    study = run(data, tmp_path / "study", LOCAL)
    assert told(study) == told(whole(LOCAL))
    assert study.metrics.read_bytes() == whole(LOCAL).metrics.read_bytes()
