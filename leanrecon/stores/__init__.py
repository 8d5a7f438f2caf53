"""Row stores on Zarr: rows are images, one file a chunk of rows, written whole and atomically."""

from leanrecon.stores.matrix import ColumnSubset, Matrix, RowSubset, as_matrix, read_ahead
from leanrecon.stores.store import Store

__all__ = ["ColumnSubset", "Matrix", "RowSubset", "Store", "as_matrix", "read_ahead"]
