"""The layout of the panels of a Gram matrix, and which panels are formed together: arithmetic only."""

from collections.abc import Iterator

WIDTH = 1024
"""Columns of a panel of the Gram matrix (at most 36 MB each at NSD size)."""

DEPTH = 512
"""Voxels (or rows) of betas that are multiplied at once."""

ROWS = 4096
"""Rows of a panel below its diagonal block that one product makes: what a worker forms at least."""

PAIRS = 4096
"""Pairs of rows of the same image whose products are taken at once."""


def panel_nbytes(order: int, itemsize: int, j: int = 0) -> int:
    """Bytes of panel ``j``: its rows from the diagonal down."""
    first = j * WIDTH
    return (order - first) * min(WIDTH, order - first) * itemsize


def triangle_nbytes(order: int, itemsize: int) -> int:
    """Bytes of all panels: half of the square and the upper halves of the diagonal blocks."""
    return sum(panel_nbytes(order, itemsize, j) for j in range(-(-order // WIDTH)))


def panel_parts(order: int, j: int) -> list[range]:
    """The rows of panel ``j``, from its first, that are formed apart: the diagonal block with the rows below, and further rows."""
    height = order - j * WIDTH
    stops = [*range(min(WIDTH, height) + ROWS, height, ROWS), height]
    return [range(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def pass_groups(order: int, itemsize: int, nbytes: int | None) -> Iterator[list[int]]:
    """The panels that are formed in one pass over the betas: as many, in order, as ``nbytes`` hold, at least one."""
    group: list[int] = []
    held = 0
    for j in range(-(-order // WIDTH)):
        size = panel_nbytes(order, itemsize, j)
        if nbytes is not None and group and held + size > nbytes:
            yield group
            group, held = [], 0
        group.append(j)
        held += size
    yield group
