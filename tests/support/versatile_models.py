"""Versatile Diffusion with a few thousand random weights, on disk as it is published, and the library's own networks."""

import contextlib

import numpy as np

from support.diffusion_models import SIZE, TOKENS, WIDTH, unet, vae

VISION = 257

PUBLISHED = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
    "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
"""Of the scheduler, a DDIMScheduler."""


def text_unet(seed=1, width=WIDTH, channels=(16, 32)):
    import torch
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

    torch.manual_seed(seed)
    return UNetFlatConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockFlat", "DownBlockFlat"),
        up_block_types=("UpBlockFlat", "CrossAttnUpBlockFlat"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def write_versatile(folder, seed=0, **how):
    from diffusers import DDIMScheduler

    unet(seed=seed, **how).save_pretrained(folder / "image_unet")
    text_unet(seed=seed + 1, **how).save_pretrained(folder / "text_unet")
    vae().save_pretrained(folder / "vae")
    DDIMScheduler(**PUBLISHED).save_pretrained(folder / "scheduler")
    return folder


def write_encoders(folder, width=WIDTH):
    """Write CLIP's two encoders with tokenizer and image processor, in the published layout."""
    from support import published_models as models

    models.write_text_encoder(folder, projection=True, projection_dim=width)
    models.write_image_encoder(folder, projection_dim=width, patch_size=2)  # 16 × 16 patches and the class token
    return folder


def transformers_of(network):
    from diffusers import Transformer2DModel

    return {name: module for name, module in network.named_modules() if isinstance(module, Transformer2DModel)}


def mixed_by_hand(mixing):
    """The image network with every transformer replaced by x + m · (by vision) + (1 - m) · (by text)."""
    network, other = unet(), text_unet()

    def of(image, text):
        seen, said = image.forward, text.forward

        def forward(x, encoder_hidden_states, **named):
            states = encoder_hidden_states
            by_text = said(x, encoder_hidden_states=states[:, :TOKENS], return_dict=False)[0] - x
            by_vision = seen(x, encoder_hidden_states=states[:, TOKENS:], return_dict=False)[0] - x
            return (x + mixing * by_vision + (1 - mixing) * by_text,)

        return forward

    for name, transformer in transformers_of(network).items():
        transformer.forward = of(transformer, other.get_submodule(name))
    return network.eval()


def text_alone():
    """The image network with the text network's transformers."""
    network, other = unet(), text_unet()
    for name, transformer in transformers_of(network).items():
        transformer.load_state_dict(other.get_submodule(name).state_dict())
    return network.eval()


def pipeline_of(folder):
    """The library's pipeline, which joins the two networks when it is made."""
    from diffusers import DDIMScheduler, VersatileDiffusionDualGuidedPipeline
    from transformers import (
        CLIPImageProcessorPil,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionModelWithProjection,
    )

    from support import published_models as models

    made = VersatileDiffusionDualGuidedPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        image_feature_extractor=CLIPImageProcessorPil.from_pretrained(folder / "image_feature_extractor"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        image_unet=unet(),
        text_unet=text_unet(),
        vae=vae(),
        scheduler=DDIMScheduler(**PUBLISHED),
    )
    assert made.text_encoder.config.max_position_embeddings == models.POSITIONS
    made.set_progress_bar_config(disable=True)
    return made


@contextlib.contextmanager
def tolerant_of_masks():
    """Let the library's dual transformer be called with a mask, as its own blocks do."""
    from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel

    forward = DualTransformer2DModel.forward

    def tolerant(self, *inputs, encoder_attention_mask=None, **named):
        assert encoder_attention_mask is None
        return forward(self, *inputs, **named)

    DualTransformer2DModel.forward = tolerant
    try:
        yield
    finally:
        DualTransformer2DModel.forward = forward


def by_hand(network, image, states, generator, *, scheduler="ddim", steps=50, run=37, guidance=1.0, negative=None):
    """Image to image by hand, with the library's networks and scheduler: the uint8 image of one row.

    ``states`` and ``negative`` are [1, tokens, width]; ``run`` of ``steps`` levels are visited.
    """
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler

    sampler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[scheduler].from_config(DDIMScheduler(**PUBLISHED).config)
    sampler.set_timesteps(steps)
    levels = sampler.timesteps[-run:]
    autoencoder = vae().eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents = autoencoder.encode(pixels).latent_dist.sample(generator) * autoencoder.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        latents = sampler.add_noise(latents, noise, levels[:1])
        for level in levels:
            towards = network(latents, level, encoder_hidden_states=states).sample
            if negative is not None:
                away = network(latents, level, encoder_hidden_states=negative).sample
                towards = away + guidance * (towards - away)
            how = {"eta": 0.0} if scheduler == "ddim" else {"generator": generator}
            latents = sampler.step(towards, level, latents, **how).prev_sample
        found = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    return np.rint(((found / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).numpy()) * 255).astype(np.uint8)
