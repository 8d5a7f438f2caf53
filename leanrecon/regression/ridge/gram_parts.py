"""Parts of a Gram matrix that are formed apart, each by the very products of the whole, in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.normalise import Centred
from leanrecon.regression.ridge.arithmetic import ON_CPU
from leanrecon.regression.ridge.kernel import add_part
from leanrecon.regression.ridge.part_plan import GramShapes, Part, joined
from leanrecon.regression.ridge.triangle import DEPTH
from leanrecon.stores.matrix import panels, read_ahead

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GramParts:
    """The parts of K = X Xᵀ or Xᵀ X of centred betas X, and of T Xᵀ of test betas T where there are any."""

    betas: Centred
    test: Centred | None
    dtype: np.dtype[Any]

    @cached_property
    def shapes(self) -> GramShapes:
        n, p = self.betas.shape
        m = 0 if self.test is None or not self.betas.dual else self.test.shape[0]
        scratch = self.betas.matrix.scratch_nbytes + (0 if self.test is None else self.test.matrix.scratch_nbytes)
        return GramShapes(n, p, m, self.betas.dual, self.dtype.itemsize, scratch)

    @property
    def costs(self) -> list[float]:
        """Operations of each part."""
        return [self.shapes.cost_of(part) for part in self.shapes.parts]

    def work(self, numbers: Sequence[int]) -> int:
        """Bytes of work of making some parts."""
        return self.shapes.work([self.shapes.parts[k] for k in numbers])

    def make(self, numbers: Sequence[int]) -> list[Array]:
        """Some parts, by their numbers."""
        return self.form([self.shapes.parts[k] for k in numbers])

    def form(self, parts: Sequence[Part]) -> list[Array]:
        """Some parts in one pass over the betas that they are made of."""
        shapes, dual = self.shapes, self.betas.dual
        made = [buffer(shapes.shape_of(part), self.dtype) for part in parts]
        spans = joined(span for part in parts for span in shapes.spans_of(part))
        tested = any(part.crosses for part in parts)
        for slabs, test_slab in self._slabs(spans, tested=tested):
            for part, out in zip(parts, made, strict=True):
                if part.crosses:
                    ON_CPU.gemm(test_slab, _part_of(slabs, spans, part.rows, dual), out, tb=True)
                    continue
                columns = shapes.columns_of(part)
                rows = range(columns.start + part.rows.start, columns.start + part.rows.stop)
                head, below = (_part_of(slabs, spans, some, dual) for some in (columns, rows))
                add_part(out, head, below, diagonal=part.rows.start == 0, transpose=not dual)
        return made

    def _slabs(self, spans: Sequence[range], *, tested: bool) -> Iterator[tuple[list[Array], Any]]:
        """Slabs of the betas in each span of rows (columns, where there are more rows than voxels), and of the test betas."""
        n, p = self.betas.shape
        dual, itemsize, test = self.betas.dual, self.dtype.itemsize, self.test if tested else None
        depth = min(DEPTH, p if dual else n)
        heights = [*map(len, spans), *([] if test is None else [test.shape[0]])]
        offsets = np.cumsum([0, *heights]) * depth * itemsize
        memories = [buffer((int(offsets[-1]),), np.uint8) for _ in range(2)]

        def read(some: range, memory: Array) -> Array:
            for span, offset in zip(spans, offsets, strict=False):
                rows, columns = (span, some) if dual else (some, span)
                self.betas.read(rows, columns, memory[offset:], self.dtype)
            if test is not None:
                test.read(range(test.shape[0]), some, memory[offsets[-2] :], self.dtype)
            return memory

        for some, memory in read_ahead(panels(p if dual else n, DEPTH), read, memories):
            slabs = []
            for height, offset in zip(heights, offsets, strict=False):
                shape = (height, len(some)) if dual else (len(some), height)
                slabs.append(memory[offset : offset + height * len(some) * itemsize].view(self.dtype).reshape(shape))
            yield slabs[: len(spans)], None if test is None else slabs[-1]


def _part_of(slabs: Sequence[Array], spans: Iterable[range], some: range, dual: bool) -> Array:
    """Rows (columns, where there are more rows than voxels) of the one slab that holds them."""
    for slab, span in zip(slabs, spans, strict=True):
        if span.start <= some.start and some.stop <= span.stop:
            first, last = some.start - span.start, some.stop - span.start
            return slab[first:last] if dual else slab[:, first:last]
    raise AssertionError("spans hold all that their parts need")
