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


_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/"

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
    # The weights of LPIPS 0.1 beside its networks, in github.com/richzhang/PerceptualSimilarity; BSD-2-Clause.
    "lpips_alex_v0.1.pth": Address(
        f"{_LPIPS}alex.pth", sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
    ),
    "lpips_squeeze_v0.1.pth": Address(
        f"{_LPIPS}squeeze.pth", sha256="4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"
    ),
    "lpips_vgg_v0.1.pth": Address(
        f"{_LPIPS}vgg.pth", sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
    ),
    # DISTS' weights beside VGG16, in github.com/dingkeyan93/DISTS; MIT.
    "dists_weights.pt": Address(
        "https://raw.githubusercontent.com/dingkeyan93/DISTS/master/DISTS_pytorch/weights.pt",
        sha256="f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
    ),
}
"""Addresses by file name; their SHA-256 are those of the copies in the packages lpips, DISTS-pytorch and torchmetrics."""

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
