"""Ridge regression by the hat matrix, streamed from disk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanrecon.regression.ridge.scikit import StreamingRidge

__all__ = ["StreamingRidge"]


def __getattr__(name: str) -> Any:
    if name == "StreamingRidge":  # imported on first use: planners do without SciPy
        from leanrecon.regression.ridge.scikit import StreamingRidge

        return StreamingRidge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
