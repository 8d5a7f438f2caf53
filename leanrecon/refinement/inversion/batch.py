"""Searching a batch of images: from first images or at random, with restarts, to the images that are shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from leanrecon.images import Array, resize, with_channels
from leanrecon.refinement.inversion.distance import ByFeatures, ByResponses, distance_of
from leanrecon.refinement.inversion.networks import Loaded, added, noise, shown
from leanrecon.refinement.inversion.search import Problem, search
from leanrecon.refinement.inversion.settings import InversionSettings
from leanrecon.weights.libraries import exact_gradients

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Look:
    """Looks at images while they are searched."""

    steps: Sequence[int]
    """After how many steps."""
    see: Callable[[int, list[Array]], None]
    """Is told the number of steps and the images after them, as they would be shown."""


@dataclass(frozen=True)
class Searched:
    """What a batch ended with."""

    images: list[Array]
    """Uint8, of the shape of first images."""
    distance: list[list[float]]
    """From what the brain says, before every step and after the last one, of the restart that was kept."""
    restart: list[int]
    """Which restart that is."""


class Searcher:
    """Searches images through loaded networks by what was learned from train rows."""

    def __init__(self, settings: InversionSettings, networks: Loaded, learned: Mapping[str, Array], seed: int) -> None:
        self.settings, self.networks, self.seed = settings, networks, seed
        cosine = settings.measure == "cosine"
        self.measure: ByFeatures | ByResponses = distance_of(learned, cosine=cosine, device=networks.device)
        self.centre, self.scale = (networks.tensor(learned[name]) for name in ("centre", "scale"))

    def __call__(
        self, rows: Sequence[int], first: Sequence[Array], target: Array, steps: int, look: Look | None = None
    ) -> Searched:
        """Search the images of some rows, from their first images, for what the brain says: ``target`` [b, …].

        ``look`` sees the first search of each image. The restart of the least distance is kept.
        """
        settings, networks = self.settings, self.networks
        from_first = settings.start == "first"
        here = networks.latents(first) if from_first else self.centre.expand(len(rows), -1)
        base = networks.decoded(here) if from_first and settings.keep else None
        problem = self._problem(first, networks.tensor(target), here if from_first else self.centre, base)
        kept: list[tuple[float, int, Array, list[float]]] = []
        for restart in range(settings.restarts):
            start = here + self._away(rows, restart)
            visit = None if look is None or restart else partial(self._look, look, first, base)
            found = search(problem, start, steps=steps, rate=settings.rate, penalty=settings.penalty, visit=visit)
            images = self._shown(first, base, found.latents)
            ends = zip(found.distance.tolist(), images, found.curve, strict=True)
            these = [(distance, restart, image, curve) for distance, image, curve in ends]
            kept = (
                these if restart == 0 else [min(pair, key=lambda one: one[0]) for pair in zip(kept, these, strict=True)]
            )
        return Searched([one[2] for one in kept], [one[3] for one in kept], [one[1] for one in kept])

    def _problem(self, first: Sequence[Array], target: "Tensor", centre: "Tensor", base: "Tensor | None") -> Problem:
        decoder, features = self.networks.decoder, self.networks.features
        offset: Tensor | None = None
        if base is not None:
            shape = (int(base.shape[2]), int(base.shape[3]), 3)
            small = [resize(with_channels(image, 3), shape, bicubic=True) for image in first]
            offset = self.networks.pixels(small) - base

        def image(latents: "Tensor") -> "Tensor":
            pixels: Tensor = decoder.pixels_of(latents)
            return pixels if offset is None else (pixels + offset).clamp(0, 1)

        def distance(images: "Tensor") -> "Tensor":
            return self.measure(features.rows_of(images), target)

        return Problem(image, distance, centre, self.scale, partial(exact_gradients, self.networks.device))

    def _away(self, rows: Sequence[int], restart: int) -> "Tensor":
        """From where a search begins to where it starts: nothing for the first one from a first image."""
        settings = self.settings
        if settings.start == "first" and restart == 0:
            return self.scale.new_zeros(())
        factor = settings.spread if settings.start == "first" else 1.0
        drawn = noise(self.seed, rows, restart, len(self.scale))
        return self.networks.tensor(drawn) * self.scale * factor

    def _look(self, look: Look, first: Sequence[Array], base: "Tensor | None", step: int, latents: "Tensor") -> None:
        if step in look.steps:
            look.see(step, self._shown(first, base, latents))

    def _shown(self, first: Sequence[Array], base: "Tensor | None", latents: "Tensor") -> list[Array]:
        decoded = self.networks.decoded(latents)
        if base is None:
            height, width, channels = first[0].shape
            return shown(decoded, (height, width, channels))
        change = (decoded - base).cpu().numpy()
        return [added(image, moved) for image, moved in zip(first, change, strict=True)]
