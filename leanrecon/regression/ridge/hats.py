"""Hat matrices on disk, through which workers stream targets: what the fit leaves to be done, in one file."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.memory import buffer
from leanrecon.places import Location
from leanrecon.regression.ridge.restandardise import Kind, through_hats
from leanrecon.stores.matrix import Matrix, Reblocked
from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]

_ALIGNED = 64  # bytes
_DIGEST = 32  # bytes of the checksum at the end
_LONGEST = 2**20  # bytes of the first line at most
_AGAIN = "run the same command again, which makes them anew"


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
        parts = [line, *(np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays)]
        path.write_bytes(*parts, _checksum(parts))

    @classmethod
    def read(cls, path: Location) -> "Hats":
        """Read what ``write`` wrote; arrays lie in pages of their own, as where they were formed.

        Raises StoreError for a file that is damaged: every run writes it anew.
        """
        try:
            with path.open() as file:
                line = file.readline(_LONGEST)
                header = json.loads(line)
                needed = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in header["arrays"])
                if len(line) + needed + _DIGEST != path.size():  # before memory is taken for what a damaged line says
                    raise ValueError("its size is not what its first line says")
                arrays = [buffer(shape, dtype) for shape, dtype in header["arrays"]]
                parts = [line, *(array.reshape(-1).view(np.uint8) for array in arrays)]
                for part in parts[1:]:
                    file.readinto(part)  # type: ignore[attr-defined]
                if file.read() != _checksum(parts):
                    raise ValueError("it does not match its checksum")
            weights = arrays.pop() if header["weighted"] else None
            return cls(header["rows"], arrays, weights, header["restandardize"], header["work"])
        except FileNotFoundError:
            raise StoreError(f"there are no hat matrices at {path}", todo=_AGAIN) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"the hat matrices in {path} are damaged: {error}", todo=_AGAIN) from None

    def stream_into(self, store: Store, targets: Matrix, wanted: Sequence[int]) -> None:
        """Write the predictions [rows, t] of some blocks of columns of the store."""
        targets = targets if targets.block == store.chunk_columns else Reblocked(targets, store.chunk_columns)
        blocks = through_hats(range(self.rows), self.panels, targets, wanted, self.restandardize, weights=self.weights)
        for _, columns, values in blocks:
            store.write_columns(columns.start // store.chunk_columns, values)


def _checksum(parts: Sequence[Any]) -> bytes:
    """SHA-256 of all parts together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()
