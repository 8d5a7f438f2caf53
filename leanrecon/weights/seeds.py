"""Seeds for PyTorch from our own, so that a training that is continued draws what it would have drawn."""

import contextlib
from collections.abc import Iterator

import numpy as np


def seeded(seed: int, *stream: int) -> int:
    """A seed for PyTorch from our seed and the numbers of a stream."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


@contextlib.contextmanager
def seeded_weights(seed: int, *stream: int) -> Iterator[None]:
    """Seed PyTorch's generators for a network's first weights, and restore their state afterwards."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seeded(seed, *stream))
        yield
