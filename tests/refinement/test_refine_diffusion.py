"""Stable Diffusion beside diffusers' own pipeline, which is what our loop has to equal."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from support.diffusion_models import SIZE, TOKENS, WIDTH, merged_by_hand, smooth, unet, vae, write_lora  # noqa: E402

from leanrecon.refinement.diffusion import sampling  # noqa: E402
from leanrecon.refinement.diffusion.schedule import schedule_length  # noqa: E402
from leanrecon.stores.matrix import ArrayMatrix  # noqa: E402

pytestmark = pytest.mark.networks

SCHEDULERS = {"lcm": LCMScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}
OPEN = {"clip_sample": False}


def pipeline(base, kind, network=None, autoencoder=None, **parts):
    config = json.loads((base / "scheduler" / "scheduler_config.json").read_text())
    parts = {"text_encoder": None, "tokenizer": None} | parts
    made = StableDiffusionImg2ImgPipeline(
        unet=network or unet(),
        vae=autoencoder or vae(),
        scheduler=SCHEDULERS[kind].from_config(config, **({} if kind == "lcm" else OPEN)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    return made


def theirs(made, kind, row, image, *, steps=4, strength=0.75, seed=7, **conditions):
    """What the library's pipeline draws for a row, uint8."""
    if kind == "lcm":
        made.scheduler.set_timesteps(steps, strength=strength)
        schedule = {"timesteps": made.scheduler.timesteps.tolist(), "strength": 1.0}
    else:
        schedule = {"num_inference_steps": schedule_length(steps, strength), "strength": strength}
    generator = sampling.generators(seed, [row])
    with torch.inference_mode():
        found = made(
            image=Image.fromarray(image), generator=generator, **{"guidance_scale": 1.0} | schedule | conditions
        )
    return np.asarray(found.images[0])


def assert_alike(image, expected):
    """The same image but for a level here and there, where sums are rounded otherwise."""
    differ = np.abs(image.astype(int) - expected)
    assert differ.max() <= 1
    assert np.mean(differ > 0) < 0.01


def embeddings(text, row):
    return torch.from_numpy(text.array[row].reshape(1, TOKENS, WIDTH))


@pytest.mark.parametrize("kind", ["lcm", "ddim", "ddpm"])
def test_every_sampler_draws_what_diffusers_draws(kind, make, drawn, base, text):
    images = drawn(make(kind=kind, steps=4))
    made = pipeline(base, kind)
    for row in (0, 3):
        expected = theirs(made, kind, row, smooth(5)[row], prompt_embeds=embeddings(text, row))
        assert_alike(images[row], expected)
    assert len({image.tobytes() for image in images}) == len(images)


def test_a_tiny_autoencoder_draws_what_diffusers_draws_with_it(make, drawn, base, taesd, text):
    from diffusers import AutoencoderTiny

    images = drawn(make(kind="ddim", steps=4, tiny_autoencoder=str(taesd)))
    made = pipeline(base, "ddim", autoencoder=AutoencoderTiny.from_pretrained(taesd))
    assert_alike(images[2], theirs(made, "ddim", 2, smooth(5)[2], prompt_embeds=embeddings(text, 2)))


def test_classifier_free_guidance_uses_the_negative_embedding(make, drawn, base, text, tmp_path):
    negative = np.random.default_rng(9).standard_normal((TOKENS, WIDTH), dtype=np.float32)
    np.save(tmp_path / "empty.npy", negative)
    images = drawn(make(kind="ddim", steps=4, guidance=5.0, negative=str(tmp_path / "empty.npy")))
    expected = theirs(
        pipeline(base, "ddim"),
        "ddim",
        1,
        smooth(5)[1],
        prompt_embeds=embeddings(text, 1),
        negative_prompt_embeds=torch.from_numpy(negative)[None],
        guidance_scale=5.0,
    )
    assert_alike(images[1], expected)


def clip(tmp_path):
    """A text encoder and its tokenizer, with a vocabulary of letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=TOKENS)
    torch.manual_seed(4)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    return {"text_encoder": CLIPTextModel(config).eval(), "tokenizer": tokenizer}


def test_a_text_s_own_encoding_gives_the_image_of_the_text(make, drawn, base, tmp_path):
    made = pipeline(base, "lcm", **clip(tmp_path))
    with torch.inference_mode():
        encoded = made.encode_prompt("a cat on a mat", "cpu", 1, False)[0].numpy()
    rows = ArrayMatrix(np.repeat(encoded.reshape(1, -1), 5, axis=0))
    images = drawn(make(), text=rows)
    assert_alike(images[4], theirs(made, "lcm", 4, smooth(5)[4], prompt="a cat on a mat"))
    assert not np.array_equal(images[4], theirs(made, "lcm", 4, smooth(5)[4], prompt="seven bicycles"))


# LoRA


@pytest.mark.parametrize(("style", "scale"), [("kohya", 2.0), ("diffusers", 1.0), ("peft", 2.0)])
def test_a_lora_is_added_as_by_hand(style, scale, make, drawn, base, text, tmp_path):
    file = tmp_path / "lora" / ("adapter_model.safetensors" if style == "peft" else "any.safetensors")
    file.parent.mkdir()
    pairs = write_lora(file, unet(), style=style, rank=2, alpha=4.0)
    images = drawn(make(lora=str(file.parent), lora_scale=0.5))
    made = pipeline(base, "lcm", network=merged_by_hand(unet(), pairs, 0.5 * scale))
    expected = theirs(made, "lcm", 0, smooth(5)[0], prompt_embeds=embeddings(text, 0))
    assert np.abs(images[0].astype(int) - expected).max() <= 1  # the products are rounded in another order
    assert not np.array_equal(images, drawn(make()))


def test_a_lora_is_added_as_peft_adds_it(make, base, tmp_path):
    pytest.importorskip("peft")
    write_lora(tmp_path / "lora.safetensors", unet(), rank=2, alpha=4.0)
    made = pipeline(base, "lcm")
    made.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    made.fuse_lora(lora_scale=0.7)
    made.unload_lora_weights()
    source = make(lora=str(tmp_path / "lora.safetensors"), lora_scale=0.7).model.sources("float32")[0]
    for name, weight in made.unet.state_dict().items():
        torch.testing.assert_close(source.read(name), weight, rtol=0, atol=2e-6)


# Steps and noise


@pytest.mark.parametrize("kind", ["lcm", "ddim", "ddpm"])
@pytest.mark.parametrize(("steps", "strength"), [(1, 0.1), (4, 0.5), (3, 0.75), (7, 1.0)])
def test_the_steps_asked_for_are_the_evaluations_that_run(kind, steps, strength, make, drawn, monkeypatch):
    generator = make(kind=kind, steps=steps, strength=strength, batch=1)
    levels = []
    original = generator._networks

    def counted(plan):
        networks = original(plan)
        networks.unet.network.register_forward_pre_hook(lambda module, inputs: levels.append(int(inputs[1])))
        monkeypatch.setattr(generator, "_networks", lambda plan: networks)
        return networks

    monkeypatch.setattr(generator, "_networks", counted)
    drawn(generator)
    assert len(levels) == 5 * steps
    assert levels[:steps] == sorted(levels[:steps], reverse=True)
    assert max(levels) <= 1000 * strength


def test_noise_belongs_to_seed_and_row(make, drawn):
    images = drawn(make())
    np.testing.assert_array_equal(images, drawn(make()))
    assert not np.array_equal(images, drawn(make(seed=8)))


def test_latents_replace_the_first_images(make, drawn, base):
    generator = make(kind="ddim", steps=2, strength=0.4)
    networks = generator._networks(generator.plan(5, 10**12))
    one = [torch.Generator().manual_seed(0) for _ in range(5)]
    latents = sampling.encoded(networks, smooth(5), one).numpy().reshape(5, -1)
    images = drawn(make(kind="ddim", steps=2, strength=0.4, start="autokl"), latents=ArrayMatrix(latents))
    assert images.shape == (5, SIZE, SIZE, 3)
    assert not np.array_equal(images, drawn(generator))  # another generator drew the latents
    again = drawn(make(kind="ddim", steps=2, strength=0.4, start="autokl"), latents=ArrayMatrix(latents))
    np.testing.assert_array_equal(images, again)
