import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import zarr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from leanrecon.app import cli
from leanrecon.errors import StoreError
from leanrecon.stages.pipeline import HEADER, only_run
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.recipes import read_settings
from leanrecon.study.settings import check_settings
from leanrecon.study.verify import find_damage

pytestmark = pytest.mark.slow

N_TRAIN, N_TEST, N_VOXELS = 40, 12, 30
RNG = np.random.default_rng(11)
STIMULI = RNG.integers(0, 256, (N_TRAIN + N_TEST, 8, 8), np.uint8)
BETAS = (STIMULI.reshape(-1, 64) / 255 @ RNG.standard_normal((64, N_VOXELS))).astype(np.float32)
BETAS += RNG.standard_normal(BETAS.shape).astype(np.float32)

SETTINGS = """
[dataset]
betas_train = "betas_train.npy"
betas_test = "betas_test.npy"
stimuli_train = "stimuli_train.npy"
stimuli_test = "stimuli_test.npy"
[stores]
chunk = "500B"
[features.pixels]
[features.pca]
components = 5
[regression]
alpha = 3.0
[regression.pca]
alpha = 5.0
[evaluate]
permutations = 2
resamples = 100
"""

STORES = [
    "betas/train.zarr",
    "betas/test.zarr",
    "stimuli/train.zarr",
    "features/pixels/train.zarr",
    "features/pca/test.zarr",
    "predictions/pixels/test.zarr",
    "predictions/pca/test.zarr",
]


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "leanrecon", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background of a script, this process ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def leanrecon(*arguments: object, cwd: Path, code: int = 0) -> str:
    """Run the command line in a process of its own; returns what it printed and said."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out + err


@pytest.fixture
def here(monkeypatch, capfd):
    """Run the command line in this process: (exit code, what it printed, what it said)."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["leanrecon", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, *capfd.readouterr()

    return run


def save(folder: Path) -> Path:
    """The arrays and the settings of a small study."""
    for name, rows in (("betas", BETAS), ("stimuli", STIMULI)):
        np.save(folder / f"{name}.npy", rows)
        np.save(folder / f"{name}_train.npy", rows[:N_TRAIN])
        np.save(folder / f"{name}_test.npy", rows[N_TRAIN:])
    (folder / "small.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data) -> Path:
    """A study that was run to its end; not to be changed."""
    assert "done: small" in leanrecon("run", "small.toml", cwd=data)
    return data / "small"


@pytest.fixture
def study(finished, tmp_path) -> Path:
    """A copy of it, to be damaged and mended."""
    return Path(shutil.copytree(finished, tmp_path / "study"))


def files(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def contents(root: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in files(root).items()}


def chunks(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if "/c/" in name}


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in files(root).items()}


def rows_of(path: Path) -> np.ndarray:
    return zarr.open_array(str(path), mode="r")[:]


def ridge(train: np.ndarray, targets: np.ndarray, test: np.ndarray, alpha: float) -> np.ndarray:
    """Scikit-learn's ridge on betas divided by their train standard deviation."""
    scale = train.std(axis=0, ddof=1, dtype=np.float64)
    return Ridge(alpha=alpha).fit(train / scale, targets).predict(test / scale)


# Running


def test_predictions_are_those_of_scikit_learn(finished):
    pixels = STIMULI.reshape(-1, 64) / 255
    np.testing.assert_allclose(rows_of(finished / "features/pixels/test.zarr"), pixels[N_TRAIN:], rtol=1e-6)
    expected = ridge(BETAS[:N_TRAIN], pixels[:N_TRAIN], BETAS[N_TRAIN:], alpha=3.0)
    np.testing.assert_allclose(rows_of(finished / "predictions/pixels/test.zarr"), expected, atol=1e-5)
    assert rows_of(finished / "predictions/pca/test.zarr").shape == (N_TEST, 5)


def test_stages_run_one_by_one(data, finished, tmp_path):
    made = {
        "dataset": {"betas", "stimuli"},
        "features": {"betas", "stimuli", "features"},
        "regression": {"betas", "stimuli", "features", "predictions", "variants"},
        "stage1": {"betas", "stimuli", "features", "predictions", "reconstructions", "variants"},
        "refine": {"betas", "stimuli", "features", "predictions", "reconstructions", "variants"},
        "evaluate": {"betas", "stimuli", "features", "predictions", "reconstructions", "variants", "evaluation"},
    }
    before: dict[str, tuple[int, int]] = {}
    for stage, folders in made.items():
        leanrecon("run", "small.toml", "--study", tmp_path / "study", "--until", stage, cwd=data)
        assert {path.name for path in (tmp_path / "study").iterdir() if path.is_dir()} == folders
        now = stamps(tmp_path / "study")
        assert {name for name in before if before[name] != now[name]} <= {"run.json", "study.toml"}
        before = now
    assert chunks(tmp_path / "study") == chunks(finished)


def test_a_finished_study_is_left_as_it_is(data, finished):
    before = stamps(finished)
    said = leanrecon("run", "small.toml", cwd=data)
    assert "done: small/report.html\n" in said
    assert "rows in" not in said, "nothing is done again"
    assert stamps(finished) == before


def test_a_study_is_continued_from_any_folder_by_its_own_name(here, finished, study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(study / "features" / "pixels")
    code, out, _ = here("run", "study")
    assert (code, out.splitlines()[-1]) == (0, "done: study/report.html")
    assert chunks(study) == chunks(finished)


def test_the_record_tells_settings_seconds_and_memory_of_each_stage(finished):
    record = json.loads((finished / "run.json").read_text())
    spaces = ("pixels", "pca")
    names = {"dataset", *(f"{stage} {space}" for stage in ("features", "regression") for space in spaces)}
    assert set(record["stages"]) == names | {"stage1", "refine", "evaluate"}
    for name, stage in record["stages"].items():
        assert stage["seconds"] > 0
        assert 10e6 < stage["peak_bytes"] <= stage["planned_bytes"] <= stage["budget_bytes"], name
    assert record["stages"]["dataset"]["settings"]["betas_test"] == "betas_test.npy"
    assert record["stages"]["features pca"]["settings"] == {"kind": "pca", "components": 5, "size": 64}
    assert record["stages"]["regression pca"]["settings"]["alpha"] == record["stages"]["regression pca"]["alpha"] == 5.0
    assert record["versions"]["numpy"] == np.__version__


def test_spaces_that_share_a_factor_are_planned_one_by_one(here, data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    shared = ("--set", "regression.pca.alpha=3")
    assert here("run", "small.toml", "--study", tmp_path / "study", *shared)[0] == 0
    stages = json.loads((tmp_path / "study" / "run.json").read_text())["stages"]
    for space in ("pixels", "pca"):
        assert 0 < stages[f"regression {space}"]["peak_bytes"] <= stages[f"regression {space}"]["planned_bytes"]


def test_study_toml_has_all_defaults_and_finds_its_files(data, finished):
    settings, _ = read_settings(data / "small.toml")
    tables = settings.tables()
    tables["dataset"] |= {
        f"{n}_{s}": str(data / f"{n}_{s}.npy") for n in ("betas", "stimuli") for s in ("train", "test")
    }
    assert tomllib.loads((finished / "study.toml").read_text()) == tables
    assert tables["regression"]["standardize"] is True
    assert check_settings(tables).tables() == tables


def test_folds_are_refitted_each_on_its_own_rows(here, data, tmp_path, monkeypatch):
    """Against scikit-learn's PCA and ridge, fitted anew for every fold."""
    monkeypatch.chdir(data)
    text = SETTINGS.replace("_train.npy", ".npy").replace("betas_train", "betas").replace("stimuli_train", "stimuli")
    text = re.sub('(betas|stimuli)_test = ".*"\n', "", text).replace("[stores]", "folds = 3\n[stores]")
    (tmp_path / "folds.toml").write_text(text)
    assert here("run", tmp_path / "folds.toml", "--study", tmp_path / "study")[0] == 0
    folds = json.loads((tmp_path / "study" / "folds.json").read_text())["folds"]
    assert sorted(row for fold in folds for row in fold) == list(range(len(BETAS)))
    joined = rows_of(tmp_path / "study" / "predictions/pixels/test.zarr")  # of all folds, in the order of the rows
    pixels = STIMULI.reshape(-1, 64) / 255
    for k, test in enumerate(folds):
        train = sorted(set(range(len(BETAS))) - set(test))
        fold = tmp_path / "study" / "variants" / f"fold{k:02d}"
        expected = ridge(BETAS[train], pixels[train], BETAS[test], alpha=3.0)
        np.testing.assert_allclose(rows_of(fold / "predictions/pixels/test.zarr"), expected, atol=1e-5)
        np.testing.assert_allclose(joined[np.sort(test)], expected[np.argsort(test)], atol=1e-5)
        pca = PCA(5, svd_solver="full").fit(pixels[train])
        expected = ridge(BETAS[train], pca.transform(pixels[train]), BETAS[test], alpha=5.0)
        with np.load(fold / "features/pca/fitted.npz") as fitted:
            components = fitted["components"]
        predicted = rows_of(fold / "predictions/pca/test.zarr") @ components  # signs of components are free
        np.testing.assert_allclose(predicted, expected @ pca.components_, atol=1e-4)
        assert set(json.loads((fold / "run.json").read_text())["stages"]) == {
            "features pca", "regression pixels", "regression pca", "stage1", "refine",
        }  # fmt: skip


# Planning and budgets


def test_a_plan_writes_nothing_and_what_it_says_would_do(data, tmp_path):
    before = stamps(data)
    shown = leanrecon("plan", "small.toml", "--memory", "50MB", cwd=data, code=2)
    assert stamps(data) == before
    for stage in ("dataset", "features pixels", "features pca", "regression pixels", "regression pca"):
        assert re.search(rf"│ {stage} .* MB", shown), shown
    assert "too much" in shown
    (enough,) = re.findall(r'the budget is too small; "(\d+MB)" is enough', shown)
    leanrecon("run", "small.toml", "--memory", enough, "--study", tmp_path / "study", cwd=data)


def test_too_small_a_budget_names_one_that_does(data, finished, tmp_path):
    memory = "80MB"
    for _ in range(5):  # a later stage may need more
        process = start("run", "small.toml", "--memory", memory, "--study", tmp_path / "study", cwd=data)
        _, err = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == 2, err
        assert "Traceback" not in err
        assert re.search(rf"leanrecon: .* needs at least .* MB .*, more than the {memory[:-2]} MB allowed", err), err
        more = re.findall(r'Raise the budget to "(\d+MB)" or more \(setting `memory`, option --memory\)', err)[0]
        assert int(more[:-2]) > int(memory[:-2])
        memory = more
    assert process.returncode == 0
    assert chunks(tmp_path / "study") == chunks(finished)


# Verifying and mending


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


HARMS = {flip: "does not match its checksum", truncate: "instead of", Path.unlink: "is missing"}


def last_chunk(store: Path) -> Path:
    return max((path for path in (store / "c").rglob("*") if path.is_file()), key=str)


def test_a_sound_study_is_verified(finished):
    assert "all chunks are sound" in leanrecon("verify", finished, cwd=finished)


def test_damage_all_over_a_study_is_listed_and_mended(finished, study, tmp_path):
    before = stamps(study)
    damaged = {study / store: harm for store, harm in zip(STORES, cycle(HARMS), strict=False)}
    paths = {store: last_chunk(store) for store in damaged}
    for store, harm in damaged.items():
        harm(paths[store])
    listed = leanrecon("verify", "study", cwd=tmp_path, code=1).splitlines()
    for store, harm in damaged.items():
        (line,) = [line for line in listed if f" of {store.relative_to(tmp_path)} " in line]
        assert line.startswith(f"chunk {paths[store].relative_to(store)} of ")
        assert HARMS[harm] in line
    assert "repaired" in leanrecon("verify", "study", "--repair", cwd=tmp_path)
    assert contents(study) | {"run.json": b""} == contents(finished) | {"run.json": b""}
    rewritten = {name for name, stamp in stamps(study).items() if before[name] != stamp and "/c/" in name}
    assert rewritten == {str(path.relative_to(study)) for path in paths.values()}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_each_store_is_mended_by_itself(finished, study, store, harm):
    before = stamps(study)
    path = last_chunk(study / store)
    harm(path)
    damaged = find_damage(study)
    assert [Path(found.path) for found in damaged] == [study / store]
    mend(study, damaged)
    assert chunks(study) == chunks(finished)
    rewritten = {name for name, stamp in stamps(study).items() if before[name] != stamp and "/c/" in name}
    assert rewritten == {str(path.relative_to(study))}
    assert find_damage(study) == {}


def test_one_store_can_be_verified_and_mended(here, study):
    flip(last_chunk(study / "betas/train.zarr"))
    truncate(last_chunk(study / "predictions/pca/test.zarr"))
    code, out, _ = here("verify", study / "betas/train.zarr", "--repair")
    assert (code, out.splitlines()[-1]) == (0, "repaired")
    code, out, _ = here("verify", study)
    assert code == 1
    assert len(out.splitlines()) == 1
    assert "study/predictions/pca/test.zarr has" in out


def test_a_run_stops_at_damage_and_names_the_command_that_mends_it(here, study):
    flip(last_chunk(study / "features/pixels/train.zarr"))
    shutil.rmtree(study / "predictions")
    code, _, err = here("run", study)
    assert code == 2
    assert f"features/pixels/train.zarr does not match its checksum. Run `leanrecon verify {study}/features/pix" in err
    assert here("verify", study, "--repair")[0] == 0
    assert here("run", study)[0] == 0


def test_a_repair_from_arrays_that_have_changed_is_refused_by_name(here, tmp_path):
    save(tmp_path)
    assert here("run", tmp_path / "small.toml", "--study", tmp_path / "study", "--until", "dataset")[0] == 0
    np.save(tmp_path / "betas_train.npy", BETAS[:N_TRAIN] * 2)
    flip(last_chunk(tmp_path / "study/betas/train.zarr"))
    code, _, err = here("verify", tmp_path / "study", "--repair")
    assert code == 2
    assert "dataset.betas_train.file was" in err


def test_a_store_that_the_settings_no_longer_make_can_not_be_mended(here, study):
    text = (study / "study.toml").read_text()
    (study / "study.toml").write_text(
        text.replace("[features.pca]\n", "[features.other]\n").replace("regression.pca", "regression.other")
    )
    flip(last_chunk(study / "features/pca/train.zarr"))
    code, _, err = here("verify", study / "features/pca/train.zarr", "--repair")
    assert code == 2
    assert "features/pca/train.zarr is not made by the settings in" in err


def test_an_unfinished_store_is_told_from_a_damaged_one(here, study):
    Store.open(study / "predictions/pca/test.zarr").discard([(0, 0)])
    code, out, err = here("verify", study)
    assert (code, out) == (0, "all chunks are sound\n")
    assert "predictions/pca/test.zarr is not finished (1 chunks to go)" in err


def test_a_store_outside_of_any_study_can_not_be_mended(here, study, tmp_path):
    lone = Path(shutil.copytree(study / "betas/train.zarr", tmp_path / "lone.zarr"))
    flip(last_chunk(lone))
    code, _, err = here("verify", lone, "--repair")
    assert (code, "lone.zarr belongs to no study" in err) == (2, True)


# Export, recipes


@pytest.mark.parametrize("store", ["betas/train.zarr", "stimuli/test.zarr", "predictions/pixels/test.zarr"])
def test_an_exported_file_equals_the_store(finished, here, tmp_path, store):
    code, out, _ = here("export", finished / store, tmp_path / "new" / "rows.npy")
    assert (code, out) == (0, f"wrote {tmp_path}/new/rows.npy\n")
    exported = np.load(tmp_path / "new" / "rows.npy", mmap_mode="r")
    np.testing.assert_array_equal(exported, rows_of(finished / store))
    assert exported.dtype == rows_of(finished / store).dtype
    assert list(files(tmp_path)) == ["new/rows.npy"]


def test_exporting_a_damaged_store_leaves_no_file(here, study, tmp_path):
    flip(last_chunk(study / "betas/train.zarr"))
    code, _, err = here("export", study / "betas/train.zarr", tmp_path / "rows.npy")
    assert (code, "does not match its checksum" in err) == (2, True)
    assert not [name for name in files(tmp_path) if not name.startswith("study/")]


def test_recipes_are_listed_with_what_they_are(tmp_path):
    said = leanrecon("recipes", cwd=tmp_path)
    assert re.search(
        r"^digits69: van Gerven.*\n  data .*\n  weights +none\n(  .*\n)+?  reported +real data", said, re.MULTILINE
    )


def test_the_version_is_shown(here):
    assert here("--version")[1] == f"leanrecon {cli.__version__}\n"


# Mistakes


def test_a_mistake_is_one_line_and_exit_code_2(data):
    said = leanrecon("run", "small.toml", "--set", "regression.alhpa=1", cwd=data, code=2)
    assert said == "leanrecon: regression.alhpa is unknown (did you mean alpha?).\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "digit69"], r"digit69 is neither a settings file nor a recipe \(did you mean digits69\?\)"),
        (["plan", "nothing.toml"], r"nothing\.toml is neither a settings file nor a recipe"),
        (["run", "small.toml", "--memory", "4XB"], "memory = '4XB': '4XB' is not a size in bytes"),
        (
            ["run", "small.toml", "--until", "regresion"],
            r"regresion is not a stage of this study \(did you mean regression\?\)",
        ),
        (
            ["run", "small.toml", "--study", "new", "--set", "dataset.betas_train=beta_train.npy"],
            'perhaps "betas_train.npy"',
        ),
        (["demo", "--recipe", "miyawaki", "--cluster", "nowhere"], '--cluster "nowhere" is not a cluster'),
        (["doctor", "--weights", "--bench"], "--bench and --weights are different checks"),
        (["doctor", "nsd"], "is given without --weights"),
        (["run", "small.toml", "--study", "small.toml"], r"small\.toml can't be written: File exists"),
        (["run", "small.toml", "--study", "/proc/nothing/study"], "can't be written"),
        (["verify", "nothing"], "there is no store in nothing"),
        (["export", "nothing.zarr", "x.npy"], r"there is no store at nothing\.zarr"),
        (["export", "small/betas/train.zarr", "."], r"\. is a folder"),
        (["run", "small.toml", "--set", "dataset.folds=3", "--study", "folded", "--set", "dataset.folds=100"], "folds"),
    ],
)
def test_mistakes_are_explained(finished, here, monkeypatch, arguments, said):
    monkeypatch.chdir(finished.parent)
    code, out, err = here(*arguments)
    assert code == 2
    *stages, last = err.splitlines()
    assert last.startswith("leanrecon: ")
    assert all(re.match(r"stage \d of \d: ", line) for line in stages)
    assert re.search(said, last, re.IGNORECASE)
    assert out == ""


def test_another_alpha_is_refused_by_name_until_overwritten(here, data, study, monkeypatch):
    monkeypatch.chdir(data)
    before = contents(study)
    run = ("run", "small.toml", "--study", study, "--set", "regression.alpha=7")
    code, _, said = here(*run)
    assert code == 2
    assert "predictions/pixels/test.zarr was made with other settings: regression.alpha was 3.0, is 7.0" in said
    assert "--overwrite" in said
    assert contents(study) == before, "nothing is changed, study.toml neither"
    assert here(*run, "--until", "features")[0] == 0
    assert contents(study) == before, "nor by the stages that alpha is nothing to"
    assert here(*run, "--overwrite")[0] == 0
    pixels = STIMULI.reshape(-1, 64) / 255
    expected = ridge(BETAS[:N_TRAIN], pixels[:N_TRAIN], BETAS[N_TRAIN:], alpha=7.0)
    np.testing.assert_allclose(rows_of(study / "predictions/pixels/test.zarr"), expected, atol=1e-5)
    assert tomllib.loads((study / "study.toml").read_text())["regression"]["pixels"]["alpha"] == 7.0
    replaced = {name for name, data in chunks(study).items() if before[name] != data}
    assert replaced == {name for name in before if "predictions/pixels/test.zarr/c/" in name}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("features.pca.components=4", "components was 5, is 4"),
        ("stores.chunk=1kB", "stores.chunk was"),
        ("seed=1", "seed was 0, is 1"),
        ("dataset.betas_train=betas_test.npy", "shape was|rows"),
    ],
)
def test_other_settings_are_refused_by_name(here, data, monkeypatch, study, change, named):
    monkeypatch.chdir(data)
    before = contents(study)
    code, _, err = here("run", "small.toml", "--study", study, "--set", change)
    assert code == 2
    assert re.search(named, err)
    assert contents(study) == before


def test_a_settings_file_of_ones_own_is_never_replaced(here, data, tmp_path, monkeypatch):
    save(tmp_path)
    (tmp_path / "study.toml").write_text("# mine\n" + SETTINGS)
    monkeypatch.chdir(tmp_path)
    code, _, err = here("run", "study.toml", "--study", ".", "--until", "dataset")
    assert (code, "study.toml was not written by leanrecon" in err) == (2, True)
    code, out, _ = here("run", "study.toml", "--until", "dataset")
    assert (code, out.splitlines()[-1]) == (0, "done: study")
    assert (tmp_path / "study.toml").read_text() == "# mine\n" + SETTINGS
    assert (tmp_path / "study" / "study.toml").read_text().startswith(HEADER)


# Stopping


def wait_until_seen(condition, process) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_two_runs_of_one_study_at_once_are_refused(data, finished, tmp_path):
    study = tmp_path / "study"
    with only_run(study):
        said = leanrecon("run", "small.toml", "--study", study, cwd=data, code=2)
        assert said == f"leanrecon: another run is using {study}. Wait for it, or choose another --study.\n"
        with pytest.raises(StoreError, match="another run is using"), only_run(study):
            pass
    leanrecon("run", "small.toml", "--study", study, cwd=data)
    assert chunks(study) == chunks(finished)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_says_how_to_go_on(here, data, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    for attempt in range(20):  # a run may be done before the signal reaches it
        study = tmp_path / f"study{attempt}"
        process = start("run", "small.toml", "--study", study, cwd=data)
        wait_until_seen((study / "study.toml").exists, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert err.endswith("leanrecon: stopped; the same command continues from here\n")
    assert "Traceback" not in err
    assert here("run", "small.toml", "--study", study)[0] == 0
    assert chunks(study) == chunks(finished)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("mounting a small disk needs root")


def test_a_full_disk_stops_a_run_which_continues_when_there_is_space(here, data, finished, small_disk, monkeypatch):
    monkeypatch.chdir(data)
    run = ("run", "small.toml", "--study", small_disk / "study")
    said = leanrecon(*run, cwd=data, code=2)
    assert re.search(r"leanrecon: the disk is full: .* could not be written \(.* free\)\. Free some space", said)
    kept = {name: stamp for name, stamp in stamps(small_disk / "study").items() if "/c/" in name}
    assert kept
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert here(*run)[0] == 0
    assert chunks(small_disk / "study") == chunks(finished)
    assert kept.items() <= stamps(small_disk / "study").items()
    assert not list(small_disk.rglob("*.partial"))


def test_ctrl_c_while_modules_are_read_is_no_traceback(monkeypatch, capsys):
    from leanrecon.__main__ import start as command

    class Stopped:
        def find_spec(self, name, *_):
            if name == "leanrecon.app.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "leanrecon.app.cli")
    monkeypatch.setattr(sys, "meta_path", [Stopped(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "leanrecon: stopped; the same command continues from here\n"


def test_the_command_is_that_of_the_module():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["leanrecon"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
