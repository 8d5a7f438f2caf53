"""Sources of published files that settings name by file name; models have names on the hub."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """The source of a file: a URL, or a data set on the Hugging Face Hub."""

    url: str = ""
    dataset: str = ""
    sha256: str | None = None
    """As published; None: not published, and later copies are compared with the first one."""


FILES = {
    # The README of github.com/openai/vdvae.
    "imagenet64-iter-1600000-model-ema.th": Address(
        "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets-2/"
        "imagenet64-iter-1600000-model-ema.th"
    ),
    # COCO's captions of NSD's 73,000 images, as github.com/ozcelikfu/brain-diffuser and MindEye take them.
    "COCO_73k_annots_curated.npy": Address(dataset="pscotti/naturalscenesdataset"),
}
"""Addresses by file name."""
