"""What an array looks like: its range, its scale and its order, from its header and a sample of its rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.datasets.files.rows import Rows

Array = np.ndarray[Any, Any]

SAMPLED = 64
"""Rows that are looked at, spread over the array."""

MOST_NBYTES = 64 * 10**6
"""Most bytes of a sample."""

NSD_SCALE = 300


@dataclass(frozen=True)
class Look:
    """What a sample of an array tells."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float | None = None
    """Least value; None where the array holds no numbers or is too wide to sample."""
    high: float | None = None
    spread: float | None = None
    """Standard deviation."""
    nan: float = 0.0
    """Share of NaN."""
    whole: bool = False
    """Whether all sampled values are whole numbers."""
    sampled: int = 0

    @property
    def role(self) -> str:
        """betas, stimuli, index or "": the likely role in a study."""
        if self.low is None or self.high is None:
            return ""
        if len(self.shape) == 4 or (len(self.shape) == 3 and self.low >= 0):
            return "stimuli"
        if len(self.shape) == 2 and min(self.shape) > 1:
            levels = self.whole and self.low >= 0 and self.high <= 255
            return "stimuli" if levels and any(map(square_of, self.shape)) else "betas"
        return "index" if self.whole and self.low >= 0 else ""

    def lines(self) -> list[str]:
        """The array in a few sentences."""
        text = f"{self.name}: {self.dtype} of shape {self.shape}"
        if self.low is None or self.high is None:
            return [text]
        text += f", values from {self.low:.4g} to {self.high:.4g} in {self.sampled} sampled rows"
        found = [text + (f", {100 * self.nan:.1f} % NaN" if self.nan else "")]
        if self.role == "betas":
            found += self._about_betas()
        if self.role == "stimuli":
            found += self._about_images()
        return found

    def _about_betas(self) -> list[str]:
        lines = []
        if self.spread is not None and self.spread > 30:
            lines.append(f"  likely percent signal change times {NSD_SCALE}, as NSD stores it: divide by {NSD_SCALE}")
        elif self.spread is not None and 0.5 < self.spread < 1.5 and abs(self.low or 0) < 30:
            lines.append("  likely z-scored, or percent signal change")
        if self.shape[0] > 4 * self.shape[1]:
            lines.append("  more rows than columns: check that rows are trials, not voxels")
        return lines

    def _about_images(self) -> list[str]:
        low, high = self.low or 0.0, self.high or 0.0
        lines = []
        if low < 0:
            lines.append("  values below 0: normalised images have to be brought back to 0 to 255")
        elif high <= 1 and not self.whole:
            lines.append("  likely intensities from 0 to 1")
        elif high <= 255:
            lines.append("  likely pixel values from 0 to 255")
        if len(self.shape) == 4 and self.shape[1] in (1, 3) and self.shape[3] not in (1, 3):
            lines.append("  channels come first: move them with numpy.moveaxis(images, 1, -1)")
        if len(self.shape) == 4 and self.shape[0] in (1, 3):
            lines.append("  images seem to lie on the last axis: move it with numpy.moveaxis(images, -1, 0)")
        return lines


def look_at(rows: Rows, name: str) -> Look:
    """Look at an array: its header, and a sample of rows where they are not too wide."""
    plain = Look(name, rows.shape, rows.kind)
    if rows.dtype.kind not in "biuf" or not rows.shape or 0 in rows.shape or rows.row_nbytes > MOST_NBYTES:
        return plain
    n = max(min(SAMPLED, MOST_NBYTES // max(rows.row_nbytes, 1), len(rows)), 1)
    index = np.unique(np.linspace(0, len(rows) - 1, n).astype(np.int64))
    values = np.empty((len(index), *rows.shape[1:]), rows.dtype)
    rows.read(index, values)
    rows.release()
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return Look(name, rows.shape, rows.kind, nan=1.0, sampled=len(index))
    return Look(
        name,
        rows.shape,
        rows.kind,
        float(finite.min()),
        float(finite.max()),
        _spread(finite),
        float(np.isnan(numbers).mean()),
        bool(np.all(finite == np.rint(finite))),
        len(index),
    )


def _spread(values: Array) -> float:
    with np.errstate(over="ignore"):  # numbers near the largest of all
        return float(values.std())


def square_of(n: int) -> list[int] | None:
    """[side, side], or [side, side, 3], of the square image that ``n`` numbers are; None for other numbers and tiny images."""
    if n < 16:
        return None
    for channels in (1, 3):
        side = round((n / channels) ** 0.5)
        if channels * side * side == n:
            return [side, side, *([3] if channels == 3 else [])]
    return None
