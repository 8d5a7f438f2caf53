"""Row stores on Zarr: one file a chunk of rows, written whole and atomically. Zarr is imported with the first store."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanrecon.stores.matrix import ColumnSubset, Matrix, RowSubset, as_matrix, read_ahead
    from leanrecon.stores.store import Store

__all__ = ["ColumnSubset", "Matrix", "RowSubset", "Store", "as_matrix", "read_ahead"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"leanrecon.stores.{'store' if name == 'Store' else 'matrix'}"), name)
