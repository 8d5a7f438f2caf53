"""Sources of published files that settings name by file name; models have names on the hub."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """The source of a file: a URL, or a data set on the Hugging Face Hub."""

    url: str = ""
    dataset: str = ""
    sha256: str | None = None
    """As published; None: not published, and later copies are compared with the first one."""
    begins: str = ""
    """The first digits of the SHA-256, where only they are published."""


FILES = {
    # The README of github.com/openai/vdvae.
    "imagenet64-iter-1600000-model-ema.th": Address(
        "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets-2/"
        "imagenet64-iter-1600000-model-ema.th"
    ),
    # COCO's captions of NSD's 73,000 images, as github.com/ozcelikfu/brain-diffuser and MindEye take them.
    "COCO_73k_annots_curated.npy": Address(dataset="pscotti/naturalscenesdataset"),
    # The README of github.com/facebookresearch/swav: a ResNet-50 after 800 epochs; CC BY-NC 4.0.
    "swav_800ep_pretrain.pth.tar": Address("https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar"),
}
"""Addresses by file name."""

TORCHVISION = "https://download.pytorch.org/models/"
"""Where torchvision's weights are."""

_DIGITS = re.compile(r"[A-Za-z0-9_.-]+-([0-9a-f]{8})\.pth")
"""The name of one of torchvision's files: it ends in the first eight digits of its SHA-256."""


def digits_in(name: str) -> str:
    """The first digits of the SHA-256 that the name of one of torchvision's files holds; empty for other names."""
    found = _DIGITS.fullmatch(name)
    return found[1] if found else ""


def address_of(name: str) -> Address | None:
    """The source of a published file by its name; None for a name that no source has."""
    if name in FILES:
        return FILES[name]
    digits = digits_in(name)
    return Address(TORCHVISION + name, begins=digits) if digits else None
