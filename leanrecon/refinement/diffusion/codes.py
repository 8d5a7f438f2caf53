"""What an autoencoder made of images, kept while the same images are drawn from again: baselines start from them too."""

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from leanrecon.images import Array

if TYPE_CHECKING:
    import torch

CODES_NBYTES = 1_000_000
"""Bytes of the codes that are kept, the last ones: 120 images of 64 × 64 pixels, or 7 of 512 × 512."""


class Codes:
    """Codes by the image that they are of, and the precision of the arithmetic. A code is one tensor or several."""

    def __init__(self, nbytes: int = CODES_NBYTES) -> None:
        self.nbytes, self._held = nbytes, 0
        self._kept: OrderedDict[bytes, tuple[torch.Tensor, ...]] = OrderedDict()

    @staticmethod
    def key(image: Array, precision: str) -> bytes:
        """What tells a code from others."""
        return hashlib.sha256(f"{precision} {image.shape} ".encode() + image.tobytes()).digest()

    def find(self, key: bytes) -> "tuple[torch.Tensor, ...] | None":
        """The code that was kept; None where there is none."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: bytes, code: "tuple[torch.Tensor, ...]") -> None:
        """Keep a code; those that were asked for longest ago go, so that all fit into ``nbytes``."""
        self._kept[key] = code
        self._held += _nbytes(code)
        while self._held > self.nbytes:
            self._held -= _nbytes(self._kept.popitem(last=False)[1])


def _nbytes(code: "tuple[torch.Tensor, ...]") -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in code)
