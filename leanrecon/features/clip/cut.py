"""Captions that are longer than a text network reads, and images that can't be told apart once they are cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

Tokens = Callable[[list[str]], list[list[int]]]
"""The tokens of some texts, however many, with those of beginning and end."""

AT_ONCE = 256
"""Captions whose tokens are in memory together."""


@dataclass(frozen=True)
class Cut:
    """What became of the captions of a split."""

    captions: int
    """How many there are."""
    cut: int
    """How many are longer than the network reads."""
    images: int
    """How many images they are of."""
    alike: int
    """How many images have other captions than another image, and the same once these are cut."""

    def sentence(self, positions: int) -> str:
        """In words; empty where nothing was cut."""
        if not self.cut:
            return ""
        found = (
            f"{self.cut} of {self.captions} captions are longer than the {positions} tokens that CLIP reads and are cut"
        )
        if not self.alike:
            return found
        return (
            f"{found}; {self.alike} of {self.images} images differ in their captions and no longer do once these are cut: "
            "their features are the same. Give shorter captions, or several for an image"
        )


def look_for_cut(captions: Sequence[Sequence[str]], positions: int, tokens: Tokens) -> Cut:
    """Count captions of more than ``positions`` tokens, and images that only the cut makes alike.

    No token is shorter than a byte, so that captions of fewer bytes are not taken apart. Memory: a hash for each
    image with a long caption, and the tokens of ``AT_ONCE`` captions.
    """
    long = (
        (image, place)
        for image, texts in enumerate(captions)
        for place, text in enumerate(texts)
        if len(text.encode(errors="replace")) > positions - 2
    )
    kept: dict[int, dict[int, int]] = {}
    n_cut = 0
    while some := list(islice(long, AT_ONCE)):
        found = tokens([captions[image][place] for image, place in some])
        for (image, place), own in zip(some, found, strict=True):
            n_cut += len(own) > positions
            kept.setdefault(image, {})[place] = hash(tuple(own[: positions - 1]))
    first: dict[int, int] = {}
    alike = set()
    for image, hashes in kept.items():
        texts = captions[image]
        key = hash(tuple(hashes.get(place, text) for place, text in enumerate(texts)))
        other = first.setdefault(key, image)
        if other != image and list(captions[other]) != list(texts):
            alike |= {other, image}
    return Cut(sum(map(len, captions)), n_cut, len(captions), len(alike))
