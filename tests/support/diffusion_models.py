"""Stable Diffusion pipelines of a few thousand weights, random, on disk in diffusers' own format."""

import json
from pathlib import Path

import numpy as np

WIDTH, TOKENS, SIZE = 16, 77, 64


def unet(seed=0, width=WIDTH, channels=(16, 32)):
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def vae(seed=0, channels=(8, 8, 16, 16)):
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )


def tiny_vae(seed=0, blocks=4):
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    channels, ones = (8,) * blocks, (1,) * blocks
    return AutoencoderTiny(
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        num_encoder_blocks=ones,
        num_decoder_blocks=ones,
    )


def write_base(folder, autoencoder=(8, 8, 16, 16), **how):
    """Write a base model in the layout of Stable Diffusion 1.5, with its published scheduler."""
    from diffusers import PNDMScheduler

    unet(**how).save_pretrained(folder / "unet")
    vae(channels=autoencoder).save_pretrained(folder / "vae")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def write_small_base(folder):
    """Write a base model with three blocks in its autoencoder and velocity prediction, in half precision."""
    from diffusers import DDIMScheduler

    unet().half().save_pretrained(folder / "unet")
    vae(channels=(8, 8, 16)).half().save_pretrained(folder / "vae")
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def lora_modules(network):
    """The layers that LCM-LoRA changes: linear layers and convolutions."""
    import torch

    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def write_lora(path, network, *, style="kohya", rank=2, alpha=4.0, seed=0):
    """Write random low-rank updates of every layer in one of three file styles; returns ``{name: (up, down)}``."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    pairs, tensors = {}, {}
    for name, module in lora_modules(network).items():
        shape = module.weight.shape
        down = torch.randn((rank, *shape[1:]), generator=generator) * 0.1
        up = torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator) * 0.1
        pairs[name] = up, down
        if style == "kohya":
            stem = "lora_unet_" + name.replace(".", "_")
            tensors |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        else:
            stem = ("unet." if style == "diffusers" else "base_model.model.") + name
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    if style == "peft":
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return pairs


def merged_by_hand(network, pairs, scale):
    """W + scale · BA, by hand."""
    import torch

    with torch.no_grad():
        for name, (up, down) in pairs.items():
            weight = network.get_submodule(name).weight
            product = up.flatten(1).double() @ down.flatten(1).double()
            weight.copy_((weight.double() + scale * product.reshape(weight.shape)).float())
    return network


def pictures_of(folder: Path, images):
    from leanrecon.stores.pictures import Pictures

    pictures = Pictures.create(folder, len(images), images.shape[1:], made_of={"test": "images"})
    for row, image in enumerate(images):
        pictures.write(row, image)
    pictures.finish()
    return pictures


def smooth(n, size=SIZE, seed=0):
    """Images uint8 [n, size, size, 3] with large shapes, like first images."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), np.uint8)
    return coarse.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
