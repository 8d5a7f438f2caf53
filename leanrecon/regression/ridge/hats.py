"""Hat matrices on disk, through which workers stream targets: what the fit leaves to be done, in one file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.places import Location
from leanrecon.regression.ridge.arrays_file import AGAIN, read_arrays, write_arrays
from leanrecon.regression.ridge.restandardise import Kind, through_hats
from leanrecon.stores.matrix import Matrix, Reblocked
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


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
        """Write all to a file."""
        arrays = [*self.panels, *([] if self.weights is None else [self.weights])]
        about = {
            "rows": self.rows,
            "weighted": self.weights is not None,
            "restandardize": self.restandardize,
            "work": self.work,
        }
        write_arrays(path, about, arrays)

    @classmethod
    def read(cls, path: Location) -> "Hats":
        """Read what ``write`` wrote; arrays lie in pages of their own, as where they were formed.

        Raises StoreError for a file that is damaged: every run writes it anew.
        """
        about, arrays = read_arrays(path, "hat matrices")
        try:
            weights = arrays.pop() if about["weighted"] else None
            return cls(about["rows"], arrays, weights, about["restandardize"], about["work"])
        except KeyError as error:
            raise StoreError(f"the hat matrices in {path} are damaged: {error}", todo=AGAIN) from None

    def stream_into(self, store: Store, targets: Matrix, wanted: Sequence[int]) -> None:
        """Write the predictions [rows, t] of some blocks of columns of the store."""
        targets = targets if targets.block == store.chunk_columns else Reblocked(targets, store.chunk_columns)
        blocks = through_hats(range(self.rows), self.panels, targets, wanted, self.restandardize, weights=self.weights)
        for _, columns, values in blocks:
            store.write_columns(columns.start // store.chunk_columns, values)
