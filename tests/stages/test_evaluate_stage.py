"""The stage evaluate through the command line: figures, baselines, resumption, and studies that are small or strange."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Ridge

from leanrecon.app import cli
from leanrecon.features.pixels import Pixels
from leanrecon.stages import report
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.record import HEADER
from leanrecon.study.verify import find_damage

skimage_metrics = pytest.importorskip("skimage.metrics")
from skimage.color import rgb2gray  # noqa: E402

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

N_TRAIN, N_TEST, N_VOXELS = 40, 12, 50
BASELINES = {"mean_train_image", "random_train_image", "nearest_train_image", "shuffled_betas"}
PAIRS = ("pixcorr", "ssim", "ssim_1d", "ssim_7x7", "mse")
SEED, PERMUTATIONS = 3, 2
ONE_THREAD = os.environ | {"OPENBLAS_NUM_THREADS": "1"}

SETTINGS = f"""
seed = {SEED}
[dataset]
betas_train = "betas_train.npy"
betas_test = "betas_test.npy"
stimuli_train = "stimuli_train.npy"
stimuli_test = "stimuli_test.npy"
[stores]
chunk = "2kB"
[features.pixels]
[features.pca]
components = 5
[regression]
alpha = 3.0
[evaluate]
permutations = {PERMUTATIONS}
resamples = 200
"""
FOLDED = SETTINGS.replace("_train.npy", ".npy").replace("betas_train", "betas").replace("stimuli_train", "stimuli")
FOLDED = re.sub('(betas|stimuli)_test = ".*"\n', "", FOLDED).replace("[stores]", "folds = 3\n[stores]")


def draw(n: int, side: int, channels: int, seed: int = 0) -> Array:
    """Images of a few plain patches, which a handful of voxels can tell."""
    patches = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, channels))
    at = np.arange(side) * 4 // side
    return patches[:, at][:, :, at].astype(np.uint8)


def save(folder: Path, side: int = 12, channels: int = 3, n_test: int = N_TEST) -> dict[str, Array]:
    """The arrays and settings of a small study."""
    rng = np.random.default_rng(11)
    stimuli = draw(N_TRAIN + N_TEST, side, channels)
    betas = stimuli.reshape(len(stimuli), -1) / 255 @ rng.standard_normal((side**2 * channels, N_VOXELS))
    betas = (betas + 3 * rng.standard_normal(betas.shape)).astype(np.float32)
    arrays = {}
    for name, rows in (("betas", betas), ("stimuli", stimuli)):
        arrays[name] = rows[: N_TRAIN + n_test]
        np.save(folder / f"{name}.npy", arrays[name])
        np.save(folder / f"{name}_train.npy", rows[:N_TRAIN])
        np.save(folder / f"{name}_test.npy", rows[N_TRAIN : N_TRAIN + n_test])
    (folder / "small.toml").write_text(SETTINGS)
    (folder / "folded.toml").write_text(FOLDED)
    return arrays


@pytest.fixture(scope="module")
def patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def cli_(patch: pytest.MonkeyPatch) -> Any:
    """Run the command line in this process; returns the exit code."""

    def run(*arguments: object, cwd: Path) -> int:
        patch.setattr(sys, "argv", ["leanrecon", *map(str, arguments)])
        with pytest.MonkeyPatch.context() as here:
            here.chdir(cwd)
            with pytest.raises(SystemExit) as exit_:
                cli.main()
        return int(exit_.value.code or 0)

    return run


@pytest.fixture
def leanrecon(cli_: Any, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process; returns what it said."""

    def run(*arguments: object, cwd: Path, code: int = 0) -> str:
        found = cli_(*arguments, cwd=cwd)
        out, err = capfd.readouterr()
        assert found == code, out + err
        assert "Traceback" not in err
        return out + err

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save(folder)
    return folder


@pytest.fixture(scope="module")
def finished(cli_: Any, data: Path) -> Path:
    """A study that was run to its end; not to be changed."""
    assert cli_("run", "small.toml", cwd=data) == 0
    return data / "small"


@pytest.fixture(scope="module")
def folded(cli_: Any, data: Path) -> Path:
    assert cli_("run", "folded.toml", cwd=data) == 0
    return data / "folded"


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "study"))


def read_metrics(study: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads((study / "evaluation" / "metrics.json").read_text(), parse_constant=refuse)
    return found


def read_scores(study: Path) -> list[dict[str, str]]:
    with (study / "evaluation" / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_rows(path: Path) -> Array:
    store = Store.open(path)
    rows: Array = store[0 : store.rows]
    return rows


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    found = {str(p.relative_to(root)): p.stat() for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def pair(one: Array, other: Array) -> dict[str, float]:
    """The figures of two images by NumPy and scikit-image."""
    grey = [image[..., 0] / 255 if image.shape[2] == 1 else rgb2gray(image) for image in (one, other)]
    flat = [image.reshape(-1).astype(float) for image in (one, other)]
    ssim = skimage_metrics.structural_similarity
    paper = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    constant = any(image.min() == image.max() for image in flat)
    return {
        "pixcorr": 0.0 if constant else float(np.corrcoef(*flat)[0, 1]),
        "ssim": float(ssim(*grey, **paper)),
        "ssim_1d": float(ssim(*grey, channel_axis=1, **paper)),
        "ssim_7x7": float(ssim(*grey, data_range=1)),
        "mse": float(np.mean((flat[0] / 255 - flat[1] / 255) ** 2)),
    }


def read_images(folder: Path, channels: int = 3) -> list[Array]:
    return [np.asarray(Image.open(file)).reshape(12, 12, channels) for file in sorted(folder.glob("*.png"))]


def means(images: list[Array], stimuli: Array) -> dict[str, float]:
    pairs = [pair(*two) for two in zip(images, stimuli, strict=True)]
    return {name: float(np.mean([found[name] for found in pairs])) for name in PAIRS}


def values(figures: dict[str, Any], names: Any = PAIRS) -> dict[str, float]:
    return {name: figures[name]["value"] for name in names}


# The contract


def test_metrics_follow_the_contract(finished: Path) -> None:
    metrics = read_metrics(finished)
    assert {"preset", "n_test", "versions", "stage1", "final", "baselines"} <= set(metrics)
    assert (metrics["preset"], metrics["n_test"], metrics["seed"]) == ("native", N_TEST, SEED)
    assert metrics["versions"]["numpy"] == np.__version__
    assert set(metrics["baselines"]) == BASELINES
    groups = [metrics["stage1"], metrics["final"], *metrics["baselines"].values(), *metrics["features"].values()]
    for figures in (*groups, *metrics["upper_bounds"].values()):
        assert figures
        for name, figure in figures.items():
            assert set(figure) == {"value", "low", "high", "chance"}, name
            assert all(isinstance(figure[key], float) for key in figure), (name, figure)
            assert figure["low"] <= figure["value"] <= figure["high"], name
    identified = {f"{kind}_pixels{way}" for kind in ("two_way", "top1") for way in ("", "_reverse")}
    for name, figures in {"final": metrics["final"], **metrics["baselines"]}.items():
        # One image for all rows is as like each stimulus as itself: the reverse would be 0 by definition.
        lacking = {way for way in identified if way.endswith("_reverse")} if name == "mean_train_image" else set()
        assert {*PAIRS, *identified} - set(figures) == lacking
    assert set(metrics["features"]) == {"pixels", "pca"}
    assert metrics["notes"] == []


def test_scores_of_rows_average_to_the_figures(finished: Path) -> None:
    metrics, scores = read_metrics(finished), read_scores(finished)
    assert [int(row["row"]) for row in scores] == list(range(N_TEST))
    records = json.loads((finished / "betas" / "rows.json").read_text())
    ids = json.loads((finished / "stimuli" / "ids.json").read_text())["test"]
    assert [row["stimulus"] for row in scores] == [ids[image] for image in records["test"]["stimulus"]]
    for stage in ("stage1", "final"):
        for name, figure in metrics[stage].items():
            assert np.mean([float(row[f"{stage}.{name}"]) for row in scores]) == pytest.approx(figure["value"])


def test_figures_are_those_of_the_images_on_disk(finished: Path, data: Path) -> None:
    metrics, stimuli = read_metrics(finished), np.load(data / "stimuli_test.npy")
    for stage in ("stage1", "final"):
        images = read_images(finished / "reconstructions" / stage)
        assert len(images) == N_TEST
        assert values(metrics[stage]) == pytest.approx(means(images, stimuli), abs=1e-9)
        own = [pair(*two)["pixcorr"] for two in zip(images, stimuli, strict=True)]
        scores = [float(row[f"{stage}.pixcorr"]) for row in read_scores(finished)]
        np.testing.assert_allclose(scores, own, atol=1e-9)
    mismatched = [pair(one, stimuli[j])["ssim"] for i, one in enumerate(images) for j in range(N_TEST) if i != j]
    assert metrics["final"]["ssim"]["chance"] == pytest.approx(np.mean(mismatched), abs=1e-9)


def test_baselines_are_those_of_the_stores(finished: Path, data: Path) -> None:
    metrics = read_metrics(finished)
    train, test = (np.load(data / f"stimuli_{split}.npy") for split in ("train", "test"))
    mean = np.rint(train.mean(axis=0)).astype(np.uint8)
    assert values(metrics["baselines"]["mean_train_image"]) == pytest.approx(means([mean] * N_TEST, test), abs=1e-9)
    predicted = read_rows(finished / "predictions/pixels/test.zarr").astype(np.float64)
    features = read_rows(finished / "features/pixels/train.zarr").astype(np.float64)
    nearest = np.corrcoef(predicted, features)[:N_TEST, N_TEST:].argmax(axis=1)
    found = values(metrics["baselines"]["nearest_train_image"])
    assert found == pytest.approx(means(list(train[nearest]), test), abs=1e-9)
    oracle = read_images(finished / "variants/oracle/reconstructions/stage1")
    np.testing.assert_array_equal(oracle, test)  # pixels decode to themselves
    bound = metrics["upper_bounds"]["true_features"]
    assert values(bound, ("pixcorr", "ssim", "mse")) == pytest.approx({"pixcorr": 1, "ssim": 1, "mse": 0}, abs=1e-9)
    possible = [means([one], [other])["mse"] for one in train for other in test[:1]]  # type: ignore[arg-type]
    drawn = metrics["baselines"]["random_train_image"]["mse"]["value"]
    assert min(possible) < drawn < max(possible)


def test_the_shuffled_baseline_is_a_fit_on_permuted_targets(finished: Path, data: Path) -> None:
    metrics, test = read_metrics(finished), np.load(data / "stimuli_test.npy")
    train, betas = np.load(data / "stimuli_train.npy"), np.load(data / "betas_train.npy").astype(np.float64)
    targets, scale = train.reshape(N_TRAIN, -1) / 255, betas.std(axis=0, ddof=1)
    each = []
    for k in range(PERMUTATIONS):
        order = np.random.default_rng([SEED, k]).permutation(N_TRAIN)
        fit = Ridge(alpha=3.0).fit(betas / scale, targets[order])
        expected = fit.predict(np.load(data / "betas_test.npy") / scale)
        variant = finished / "variants" / f"shuffled{k:02d}"
        np.testing.assert_allclose(read_rows(variant / "predictions/pixels/test.zarr"), expected, atol=1e-5)
        images = read_images(variant / "reconstructions/stage1")
        levels = np.clip(expected, 0, 1).reshape(N_TEST, 12, 12, 3) * 255
        assert np.abs(np.array(images) - levels).max() <= 0.51
        each.append(means(images, test))
    averaged = {name: np.mean([found[name] for found in each]) for name in PAIRS}
    assert values(metrics["baselines"]["shuffled_betas"]) == pytest.approx(averaged, abs=1e-9)


def test_figures_of_folds_are_averaged(folded: Path, data: Path) -> None:
    metrics, stimuli = read_metrics(folded), np.load(data / "stimuli.npy")
    folds = json.loads((folded / "folds.json").read_text())["folds"]
    of_folds, of_means, of_random = [], [], []
    for k, rows in enumerate(folds):
        images = read_images(folded / "variants" / f"fold{k:02d}" / "reconstructions/final")
        of_folds.append(means(images, stimuli[rows]))
        train = [row for row in range(len(stimuli)) if row not in rows]
        mean = np.rint(stimuli[train].mean(axis=0)).astype(np.uint8)
        of_means.append(means([mean] * len(rows), stimuli[rows]))
        shuffled = [
            means(read_images(folded / f"variants/fold{k:02d}-shuffled{j:02d}/reconstructions/stage1"), stimuli[rows])
            for j in range(PERMUTATIONS)
        ]  # fmt: skip
        of_random.append({name: float(np.mean([found[name] for found in shuffled])) for name in PAIRS})
    assert (metrics["folds"], metrics["n_test"]) == (3, N_TRAIN + N_TEST)
    for figures, found in (
        (metrics["final"], of_folds),
        (metrics["baselines"]["mean_train_image"], of_means),
        (metrics["baselines"]["shuffled_betas"], of_random),
    ):
        expected = {name: np.mean([fold[name] for fold in found]) for name in PAIRS}
        assert values(figures) == pytest.approx(expected, abs=1e-9)
    scores = read_scores(folded)
    assert [(int(row["fold"]), int(row["row"])) for row in scores] == [(k, row) for k in range(3) for row in folds[k]]


def test_margins_are_differences_to_the_baselines(finished: Path) -> None:
    metrics = read_metrics(finished)
    for name, margins in metrics["margins"].items():
        for metric, margin in margins.items():
            difference = metrics["final"][metric]["value"] - metrics["baselines"][name][metric]["value"]
            assert margin["value"] == pytest.approx(difference, abs=1e-12)


# Again


def test_evaluating_again_changes_nothing(leanrecon: Any, study: Path, data: Path) -> None:
    before = stamps(study)
    leanrecon("run", "small.toml", "--study", study, cwd=data)
    assert stamps(study) == before


def test_other_resamples_are_evaluated_without_being_asked_to_overwrite(
    leanrecon: Any, study: Path, data: Path
) -> None:
    before, metrics = stamps(study), read_metrics(study)
    leanrecon("run", "small.toml", "--study", study, "--set", "evaluate.resamples=300", cwd=data)
    changed = {name for name, stamp in stamps(study).items() if before.get(name) != stamp}
    assert {"evaluation/metrics.json", "report.html"} <= changed
    assert not [name for name in changed if name.endswith(".png") or "/c/" in name]
    found = read_metrics(study)
    assert found["resamples"] == 300
    assert values(found["final"]) == values(metrics["final"])
    assert found["final"]["pixcorr"]["low"] != metrics["final"]["pixcorr"]["low"]


@pytest.mark.parametrize("lost", ["report.html", "evaluation/metrics.json", "evaluation"])
def test_what_is_lost_is_written_again(leanrecon: Any, study: Path, data: Path, finished: Path, lost: str) -> None:
    path = study / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    leanrecon("run", "small.toml", "--study", study, cwd=data)
    for name in ("evaluation/metrics.json", "evaluation/scores.csv", "evaluation/latent_r2/pca.npy"):
        assert (study / name).read_bytes() == (finished / name).read_bytes()
    assert (study / "report.html").exists()


@pytest.mark.parametrize("lost", ["evaluation/scores.csv", "evaluation/latent_r2/pca.npy"])
def test_lost_scores_are_written_again(leanrecon: Any, study: Path, data: Path, finished: Path, lost: str) -> None:
    (study / lost).unlink()
    leanrecon("run", "small.toml", "--study", study, cwd=data)
    assert (study / lost).read_bytes() == (finished / lost).read_bytes()


def test_a_kill_between_figures_and_report_leaves_no_report_of_other_figures(
    leanrecon: Any, cli_: Any, study: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = ("run", "small.toml", "--study", study, "--set", "evaluate.resamples=300")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "render", killed)
        assert cli_(*again, cwd=data) == 130
    old = (study / "report.html").read_bytes() if (study / "report.html").exists() else None
    leanrecon(*again, cwd=data)
    assert read_metrics(study)["resamples"] == 300
    assert (study / "report.html").read_bytes() != old, "the report tells of 200 resamples, metrics.json of 300"


def test_the_report_is_written_again_from_what_is_there(
    leanrecon: Any, finished: Path, data: Path, tmp_path: Path
) -> None:
    study = Path(shutil.copytree(finished, tmp_path / "small"))  # the report names the folder
    before = (study / "report.html").read_text()
    (study / "report.html").unlink()
    leanrecon("report", study, cwd=tmp_path)
    # study.toml has the arrays by their whole paths.
    assert (study / "report.html").read_text().replace(f"{data}/", "") == before.replace(f"{data}/", "")
    assert not list(study.glob("*.partial"))


@pytest.mark.parametrize("until", ["dataset", "stage1", "refine"])
def test_a_report_of_an_unfinished_study_says_what_to_do(
    leanrecon: Any, data: Path, tmp_path: Path, until: str
) -> None:
    leanrecon("run", "small.toml", "--study", tmp_path / "study", "--until", until, cwd=data)
    said = leanrecon("report", tmp_path / "study", cwd=tmp_path, code=2)
    assert re.fullmatch(r"leanrecon: .*/study.* (Run|Finish|Go) .*\n", said)
    assert not (tmp_path / "study" / "report.html").exists()


def test_a_report_of_figures_that_are_no_longer_those_of_the_images_is_refused(
    leanrecon: Any, study: Path, data: Path
) -> None:
    again = ("run", "small.toml", "--study", study, "--set", "regression.alpha=9", "--overwrite", "--until", "refine")
    leanrecon(*again, cwd=data)
    said = leanrecon("report", study, cwd=data, code=2)
    assert "earlier" in said


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "settings of one's own"])
def test_a_report_of_no_study_says_what_to_give(leanrecon: Any, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    if kind == "file":
        folder.write_text("x")
    elif kind != "missing":
        folder.mkdir()
    if kind.startswith("settings"):
        (folder / "study.toml").write_text(SETTINGS)
    said = leanrecon("report", folder, cwd=tmp_path, code=2)
    assert re.fullmatch(r"leanrecon: .*folder is not the folder of a study\. Give the folder .*\n", said)


@pytest.mark.parametrize(
    "lost", ["evaluation/scores.csv", "stimuli", "reconstructions/stage1/00003.png", "betas/rows.json"]
)
def test_a_report_that_lacks_something_says_what(leanrecon: Any, study: Path, tmp_path: Path, lost: str) -> None:
    path, before = study / lost, (study / "report.html").read_bytes()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = leanrecon("report", study, cwd=tmp_path, code=2)
    assert re.search(r"scores\.csv|stimuli/t\w+\.zarr|00003\.png|rows\.json", said)
    assert (study / "report.html").read_bytes() == before
    assert not list(study.glob("*.partial"))


# Verifying


PICTURES = [
    "reconstructions/stage1/00002.png",
    "reconstructions/final/00002.png",
    "variants/shuffled01/reconstructions/stage1/00002.png",
    "variants/oracle/reconstructions/stage1/00002.png",
]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("harm", ["cut", "lost", "other"])
def test_a_damaged_picture_is_found_and_mended(
    leanrecon: Any, study: Path, finished: Path, tmp_path: Path, picture: str, harm: str
) -> None:
    path, before = study / picture, stamps(study)
    data = path.read_bytes()
    if harm == "lost":
        path.unlink()
    else:
        path.write_bytes(data[:-20] if harm == "cut" else data + b"\0")
    said = leanrecon("verify", study, cwd=tmp_path, code=1)
    assert re.search(rf"image 00002\.png of .*{Path(picture).parent} (is missing|does not match its checksum)", said)
    assert "repaired" in leanrecon("verify", study, "--repair", cwd=tmp_path)
    assert path.read_bytes() == data
    drawn = {n for n, stamp in stamps(study).items() if before[n] != stamp and (n.endswith(".png") or "/c/" in n)}
    assert drawn == {picture}
    assert find_damage(study) == {}
    assert read_metrics(study) == read_metrics(finished)


def test_a_picture_and_what_it_was_drawn_from_are_mended_together(study: Path, finished: Path) -> None:
    harmed = ["reconstructions/stage1/00001.png", "reconstructions/final/00001.png"]
    for name in harmed:
        (study / name).write_bytes(b"x")
    chunk = next(path for path in sorted((study / "predictions/pixels/test.zarr/c").rglob("*")) if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    mend(study, find_damage(study))
    for name in harmed:
        assert (study / name).read_bytes() == (finished / name).read_bytes()


def test_what_a_kill_left_half_written_is_removed(leanrecon: Any, study: Path, data: Path) -> None:
    names = ["run.json", "study.toml", "evaluation/metrics.json", "reconstructions/final.json", "evaluation/scores.csv"]
    left = [study / f"{name}.0123456789abcdef.partial" for name in names]
    for path in left:
        path.write_text("{")
    leanrecon("run", "small.toml", "--study", study, "--set", "evaluate.resamples=300", cwd=data)
    assert list(study.rglob("*.partial")) == []


@pytest.mark.parametrize("folder", ["reconstructions", "variants/shuffled00", "reconstructions/final"])
def test_part_of_a_study_can_be_verified(leanrecon: Any, study: Path, tmp_path: Path, folder: str) -> None:
    assert "all chunks are sound" in leanrecon("verify", study / folder, cwd=tmp_path)


def test_fewer_permutations_are_evaluated_without_being_asked_to_overwrite(
    leanrecon: Any, study: Path, data: Path
) -> None:
    leanrecon("run", "small.toml", "--study", study, "--set", "evaluate.permutations=0", cwd=data)
    assert set(read_metrics(study)["baselines"]) == BASELINES - {"shuffled_betas"}


# Small and strange studies


def test_one_test_row(leanrecon: Any, tmp_path: Path) -> None:
    save(tmp_path, n_test=1)
    leanrecon("run", "small.toml", cwd=tmp_path)
    metrics = read_metrics(tmp_path / "small")
    assert metrics["n_test"] == 1
    for figures in (metrics["final"], *metrics["baselines"].values()):
        assert set(figures) == set(PAIRS)
        assert all(figure["low"] is figure["high"] is None for figure in figures.values())
    assert metrics["features"] == {"pixels": {}, "pca": {}}
    assert any("single test image" in note.lower() for note in metrics["notes"])
    assert "Too few test images" in (tmp_path / "small" / "report.html").read_text()


@pytest.mark.parametrize(("side", "there"), [(4, {"pixcorr", "mse"}), (8, {"pixcorr", "mse", "ssim_7x7"})])
def test_images_smaller_than_the_windows(leanrecon: Any, tmp_path: Path, side: int, there: set[str]) -> None:
    save(tmp_path, side=side)
    leanrecon("run", "small.toml", cwd=tmp_path)
    metrics = read_metrics(tmp_path / "small")
    assert set(metrics["final"]) & set(PAIRS) == there
    (note,) = metrics["notes"]
    assert set(re.findall(r"ssim\w*", note)) == set(PAIRS) - there


@pytest.mark.parametrize("size", ["5", "[9, 7]", "decoded", "20"])
def test_first_images_of_another_size(leanrecon: Any, tmp_path: Path, size: str) -> None:
    stimuli = save(tmp_path, channels=1)["stimuli"][N_TRAIN:]
    leanrecon("run", "small.toml", "--set", f"stage1.size={size}", cwd=tmp_path)
    expected = {"5": (5, 5), "[9, 7]": (7, 9), "decoded": (12, 12), "20": (20, 20)}[size]
    images = []
    for k in range(N_TEST):
        with Image.open(tmp_path / "small" / "reconstructions/final" / f"{k:05d}.png") as picture:
            assert (picture.size, picture.mode) == (expected, "L")
            back = picture.resize((12, 12), Image.Resampling.BILINEAR) if expected != (12, 12) else picture
            images.append(np.asarray(back)[:, :, None])
    metrics = read_metrics(tmp_path / "small")
    assert values(metrics["final"]) == pytest.approx(means(images, stimuli), abs=1e-9)


def test_a_preset_compares_at_its_own_size(leanrecon: Any, tmp_path: Path) -> None:
    stimuli = save(tmp_path, n_test=2)["stimuli"][N_TRAIN:]
    settings = ("--set", "evaluate.preset=bd2023", "--set", "evaluate.permutations=1")
    leanrecon("run", "small.toml", *settings, cwd=tmp_path)
    metrics = read_metrics(tmp_path / "small")
    assert metrics["preset"] == "bd2023"
    images = read_images(tmp_path / "small" / "reconstructions/final")
    fitted = [
        [np.asarray(Image.fromarray(image).resize((425, 425), Image.Resampling.BICUBIC)) for image in of]
        for of in (images, stimuli)
    ]
    expected = means(fitted[0], np.array(fitted[1]))
    assert values(metrics["final"]) == pytest.approx(expected, abs=1e-9)


def test_without_a_decoder_features_can_still_be_predicted(
    leanrecon: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pixels, "decodes", False)
    text = SETTINGS.replace("[features.pca]\ncomponents = 5\n", "")
    (tmp_path / "blind.toml").write_text(text.replace('= "', f'= "{data}/').replace(f"{data}/2kB", "2kB"))
    leanrecon("run", "blind.toml", "--until", "regression", cwd=tmp_path)
    assert read_rows(tmp_path / "blind/predictions/pixels/test.zarr").shape == (N_TEST, 432)
    assert not (tmp_path / "blind" / "variants").exists()
    before = stamps(tmp_path / "blind")
    said = leanrecon("run", "blind.toml", cwd=tmp_path, code=2)
    assert re.search(r"images can't be decoded from pixels\. Expected .*decoder.*--until regression", said)
    assert stamps(tmp_path / "blind") == before
    leanrecon("plan", "blind.toml", "--until", "regression", cwd=tmp_path)


def test_fewer_test_images_than_betas_are_refused(leanrecon: Any, tmp_path: Path) -> None:
    save(tmp_path)
    np.save(tmp_path / "stimuli_test.npy", np.load(tmp_path / "stimuli_test.npy")[:-2])
    said = leanrecon("run", "small.toml", cwd=tmp_path, code=2)
    assert said.splitlines()[-1].startswith("leanrecon: ")
    assert re.search(r"\b12\b", said)
    assert re.search(r"\b10\b", said)


def test_images_in_grey_for_training_and_in_colour_for_testing_are_refused(leanrecon: Any, tmp_path: Path) -> None:
    save(tmp_path)
    np.save(tmp_path / "stimuli_train.npy", np.load(tmp_path / "stimuli_train.npy")[..., 0])
    said = leanrecon("run", "small.toml", cwd=tmp_path, code=2)
    assert said.splitlines()[-1].startswith("leanrecon: ")
    assert "stimuli_t" in said


def test_a_note_tells_of_test_images_that_were_trained_on(leanrecon: Any, tmp_path: Path) -> None:
    save(tmp_path)
    test = np.load(tmp_path / "stimuli_test.npy")
    test[:4] = np.load(tmp_path / "stimuli_train.npy")[:4]
    np.save(tmp_path / "stimuli_test.npy", test)
    leanrecon("run", "small.toml", "--set", "dataset.allow_shared_stimuli=true", cwd=tmp_path)
    assert any("trained on" in note for note in read_metrics(tmp_path / "small")["notes"])


# Memory


def check_plans(study: Path) -> dict[str, Any]:
    stages: dict[str, Any] = json.loads((study / "run.json").read_text())["stages"]
    for name, stage in stages.items():
        assert stage["peak_bytes"] <= stage["planned_bytes"] <= stage["budget_bytes"], name
    return stages


@pytest.mark.alone
def test_every_stage_takes_no_more_memory_than_planned(finished: Path, folded: Path) -> None:
    assert {"stage1", "refine", "evaluate"} <= set(check_plans(finished))
    check_plans(folded)
    for fold in folded.glob("variants/fold??"):
        assert {"stage1", "refine"} <= set(check_plans(fold))


def test_the_record_of_a_finished_study_survives_an_overwrite(leanrecon: Any, study: Path, data: Path) -> None:
    leanrecon("run", "small.toml", "--study", study, "--overwrite", cwd=data)
    check_plans(study)


RESAMPLED = """
import json, sys
import numpy as np
from pathlib import Path
from leanrecon.stages.pipeline import Pipeline
from leanrecon.study.settings import check_settings
from leanrecon.study.layout import Study

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
np.save(folder / "stimuli.npy", rng.integers(0, 256, (400, 4, 4), np.uint8))
np.save(folder / "betas.npy", rng.standard_normal((400, 10), np.float32))
split = {"folds": 8} if sys.argv[2] == "folds" else {"test_fraction": 0.5}
resamples = 20_000 if sys.argv[2] == "folds" else 40_000
settings = {
    "dataset": {"betas": str(folder / "betas.npy"), "stimuli": str(folder / "stimuli.npy"), **split},
    "features": {"pixels": {}},
    "evaluate": {"permutations": 1, "resamples": resamples},
}
Pipeline(check_settings(settings), Study(folder / "study")).run()
print(json.dumps(json.loads((folder / "study" / "run.json").read_text())["stages"]["evaluate"]))
"""


@pytest.mark.parametrize("split", ["folds", "one"])
def test_many_resamples_take_no_more_memory_than_planned(tmp_path: Path, split: str) -> None:
    command = [sys.executable, "-c", RESAMPLED, str(tmp_path), split]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=ONE_THREAD)
    record = json.loads(out.stdout.splitlines()[-1])
    assert record["peak_bytes"] <= record["planned_bytes"]


# The demo and the doctor


def test_the_demo_runs_offline_in_little_memory(tmp_path: Path) -> None:
    cut_off = "import socket, runpy\nsocket.socket.connect = socket.getaddrinfo = None\nrunpy.run_module('leanrecon', run_name='__main__')"
    command = [sys.executable, "-c", cut_off, "demo", "--fast"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "demo-fast"
    assert done.stdout.splitlines()[-1] == "done: demo-fast/report.html"
    assert max(stage["peak_bytes"] for stage in check_plans(study).values()) < 500e6
    metrics = read_metrics(study)
    assert metrics["simulated"] is True
    assert metrics["final"]["two_way_pixels"]["low"] > metrics["final"]["two_way_pixels"]["chance"]
    assert metrics["margins"]["mean_train_image"]["pixcorr"]["low"] > 0
    page = (study / "report.html").read_text()
    assert "simulated" in page
    with np.load(study / "betas" / "voxels.npz") as voxels:
        ncsnr = voxels["ncsnr"][voxels["areas"] == "V1"].astype(float)
    assert f"<td>{np.median(100 * ncsnr**2 / (ncsnr**2 + 1 / 3)):.1f} %</td>" in page  # known, of three repeats
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert (study / "study.toml").read_text().startswith(HEADER)


def test_the_doctor_prints_every_recipe(leanrecon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = leanrecon("doctor", cwd=tmp_path)
    for name in (path.stem for path in (Path(cli.__file__).parents[1] / "recipes").glob("*.toml")):
        assert re.search(rf"│ {name} ", said), said
    assert re.search(r"│ models of the demo ", said)
    (demo,) = [line for line in said.splitlines() if line.startswith("│ demo-fast ")]
    assert "fits" in demo
    small = leanrecon("doctor", "--memory", "60MB", cwd=tmp_path)
    assert "does not fit" in small
    assert list(tmp_path.iterdir()) == []


def test_a_plan_names_the_stages_that_draw_and_compare(leanrecon: Any, data: Path) -> None:
    before = stamps(data)
    said = leanrecon("plan", "small.toml", cwd=data)
    for stage in ("stage1", "refine", "evaluate"):
        assert re.search(rf"│ {stage} .* [MG]B", said)
    assert stamps(data) == before


def test_the_report_names_no_folders_of_the_settings_not_even_in_lists() -> None:
    table = {"dataset": {"roi": ["V1", "/home/someone/mine.nii.gz"], "root": "/data/nsd"}, "seed": 0}
    assert report._without_folders(table) == {"dataset": {"roi": ["V1", "mine.nii.gz"], "root": "nsd"}, "seed": 0}


# Damage to what the report reads


@pytest.mark.parametrize("harm", ["letter", "short line", "empty", "metrics"])
def test_damaged_figures_are_refused_by_name(leanrecon: Any, study: Path, tmp_path: Path, harm: str) -> None:
    path = study / "evaluation" / ("metrics.json" if harm == "metrics" else "scores.csv")
    text = (study / "evaluation" / "scores.csv").read_text()
    lines = text.splitlines(keepends=True)
    number = lines[1].split(",")[2]
    harmed = {
        "letter": text.replace(number, f"x{number}", 1),
        "short line": "".join([lines[0], "1,2\n", *lines[2:]]),
        "empty": "",
        "metrics": "3",
    }
    path.write_text(harmed[harm])
    said = leanrecon("report", study, cwd=tmp_path, code=2)
    assert path.name in said
    assert "verify" in said


def test_a_png_of_400_megapixels_is_refused_before_it_is_decoded(leanrecon: Any, study: Path, tmp_path: Path) -> None:
    path = study / "reconstructions" / "stage1" / "00001.png"
    Image.new("1", (20_000, 20_000)).save(path)
    said = leanrecon("report", study, cwd=tmp_path, code=2)
    assert "image 00001.png" in said
    assert "verify" in said
