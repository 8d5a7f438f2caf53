import json
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support.published_models import IMAGE, PATCH, PROJECTION, write_clip, write_image_encoder, write_text_encoder  # noqa: E402
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection  # noqa: E402

from leanrecon.context import Context  # noqa: E402
from leanrecon.errors import BudgetError, InputError, SettingsError  # noqa: E402
from leanrecon.features.clip import CLIPVision, CLIPVisionSettings  # noqa: E402
from leanrecon.features.clip.preprocess import Preprocessing  # noqa: E402
from leanrecon.features.extract import extract  # noqa: E402
from leanrecon.validation import validate  # noqa: E402

pytestmark = pytest.mark.networks

TOKENS = (IMAGE // PATCH) ** 2 + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_encoder(tmp_path_factory.mktemp("versatile"))


def make(folder, form="versatile", *, device="cpu", name="clip-vision", **table):
    table = {"model": str(folder), "form": form} | table
    return CLIPVision(validate(CLIPVisionSettings, table, "features.clip-vision."), name=name, device=device)


@pytest.fixture
def images(smooth_images):
    return smooth_images(5, 45, 60, 3)


# Rows, against CLIP written out in NumPy


def pixels(image):
    """Bicubic to a shorter side of 32, the middle cut out, divided by 255 once, normalised."""
    height, width = image.shape[:2]
    scale = IMAGE / min(height, width)
    picture = Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - IMAGE) // 2, (picture.height - IMAGE) // 2
    levels = np.asarray(picture.crop((left, top, left + IMAGE, top + IMAGE)), np.float64) / 255
    return (levels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]


def layer_norm(x, weights, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def clip_in_numpy(image, weights, layers=2, heads=4):
    """All tokens [tokens, projection] as CLIP projects its class token, and none of them normalised."""
    grid = IMAGE // PATCH
    patches = pixels(image).reshape(grid, PATCH, grid, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(grid * grid, -1)
    kernel = weights["vision_model.embeddings.patch_embedding.weight"]
    x = np.vstack([weights["vision_model.embeddings.class_embedding"], patches @ kernel.reshape(len(kernel), -1).T])
    x = layer_norm(
        x + weights["vision_model.embeddings.position_embedding.weight"], weights, "vision_model.pre_layrnorm"
    )
    for i in range(layers):
        at = f"vision_model.encoder.layers.{i}"
        y = layer_norm(x, weights, f"{at}.layer_norm1")
        q, k, v = (
            linear(y, weights, f"{at}.self_attn.{name}_proj").reshape(len(x), heads, -1).transpose(1, 0, 2)
            for name in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(x), -1)
        x = x + linear(mixed, weights, f"{at}.self_attn.out_proj")
        y = linear(layer_norm(x, weights, f"{at}.layer_norm2"), weights, f"{at}.mlp.fc1")
        x = x + linear(y / (1 + np.exp(-1.702 * y)), weights, f"{at}.mlp.fc2")
    return layer_norm(x, weights, "vision_model.post_layernorm") @ weights["visual_projection.weight"].T


@pytest.fixture(scope="module")
def weights(folder):
    tensors = load_file(folder / "image_encoder" / "model.safetensors")
    return {name: value.numpy().astype(np.float64) for name, value in tensors.items()}


def test_versatile_rows_are_all_tokens_divided_by_the_norm_of_the_first(folder, weights, images):
    space = make(folder)
    rows = space.encode(images, range(5))
    assert rows.shape == (5, space.dims((45, 60, 3))) == (5, TOKENS * PROJECTION)
    for image, row in zip(images, rows, strict=True):
        tokens = clip_in_numpy(image, weights)
        np.testing.assert_allclose(row.reshape(TOKENS, -1), tokens / np.linalg.norm(tokens[0]), rtol=0, atol=2e-5)


def test_an_embedding_is_the_first_token_of_norm_one(folder, weights, images):
    rows = make(folder, "embedding").encode(images, range(5))
    for image, row in zip(images, rows, strict=True):
        first = clip_in_numpy(image, weights)[0]
        np.testing.assert_allclose(row, first / np.linalg.norm(first), rtol=0, atol=2e-5)
    model = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    processor = CLIPImageProcessorPil.from_pretrained(folder / "image_feature_extractor")
    with torch.no_grad():
        found = model(**processor(images=list(images), return_tensors="pt")).image_embeds.numpy()
    np.testing.assert_allclose(rows, found / np.linalg.norm(found, axis=1, keepdims=True), rtol=0, atol=1e-5)


def test_features_stay_what_they_were(folder):
    """Recorded from the NumPy version above with NumPy 2.4 and Pillow 13: an upgrade that moves features fails here."""
    rng = np.random.default_rng(5)
    image = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    row = make(folder).encode(image[None], [0])[0].reshape(TOKENS, -1)
    np.testing.assert_allclose(row[0, :6], GOLDEN_FIRST, rtol=0, atol=2e-5)
    np.testing.assert_allclose(row[-1, :6], GOLDEN_LAST, rtol=0, atol=2e-5)


GOLDEN_FIRST = [0.019019, -0.102171, -5e-05, 0.313631, -0.066727, -0.141218]
GOLDEN_LAST = [0.131785, -0.030547, 0.212798, 0.053367, -0.07223, 0.125767]


@pytest.mark.parametrize("shape", [(45, 60, 3), (60, 45, 3), (32, 32, 3), (425, 425, 3), (20, 31, 3), (33, 100, 1)])
def test_pixels_are_those_of_transformers_pillow_processor(folder, smooth_images, shape):
    images = smooth_images(2, *shape)
    processor = CLIPImageProcessorPil.from_pretrained(folder / "image_feature_extractor")
    coloured = [np.repeat(image, 3, 2) if shape[2] == 1 else image for image in images]
    expected = np.stack(
        [processor(images=Image.fromarray(image), return_tensors="np").pixel_values[0] for image in coloured]
    )
    found = Preprocessing.of(folder / "image_feature_extractor")(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    assert found.min() < -0.5 < found.max() < 2.7  # divided by 255 once


def test_the_row_of_nothing_is_that_of_a_black_image(folder, weights):
    tokens = clip_in_numpy(np.zeros((50, 60, 3), np.uint8), weights)
    row = make(folder).unconditional()
    np.testing.assert_allclose(row, (tokens / np.linalg.norm(tokens[0])).reshape(-1), rtol=0, atol=2e-5)


def test_a_row_has_the_same_bytes_in_every_batch(folder, images, store_of, tmp_path):
    rows = make(folder).encode(images, range(5))
    np.testing.assert_array_equal(rows, [make(folder).encode(image[None], [i])[0] for i, image in enumerate(images)])
    source = store_of(images)
    reference = extract(make(folder), source, tmp_path / "a.zarr", Context.of(chunk=4_000))
    np.testing.assert_array_equal(reference[:], rows)
    for batch in (1, 3):
        assert (
            extract(make(folder), source, tmp_path / f"{batch}.zarr", Context.of(chunk=4_000), batch=batch).content
            == reference.content
        )


def test_resuming_gives_the_same_bytes(folder, images, store_of, tmp_path, files_of):
    store = extract(make(folder), store_of(images), tmp_path / "f.zarr", Context.of(chunk=4_000))
    whole = files_of(store.path)
    assert store.row_groups > 2
    store.discard([(1, 0)])
    extract(make(folder), store_of(images), tmp_path / "f.zarr", Context.of(chunk=4_000))
    assert files_of(store.path) == whole


def test_a_whole_clip_serves_as_well_as_its_half(images, tmp_path):
    clip = write_clip(tmp_path / "clip")
    space = make(clip)
    weights = {name: value.numpy().astype(np.float64) for name, value in load_file(clip / "model.safetensors").items()}
    tokens = clip_in_numpy(images[0], weights)
    row = space.encode(images[:1], [0])[0].reshape(TOKENS, -1)
    np.testing.assert_allclose(row, tokens / np.linalg.norm(tokens[0]), rtol=0, atol=2e-5)
    loaded = {name for name, value in space._model().named_parameters() if not value.is_meta}
    assert not any(name.startswith("text") for name in loaded)


def test_bfloat16_stays_near_float32(folder, images):
    exact = make(folder).encode(images, range(5))
    rough = make(folder, precision="bfloat16").encode(images, range(5))
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


# What the space is


def test_the_space_has_no_decoder(folder):
    space = make(folder)
    assert not space.decodes
    assert not space.learns
    assert space.groups() == {}
    assert space.fit_nbytes((10, 4, 4, 3), 2) == 0


def test_rows_are_made_of_contents_and_settings_alone(folder, tmp_path):
    made_of = make(folder).made_of()
    assert str(folder) not in json.dumps(made_of)
    copy = write_image_encoder(tmp_path / "copy")
    assert make(copy, name="other", device="auto").made_of() == made_of
    for table in ({"form": "embedding"}, {"precision": "bfloat16"}):
        assert make(copy, **table).made_of() != made_of
    processor = copy / "image_feature_extractor" / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"resample": 2}))
    assert make(copy).made_of()["preprocessing"]["resample"] == 2


def test_processors_of_every_age_are_read(folder, tmp_path):
    new = Preprocessing.of(folder / "image_feature_extractor")
    table = json.loads((folder / "image_feature_extractor" / "preprocessor_config.json").read_text())
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": IMAGE, "crop_size": IMAGE, "resample": 3}
    old |= {"do_resize": True, "do_center_crop": True, "do_normalize": True}
    old |= {key: table[key] for key in ("image_mean", "image_std")}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    assert Preprocessing.of(tmp_path) == new
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": table}))
    assert Preprocessing.of(tmp_path) == new


# What can be wrong


@pytest.fixture
def copy(tmp_path):
    return write_image_encoder(tmp_path / "copy")


def test_a_folder_without_the_vision_half_is_refused(tmp_path):
    text = write_text_encoder(tmp_path / "sd", projection=True)
    with pytest.raises(InputError, match=r"has no image_encoder/config\.json or config\.json"):
        make(text).dims((1, 1, 3))
    with pytest.raises(InputError, match="holds a model of type 'clip_text_model'"):
        make(text / "text_encoder").dims((1, 1, 3))


def test_a_part_that_is_missing_or_does_not_fit_is_named(copy, images):
    processor = copy / "image_feature_extractor" / "preprocessor_config.json"
    table = json.loads(processor.read_text())
    processor.write_text(json.dumps(table | {"crop_size": {"height": 16, "width": 16}}))
    with pytest.raises(InputError, match="crops images to 16 × 16 pixels. Expected 32 × 32"):
        make(copy).made_of()
    processor.write_text(json.dumps(table | {"size": {"shortest_edge": 24}}))
    with pytest.raises(InputError, match="smaller than the crop of 32 × 32"):
        make(copy).encode(images, range(5))
    processor.write_text(json.dumps(table | {"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(InputError, match="is for a ViTImageProcessor"):
        make(copy).made_of()
    processor.write_text(json.dumps({k: v for k, v in table.items() if k != "image_std"}))
    with pytest.raises(InputError, match="has no usable 'image_std'"):
        make(copy).made_of()
    processor.unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        make(copy).made_of()


def test_weights_of_another_width_are_refused(copy, images):
    file = copy / "image_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"projection_dim": 48}))
    with pytest.raises(InputError, match=r"visual_projection\.weight is \[24, 32\], not \[48, 32\]"):
        make(copy).encode(images, range(5))


def test_too_small_a_budget_is_refused_before_any_work(folder, images, store_of, tmp_path):
    space = make(folder)
    with pytest.raises(BudgetError, match="features clip-vision needs at least"):
        extract(space, store_of(images), tmp_path / "f.zarr", Context.of("1B"))
    assert space._loaded is None
    assert not (tmp_path / "f.zarr").exists()


def test_settings_that_can_not_be_are_refused():
    with pytest.raises(SettingsError, match=r"features\.clip-vision\.form = 'sd15'"):
        make("x", "sd15")
    with pytest.raises(SettingsError, match="slower than float32"):
        make("x", precision="float16")


def test_planning_loads_no_library(folder):
    code = (
        "import sys; from leanrecon.features.clip import *; "
        f"space = CLIPVision(CLIPVisionSettings(model={str(folder)!r}, form='versatile')); "
        "assert space.cost((425, 425, 3)).held > 0 and space.dims((1, 1, 3)) and space.made_of(); "
        "assert not {'torch', 'transformers', 'PIL', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MEASURED = """
import json, sys
from pathlib import Path
from leanrecon.features.clip import CLIPVision, CLIPVisionSettings
from leanrecon.features.extract import extract
from leanrecon.context import Context
from leanrecon.memory import PeakMemory
from leanrecon.stores import Store

context = Context.of()
space = CLIPVision(CLIPVisionSettings(model=sys.argv[1], form="versatile"))
with PeakMemory() as memory:
    extract(space, Store.open(sys.argv[2]), Path(sys.argv[3]), context)
print(json.dumps([context.peaks.projected[0], memory.peak]))
"""


def test_measured_memory_stays_under_the_plan(tmp_path, store_of, smooth_images):
    sizes = {"hidden_size": 640, "intermediate_size": 2560, "projection_dim": 512, "num_hidden_layers": 3}
    write_image_encoder(tmp_path, **sizes, image_size=224, patch_size=14)
    images = store_of(smooth_images(3, 425, 425, 3))
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(images.path), str(tmp_path / "f.zarr")]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    projected, measured = json.loads(run.stdout.splitlines()[-1])
    print(f"measured {measured / 1e6:.0f} MB of {projected / 1e6:.0f} MB projected")
    assert measured <= projected
    assert measured >= 0.6 * projected or measured < 300e6
