import json
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, AutoencoderTiny  # noqa: E402
from diffusers.image_processor import VaeImageProcessor  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from support.published_models import write_autoencoder, write_clip, write_tiny_autoencoder  # noqa: E402

from leanrecon.context import Context  # noqa: E402
from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError  # noqa: E402
from leanrecon.features.autokl import AutoKL, AutoKLSettings  # noqa: E402
from leanrecon.features.extract import decode_rows, extract  # noqa: E402
from leanrecon.memory import process_memory  # noqa: E402
from leanrecon.validation import validate  # noqa: E402

pytestmark = pytest.mark.networks

SIZE = 64
SCALING = 0.18215


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_autoencoder(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_autoencoder(tmp_path_factory.mktemp("taesd"))


def make(folder, *, seed=0, device="cpu", name="autokl", **table):
    table = {"model": str(folder), "size": SIZE} | table
    return AutoKL(validate(AutoKLSettings, table, "features.autokl."), name=name, seed=seed, device=device)


@pytest.fixture
def images(smooth_images):
    return smooth_images(5, 50, 40, 3)


def posteriors(folder, images, size=SIZE, tile=None):
    """Means and standard deviations as diffusers gives them, for images resized by Pillow."""
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    if tile:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // 8
    small = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(small).transpose(0, 3, 1, 2).astype(np.float32) / 255 * 2 - 1)
    with torch.no_grad():
        found = vae.encode(pixels).latent_dist
    return found.mode().numpy(), found.std.numpy()


def decoded(vae, latents):
    with torch.no_grad():
        values = vae.decode(torch.from_numpy(latents)).sample
    pictures = VaeImageProcessor().postprocess(values, output_type="pil")
    return np.stack([np.asarray(picture) for picture in pictures])


# Rows


def test_rows_are_the_scaled_means_of_diffusers(folder, images):
    space = make(folder)
    rows = space.encode(images, range(5))
    assert (rows.shape, rows.dtype) == ((5, 4 * 8 * 8), np.float32)
    assert space.dims((50, 40, 3)) == 4 * 8 * 8
    means, _ = posteriors(folder, images)
    np.testing.assert_allclose(rows, (means * SCALING).reshape(5, -1), rtol=0, atol=1e-5)
    assert rows.std() > 0.01


def test_samples_are_drawn_from_the_posterior_by_seed_and_row(folder, images):
    means, std = posteriors(folder, images)
    rows = make(folder, latents="sample", seed=3).encode(images, range(10, 15))
    noise = (rows.reshape(means.shape) / SCALING - means) / std
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1
    again = make(folder, latents="sample", seed=3)
    np.testing.assert_array_equal(again.encode(images[2:], range(12, 15)), rows[2:])
    assert not np.allclose(again.encode(images, range(5)), rows)
    assert not np.allclose(make(folder, latents="sample", seed=4).encode(images, range(10, 15)), rows)


def test_grey_images_are_repeated_in_the_colours(folder, smooth_images):
    grey = smooth_images(2, 50, 40, 1)
    space = make(folder)
    np.testing.assert_array_equal(space.encode(grey, range(2)), space.encode(np.repeat(grey, 3, 3), range(2)))


def test_rows_are_decoded_as_by_diffusers(folder, images):
    space = make(folder)
    assert space.decodes
    assert space.decoded_shape((50, 40, 1)) == (SIZE, SIZE, 3)
    means, _ = posteriors(folder, images)
    pictures = space.decode((means * np.float32(SCALING)).reshape(5, -1), range(5), (50, 40, 3))
    expected = decoded(AutoencoderKL.from_pretrained(folder / "vae"), means)
    assert (pictures.shape, pictures.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    assert np.abs(pictures.astype(int) - expected).max() <= 1  # where rounding is a tie
    assert (pictures != expected).mean() < 0.001
    assert pictures.std() > 5


def test_a_tiny_autoencoder_decodes_scaled_latents(folder, tiny, images):
    space = make(folder, tiny=str(tiny))
    rows = make(folder).encode(images, range(5))
    np.testing.assert_array_equal(space.encode(images, range(5)), rows)
    pictures = space.decode(rows, range(5), (50, 40, 3))
    expected = decoded(AutoencoderTiny.from_pretrained(tiny), rows.reshape(5, 4, 8, 8))
    assert np.abs(pictures.astype(int) - expected).max() <= 1


def test_tiles_are_those_of_diffusers(folder, images):
    images = images[:2]
    means, _ = posteriors(folder, images, tile=32)
    space = make(folder, tile=32)
    rows = space.encode(images, range(2))
    np.testing.assert_allclose(rows, (means * SCALING).reshape(2, -1), rtol=0, atol=1e-5)
    assert np.abs(rows - make(folder).encode(images, range(2))).max() > 1e-4
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 4
    assert np.abs(space.decode(rows, range(2), (50, 40, 3)).astype(int) - decoded(vae, means)).max() <= 1
    assert space.cost((1, 1, 3)).held < make(folder).cost((1, 1, 3)).held


def test_a_row_has_the_same_bytes_in_every_batch(folder, images, store_of, tmp_path):
    source = store_of(images)
    reference = extract(make(folder), source, tmp_path / "a.zarr", Context.of(chunk=1_000))
    alone = [make(folder).encode(image[None], [i])[0] for i, image in enumerate(images)]
    np.testing.assert_array_equal(reference[:], alone)
    for batch in (1, 3):
        assert (
            extract(make(folder), source, tmp_path / f"{batch}.zarr", Context.of(chunk=1_000), batch=batch).content
            == reference.content
        )
    pictures = [
        np.stack([image for _, image in decode_rows(make(folder), reference, (50, 40, 3), batch=batch)])
        for batch in (1, 4)
    ]
    np.testing.assert_array_equal(*pictures)


def test_resuming_gives_the_same_bytes(folder, images, store_of, tmp_path, files_of):
    source = store_of(images)
    store = extract(make(folder, latents="sample"), source, tmp_path / "f.zarr", Context.of(chunk=1_000))
    whole = files_of(store.path)
    store.discard([(2, 0)])
    extract(make(folder, latents="sample"), source, tmp_path / "f.zarr", Context.of(chunk=1_000))
    assert files_of(store.path) == whole
    with pytest.raises(StoreError, match=r"space\.latents was"):
        extract(make(folder), source, tmp_path / "f.zarr", Context.of(chunk=1_000))


def test_bfloat16_stays_near_float32(folder, images):
    exact = make(folder).encode(images, range(5))
    rough = make(folder, precision="bfloat16").encode(images, range(5))
    assert 0 < np.sqrt(np.mean((rough - exact) ** 2)) < 0.05 * exact.std()


# Weights


def test_names_of_old_autoencoders_are_understood(folder, images, tmp_path):
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = {}
    for name, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        renamed = name
        for new, before in old.items():
            renamed = renamed.replace(new, before)
        is_matrix = renamed != name and value.ndim == 2
        tensors[renamed] = value[:, :, None, None].contiguous() if is_matrix else value  # convolutions, as in the first
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "vae" / "config.json").read_bytes())
    np.testing.assert_array_equal(make(tmp_path).encode(images, range(5)), make(folder).encode(images, range(5)))


def test_weights_of_one_direction_are_held_and_then_counted_no_more(folder, images):
    space = make(folder)
    before = space.cost((1, 1, 3)).held, space.decode_cost((1, 1, 3)).held
    rows = space.encode(images, range(5))
    assert {n.partition(".")[0] for n, v in space._loaded[1].named_parameters() if not v.is_meta} == {
        "encoder",
        "quant_conv",
    }
    assert space.cost((1, 1, 3)).held < before[0]
    space.decode(rows, range(5), (50, 40, 3))
    held = {n.partition(".")[0] for n, v in space._loaded[1].named_parameters() if not v.is_meta}
    assert held == {"decoder", "post_quant_conv"}
    assert space.decode_cost((1, 1, 3)).held < before[1]


@pytest.mark.alone
def test_released_weights_are_counted_and_loaded_again(folder, images):
    space = make(folder)
    before, rows = space.cost((1, 1, 3)).held, space.encode(images, range(5))
    assert space.cost((1, 1, 3)).held < before
    held = process_memory()
    space.release()
    assert process_memory() < held
    assert space.cost((1, 1, 3)).held + 360_000_000 > before  # all but the libraries
    np.testing.assert_array_equal(space.encode(images, range(5)), rows)


def test_rows_are_made_of_contents_and_settings_alone(folder, tiny, tmp_path):
    made_of = make(folder, seed=1).made_of()
    assert str(folder) not in json.dumps(made_of)
    copy = write_autoencoder(tmp_path / "copy")
    assert make(copy / "vae", seed=2, name="other", tiny=str(tiny), precision="float32").made_of() == made_of
    for table in ({"size": 32}, {"latents": "sample"}, {"precision": "bfloat16"}, {"tile": 32}):
        assert make(copy, **table).made_of() != made_of
    assert make(write_autoencoder(tmp_path / "seed", seed=1)).made_of()["weights"] != made_of["weights"]
    assert make(folder).decode_made_of() == {}
    assert make(folder, tiny=str(tiny)).decode_made_of() != make(folder).decode_made_of()
    assert str(tiny) not in json.dumps(make(folder, tiny=str(tiny)).decode_made_of())


# What can be wrong


def test_what_is_no_autoencoder_is_refused(folder, tiny, tmp_path):
    with pytest.raises(InputError, match="there is no folder .*nowhere"):
        make(tmp_path / "nowhere").dims((1, 1, 3))
    with pytest.raises(InputError, match="holds a 'AutoencoderTiny'. Expected an AutoencoderKL"):
        make(tiny).dims((1, 1, 3))
    with pytest.raises(InputError, match="holds a None. Expected an AutoencoderKL"):
        make(write_clip(tmp_path / "clip")).dims((1, 1, 3))
    with pytest.raises(InputError, match="holds a 'AutoencoderKL'. Expected an AutoencoderTiny"):
        make(folder, tiny=str(folder)).decode_cost((1, 1, 3))
    small = write_tiny_autoencoder(tmp_path / "small", num_decoder_blocks=(1, 1), decoder_block_out_channels=(8, 8))
    with pytest.raises(InputError, match="decodes 4 channels to 2 times their size. Expected 4 channels and 8 times"):
        make(folder, tiny=str(small)).decode_cost((1, 1, 3))


def test_weights_that_can_run_code_or_lack_a_part_are_refused(images, tmp_path):
    copy = write_autoencoder(tmp_path / "copy")
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if not name.startswith("quant_conv")}, weights)
    with pytest.raises(InputError, match=r"2 missing \(quant_conv\.bias, quant_conv\.weight\)"):
        make(copy).encode(images, range(5))
    torch.save(tensors, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match=r"its weights in diffusion_pytorch_model\.bin only"):
        make(copy).cost((1, 1, 3))


def test_rows_of_another_length_are_refused(folder):
    with pytest.raises(
        InputError, match="rows of 100 numbers do not hold the latents of autokl. Expected 256, 4 × 8 × 8"
    ):
        make(folder).decode(np.zeros((1, 100), np.float32), [0], (8, 8, 3))


def test_images_of_nan_are_refused(folder):
    with pytest.raises(InputError, match=r"decoded rows 3 to 3 to NaN in float32.*Set features\.autokl\.precision"):
        make(folder).decode(np.full((1, 256), np.inf, np.float32), [3], (8, 8, 3))


def test_too_small_a_budget_is_refused_before_any_work(folder, images, store_of, tmp_path):
    space = make(folder)
    with pytest.raises(BudgetError, match="features autokl needs at least"):
        extract(space, store_of(images), tmp_path / "f.zarr", Context.of("1B"))
    assert space._loaded is None
    assert not (tmp_path / "f.zarr").exists()


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"size": 60}, "features.autokl.size = 60. Expected a multiple of 8"),
        ({"tile": 36}, "features.autokl.tile = 36. Expected a multiple of 8"),
        ({"size": 4}, "features.autokl.size = 4"),
        ({"latents": "median"}, "features.autokl.latents = 'median'"),
        ({"precision": "float16"}, "slower than float32"),
        ({"tinny": "x"}, "tinny is unknown (did you mean tiny?)"),
    ],
)
def test_settings_that_can_not_be_are_refused(folder, table, found):
    with pytest.raises(SettingsError) as error:
        make(folder, **table).dims((1, 1, 3))
    assert found in str(error.value)


def test_planning_loads_no_library(folder):
    code = (
        "import sys; from leanrecon.features.autokl import *; "
        f"space = AutoKL(AutoKLSettings(model={str(folder)!r})); "
        "assert space.cost((1, 1, 3)).held > 0 and space.decode_cost((1, 1, 3)).held > 0; "
        "assert space.dims((1, 1, 3)) == 4 * 64 * 64 and space.made_of(); "
        "assert not {'torch', 'diffusers', 'PIL', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MEASURED = """
import json, sys
from pathlib import Path
from leanrecon.features.autokl import AutoKL, AutoKLSettings
from leanrecon.features.extract import decode_rows, extract
from leanrecon.context import Context
from leanrecon.memory import process_memory, PeakMemory
from leanrecon.stores import Store

images, folder = Store.open(sys.argv[2]), Path(sys.argv[3])
space = AutoKL(AutoKLSettings(model=sys.argv[1], size=256))
context = Context.of()
measured = []
for stage in ("encode", "decode"):
    with PeakMemory() as memory:
        if stage == "encode":
            store = extract(space, images, folder / "f.zarr", context)
        else:
            assert sum(1 for _ in decode_rows(space, store, images.shape[1:], context)) == images.rows
    measured.append(memory.peak)
print(json.dumps([context.peaks.projected, measured]))
"""


def test_measured_memory_stays_under_the_plan(tmp_path, store_of, smooth_images):
    write_autoencoder(tmp_path, channels=(64, 128, 128, 128))
    images = store_of(smooth_images(1, 300, 300, 3))
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(images.path), str(tmp_path)]
    run = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for stage, projected, measured in zip(("encode", "decode"), *json.loads(run.stdout.splitlines()[-1]), strict=True):
        print(f"{stage}: measured {measured / 1e6:.0f} MB of {projected / 1e6:.0f} MB projected")
        assert measured <= projected
        assert measured >= 0.6 * projected or measured < 300e6
