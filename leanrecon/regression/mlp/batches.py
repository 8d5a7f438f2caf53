"""Batches of train rows in a new random order every epoch, read in whole chunks.

Panels of 256 rows are shuffled, a window of some panels is read at once, and rows are shuffled within it. So every
chunk is read once an epoch, and a batch mixes rows of the window. Order and batches follow from (seed, epoch) alone.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.mlp.settings import VALIDATION_ROWS
from leanrecon.stores.matrix import PANEL, panels, read_ahead

Array = np.ndarray[Any, Any]

_ORDER, _VALIDATION, _PAIRS = range(3)  # streams of random numbers


class Source(Protocol):
    """Numbers by row and column, as ``normalise.Centred`` reads them."""

    shape: tuple[int, int]

    def read(self, rows: range, columns: range, memory: Array, dtype: Any) -> Array:
        """A block in ``memory`` (uint8), as [len(rows), len(columns)] of ``dtype``."""


class Held:
    """An array in memory as a source."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape = (array.shape[0], array.shape[1])

    def read(self, rows: range, columns: range, memory: Array, dtype: Any) -> Array:
        count = len(rows) * len(columns) * np.dtype(dtype).itemsize
        out: Array = memory[:count].view(dtype).reshape(len(rows), len(columns))
        out[:] = self.array[rows.start : rows.stop, columns.start : columns.stop]
        return out


class Shuffled:
    """A source whose rows are permuted within panels."""

    def __init__(self, source: Source, order: Array) -> None:
        self.source, self.order = source, order
        self.shape = source.shape

    def read(self, rows: range, columns: range, memory: Array, dtype: Any) -> Array:
        out = self.source.read(rows, columns, memory, dtype)
        for some in panels(len(columns), 1024):  # a copy of a few columns at a time
            part = out[:, some.start : some.stop]
            part[:] = part[self.order[rows.start : rows.stop] - rows.start]
        return out


class Gathered:
    """A source whose row i is row ``index[i]`` of another one: the targets of images that are shown several times.

    Rows of one panel may be of images far apart, so chunks of the targets are read more than once an epoch.
    """

    def __init__(self, source: Source, index: Array, block: int) -> None:
        self.source, self.index, self.block = source, index, block
        self.shape = (len(index), source.shape[1])

    def read(self, rows: range, columns: range, memory: Array, dtype: Any) -> Array:
        count = len(rows) * len(columns) * np.dtype(dtype).itemsize
        out: Array = memory[:count].view(dtype).reshape(len(rows), len(columns))
        images = self.index[rows.start : rows.stop]
        tile = buffer((PANEL * min(self.block, len(columns)) * np.dtype(dtype).itemsize,), np.uint8)
        for panel in np.unique(images // PANEL):
            taken = np.flatnonzero(images // PANEL == panel)
            span = range(int(images[taken].min()), int(images[taken].max()) + 1)
            for some in panels(len(columns), self.block):
                part = range(columns.start + some.start, columns.start + some.stop)
                read = self.source.read(span, part, tile, dtype)
                out[taken, some.start : some.stop] = read[images[taken] - span.start]
        return out


def paired_at_random(n: int, seed: int | Sequence[int], *, within_panels: bool) -> Array:
    """The target row of each row, drawn at random from all of them, or from those of the same panel."""
    drawn = np.random.default_rng(seed if isinstance(seed, int) else list(seed))
    if not within_panels:
        return drawn.permutation(n)
    return np.concatenate([rows.start + drawn.permutation(len(rows)) for rows in panels(n)])


def split(n: int, share: float, seed: int, groups: Sequence[Any] | None = None) -> tuple[Array, Array]:
    """Rows to learn from and rows for validation, ascending; rows of one group stay together.

    Groups are taken at random until they hold ``share`` of the rows, or 1,024.
    """
    wanted = min(round(share * n), VALIDATION_ROWS)
    names: Array = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    order = np.random.default_rng([seed, _VALIDATION]).permutation(int(names.max(initial=-1)) + 1)
    sizes = np.bincount(names, minlength=len(order))[order]
    before = np.cumsum(sizes) - sizes
    kept = np.isin(names, order[(before < wanted) & (before + sizes <= max(n - 1, wanted))])
    return np.nonzero(~kept)[0], np.nonzero(kept)[0]


def take(sources: Sequence[Source], rows: Array) -> list[Array]:
    """Some rows (ascending) of every source, float32; each panel that holds any is read whole."""
    result = [buffer((len(rows), source.shape[1]), np.float32) for source in sources]
    for panel in panels(sources[0].shape[0]):
        a, b = np.searchsorted(rows, [panel.start, panel.stop])
        if a < b:
            for source, out in zip(sources, result, strict=True):
                memory = buffer((len(panel) * source.shape[1] * 4,), np.uint8)
                out[a:b] = source.read(panel, range(source.shape[1]), memory, np.float32)[rows[a:b] - panel.start]
    return result


class Batches:
    """Batches of some rows of several sources, epoch by epoch; ``waited`` counts the seconds spent waiting for them."""

    def __init__(self, sources: Sequence[Source], rows: Array, *, batch: int, window: int, seed: int) -> None:
        self.sources, self.rows, self.batch, self.seed = list(sources), rows, batch, seed
        self.steps = len(rows) // batch
        self.waited = 0.0
        self._panels = [panel for panel in panels(sources[0].shape[0]) if len(self._within(panel))]
        self._at_once = max(window // PANEL, 1)
        self._columns = [source.shape[1] for source in sources]

    def _within(self, panel: range) -> Array:
        a, b = np.searchsorted(self.rows, [panel.start, panel.stop])
        return self.rows[a:b]

    def windows(self, epoch: int) -> list[tuple[list[range], Array]]:
        """The windows of an epoch: the panels of each, and its rows in the order in which they are taken."""
        drawn = np.random.default_rng([self.seed, _ORDER, epoch])
        shuffled = [self._panels[i] for i in drawn.permutation(len(self._panels))]
        groups = [shuffled[i : i + self._at_once] for i in range(0, len(shuffled), self._at_once)]
        return [
            (group, drawn.permutation(np.concatenate([self._within(panel) for panel in group]))) for group in groups
        ]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, list[Array]]]:
        """Yield ``(row numbers, one array [batch, columns] a source)`` from step ``start`` on; valid until the next."""
        skipped = start * self.batch
        wanted: list[tuple[list[range], Array]] = []
        for group, rows in self.windows(epoch):
            if skipped < len(rows):
                wanted.append((group, rows[skipped:]))
            skipped = max(skipped - len(rows), 0)
        span = PANEL * min(self._at_once, len(self._panels))
        memories = [buffer((span * sum(self._columns) * 4,), np.uint8) for _ in wanted[:2]]
        batch = [buffer((self.batch, columns), np.float32) for columns in self._columns]
        numbers, filled, left = np.empty(self.batch, np.int64), 0, self.steps - start
        windows = read_ahead(wanted, self._read, memories)
        while left:
            started = time.perf_counter()
            (group, rows), memory = next(windows)
            self.waited += time.perf_counter() - started
            place = {panel.start: k * PANEL for k, panel in enumerate(group)}
            slots = np.array([place[r // PANEL * PANEL] + r % PANEL for r in rows])
            taken = 0
            while left and taken < len(rows):
                count = min(self.batch - filled, len(rows) - taken)
                started = time.perf_counter()
                for out, held in zip(batch, self._views(memory, span), strict=True):
                    np.take(held, slots[taken : taken + count], axis=0, out=out[filled : filled + count], mode="clip")
                numbers[filled : filled + count] = rows[taken : taken + count]
                self.waited += time.perf_counter() - started
                filled, taken = filled + count, taken + count
                if filled == self.batch:
                    yield numbers, batch
                    filled, left = 0, left - 1

    def _views(self, memory: Array, span: int) -> Iterator[Array]:
        start = 0
        for columns in self._columns:
            stop = start + span * columns * 4
            yield memory[start:stop].view(np.float32).reshape(span, columns)
            start = stop

    def _read(self, window: tuple[list[range], Array], memory: Array) -> Array:
        span = len(memory) // (4 * sum(self._columns))
        for source, view in zip(self.sources, self._views(memory, span), strict=True):
            for k, panel in enumerate(window[0]):
                part = view[k * PANEL : k * PANEL + len(panel)].reshape(-1).view(np.uint8)
                source.read(panel, range(source.shape[1]), part, np.float32)
        return memory
