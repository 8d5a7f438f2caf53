"""Row stores on Zarr: rows are images, one file a chunk of rows, written whole and atomically."""

from leanrecon.stores.matrix import Matrix, RowSubset, as_matrix, read_ahead
from leanrecon.stores.store import Store

__all__ = ["Matrix", "RowSubset", "Store", "as_matrix", "read_ahead"]
