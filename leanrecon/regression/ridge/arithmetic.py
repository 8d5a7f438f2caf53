"""The large products of a ridge: by BLAS on the CPU, or by PyTorch on a GPU (see ``on_torch``).

The ridge's own steps are written once, over an ``Arithmetic``: what they work on is NumPy's on the CPU and PyTorch's
elsewhere, and ``put``, ``take``, ``host`` and ``feeding`` carry numbers between the two. On the CPU these do nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.triangle import PAIRS
from leanrecon.stores.matrix import panels

if TYPE_CHECKING:
    from leanrecon.regression.ridge.kernel import Panels

Array = np.ndarray[Any, Any]

Feed = Callable[..., Sequence[Any]]
"""Takes arrays in the memories that it was made for; returns them where products are taken, until the call after the next."""


class Arithmetic(Protocol):
    """The products and factors of a ridge on one device, all in place on arrays with contiguous rows."""

    device: str

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        """An array of zeros on the device."""

    def put(self, array: Array) -> Any:
        """An array on the device: a copy, or the array itself on the CPU."""

    def like(self, out: Array) -> Any:
        """Memory for a result that ``take`` then brings into ``out``."""

    def take(self, found: Any, out: Array) -> Array:
        """Copy a result on the device into ``out``, and return it."""

    def host(self, found: Any) -> Array:
        """A result on the device, in new memory on the host."""

    def feeding(self, memories: Sequence[Array]) -> AbstractContextManager[Feed]:
        """Copy alternating memories to the device, while the next one is read and the last one is used."""

    def ahead(
        self, factor: "Panels", order: Iterable[int], memories: Sequence[Array | None], *, down_to: int = 0
    ) -> Iterator[tuple[int, Any]]:
        """Yield ``(j, panel j from row `down_to` of the matrix on)``."""

    def memories(self, factor: "Panels", count: int) -> list[Array | None]:
        """Memory that ``ahead`` loads panels into."""

    def keep(self, factor: "Panels", j: int, panel: Any, loaded: Array) -> None:
        """Save a panel that was put there from ``loaded``."""

    def gemm(
        self, a: Any, b: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False, tb: bool = False
    ) -> None:
        """c ← alpha · op(a) op(b) + beta · c; ``ta`` and ``tb`` transpose."""

    def syrk(self, a: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False) -> None:
        """At least the lower triangle of c ← alpha · a aᵀ + beta · c (aᵀ a with ``ta``)."""

    def trsm(self, lower: Any, b: Any, *, transpose: bool) -> None:
        """b ← b L⁻¹, or b L⁻ᵀ with ``transpose``; ``lower`` holds L in its lower triangle."""

    def potrf(self, a: Any) -> int:
        """The Cholesky factor, over the lower triangle of a symmetric matrix; returns 0, or the first bad row + 1."""

    def syevd(self, square: Array) -> Array:
        """The eigenvalues, ascending, of a symmetric matrix on the host, which the eigenvectors overwrite, one a row."""

    def diagonal(self, a: Any) -> Array:
        """A copy of the diagonal, on the host."""

    def identity(self, a: Any, first: int) -> None:
        """a ← rows of the identity matrix, from row ``first`` on."""

    def multiply(self, a: Any, by: Any, out: Any) -> None:
        """out ← a · by, number by number."""

    def products(self, a: Any, b: Any, left: Array, right: Array) -> Array:
        """Products of columns ``left`` of ``a`` with columns ``right`` of ``b``, float64 [pairs] on the host."""


class OnCPU:
    """NumPy's arrays and SciPy's BLAS."""

    device = "cpu"
    gemm = staticmethod(blas.gemm)
    syrk = staticmethod(blas.syrk)
    trsm = staticmethod(blas.trsm)
    potrf = staticmethod(blas.potrf)
    syevd = staticmethod(blas.syevd)

    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        return buffer(shape, dtype)

    def put(self, array: Array) -> Any:
        return array

    def like(self, out: Array) -> Any:
        return out

    def take(self, found: Any, out: Array) -> Array:
        return out

    def host(self, found: Any) -> Array:
        array: Array = found
        return array

    def feeding(self, memories: Sequence[Array]) -> AbstractContextManager[Feed]:
        return nullcontext(lambda *arrays: arrays)

    def ahead(
        self, factor: "Panels", order: Iterable[int], memories: Sequence[Array | None], *, down_to: int = 0
    ) -> Iterator[tuple[int, Any]]:
        return factor.ahead(order, memories, down_to=down_to)

    def memories(self, factor: "Panels", count: int) -> list[Array | None]:
        return factor.memories(count)

    def keep(self, factor: "Panels", j: int, panel: Any, loaded: Array) -> None:
        factor.save(j, panel)

    def diagonal(self, a: Any) -> Array:
        found: Array = np.diagonal(a).copy()
        return found

    def identity(self, a: Any, first: int) -> None:
        a[:] = 0
        a[np.arange(len(a)), np.arange(first, first + len(a))] = 1

    def multiply(self, a: Any, by: Any, out: Any) -> None:
        np.multiply(a, by, out=out)

    def products(self, a: Any, b: Any, left: Array, right: Array) -> Array:
        result = np.empty(len(left))
        for some in panels(len(left), PAIRS):
            pair = slice(some.start, some.stop)
            result[pair] = np.einsum("ij,ij->j", _columns(a, left[pair]), _columns(b, right[pair]))
        return result


def _columns(a: Array, at: Array) -> Array:
    """Some columns of a matrix: a view where they are neighbours in order."""
    first = int(at[0])
    if at[-1] - first + 1 == len(at) and (np.diff(at) == 1).all():
        return a[:, first : first + len(at)]
    return np.take(a, at, axis=1)


ON_CPU: Arithmetic = OnCPU()
