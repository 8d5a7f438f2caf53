"""What Python's users give: values of another type are refused by a sentence, before any work."""

import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr

import leanrecon
from leanrecon.alignment.pca import GroupPCA
from leanrecon.alignment.procrustes import Procrustes
from leanrecon.alignment.srm import SRM
from leanrecon.api import StudyResults
from leanrecon.app import cli
from leanrecon.errors import InputError, LeanreconError, SettingsError
from leanrecon.progress import Progress
from leanrecon.regression.mlp import StreamingMLP
from leanrecon.regression.ridge import StreamingRidge

SETTINGS: dict[str, Any] = {
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 8, "voxels": 20, "size": 16},
    "features": {"pca": {"components": 10}},
    "regression": {"alpha": 100.0},
    "evaluate": {"permutations": 0, "resamples": 100},
}

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 6)).astype(np.float32)
Y = RNG.standard_normal((30, 3)).astype(np.float32)


def mlp(**changed: Any) -> StreamingMLP:
    return StreamingMLP(**{"epochs": 1, "hidden": 8, "batch_size": 8, "components": 2} | changed)


# Studies


@pytest.mark.parametrize("recipe", [5, None, [], b"x", True, 3.5, {1: 2}, {None: {}}, {"features": {1: {}}}, ""])
def test_what_is_no_recipe_is_refused(recipe: Any, tmp_path: Path) -> None:
    for act in (lambda: leanrecon.run(recipe, study=tmp_path / "study"), lambda: leanrecon.plan(recipe)):
        with pytest.raises(SettingsError):
            act()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("study", [5, None, [], b"x", True, 3.5, ""])
def test_what_is_no_folder_is_refused(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = "the path is empty" if study == "" else "is not a path. Expected a path or a URL"
    for act in (
        lambda: leanrecon.run(SETTINGS, study=study, progress=Progress()),
        lambda: leanrecon.plan(SETTINGS, study=study),
        lambda: leanrecon.open(study),
    ):
        with pytest.raises(InputError, match=said):
            act()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until": 5}, "5 is not a stage of this study"),
        ({"until": ""}, "'' is not a stage of this study"),
        ({"set": "seed=1"}, r"set = 'seed=1'. Expected a list of texts, as in \[\"regression.alpha=1000\"\]"),
        ({"set": {"seed": 1}}, "Expected a list of texts"),
        ({"set": [5]}, r"set = \[5\]. Expected a list of texts"),
        ({"set": 5}, "set = 5"),
        ({"memory": True}, "memory = true: a number and a unit as text are expected"),
        ({"memory": 10**9}, "memory = 1000000000: a number and a unit as text are expected"),
        ({"overwrite": "no"}, "overwrite = 'no'. Expected True or False"),
        ({"mirror": 5}, "5 is not a path"),
        ({"progress": "bar"}, "progress = 'bar'. Expected a leanrecon.progress.Progress"),
        ({"cluster": 5}, "5 is not a cluster. Expected tcp://HOST:PORT"),
        ({"cluster": []}, r"\[\] is not a cluster"),
        ({"cluster": "local:x"}, "is not a cluster"),
    ],
)
def test_options_of_a_run_are_checked(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LeanreconError, match=said):
        leanrecon.run(SETTINGS, study=tmp_path / "study", **{"progress": Progress()} | options)
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_a_cluster_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(LeanreconError, match=r"there is no .*none\.json"):
        leanrecon.run(SETTINGS, study=tmp_path / "s", cluster=tmp_path / "none.json", progress=Progress())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return leanrecon.run(SETTINGS, study=tmp_path_factory.mktemp("arguments") / "study", progress=Progress())


@pytest.mark.parametrize("name", [5, None, "", "a//b", "/a", "../x", "..", [], b"x", "a\0b"])
def test_names_of_results_are_checked(results: StudyResults, name: Any) -> None:
    for act in (
        lambda: results.of(name),
        lambda: results.features(name),
        lambda: results.features("pca", name),
        lambda: results.predictions(name),
        lambda: results.betas(name),
        lambda: results.stimuli(name),
        lambda: results.stimulus(name),
        lambda: results.images(name),
        lambda: results.maps(name),
    ):
        with pytest.raises(
            (InputError, SettingsError),
            match="space = |split = |not a variant|stage = |not the name of a map|not a map",
        ):
            act()


@pytest.mark.parametrize("folder", [5, None, "", b"x", []])
def test_the_folder_of_maps_is_checked(results: StudyResults, folder: Any) -> None:
    with pytest.raises(InputError, match="folder"):
        results.export_maps(folder, "areas")


# Estimators


class Objects:
    pass


OTHERS = {
    "an integer": 5,
    "a float": 2.5,
    "a dict": {"a": 1},
    "a set": {1, 2},
    "a generator": (row for row in X),
    "an object": Objects(),
    "bytes": b"x",
    "texts": [["a", "b"], ["c", "d"]],
    "an array of texts": X.astype(str),
    "an array of bytes": X.astype("S8"),
    "dates": np.full((30, 6), datetime.date(2026, 1, 1), "M8[D]"),
    "spans": np.zeros((30, 6), "m8[s]"),
    "records": np.zeros((30, 6), [("a", "f4")]),
    "complex numbers": X.astype(complex),
    "objects": np.full((30, 6), Objects(), object),
    "a sparse matrix": scipy.sparse.csr_matrix(X),
    "one row": X[0],
    "three dimensions": X[None],
    "ragged": [[1.0, 2.0], [3.0]],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("make", [StreamingRidge, mlp])
def test_what_is_no_matrix_of_numbers_is_refused(make: Any, what: str) -> None:
    """As scikit-learn's users expect: by a ValueError or TypeError, and a sentence."""
    for act in (lambda: make().fit(OTHERS[what], Y), lambda: make().fit(X, OTHERS[what])):
        with pytest.raises((ValueError, TypeError)) as error:
            act()
        assert "not supported between" not in str(error.value)
        assert "promoted" not in str(error.value)


@pytest.mark.parametrize("what", [name for name in OTHERS if name not in ("texts", "ragged")])
def test_test_betas_of_another_kind_are_refused(what: str) -> None:
    fitted = StreamingRidge(alpha=1.0).fit(X, Y)
    with pytest.raises((ValueError, TypeError)):
        fitted.predict(OTHERS[what])


@pytest.mark.parametrize("dtype", ["M8[s]", "c8", "U4", [("a", "f4")]])
def test_arrays_that_are_read_where_they_lie_hold_numbers(dtype: Any, tmp_path: Path) -> None:
    lazy = zarr.create_array(tmp_path / "a.zarr", shape=(30, 6), chunks=(30, 6), dtype=np.dtype(dtype), zarr_format=2)
    for given in ((lazy, Y), (X, lazy)):
        with pytest.raises(InputError, match="Expected an array of real numbers"):
            StreamingRidge(alpha=1.0).fit(*given)


@pytest.mark.parametrize("same", [X.tolist(), X.astype(object), X.astype(np.float64), np.ma.masked_array(X)])
def test_numbers_in_another_form_are_taken(same: Any) -> None:
    expected = StreamingRidge(alpha=1.0).fit(X, Y).predict(X)
    np.testing.assert_allclose(StreamingRidge(alpha=1.0).fit(same, Y).predict(same), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"alpha": np.array([1.0, 2.0])}, "alpha = array"),
        ({"alpha": 10**400}, "Expected a number, 0 or more"),
        ({"alpha": True}, "alpha = True"),
        ({"alphas": 5}, "alphas = 5. Expected a list of numbers above 0"),
        ({"alphas": "loo"}, "alphas = 'loo'"),
        ({"alphas": ["a"]}, "alphas = "),
        ({"alphas": [True]}, "alphas = "),
        ({"alphas": [None]}, "alphas = "),
        ({"alphas": np.ones((1, 1))}, "alphas = "),
        ({"per_target": "yes"}, "per_target = 'yes'. Expected True or False"),
        ({"standardize": None}, "standardize = None"),
        ({"gamma": np.ones(2)}, "gamma = "),
        ({"voxel_power": 17}, "up to 16"),
        ({"seed": None}, "seed = None. Expected a whole number, 0 or more"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"seed": True}, "seed = True"),
        ({"scratch": 5}, "scratch = 5. Expected a path"),
        ({"scratch": ""}, "scratch is an empty path"),
        ({"budget": True}, "True is not a size in bytes"),
        ({"budget": 1.5}, "is not a size in bytes"),
        ({"budget": [1]}, "is not a size in bytes"),
    ],
)
def test_parameters_of_a_ridge_are_checked(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError if "scratch" not in parameters else InputError, match=said):
        StreamingRidge(**{"alpha": "loo"} | parameters).fit(X, Y)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"seed": None}, "seed = None"),
        ({"seed": True}, "seed = True"),
        ({"folder": 5}, "folder = 5. Expected a path"),
        ({"scratch": ""}, "scratch is an empty path"),
        ({"overwrite": "no"}, "overwrite = 'no'"),
        ({"progress": 5}, "progress = 5"),
        ({"alphas": 5}, "alphas = 5"),
        ({"alphas": ["a"]}, "alphas = "),
        ({"hidden": True}, "hidden = true"),
        ({"epochs": "2"}, "epochs = '2'"),
        ({"budget": True}, "True is not a size in bytes"),
    ],
)
def test_parameters_of_a_network_are_checked(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(LeanreconError, match=said):
        mlp(**parameters).fit(X, Y)


@pytest.mark.networks
@pytest.mark.filterwarnings("ignore::leanrecon.errors.LeanreconWarning")
def test_parameters_of_a_network_may_be_numbers_of_numpy() -> None:
    plain, numpy = (
        mlp(alpha="loo", alphas=[1.0, 10.0, 1e4]),
        mlp(hidden=np.int64(8), alpha="loo", alphas=np.array([1.0, 10.0, 1e4])),
    )
    assert np.array_equal(plain.fit(X, Y).predict(X), numpy.fit(X, Y).predict(X))


@pytest.mark.parametrize("method", [SRM, GroupPCA, Procrustes])
@pytest.mark.parametrize(
    "matrices",
    [5, None, "x", {"a": X, "b": X}, [5, X], [X, X.astype(complex)], [X, X.astype(str)], [X, [[1.0, 2.0], [3.0]]]],
)
def test_matrices_of_subjects_are_checked(method: Any, matrices: Any) -> None:
    with pytest.raises(InputError):
        method(k=2).fit(matrices)


@pytest.mark.parametrize("method", [SRM, GroupPCA, Procrustes])
@pytest.mark.parametrize("parameters", [{"k": True}, {"k": "2"}, {"k": 2.5}, {"seed": "a"}, {"scale": "no"}])
def test_parameters_of_an_alignment_are_checked(method: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(parameters))} = "):
        method(**{"k": 2} | parameters).fit([X, X])


# The command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "demo-fast", "--study", ""], "--study is empty"),
        (["run", "demo-fast", "--study="], "--study is empty"),
        (["run", "demo-fast", "--mirror", ""], "--mirror is empty"),
        (["run", ""], "an argument is empty"),
        (["verify", ""], "an argument is empty"),
        (["simulate-nsd", ""], "an argument is empty"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["leanrecon", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
