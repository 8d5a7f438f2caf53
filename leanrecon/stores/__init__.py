"""Row stores on Zarr: one file a chunk of rows, written whole and atomically. Zarr is imported with the first store."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanrecon.stores.matrix import ColumnSubset, Matrix, RowSubset, as_matrix, read_ahead
    from leanrecon.stores.store import Store

__all__ = ["ColumnSubset", "Matrix", "RowSubset", "Store", "as_matrix", "read_ahead"]


def __getattr__(name: str) -> Any:
    """Import what is asked for then: planning reads ``stores.layout`` alone, and needs no Zarr."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.{'store' if name == 'Store' else 'matrix'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
