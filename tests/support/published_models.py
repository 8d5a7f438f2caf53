"""Tiny models with random weights, on disk in the formats of transformers and diffusers."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

POSITIONS, WIDTH, PROJECTION = 77, 32, 24
IMAGE, PATCH = 32, 8


def write_tokenizer(folder: Path) -> int:
    """Write CLIP's tokenizer files for letters and a few byte-pair merges; returns the size of the vocabulary."""
    letters = string.ascii_lowercase + string.digits + string.punctuation
    merges = ["t h", "th e</w>", "a n", "an d</w>"]
    tokens = [*letters, *(f"{c}</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = "<|endoftext|>"
    config = special | {"model_max_length": POSITIONS, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"name_or_path": str(folder)}))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return len(tokens)


def text_config(vocabulary: int, **changed: Any) -> CLIPTextConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "projection_dim": PROJECTION, "num_hidden_layers": 2}
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    return CLIPTextConfig(**(sizes | ends | {"vocab_size": vocabulary, "num_attention_heads": 4} | changed))


def vision_config(**changed: Any) -> CLIPVisionConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "projection_dim": PROJECTION, "num_hidden_layers": 2}
    return CLIPVisionConfig(**(sizes | {"num_attention_heads": 4, "image_size": IMAGE, "patch_size": PATCH} | changed))


def randomised(module: torch.nn.Module, seed: int = 0, scale: float = 0.2) -> Any:
    """The module with weights from NumPy's generator, which is stable over versions; large enough to matter."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in sorted(module.named_parameters()):
            numbers = rng.standard_normal(tuple(value.shape)) * scale
            numbers += "norm" in name and name.endswith("weight")
            value.copy_(torch.tensor(numbers, dtype=torch.float32))
    return module.eval()


def write_clip(folder: Path, seed: int = 0) -> Path:
    """Write a whole CLIP in the layout of openai/clip-vit-large-patch14."""
    vocabulary = write_tokenizer(folder)
    config = CLIPConfig(
        text_config=text_config(vocabulary).to_dict(),
        vision_config=vision_config().to_dict(),
        projection_dim=PROJECTION,
    )
    randomised(CLIPModel(config), seed).save_pretrained(folder)
    write_processor(folder)
    return folder


def write_processor(folder: Path, image: int = IMAGE) -> None:
    size = {"height": image, "width": image}
    CLIPImageProcessorPil(size={"shortest_edge": image}, crop_size=size).save_pretrained(folder)


def write_text_encoder(root: Path, *, projection: bool, seed: int = 0, **changed: Any) -> Path:
    """Write the text encoder in text_encoder/ and tokenizer/ of a pipeline's folder."""
    config = text_config(write_tokenizer(root / "tokenizer"), **changed)
    model = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    randomised(model, seed).save_pretrained(root / "text_encoder")
    return root


def write_image_encoder(root: Path, seed: int = 0, **changed: Any) -> Path:
    """Write the vision encoder in image_encoder/ and image_feature_extractor/, as in Versatile Diffusion."""
    config = vision_config(**changed)
    randomised(CLIPVisionModelWithProjection(config), seed).save_pretrained(root / "image_encoder")
    write_processor(root / "image_feature_extractor", config.image_size)
    return root


def autoencoder(channels: tuple[int, ...] = (16, 16, 32, 32), **changed: Any) -> AutoencoderKL:
    n = len(channels)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * n,
        "up_block_types": ("UpDecoderBlock2D",) * n,
        "block_out_channels": channels,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    return AutoencoderKL(**(settings | changed))


def write_autoencoder(root: Path, seed: int = 0, **changed: Any) -> Path:
    """Write an AutoencoderKL in vae/ of a pipeline's folder."""
    randomised(autoencoder(**changed), seed, scale=0.1).save_pretrained(root / "vae")
    return root


def write_tiny_autoencoder(folder: Path, seed: int = 0, **changed: Any) -> Path:
    settings: dict[str, Any] = {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "num_encoder_blocks": (1,) * 4,
        "num_decoder_blocks": (1,) * 4,
    }
    torch.manual_seed(seed)
    AutoencoderTiny(**(settings | changed)).eval().save_pretrained(folder)
    return folder
