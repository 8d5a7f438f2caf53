"""A symmetric matrix as block columns of its lower triangle, in memory or in a file, and its Cholesky factor.

Every product has the same shapes and order whether the panels lie in memory or on disk, so the
budget decides where they lie and never what comes out.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.places.disk import explained_disk_errors, write_array
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic
from leanrecon.regression.ridge.triangle import WIDTH, panel_nbytes, panel_parts
from leanrecon.stores.matrix import panels, read_ahead

Array = np.ndarray[Any, Any]

ROUNDING = 64
"""Squared pivots below this many roundings of the largest are noise: collinear voxels left up to 48 (orders 60 to 2500)."""


class Panels:
    """The lower triangle of a symmetric matrix of some order; panel ``j`` holds [order - j·WIDTH, ≤ WIDTH].

    With ``directory`` the panels lie in an unnamed file there, which vanishes with the process, and
    ``load`` reads into memory that the caller owns.
    """

    def __init__(self, order: int, dtype: Any, *, directory: Path | None = None) -> None:
        self.order = order
        self.dtype = np.dtype(dtype)
        self.columns = panels(order, WIDTH)
        self._offsets = np.cumsum([0] + [panel_nbytes(order, self.dtype.itemsize, j) for j in range(len(self.columns))])
        self._held: list[Array | None] = [None] * len(self.columns)
        self.on_device: dict[int, Any] = {}
        """Copies of panels on a device, by their numbers (see ``on_torch``)."""
        self.directory, self._file = directory, None
        if directory is not None:
            with explained_disk_errors(directory):
                self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"on_device": {}}

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def memories(self, count: int) -> list[Array | None]:
        """Memory to load panels into; None where they lie in memory."""
        if self._file is None:
            return [None] * count
        nbytes = panel_nbytes(self.order, self.dtype.itemsize)
        return [buffer((nbytes,), np.uint8) for _ in range(count)]

    def load(self, j: int, memory: Array | None = None, *, skip: int = 0) -> Array:
        """Panel ``j`` without its first ``skip`` rows: the panel itself, or read from disk into ``memory``."""
        width = len(self.columns[j])
        shape = (self.order - self.columns[j].start - skip, width)
        if self._file is None:
            held = self._held[j]
            assert held is not None
            return held[skip:]
        assert memory is not None
        view: Array = memory[: shape[0] * width * self.dtype.itemsize]
        self._file.seek(int(self._offsets[j]) + skip * width * self.dtype.itemsize)
        if self._file.readinto(view.data) != len(view):
            raise OSError("the scratch file of the Gram matrix is shorter than what was written to it")
        panel: Array = view.view(self.dtype).reshape(shape)
        return panel

    def replace(self, j: int, panel: Array) -> None:
        """Save a copy of a panel, over the one that is held."""
        if self._file is not None:
            self.save(j, panel)
            return
        self.on_device.pop(j, None)
        held = self._held[j]
        if held is None:
            self._held[j] = held = buffer(panel.shape, self.dtype)
        np.copyto(held, panel)

    def save(self, j: int, panel: Array) -> None:
        self.on_device.pop(j, None)
        if self._file is None or self.directory is None:
            self._held[j] = panel
            return
        with explained_disk_errors(self.directory):
            self._file.seek(int(self._offsets[j]))
            write_array(self._file, panel)

    def ahead(
        self, order: Iterable[int], memories: Sequence[Array | None], *, down_to: int = 0
    ) -> Iterator[tuple[int, Array]]:
        """Yield ``(j, panel j from row `down_to` of the matrix on)``; from disk, the next is read meanwhile."""

        def load(j: int, memory: Array | None = None) -> Array:
            return self.load(j, memory, skip=max(down_to - self.columns[j].start, 0))

        if self._file is None:
            return ((j, load(j)) for j in order)
        return read_ahead(order, load, [memory for memory in memories if memory is not None])


def add_product(
    held: dict[int, Any], slab: Any, columns: Sequence[range], *, transpose: bool, arithmetic: Arithmetic
) -> None:
    """Add slab·slabᵀ (slabᵀ·slab with ``transpose``) to some panels, {j: panel}."""
    for j, panel in held.items():
        start, width = columns[j].start, len(columns[j])
        head = _taken(slab, range(start, start + width), transpose)
        for part in panel_parts(columns[-1].stop, j):
            rows = _taken(slab, range(start + part.start, start + part.stop), transpose)
            add_part(
                panel[part.start : part.stop],
                head,
                rows,
                diagonal=part.start == 0,
                transpose=transpose,
                arithmetic=arithmetic,
            )


def add_part(
    part: Any, head: Any, rows: Any, *, diagonal: bool, transpose: bool, arithmetic: Arithmetic = ON_CPU
) -> None:
    """Add rows·headᵀ (rowsᵀ·head with ``transpose``) to some rows of a panel; with ``diagonal`` the first of them are the head."""
    first = len(part[0]) if diagonal else 0
    if diagonal:
        arithmetic.syrk(head, part[:first], ta=transpose)
    below = _taken(rows, range(first, len(part)), transpose)
    arithmetic.gemm(below, head, part[first:], ta=transpose, tb=not transpose)


def _taken(slab: Any, some: range, transpose: bool) -> Any:
    """Some rows of a slab, or some of its columns with ``transpose``."""
    return slab[:, some.start : some.stop] if transpose else slab[some.start : some.stop]


def cholesky(gram: Panels, alpha: float, *, deflate: bool, arithmetic: Arithmetic = ON_CPU) -> None:
    """Replace K by the factor L of K + alpha·I = L Lᵀ, panel by panel (left-looking).

    ``deflate`` adds a constant to K = X Xᵀ. Centred betas leave K singular along the ones, so that only alpha
    would hold that eigenvalue up. T Xᵀ is orthogonal to the ones, so no prediction changes, and a small alpha
    no longer costs precision. Rows of zeros, which are voxels left out, get a one on the diagonal. Raises
    InputError where K + alpha·I is singular in the panels' precision.
    """
    smallest, largest = np.inf, 0.0
    (target_memory,), ahead = gram.memories(1), arithmetic.memories(gram, 2)
    constant = gram.dtype.type(0)
    eps = float(np.finfo(gram.dtype).eps)
    for j, columns in enumerate(gram.columns):
        loaded = gram.load(j, target_memory)
        width = len(columns)
        diagonal = np.arange(width)
        if deflate:
            if j == 0:
                constant = gram.dtype.type(deflation(loaded))
            loaded += constant
        varies = loaded[diagonal, diagonal] > 0
        loaded[diagonal, diagonal] += np.where(varies, alpha, 1).astype(gram.dtype)
        largest = max(largest, float(loaded[diagonal, diagonal].max(initial=0, where=varies)))
        target = arithmetic.put(loaded)
        for _, slab in arithmetic.ahead(gram, range(j), ahead, down_to=columns.start):
            arithmetic.syrk(slab[:width], target[:width], alpha=-1)
            arithmetic.gemm(slab[width:], slab[:width], target[width:], alpha=-1, tb=True)
        bad = arithmetic.potrf(target[:width])
        pivots = arithmetic.diagonal(target[:width])
        smallest = min(smallest, float(np.square(pivots).min(initial=np.inf, where=varies)))
        if bad or not smallest > largest * eps * ROUNDING:
            raise InputError(
                f"alpha = {alpha:g} is too small for these betas: their Gram matrix is singular in {gram.dtype}",
                todo=f"raise alpha to {largest * eps * 16 * ROUNDING:.1g} or more",
            )
        arithmetic.trsm(target[:width], target[width:], transpose=True)
        arithmetic.keep(gram, j, target, loaded)


def copied(gram: Panels, into: Panels | None = None) -> Panels:
    """A copy of a symmetric matrix, where it lies: in memory or on disk; over another copy if there is one."""
    result = Panels(gram.order, gram.dtype, directory=gram.directory) if into is None else into
    (memory,) = gram.memories(1)
    for j in range(len(gram.columns)):
        result.replace(j, gram.load(j, memory))
    return result


def part_of(gram: Panels, rows: Array) -> Panels:
    """The part of K = X Xᵀ that some rows (ascending) make, centred over them; it lies where K does."""
    result = Panels(len(rows), gram.dtype, directory=gram.directory)
    (memory,) = gram.memories(1)
    sums = np.zeros(len(rows))
    for j, columns in enumerate(result.columns):
        panel = buffer((len(rows) - columns.start, len(columns)), gram.dtype)
        across: Array = rows[columns.start : columns.stop]
        for i, given in enumerate(gram.columns):
            first, last = (int(np.searchsorted(across, edge)) for edge in (given.start, given.stop))
            if first == last:
                continue
            whole = gram.load(i, memory)
            for part in panels(len(panel) - first):
                below = rows[columns.start + first :][part.start : part.stop]
                taken = whole[np.ix_(below - given.start, across[first:last] - given.start)]
                panel[first + part.start : first + part.stop, first:last] = taken
        width = len(columns)
        square = np.tril(panel[:width])
        sums[columns.start : columns.stop] += (square + np.tril(square, -1).T).sum(axis=1, dtype=np.float64)
        sums[columns.start : columns.stop] += panel[width:].sum(axis=0, dtype=np.float64)
        sums[columns.stop :] += panel[width:].sum(axis=1, dtype=np.float64)
        result.save(j, panel)
    means = sums / len(rows)
    centre = (means - means.mean() / 2).astype(gram.dtype)
    (memory,) = result.memories(1)
    for j, columns in enumerate(result.columns):
        panel = result.load(j, memory)
        panel -= centre[columns.start :, None]
        panel -= centre[columns.start : columns.stop]
        result.save(j, panel)
    return result


def inverse_rows(factor: Panels, arithmetic: Arithmetic = ON_CPU) -> Iterator[tuple[range, Any]]:
    """Yield ``(rows, rows of L⁻¹ [len(rows), order])``, as many at once as a panel has columns; valid until the next."""
    memories = arithmetic.memories(factor, 2)
    out = arithmetic.zeros((min(WIDTH, factor.order), factor.order), factor.dtype)
    for b, rows in enumerate(factor.columns):
        part = out[: len(rows)]
        arithmetic.identity(part, rows.start)
        for j, panel in arithmetic.ahead(factor, reversed(range(b + 1)), memories):
            start, width = factor.columns[j].start, len(factor.columns[j])
            here = part[:, start : start + width]
            arithmetic.gemm(part[:, start + width : rows.stop], panel[width : rows.stop - start], here, alpha=-1)
            arithmetic.trsm(panel[:width], here, transpose=False)
        yield rows, part


def deflation(first_panel: Array) -> float:
    """The constant that moves the eigenvalue of the ones to about the mean eigenvalue: mean diagonal / order."""
    return float(np.diagonal(first_panel).mean(dtype=np.float64)) / len(first_panel)


def solve(factor: Panels, rows: Array, arithmetic: Arithmetic = ON_CPU) -> None:
    """Replace each row b of ``rows`` [m, order] by (L Lᵀ)⁻¹ b, in place."""
    memories, found = arithmetic.memories(factor, 2), arithmetic.put(rows)
    _solve_half(factor, found, memories, arithmetic)
    for j, panel in arithmetic.ahead(factor, reversed(range(len(factor.columns))), memories):
        start, width = factor.columns[j].start, len(factor.columns[j])
        here = found[:, start : start + width]
        arithmetic.gemm(found[:, start + width :], panel[width:], here, alpha=-1)
        arithmetic.trsm(panel[:width], here, transpose=False)
    arithmetic.take(found, rows)


def solve_half(factor: Panels, rows: Array, arithmetic: Arithmetic = ON_CPU) -> None:
    """Replace each row b of ``rows`` [m, order] by L⁻¹ b, in place."""
    found = arithmetic.put(rows)
    _solve_half(factor, found, arithmetic.memories(factor, 2), arithmetic)
    arithmetic.take(found, rows)


def _solve_half(factor: Panels, found: Any, memories: list[Array | None], arithmetic: Arithmetic) -> None:
    for j, panel in arithmetic.ahead(factor, range(len(factor.columns)), memories):
        start, width = factor.columns[j].start, len(factor.columns[j])
        here = found[:, start : start + width]
        arithmetic.trsm(panel[:width], here, transpose=True)
        arithmetic.gemm(here, panel[width:], found[:, start + width :], alpha=-1, tb=True)
