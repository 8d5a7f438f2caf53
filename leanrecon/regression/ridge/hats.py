"""Hat matrices on disk, through which workers stream targets: what the fit leaves to be done, in one file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.memory import buffer
from leanrecon.places import Location
from leanrecon.regression.ridge.restandardise import Kind, through_hats
from leanrecon.stores.matrix import Matrix, Reblocked
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

_ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Hats:
    """Hat matrices H of known test betas, such that H Y are predictions, and how these are re-standardised."""

    rows: int
    """Test rows; the rows of H beyond them give the moments of an inductive re-standardisation."""
    panels: list[Array]
    """H [rows, images], panel by panel."""
    weights: Array | None
    """How often each image was shown, [images]; None: once."""
    restandardize: Kind
    work: int
    """Bytes that streaming takes beside H."""

    @property
    def nbytes(self) -> int:
        return sum(panel.nbytes for panel in self.panels)

    def write(self, path: Location) -> None:
        """Write all to a file: a line of JSON, and the numbers."""
        arrays = [*self.panels, *([] if self.weights is None else [self.weights])]
        header = {
            "rows": self.rows,
            "arrays": [[list(array.shape), array.dtype.str] for array in arrays],
            "weighted": self.weights is not None,
            "restandardize": self.restandardize,
            "work": self.work,
        }
        line = json.dumps(header).encode()
        line += b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"
        path.write_bytes(line, *(np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays))

    @classmethod
    def read(cls, path: Location) -> "Hats":
        """Read what ``write`` wrote; arrays lie in pages of their own, as where they were formed."""
        with path.open() as file:
            header = json.loads(file.readline())
            arrays = []
            for shape, dtype in header["arrays"]:
                array = buffer(shape, dtype)
                if file.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:  # type: ignore[attr-defined]
                    raise EOFError(f"{path} ends too early")
                arrays.append(array)
        weights = arrays.pop() if header["weighted"] else None
        return cls(header["rows"], arrays, weights, header["restandardize"], header["work"])

    def stream_into(self, store: Store, targets: Matrix, wanted: Sequence[int]) -> None:
        """Write the predictions [rows, t] of some blocks of columns of the store."""
        targets = targets if targets.block == store.chunk_columns else Reblocked(targets, store.chunk_columns)
        blocks = through_hats(range(self.rows), self.panels, targets, wanted, self.restandardize, weights=self.weights)
        for _, columns, values in blocks:
            store.write_columns(columns.start // store.chunk_columns, values)
