"""The whole way with Versatile Diffusion: text and vision predicted from the brain, and nothing else, guide the images."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from support.damage import flipped
from support.diffusion_models import TOKENS, WIDTH
from support.versatile_models import VISION, write_encoders, write_versatile

from leanrecon.places.files import write_json
from leanrecon.stores import Store

pytestmark = [pytest.mark.slow, pytest.mark.networks]

SETTINGS = """
memory = "3GB"
[dataset]
kind = "simulated"
n_train = 30
n_test = 6
size = 16
voxels = 60
[features.pca]
components = 8
[features.clip-text]
model = "base"
form = "versatile"
[features.clip-vision]
model = "base"
form = "versatile"
[refine]
kind = "versatile"
base = "base"
text = "clip-text"
vision = "clip-vision"
size = 64
steps = 2
precision = "float32"
baselines = ["prior", "shuffled", "oracle"]
[evaluate]
permutations = 1
resamples = 100
"""

LATER = """
from leanrecon.stages.pipeline import stages_of
from leanrecon.stages.stage import Run
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_settings
settings, base_dir = read_settings("versatile.toml")
run = Run(settings, Study("noisy"), base_dir)
for stage in stages_of(settings)[1:]:
    stage.run(run)
"""

ENVIRONMENT = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def leanrecon(*arguments: object, cwd: Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "leanrecon", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versatile")
    write_encoders(write_versatile(folder / "base"))
    (folder / "versatile.toml").write_text(SETTINGS)
    leanrecon("run", "versatile.toml", "--study", "study", cwd=folder)
    return folder / "study"


def images(study: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(study)): path.read_bytes() for path in sorted(study.glob(pattern))}


def test_the_study_ends_with_final_images_and_their_baselines(finished: Path) -> None:
    for where in (".", "variants/prior", "variants/shuffled", "variants/oracle"):
        assert len(images(finished / where, "reconstructions/final/*.png")) == 6, where
    metrics = json.loads((finished / "evaluation" / "metrics.json").read_text())
    assert {"prior_only", "shuffled_predictions"} <= set(metrics["baselines"])
    assert set(metrics["upper_bounds"]) == {"true_features", "oracle"}
    assert metrics["final"]["pixcorr"] != metrics["stage1"]["pixcorr"]
    record = json.loads((finished / "run.json").read_text())["stages"]["refine"]
    assert record["settings"].items() >= {"kind": "versatile", "guidance": 7.5, "mixing": 0.6}.items()
    assert record["peak_bytes"] <= record["planned_bytes"]


def test_unconditional_embeddings_are_kept_beside_the_features(finished: Path) -> None:
    """As transformers' own CLIP encodes an empty text and a black image."""
    import torch
    from PIL import Image
    from transformers import (
        CLIPImageProcessorPil,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    base = finished.parent / "base"
    tokens = CLIPTokenizer.from_pretrained(base / "tokenizer")("", padding="max_length", return_tensors="pt").input_ids
    text = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder").eval()
    black = Image.fromarray(np.zeros((50, 50, 3), np.uint8))
    pixels = CLIPImageProcessorPil.from_pretrained(base / "image_feature_extractor")(black, return_tensors="pt")
    vision = CLIPVisionModelWithProjection.from_pretrained(base / "image_encoder").eval()
    with torch.inference_mode():
        said = text(input_ids=tokens)
        expected = {"clip-text": text.text_projection(said.last_hidden_state) / said.text_embeds.norm(dim=-1)}
        seen = vision(**pixels).last_hidden_state
        seen = vision.visual_projection(vision.vision_model.post_layernorm(seen))
        expected["clip-vision"] = seen / seen[:, :1].norm(dim=-1, keepdim=True)
    for name, count in (("clip-text", TOKENS), ("clip-vision", VISION)):
        found = Store.open(finished / "features" / name / "unconditional.zarr")[:]
        assert found.shape == (1, count * WIDTH)
        np.testing.assert_allclose(found.reshape(1, count, WIDTH), expected[name].numpy(), rtol=0, atol=1e-5)


def test_a_finished_study_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    leanrecon("run", "versatile.toml", "--study", "study", cwd=finished.parent)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_lost_unconditional_embedding_is_made_again_and_changes_no_image(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.parent, tmp_path / "copy")
    study = tmp_path / "copy" / "study"
    shutil.rmtree(study / "features" / "clip-vision" / "unconditional.zarr")
    (study / "reconstructions" / "final" / "00003.png").unlink()
    record = study / "reconstructions" / "final.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"complete": False}))
    leanrecon("run", "versatile.toml", "--study", "study", cwd=tmp_path / "copy")
    assert images(study, "reconstructions/final/*.png") == images(finished, "reconstructions/final/*.png")
    damaged = study / "features" / "clip-text" / "unconditional.zarr" / "c" / "0" / "0"
    damaged.write_bytes(flipped(damaged.read_bytes()))
    assert "unconditional" in leanrecon("verify", "study", cwd=tmp_path / "copy", code=1)
    leanrecon("verify", "study", "--repair", cwd=tmp_path / "copy")
    leanrecon("verify", "study", cwd=tmp_path / "copy")


def test_the_wall_holds_with_both_guides(finished: Path) -> None:
    """Noise instead of test images, captions and true test features changes no image but those of the upper bound."""
    folder = finished.parent
    leanrecon("run", "versatile.toml", "--study", "noisy", "--until", "dataset", cwd=folder)
    noisy, rng = folder / "noisy", np.random.default_rng(0)
    stimuli = Store.open(noisy / "stimuli" / "test.zarr")
    stimuli.discard([(i, 0) for i in range(stimuli.row_groups)])
    for i in range(stimuli.row_groups):
        shape = (len(stimuli.group_rows(i)), *stimuli.shape[1:])
        stimuli.write_rows(i, rng.integers(0, 256, shape, np.uint8))
    with pytest.warns(UserWarning, match="not to the same bytes"):
        stimuli.finish()
    write_json(noisy / "captions" / "test.json", [["a purple noise"]] * 6)  # with a checksum of its own
    subprocess.run([sys.executable, "-c", LATER], cwd=folder, env=ENVIRONMENT, check=True, timeout=300)
    for pattern in ("reconstructions/*/*.png", "variants/prior/**/*.png", "variants/shuffled*/**/*.png"):
        assert images(noisy, pattern) == images(finished, pattern), pattern
        assert images(noisy, pattern)
    upper_bound = "variants/oracle/**/*.png"
    assert images(noisy, upper_bound) != images(finished, upper_bound)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("refine.vision=clap", "refine.vision = 'clap' is not a feature space here"),
        ("refine.vision=pca", "needs refine.negative_vision, .* the feature space pca has none"),
        ("refine.lora=somewhere", "refine.lora is unknown"),
    ],
)
def test_what_can_not_be_refined_is_refused(finished: Path, setting: str, words: str) -> None:
    said = leanrecon("run", "versatile.toml", "--study", "study", "--set", setting, cwd=finished.parent, code=2)
    assert re.search(words, said), said


def test_the_plan_knows_the_generator(finished: Path) -> None:
    assert "versatile, 2 steps" in leanrecon("plan", "versatile.toml", cwd=finished.parent)
