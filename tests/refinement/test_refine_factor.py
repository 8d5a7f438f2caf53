"""Bases whose autoencoder shrinks images by another factor than Stable Diffusion's, and whose network predicts velocities."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel  # noqa: E402
from support.diffusion_models import SIZE, smooth, tiny_vae, vae  # noqa: E402
from test_refine_diffusion import assert_alike, embeddings, pipeline, theirs  # noqa: E402

from leanrecon.errors import InputError, SettingsError  # noqa: E402
from leanrecon.refinement.diffusion.networks import downscale_factor, upscale_factor  # noqa: E402
from leanrecon.stores.matrix import ArrayMatrix  # noqa: E402

pytestmark = pytest.mark.networks


@pytest.mark.parametrize(
    "network", [vae(), vae(channels=(8, 8, 16)), vae(channels=(8,)), tiny_vae(), tiny_vae(blocks=3)]
)
def test_factors_are_those_of_the_networks(network):
    """By the shapes that diffusers' networks give."""
    with torch.inference_mode():
        found = network.encode(torch.zeros(1, 3, 32, 32))
        latents = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
        image = network.decode(latents).sample
    kind, config = type(network).__name__, json.loads(network.to_json_string())
    assert downscale_factor(kind, config) == 32 // latents.shape[-1]
    assert upscale_factor(kind, config) == image.shape[-1] // latents.shape[-1]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["lcm", "ddim", "ddpm"])
def test_velocities_in_larger_latents_are_drawn_as_diffusers_draws_them(
    kind, guidance, make, drawn, small_base, text, tmp_path
):
    """In float32, from weights in half precision."""
    negative = np.random.default_rng(9).standard_normal((77, 16), dtype=np.float32)
    np.save(tmp_path / "empty.npy", negative)
    more = {} if guidance == 1 else {"negative": str(tmp_path / "empty.npy"), "guidance": guidance}
    generator = make(base=str(small_base), kind=kind, steps=4, **more)
    assert generator.model.shapes["latents"] == (4, SIZE // 4, SIZE // 4)
    images = drawn(generator)
    full = {"torch_dtype": torch.float32}
    made = pipeline(
        small_base,
        kind,
        network=UNet2DConditionModel.from_pretrained(small_base / "unet", **full),
        autoencoder=AutoencoderKL.from_pretrained(small_base / "vae", **full),
    )
    assert made.scheduler.config.prediction_type == "v_prediction"
    given = {"prompt_embeds": embeddings(text, 1)}
    if guidance > 1:
        given["negative_prompt_embeds"] = torch.from_numpy(negative)[None]
    expected = theirs(made, kind, 1, smooth(5)[1], guidance_scale=guidance, **given)
    assert_alike(images[1], expected)
    made.scheduler.register_to_config(prediction_type="epsilon")  # it is not by chance that they are alike
    assert (
        np.abs(images[1].astype(int) - theirs(made, kind, 1, smooth(5)[1], guidance_scale=guidance, **given)).max() > 1
    )


@pytest.mark.parametrize("offload", ["none", "stream"])
def test_weights_in_half_precision_are_used_in_the_precision_asked_for(offload, make, drawn, small_base):
    images = {p: drawn(make(base=str(small_base), precision=p, offload=offload)) for p in ("float32", "bfloat16")}
    np.testing.assert_array_equal(images["float32"], drawn(make(base=str(small_base))))
    away = np.abs(images["float32"].astype(int) - images["bfloat16"])
    assert 0 < away.mean() < 3


def test_latents_of_any_factor_are_a_start(make, drawn, small_base):
    rows = ArrayMatrix(np.random.default_rng(0).standard_normal((5, 4 * 16 * 16), dtype=np.float32))
    images = drawn(make(base=str(small_base), start="autokl"), latents=rows)
    assert images.shape == (5, SIZE, SIZE, 3)
    with pytest.raises(InputError, match=r"has rows of 1024 numbers. Expected 256, latents of 4 × 8 × 8"):
        drawn(make(start="autokl"), latents=rows)


def test_plans_grow_with_the_latents(make, base, small_base):
    small, eighth = make(base=str(small_base)).model.sizes(), make().model.sizes()
    assert small.unet_state == 4 * eighth.unet_state


def test_a_size_that_the_base_can_not_halve_is_refused_before_any_work(make, drawn, small_base):
    assert make(base=str(small_base), size=72).plan(5, 10**12).work > 0  # shrunk by 4 and by 2
    for use in (drawn, lambda generator: generator.plan(5, 10**12)):
        with pytest.raises(SettingsError) as error:
            use(make(size=72))
        assert str(error.value).startswith(
            "refine.size = 72. Expected a multiple of 16: the base's autoencoder shrinks"
        )


def test_a_tiny_autoencoder_of_another_factor_is_refused(make, small_base, taesd, tmp_path):
    with pytest.raises(
        InputError, match=r"taesd makes latents of 4 channels, 8 times narrower.*Expected 4 .* and 4 times"
    ):
        make(base=str(small_base), tiny_autoencoder=str(taesd)).plan(5, 10**12)
    tiny_vae(blocks=3).save_pretrained(tmp_path / "tiny")
    fits = make(base=str(small_base), tiny_autoencoder=str(tmp_path / "tiny"))
    assert fits.plan(5, 10**12).work > 0
    assert fits.model.factor == 4


def test_a_tiny_autoencoder_of_the_same_factor_draws_what_diffusers_draws(make, drawn, small_base, text, tmp_path):
    tiny_vae(blocks=3).save_pretrained(tmp_path / "tiny")
    images = drawn(make(base=str(small_base), kind="ddim", steps=4, tiny_autoencoder=str(tmp_path / "tiny")))
    made = pipeline(
        small_base,
        "ddim",
        network=UNet2DConditionModel.from_pretrained(small_base / "unet", torch_dtype=torch.float32),
        autoencoder=AutoencoderTiny.from_pretrained(tmp_path / "tiny"),
    )
    assert_alike(images[2], theirs(made, "ddim", 2, smooth(5)[2], prompt_embeds=embeddings(text, 2)))
