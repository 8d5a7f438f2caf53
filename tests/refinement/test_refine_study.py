"""The whole way with a generator: captions and latents predicted from the brain, images refined by what was predicted."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from PIL import Image
from support import published_models as models
from support.diffusion_models import vae, write_base
from support.refined_study import write_refined_study
from support.vdvae_models import random_weights

from leanrecon.places.files import write_json
from leanrecon.stores import Store

pytestmark = [pytest.mark.slow, pytest.mark.networks]

LATER = """
from leanrecon.stages.pipeline import stages_of
from leanrecon.stages.stage import Run
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_settings
settings, base_dir = read_settings("generator.toml")
run = Run(settings, Study("noisy"), base_dir)
for stage in stages_of(settings)[1:]:
    stage.run(run)
"""


def leanrecon(*arguments: object, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "leanrecon", *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refined")
    write_refined_study(folder, "generator.toml", 'baselines = ["prior", "shuffled", "oracle"]')
    leanrecon("run", "generator.toml", "--study", "study", cwd=folder)
    return folder / "study"


def images(study: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(study)): path.read_bytes() for path in sorted(study.glob(pattern))}


def test_the_study_ends_with_final_images_and_their_baselines(finished: Path) -> None:
    for where in (".", "variants/prior", "variants/shuffled", "variants/oracle"):
        assert len(images(finished / where, "reconstructions/final/*.png")) == 12, where
    metrics = json.loads((finished / "evaluation" / "metrics.json").read_text())
    assert {"prior_only", "shuffled_predictions", "shuffled_betas"} <= set(metrics["baselines"])
    assert set(metrics["upper_bounds"]) == {"true_features", "oracle"}
    assert metrics["final"]["pixcorr"] != metrics["stage1"]["pixcorr"]
    assert "latent_r2_total" in metrics["features"]["clip"]
    record = json.loads((finished / "run.json").read_text())["stages"]["refine"]
    assert record["seconds_per_image"] > 0
    assert record["peak_bytes"] <= record["planned_bytes"]


def test_a_finished_study_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    leanrecon("run", "generator.toml", "--study", "study", cwd=finished.parent)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("weights", "where", "named"),
    [
        ("vdvae", "features/vdvae/train.zarr", "space.weights"),
        ("clip", "features/clip/train.zarr", "space.weights"),
        ("unet", "reconstructions/final", "refine.unet"),
        ("vae", "reconstructions/final", "refine.vae"),
    ],
)
def test_what_other_weights_made_is_refused_by_name(
    weights: str, where: str, named: str, finished: Path, tmp_path: Path
) -> None:
    """As after an update of leanrecon that brings models of another training."""
    for name in ("base", "study"):
        shutil.copytree(finished.parent / name, tmp_path / name)
    for name in ("generator.toml", "vdvae.pth"):
        shutil.copy(finished.parent / name, tmp_path)
    if weights == "vdvae":
        torch.save(random_weights(seed=1), tmp_path / "vdvae.pth")
    elif weights == "clip":
        shutil.rmtree(tmp_path / "base" / "text_encoder")
        models.write_text_encoder(tmp_path / "base", projection=False, seed=1)
    else:
        write_base(tmp_path / "other", seed=1, width=models.WIDTH)
        shutil.copytree(tmp_path / "other" / weights, tmp_path / "base" / weights, dirs_exist_ok=True)
        if weights == "vae":
            vae(seed=1).save_pretrained(tmp_path / "base" / "vae")
    said = leanrecon("run", "generator.toml", "--study", "study", cwd=tmp_path, code=2)
    assert re.search(rf"study/{where} was made with other settings: {named} was \S+, is \S+\. ", said), said
    assert "choose another --study" in said
    assert "--overwrite" in said


def test_a_clip_judges_final_images_at_their_own_size_beside_all_their_baselines(
    finished: Path, tmp_path: Path
) -> None:
    study, judge = Path(shutil.copytree(finished, tmp_path / "study")), models.write_clip(tmp_path / "judge")
    leanrecon("run", "generator.toml", "--study", study, "--set", f"judges.clip.model={judge}", cwd=finished.parent)
    metrics = json.loads((study / "evaluation" / "metrics.json").read_text())
    every = {"final": metrics["final"], "stage1": metrics["stage1"], **metrics["baselines"], **metrics["upper_bounds"]}
    assert len(every) == 10
    assert all(0 <= figures["two_way_clip"]["value"] <= 1 for figures in every.values())
    final = [np.asarray(Image.open(file)) for file in sorted((study / "reconstructions" / "final").glob("*.png"))]
    seen = Store.open(study / "stimuli" / "test.zarr")[0:12]
    a, b = (by_clip(judge, images) for images in (final, seen))
    r = np.corrcoef(a, b)[:12, 12:]
    wins = [[r[i, i] > r[i, j] for j in range(12) if j != i] for i in range(12)]
    assert metrics["final"]["two_way_clip"]["value"] == pytest.approx(np.mean(wins))
    notes = " ".join(metrics["notes"])
    assert "by the image embedding of judge." in notes
    assert "guided by predictions of clip, features of the same family as the judge clip" in notes
    assert "drawn by a generative model" in notes
    record = json.loads((study / "run.json").read_text())["stages"]["evaluate"]
    assert record["peak_bytes"] <= record["planned_bytes"]


def by_clip(folder: Path, images: Sequence[np.ndarray]) -> np.ndarray:
    """The image embeddings of transformers' own CLIPModel and processor."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values
    with torch.no_grad():
        found = CLIPModel.from_pretrained(folder).eval().get_image_features(pixel_values=pixels)
    return np.asarray(getattr(found, "pooler_output", found), dtype=np.float64)


def test_an_upper_bound_that_is_asked_for_later_is_drawn(finished: Path, tmp_path: Path) -> None:
    study, where = tmp_path / "study", "variants/oracle/reconstructions/final"
    few = ["--set", 'refine.baselines=["prior", "shuffled"]']
    shutil.copytree(finished, study)
    shutil.rmtree(study / "variants" / "oracle")
    leanrecon("run", "generator.toml", "--study", study, *few, cwd=finished.parent)
    metrics = study / "evaluation" / "metrics.json"
    assert "oracle" not in json.loads(metrics.read_text())["upper_bounds"]
    assert not (study / where).exists()
    leanrecon("run", "generator.toml", "--study", study, cwd=finished.parent)
    assert images(study, f"{where}/*.png") == images(finished, f"{where}/*.png")
    assert json.loads(metrics.read_text())["upper_bounds"].keys() == {"true_features", "oracle"}


def test_the_wall_holds_with_a_generator(finished: Path) -> None:
    """Noise instead of test images, captions and true test features changes no image but those of the upper bound."""
    folder = finished.parent
    leanrecon("run", "generator.toml", "--study", "noisy", "--until", "dataset", cwd=folder)
    noisy, rng = folder / "noisy", np.random.default_rng(0)
    stimuli = Store.open(noisy / "stimuli" / "test.zarr")
    stimuli.discard([(i, 0) for i in range(stimuli.row_groups)])
    for i in range(stimuli.row_groups):
        shape = (len(stimuli.group_rows(i)), *stimuli.shape[1:])
        stimuli.write_rows(i, rng.integers(0, 256, shape, np.uint8))
    with pytest.warns(UserWarning, match="not to the same bytes"):
        stimuli.finish()
    write_json(noisy / "captions" / "test.json", [["a purple noise"]] * 12)  # with a checksum of its own
    # The stage dataset would find that these are not its captions, so the later stages are run alone.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", LATER], cwd=folder, env=environment, check=True, timeout=300)
    for pattern in ("reconstructions/*/*.png", "variants/prior/**/*.png", "variants/shuffled*/**/*.png"):
        assert images(noisy, pattern) == images(finished, pattern), pattern
        assert images(noisy, pattern)
    upper_bound = "variants/oracle/**/*.png"
    assert images(noisy, upper_bound) != images(finished, upper_bound)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("refine.text=clap", "refine.text = 'clap' is not a feature space here .*clip"),
        ("refine.start=vae", "refine.start = 'vae' is not a feature space here"),
        ("refine.base=nowhere", "nowhere"),
        ("refine.size=72", "refine.size = 72. Expected a multiple of 16"),
    ],
)
def test_what_can_not_be_refined_is_refused(finished: Path, setting: str, words: str) -> None:
    said = leanrecon("run", "generator.toml", "--study", "study", "--set", setting, cwd=finished.parent, code=2)
    assert re.search(words, said), said


def test_guidance_needs_no_file_and_equals_that_from_one(finished: Path) -> None:
    """The empty caption is encoded as transformers encodes it, and used as the negative of guidance."""
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = finished.parent
    tokens = CLIPTokenizer.from_pretrained(folder / "base" / "tokenizer")("", padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        encoder = CLIPTextModel.from_pretrained(folder / "base" / "text_encoder").eval()
        np.save(folder / "empty.npy", encoder(tokens.input_ids).last_hidden_state[0].numpy())
    guided = ("--until", "refine", "--set", "refine.guidance=3.0", "--set", "refine.baselines=[]")
    leanrecon("run", "generator.toml", "--study", "guided", *guided, cwd=folder)
    leanrecon("run", "generator.toml", "--study", "file", *guided, "--set", "refine.negative=empty.npy", cwd=folder)
    assert not (folder / "file" / "features" / "clip" / "unconditional.zarr").exists()
    for row in range(12):
        name = f"reconstructions/final/{row:05d}.png"
        one, two, free = (np.asarray(Image.open(folder / s / name)).astype(int) for s in ("guided", "file", "study"))
        assert np.abs(one - two).max() <= 1
        assert np.abs(one - free).max() > 1


def test_the_plan_knows_the_generator(finished: Path) -> None:
    shown = leanrecon("plan", "generator.toml", cwd=finished.parent)
    assert "features clip" in shown
    assert "lcm, 2 steps" in shown
