"""Which files of a model are fetched, from lists of names as the hub has them."""

import pytest

from leanrecon.errors import InputError
from leanrecon.weights.pieces import Piece, choose, pickles

# Names of stable-diffusion-v1-5's files, most of them.
SD15 = [
    ".gitattributes", "README.md", "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors",
    "v1-inference.yaml", "feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json",
    *(f"{folder}/{name}" for folder, stem in (("safety_checker", "model"), ("text_encoder", "model"),
      ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"))
      for name in ("config.json", f"{stem}.safetensors", f"{stem}.fp16.safetensors",
                   "pytorch_model.bin" if stem == "model" else f"{stem}.bin")),
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    *(f"tokenizer/{name}" for name in ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")),
]  # fmt: skip
CLIP = [
    ".gitattributes", "README.md", "config.json", "flax_model.msgpack", "merges.txt", "model.safetensors",
    "preprocessor_config.json", "pytorch_model.bin", "special_tokens_map.json", "tf_model.h5", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
]  # fmt: skip
PICKLED = [
    "model_index.json", "image_unet/config.json", "image_unet/diffusion_pytorch_model.bin", "text_encoder/config.json",
    "text_encoder/pytorch_model.bin", "pretrained_pth/vd-four-flow-v1-0.pth",
]  # fmt: skip
UNET, VAE = (Piece("network", (name,)) for name in ("unet", "vae"))
SCHEDULER = Piece("scheduler", ("scheduler",))
TEXT = Piece("network", ("text_encoder", "."))
TOKENIZER = Piece("tokenizer", ("tokenizer", "."))
PROCESSOR = Piece("processor", ("feature_extractor", "."))
LORA = Piece("lora", (".",))
SPECIAL = ["special_tokens_map.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    ("names", "pieces", "expected"),
    [
        (
            SD15,
            [UNET, VAE, SCHEDULER],
            [
                "scheduler/scheduler_config.json",
                *(f"{n}/{f}" for n in ("unet", "vae") for f in ("config.json", "diffusion_pytorch_model.fp16.safetensors")),
            ],
        ),
        (
            SD15,
            [TEXT, TOKENIZER],
            [
                *(f"text_encoder/{f}" for f in ("config.json", "model.fp16.safetensors")),
                *(f"tokenizer/{f}" for f in ["merges.txt", *SPECIAL, "vocab.json"]),
            ],
        ),
        (SD15, [UNET, UNET], ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]),
        (CLIP, [TEXT], ["config.json", "model.safetensors"]),  # whole, where there is no half
        (CLIP, [TOKENIZER], ["merges.txt", SPECIAL[0], "tokenizer.json", SPECIAL[1], "vocab.json"]),
        (CLIP, [PROCESSOR], ["preprocessor_config.json"]),
        (SD15, [PROCESSOR], ["feature_extractor/preprocessor_config.json"]),
        (["README.md", "pytorch_lora_weights.safetensors"], [LORA], ["pytorch_lora_weights.safetensors"]),
        (["a.safetensors", "adapter_config.json"], [LORA], ["a.safetensors", "adapter_config.json"]),
        (
            ["config.json", *(f"model-0000{k}-of-00002.safetensors" for k in (1, 2)), "model.safetensors.index.json"],
            [TEXT],
            ["config.json", *(f"model-0000{k}-of-00002.safetensors" for k in (1, 2)), "model.safetensors.index.json"],
        ),
        (PICKLED, [TEXT], ["text_encoder/config.json", "text_encoder/pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_only_what_is_needed_is_chosen(names, pieces, expected):
    assert choose(names, pieces, "some/model") == sorted(expected)


@pytest.mark.parametrize(
    ("names", "piece", "found"),
    [
        (CLIP, UNET, "no network in unet/"),
        (CLIP, SCHEDULER, "no scheduler in scheduler/"),
        (["config.json"], TEXT, "no network in text_encoder/ or its folder"),
        (["model.safetensors"], TEXT, "no network"),
        (["vocab.json"], TOKENIZER, "no tokenizer"),
        (["a.safetensors", "b.safetensors"], LORA, "no lora"),
        (["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"], TEXT, "no network"),
        ([], PROCESSOR, "no processor"),
    ],
)
def test_what_is_not_there_or_not_whole_is_named(names, piece, found):
    with pytest.raises(InputError, match=f"some/model has {found}"):
        choose(names, [piece], "some/model")


def test_pickles_become_what_the_libraries_look_for():
    assert pickles(PICKLED[:-1]) == {
        "image_unet/diffusion_pytorch_model.bin": "image_unet/diffusion_pytorch_model.safetensors",
        "text_encoder/pytorch_model.bin": "text_encoder/model.safetensors",
    }
    assert pickles(["pytorch_model.fp16.bin", "config.json"]) == {"pytorch_model.fp16.bin": "model.safetensors"}
