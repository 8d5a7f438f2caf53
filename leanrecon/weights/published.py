"""Where weights and captions are published that settings name by the name of a file; models have names on the hub."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """Where a file is to be had: at an address, or in a data set on the Hugging Face Hub."""

    url: str = ""
    dataset: str = ""
    sha256: str | None = None
    """As published; None: no one says, so that the first copy is what later ones are compared with."""


FILES = {
    # The README of github.com/openai/vdvae.
    "imagenet64-iter-1600000-model-ema.th": Address(
        "https://openaipublic.blob.core.windows.net/very-deep-vaes-assets/vdvae-assets-2/"
        "imagenet64-iter-1600000-model-ema.th"
    ),
    # COCO's captions of NSD's 73,000 images, as github.com/ozcelikfu/brain-diffuser and MindEye take them.
    "COCO_73k_annots_curated.npy": Address(dataset="pscotti/naturalscenesdataset"),
}
"""By the name of the file."""
