"""Identification by a CLIP in the stage evaluate: its embeddings, its figures, what is kept of them, and its memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from support import published_models as models  # noqa: E402

from leanrecon.errors import InputError, LeanreconError, SettingsError  # noqa: E402
from leanrecon.evaluation.judges.clip import CLIPJudge  # noqa: E402
from leanrecon.features.clip import CLIPVision  # noqa: E402
from leanrecon.places.files import write_text  # noqa: E402
from leanrecon.stages.evaluate import EvaluateStage  # noqa: E402
from leanrecon.stages.pipeline import Pipeline, plan_study  # noqa: E402
from leanrecon.stages.repair import mend  # noqa: E402
from leanrecon.stages.stage import Run  # noqa: E402
from leanrecon.stores import Store  # noqa: E402
from leanrecon.study.layout import Study  # noqa: E402
from leanrecon.study.recipes import read_settings  # noqa: E402
from leanrecon.study.verify import find_damage  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

N_TRAIN, N_TEST = 60, 40
SETTINGS = f"""
[dataset]
kind = "simulated"
n_train = {N_TRAIN}
n_test = {N_TEST}
voxels = 40
size = 40
[features.pca]
components = 10
[regression]
alpha = 100.0
[evaluate]
permutations = 2
resamples = 100
"""
CLIP = '[judges.clip]\nmodel = "tiny-clip"\n'
SOURCES = {"stage1", "mean_train_image", "random_train_image", "nearest_train_image", "shuffled_betas_0",
           "shuffled_betas_1", "true_features", "stimuli"}  # fmt: skip


def run(folder: Path, *overrides: str, study: str = "study", **options: Any) -> Path:
    settings, base_dir = read_settings(folder / "study.toml", overrides)
    Pipeline(settings, Study(folder / study), base_dir=base_dir, **options).run()
    return folder / study


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that no CLIP judged, beside one that could; not to be changed."""
    folder = tmp_path_factory.mktemp("plain")
    models.write_clip(folder / "tiny-clip")
    (folder / "study.toml").write_text(SETTINGS)
    run(folder)
    (folder / "study.toml").write_text(SETTINGS + CLIP)
    return folder


@pytest.fixture(scope="module")
def finished(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, judged; not to be changed."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("judged") / "folder"))
    run(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "folder"))


@pytest.fixture
def begun(plain: Path, tmp_path: Path) -> Path:
    """A copy of the study before it was judged."""
    return Path(shutil.copytree(plain, tmp_path / "begun"))


def read_metrics(study: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study / "evaluation" / "metrics.json").read_text())
    return found


def rows_of(path: Path) -> np.ndarray:
    store = Store.open(path)
    return store[0 : store.rows]


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])


def by_transformers(clip: Path, images: np.ndarray) -> np.ndarray:
    """The image embeddings of transformers' own CLIPModel and processor, as they are, float64."""
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(clip)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels)
    return np.asarray(getattr(found, "pooler_output", found), dtype=np.float64)


def identified(reconstructed: np.ndarray, seen: np.ndarray) -> tuple[float, float, float]:
    """Two-way identification, the same the other way round, and how often the own one is first, image by image."""
    m = len(seen)
    r = np.corrcoef(reconstructed, seen)[:m, m:]
    wins = [[r[i, i] > r[i, j] for j in range(m) if j != i] for i in range(m)]
    reverse = [[r[i, i] > r[j, i] for j in range(m) if j != i] for i in range(m)]
    return float(np.mean(wins)), float(np.mean(reverse)), float(np.mean(np.all(wins, axis=1)))


def encoded(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[int]:
    """How many images the network is shown, call by call; it is interrupted before it sees more than so many."""
    seen: list[int] = []
    encode = CLIPVision.encode

    def counted(self: CLIPVision, images: np.ndarray, rows: Any) -> np.ndarray:
        if fail_after is not None and sum(seen) + len(images) > fail_after:
            raise KeyboardInterrupt
        seen.append(len(images))
        return encode(self, images, rows)

    monkeypatch.setattr(CLIPVision, "encode", counted)
    return seen


# Embeddings and figures


def test_embeddings_are_those_of_transformers(finished: Path) -> None:
    study = finished / "study"
    for name, images in (
        ("stimuli", rows_of(study / "stimuli" / "test.zarr")),
        ("stage1", pictures(study / "reconstructions" / "stage1")),
        ("true_features", pictures(study / "variants" / "oracle" / "reconstructions" / "stage1")),
    ):
        expected = by_transformers(finished / "tiny-clip", images)
        lengths = np.linalg.norm(expected, axis=1, keepdims=True)
        found = rows_of(study / "embeddings" / "clip" / f"{name}.zarr")
        assert found.dtype == np.float32
        assert found.shape == (N_TEST, models.PROJECTION)
        np.testing.assert_allclose(found * lengths, expected, atol=1e-5 * np.abs(expected).max())


def test_figures_are_those_of_transformers_embeddings_and_numpy(finished: Path) -> None:
    study, clip = finished / "study", finished / "tiny-clip"
    metrics = read_metrics(study)
    seen = by_transformers(clip, rows_of(study / "stimuli" / "test.zarr"))
    stage1 = by_transformers(clip, pictures(study / "reconstructions" / "stage1"))
    two_way, reverse, first = identified(stage1, seen)
    assert 0.5 < two_way < 1
    final = metrics["final"]
    assert final["two_way_clip"]["value"] == pytest.approx(two_way)
    assert final["two_way_clip_reverse"]["value"] == pytest.approx(reverse)
    assert final["top1_clip"]["value"] == pytest.approx(first)
    assert final["two_way_clip"]["low"] < two_way < final["two_way_clip"]["high"]
    assert (final["two_way_clip"]["chance"], final["top1_clip"]["chance"]) == (0.5, 1 / N_TEST)
    shuffled = [
        identified(by_transformers(clip, pictures(path / "reconstructions" / "stage1")), seen)[0]
        for path in sorted((study / "variants").glob("shuffled*"))
    ]
    assert metrics["baselines"]["shuffled_betas"]["two_way_clip"]["value"] == pytest.approx(np.mean(shuffled))
    ceiling = by_transformers(clip, pictures(study / "variants" / "oracle" / "reconstructions" / "stage1"))
    assert metrics["upper_bounds"]["true_features"]["two_way_clip"]["value"] == pytest.approx(
        identified(ceiling, seen)[0]
    )
    train = rows_of(study / "stimuli" / "train.zarr")
    mean = np.rint(train.mean(axis=0, dtype=np.float64)).astype(np.uint8)
    same = np.repeat(by_transformers(clip, mean[None]), N_TEST, axis=0)
    found = metrics["baselines"]["mean_train_image"]
    assert found["two_way_clip"]["value"] == pytest.approx(identified(same, seen)[0])
    assert "two_way_clip_reverse" not in found
    margin = metrics["margins"]["shuffled_betas"]["two_way_clip"]["value"]
    assert margin == pytest.approx(two_way - np.mean(shuffled))


def test_one_image_for_many_rows_is_shown_once(finished: Path) -> None:
    embeddings = finished / "study" / "embeddings" / "clip"
    assert {path.stem for path in embeddings.iterdir()} == SOURCES
    rows = {path.stem: Store.open(path).rows for path in embeddings.iterdir()}
    drawn = np.random.default_rng([0, N_TEST]).choice(N_TRAIN, N_TEST)
    assert rows["mean_train_image"] == 1
    assert rows["random_train_image"] == len(np.unique(drawn)) < N_TEST
    assert rows["nearest_train_image"] <= N_TEST
    assert rows["stage1"] == rows["stimuli"] == N_TEST


def test_folds_are_judged_each_by_its_own_images(begun: Path) -> None:
    rng = np.random.default_rng(0)
    images = rows_of(begun / "study" / "stimuli" / "train.zarr")
    np.save(begun / "stimuli.npy", images)
    np.save(begun / "betas.npy", images.reshape(len(images), -1)[:, ::97] + rng.standard_normal((len(images), 50)))
    table = '[dataset]\nbetas = "betas.npy"\nstimuli = "stimuli.npy"\nfolds = 2\n'
    (begun / "study.toml").write_text(table + SETTINGS[SETTINGS.index("[features") :] + CLIP)
    study = run(begun, study="folded")
    found = []
    for name in ("fold00", "fold01"):
        part = study / "variants" / name
        own = json.loads((study / "folds.json").read_text())["folds"][int(name[-1])]
        seen = by_transformers(begun / "tiny-clip", images[own])
        drawn = by_transformers(begun / "tiny-clip", pictures(part / "reconstructions" / "stage1"))
        found.append(identified(drawn, seen)[0])
        assert read_metrics(part)["final"]["two_way_clip"]["value"] == pytest.approx(found[-1])
    assert read_metrics(study)["final"]["two_way_clip"]["value"] == pytest.approx(np.mean(found))


def test_report_and_scores_show_them_and_who_judged(finished: Path) -> None:
    study = finished / "study"
    page = (study / "report.html").read_text()
    assert "Two-way identification by CLIP" in page
    assert "by the image embedding of tiny-clip" in page
    assert str(finished) not in page
    header = (study / "evaluation" / "scores.csv").read_text().splitlines()[0].split(",")
    assert {"final.two_way_clip", "stage1.two_way_clip_reverse", "final.top1_clip"} <= set(header)
    assert read_metrics(study)["judges"]["clip"]["model"] == "tiny-clip"


def test_without_the_setting_there_is_none_of_it(plain: Path) -> None:
    study = plain / "study"
    assert not (study / "embeddings").exists()
    text = (study / "evaluation" / "metrics.json").read_text() + (study / "evaluation" / "scores.csv").read_text()
    assert "clip" not in text
    assert "CLIP" not in (study / "report.html").read_text()
    assert "clip" not in (study / "study.toml").read_text()


# What is kept


def test_judging_a_finished_study_leaves_other_figures_and_all_images_as_they_were(plain: Path, finished: Path) -> None:
    before, after = (read_metrics(of / "study") for of in (plain, finished))
    for name, figure in before["final"].items():
        assert after["final"][name] == pytest.approx(figure, rel=1e-12)
    for path in (plain / "study").rglob("*.png"):
        assert path.read_bytes() == (finished / path.relative_to(plain)).read_bytes()


def test_a_run_that_is_interrupted_shows_the_network_only_the_rest(
    begun: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        encoded(patch, fail_after=N_TEST + 35)  # within the second source
        with pytest.raises(KeyboardInterrupt):
            run(begun)
    kept = {
        path.stem: Store.open(path, incomplete=True) for path in (begun / "study" / "embeddings" / "clip").iterdir()
    }
    assert {name: (store.complete, len(store.missing())) for name, store in kept.items()} == {
        "stimuli": (True, 0),
        "stage1": (False, 1),  # of two chunks
    }
    seen = encoded(monkeypatch)
    run(begun)
    every = {path.stem: Store.open(path) for path in (begun / "study" / "embeddings" / "clip").iterdir()}
    assert sum(seen) == sum(store.rows for store in every.values()) - N_TEST - 32
    for name, store in every.items():
        assert store.content == Store.open(finished / "study" / "embeddings" / "clip" / f"{name}.zarr").content
    assert read_metrics(begun / "study")["final"] == read_metrics(finished / "study")["final"]


def test_changed_settings_judge_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, before = folder / "study", read_metrics(folder / "study")
    seen = encoded(monkeypatch)
    run(folder)
    assert seen == []
    run(folder, "evaluate.resamples=200")
    assert seen == []
    assert read_metrics(study)["final"]["two_way_clip"]["value"] == before["final"]["two_way_clip"]["value"]
    models.write_clip(folder / "other-clip", seed=1)
    run(folder, "judges.clip.model=other-clip")
    assert sum(seen) == sum(Store.open(path).rows for path in (study / "embeddings" / "clip").iterdir())
    after = read_metrics(study)
    assert after["judges"]["clip"]["model"] == "other-clip"
    assert after["final"]["two_way_clip"] != before["final"]["two_way_clip"]
    assert after["final"]["pixcorr"] == before["final"]["pixcorr"]
    run(folder, "judges.clip.model=other-clip", "evaluate.permutations=1")
    assert {path.stem for path in (study / "embeddings" / "clip").iterdir()} == SOURCES - {"shuffled_betas_1"}
    run(folder, "judges.clip=false")
    assert "two_way_clip" not in read_metrics(study)["final"]


def test_a_report_is_written_again_without_the_model(folder: Path) -> None:
    page = (folder / "study" / "report.html").read_bytes()
    (folder / "study" / "report.html").unlink()
    shutil.rmtree(folder / "tiny-clip")
    settings, _ = read_settings(folder / "study" / "study.toml")
    EvaluateStage().report(Run(settings, Study(folder / "study")))
    assert len((folder / "study" / "report.html").read_bytes()) == len(page)


def test_a_damaged_embedding_is_found_and_mended(folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(folder / "study" / "embeddings" / "clip" / "stage1.zarr")
    path = Path(store.chunk_path(1))
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    text = (folder / "study" / "study.toml").read_text().replace(str(finished), str(folder))
    write_text(folder / "study" / "study.toml", text)
    damaged = find_damage(folder / "study")
    assert [store.path.stem for store in damaged] == ["stage1"]
    seen = encoded(monkeypatch)
    mend(folder / "study", damaged)
    assert sum(seen) == N_TEST - 32  # those of the one chunk
    assert not find_damage(folder / "study")
    assert path.read_bytes() == (finished / path.relative_to(folder)).read_bytes()
    assert read_metrics(folder / "study")["final"] == read_metrics(finished / "study")["final"]


def test_a_mirror_brings_embeddings_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, mirror=tmp_path / "mirror")
    shutil.rmtree(folder / "study")
    seen = encoded(monkeypatch)
    run(folder, mirror=tmp_path / "mirror")
    assert seen == []
    models.write_clip(folder / "tiny-clip", seed=1)
    run(folder, mirror=tmp_path / "mirror")
    for place in (folder / "study", tmp_path / "mirror"):
        assert read_metrics(place)["judges"] == read_metrics(folder / "study")["judges"]
        stage1 = place / "embeddings" / "clip" / "stage1.zarr"
        np.testing.assert_array_equal(
            rows_of(stage1), rows_of(folder / "study" / "embeddings" / "clip" / "stage1.zarr")
        )


# Memory and errors


def test_a_plan_counts_the_network(plain: Path) -> None:
    def planned(*overrides: str) -> Any:
        settings, base_dir = read_settings(plain / "study.toml", overrides)
        return plan_study(settings, base_dir=base_dir)[-1]

    models.write_image_encoder(plain / "larger", hidden_size=256, intermediate_size=2048)
    none, tiny, larger = planned("judges.clip=false"), planned(), planned("judges.clip.model=larger")
    assert none.memory < tiny.memory < larger.memory - 4 * 2 * 2 * 256 * 2048  # two layers' MLPs in float32
    assert none.disk < tiny.disk
    assert tiny.summary.endswith(", tiny-clip")


def test_measured_memory_stays_under_the_plan(begun: Path) -> None:
    sizes = {"hidden_size": 640, "intermediate_size": 2560, "projection_dim": 512, "num_hidden_layers": 3}
    models.write_image_encoder(begun / "wide", **sizes, image_size=224, patch_size=14)
    command = [sys.executable, "-m", "leanrecon", "run", "study.toml", "--study", "study"]
    subprocess.run([*command, "--set", "judges.clip.model=wide"], check=True, cwd=begun, capture_output=True)
    record = json.loads((begun / "study" / "run.json").read_text())["stages"]["evaluate"]
    planned, peak = record["planned_bytes"], record["peak_bytes"]
    print(f"measured {peak / 1e6:.0f} MB of {planned / 1e6:.0f} MB planned")
    assert peak <= planned
    assert peak >= 0.6 * planned


def refused(folder: Path, *overrides: str) -> LeanreconError:
    """The error of a run, before anything was begun."""
    with pytest.raises(LeanreconError) as error:
        run(folder, *overrides, study="new")
    assert not (folder / "new").exists()
    return error.value


def test_models_that_can_not_judge_are_refused_before_anything_is_begun(begun: Path) -> None:
    assert "judges.clip.model" in str(refused(begun, "judges.clip.model=./nowhere"))
    models.write_text_encoder(begun / "text", projection=True)
    shutil.copytree(begun / "text" / "text_encoder", begun / "half")
    assert isinstance(error := refused(begun, "judges.clip.model=half"), InputError)
    assert "clip_text_model" in str(error)
    models.write_image_encoder(begun / "vision")
    bare = begun / "vision" / "image_encoder"
    from safetensors.torch import load_file, save_file

    weights = load_file(bare / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, bare / "model.safetensors")
    assert "visual_projection" in str(refused(begun, "judges.clip.model=vision"))
    (begun / "tiny-clip" / "preprocessor_config.json").unlink(missing_ok=True)
    (begun / "tiny-clip" / "processor_config.json").unlink(missing_ok=True)
    assert "preprocessor_config.json" in str(refused(begun))


def test_a_precision_that_the_device_is_not_good_for_is_refused_by_its_name(begun: Path) -> None:
    error = refused(begun, "judges.clip.precision=float16", "device=cpu")
    assert isinstance(error, SettingsError)
    assert "judges.clip.precision" in str(error)


def test_a_name_on_the_hub_stays_whole_and_a_folder_is_named_alone(plain: Path) -> None:
    settings, _ = read_settings(plain / "study.toml")
    assert CLIPJudge(settings.judges["clip"]).model == "tiny-clip"
    settings, _ = read_settings(plain / "study.toml", ["judges.clip.model=openai/clip-vit-large-patch14"])
    assert settings.judges["clip"].model == "openai/clip-vit-large-patch14"
