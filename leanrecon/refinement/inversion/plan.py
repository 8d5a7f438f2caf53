"""Memory that a search and what it learns from take: arithmetic on shapes."""

from dataclasses import dataclass

from leanrecon.refinement.generator import GeneratorPlan

FLOAT, DOUBLE = 4, 8

AT_ONCE_ON_CPU, AT_ONCE_ON_GPU = 1, 8
"""Images that are searched together where settings leave it open."""

PANEL_NBYTES = 16_000_000
"""Bytes of rows that are read together; it decides sums, so no budget changes it."""

COLUMNS = 1024
"""Columns of features or voxels that an encoding model works on together."""

LIBRARY_NBYTES = 90_000_000
"""Bytes of kernels, of the heap's gaps between states, and of Pillow."""

GRADIENTS = 1.3
"""What an image takes in all, in units of what it keeps until its gradient: gradients of states come beside them."""

PANELS = 8
"""Blocks of rows that moments hold at once, in units of one in float32."""


@dataclass(frozen=True)
class Networks:
    """The networks of a search."""

    weights: int
    """Bytes of all weights, as they are loaded."""
    states: int
    """Bytes that an image keeps until its gradient, of decoder and feature space."""
    latents: int
    """Numbers of an image's latents."""
    features: int
    """Numbers of an image's features."""
    pixels: int
    """Numbers of the decoder's image and of the first image."""


@dataclass(frozen=True)
class Responses:
    """An encoding model."""

    matched: int
    """Voxels that are matched."""
    rows: int = 0
    images: int = 0
    voxels: int = 0


@dataclass(frozen=True)
class InversionPlan(GeneratorPlan):
    """How images will be searched."""

    batch: int = 1
    vram: int = 0


def plan_search(
    networks: Networks, responses: Responses | None, batch: int, *, device: str, imports: int
) -> InversionPlan:
    """Plan the search of ``batch`` images at once; on a GPU states and weights lie in its own memory."""
    image = int(GRADIENTS * networks.states) + FLOAT * (
        8 * networks.latents + 4 * networks.features + 12 * networks.pixels
    )
    learned = FLOAT * (2 * networks.latents + 3 * networks.features)
    if responses is not None:
        learned += 2 * FLOAT * responses.matched * (networks.features + responses.matched + 4)
    together = "1 image" if batch == 1 else f"{batch} images"
    on_device = networks.weights + batch * image + learned
    here = imports + LIBRARY_NBYTES + learned + 12 * FLOAT * batch * networks.pixels
    gpu = device == "cuda"
    return InversionPlan(
        here if gpu else here + on_device, f"{together} at once", batch=batch, vram=on_device if gpu else 0
    )


def read_nbytes(columns: int) -> int:
    """Bytes of the rows of so many columns that are read together for moments."""
    return max(PANEL_NBYTES, FLOAT * columns)


def learning_nbytes(networks: Networks, responses: Responses | None, panel: int, tile: int) -> int:
    """Bytes of learning from train rows, before any search: moments, and the encoding model.

    ``panel`` are the bytes of rows that are read together, ``tile`` what reading takes beside them.
    """
    work = PANELS * 2 * panel + 10 * DOUBLE * (networks.features + networks.latents)
    if responses is not None:
        s, v = responses.images, responses.matched
        spectrum = 3 * s * s * DOUBLE
        blocks = 6 * max(s, responses.rows) * min(COLUMNS, max(networks.features, responses.voxels)) * DOUBLE
        if networks.features < s:
            blocks += 3 * s * networks.features * DOUBLE
        model = FLOAT * networks.features * v + DOUBLE * (4 * s * v + 4 * v * v)
        work = max(work, spectrum + model + blocks)
    return work + tile
