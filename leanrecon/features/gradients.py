"""Feature spaces that can be differentiated: what a search through a network needs of them."""

from typing import TYPE_CHECKING, Literal, Protocol

from leanrecon.features.plan import Cost

if TYPE_CHECKING:
    from torch import Tensor

Use = Literal["encode", "decode"]


class Differentiable(Protocol):
    """The part of a feature space whose flag ``differentiable`` is set.

    It computes in float32. Rows are means where a space draws samples. A space without a decoder lacks ``pixels_of``.
    """

    def rows_of(self, pixels: "Tensor") -> "Tensor":
        """Rows [b, dims] of pixels [b, 3, height, width] from 0 to 1, of any size."""

    def pixels_of(self, rows: "Tensor") -> "Tensor":
        """Pixels [b, 3, height, width] from 0 to 1 of rows [b, dims]."""

    def gradient_cost(self, use: Use) -> Cost:
        """Memory of one direction: its weights as they are loaded, and what an image keeps until its gradient."""
