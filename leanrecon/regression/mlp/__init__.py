"""A residual network trained from disk."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanrecon.regression.mlp.scikit import StreamingMLP

__all__ = ["StreamingMLP"]


def __getattr__(name: str) -> Any:
    if name == "StreamingMLP":  # imported on first use, as it loads PyTorch
        from leanrecon.regression.mlp.scikit import StreamingMLP

        return StreamingMLP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
