"""The products of a ridge on a GPU by PyTorch: float32 without TF32, or float64 where the Gram matrix is small.

The Gram matrix lies on the host between steps, as it does without a GPU; a copy of its factor stays on the device for as
long as the factor does. What is streamed (betas, targets) comes through two page-locked memories and two slots on the
device, so that the disk, the bus and the GPU work at the same time.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from leanrecon.memory import buffer
from leanrecon.regression.ridge import blas
from leanrecon.regression.ridge.arithmetic import ON_CPU, Arithmetic, Feed
from leanrecon.regression.ridge.triangle import PAIRS
from leanrecon.stores.matrix import panels
from leanrecon.weights.libraries import exact_inference

if TYPE_CHECKING:
    from leanrecon.regression.ridge.kernel import Panels

Array = np.ndarray[Any, Any]
F = TypeVar("F", bound=Callable[..., Any])


def arithmetic_on(device: str, dtype: Any) -> Arithmetic:
    """The arithmetic of a device for numbers of a type: the CPU's for float64 on Apple's GPUs, which have none."""
    if device == "cpu" or (device == "mps" and np.dtype(dtype) == np.float64):
        return ON_CPU
    return OnMPS(device) if device == "mps" else OnTorch(device)


def _exact(method: F) -> F:
    """Run a method in the one exact arithmetic of PyTorch."""

    @wraps(method)
    def exactly(self: "OnTorch", *args: Any, **options: Any) -> Any:
        with exact_inference(self.device):
            return method(self, *args, **options)

    return exactly  # type: ignore[return-value]


class OnTorch:
    """PyTorch's tensors on a device; every operator runs there."""

    def __init__(self, device: str) -> None:
        self.device = device

    @_exact
    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        import torch

        return torch.zeros(tuple(shape), dtype=_type(dtype), device=self.device)

    @_exact
    def put(self, array: Array) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, copy=True)

    def like(self, out: Array) -> Any:
        return self.zeros(out.shape, out.dtype)

    @_exact
    def take(self, found: Any, out: Array) -> Array:
        import torch

        torch.from_numpy(out).copy_(found)
        return out

    def host(self, found: Any) -> Array:
        return self.take(found, buffer(tuple(found.shape), str(found.dtype).removeprefix("torch.")))

    def feeding(self, memories: Sequence[Array]) -> AbstractContextManager[Feed]:
        return _feeding(self.device, memories)

    def ahead(
        self, factor: "Panels", order: Iterable[int], memories: Sequence[Array | None], *, down_to: int = 0
    ) -> Iterator[tuple[int, Any]]:
        for j in order:
            if j not in factor.on_device:
                (memory,) = factor.memories(1)
                factor.on_device[j] = self.put(factor.load(j, memory))
                del memory
            yield j, factor.on_device[j][max(down_to - factor.columns[j].start, 0) :]

    def memories(self, factor: "Panels", count: int) -> list[Array | None]:
        return [None] * count

    def keep(self, factor: "Panels", j: int, panel: Any, loaded: Array) -> None:
        factor.save(j, self.take(panel, loaded))
        factor.on_device[j] = panel

    @_exact
    def gemm(
        self, a: Any, b: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False, tb: bool = False
    ) -> None:
        c.addmm_(a.mT if ta else a, b.mT if tb else b, beta=beta, alpha=alpha)

    def syrk(self, a: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False) -> None:
        self.gemm(a, a, c, alpha=alpha, beta=beta, ta=ta, tb=not ta)

    @_exact
    def trsm(self, lower: Any, b: Any, *, transpose: bool) -> None:
        import torch

        if b.numel():
            b.copy_(torch.linalg.solve_triangular(lower.mT if transpose else lower, b, upper=transpose, left=False))

    @_exact
    def potrf(self, a: Any) -> int:
        import torch

        factor, bad = torch.linalg.cholesky_ex(a)
        a.copy_(factor)
        return int(bad)

    @_exact
    def syevd(self, square: Array) -> Array:
        import torch

        values, vectors = torch.linalg.eigh(self.put(square))
        self.take(vectors.mT, square)
        return values.cpu().numpy().copy()  # type: ignore[no-any-return]

    def diagonal(self, a: Any) -> Array:
        return self.host(a.diagonal())

    @_exact
    def identity(self, a: Any, first: int) -> None:
        a.zero_()
        a[:, first : first + len(a)].fill_diagonal_(1)

    @_exact
    def multiply(self, a: Any, by: Any, out: Any) -> None:
        import torch

        torch.mul(a, by, out=out)

    @_exact
    def products(self, a: Any, b: Any, left: Array, right: Array) -> Array:
        import torch

        result = np.empty(len(left))
        for some in panels(len(left), PAIRS):
            i, j = (torch.from_numpy(index[some.start : some.stop].copy()).to(self.device) for index in (left, right))
            both = a.index_select(1, i).mul_(b.index_select(1, j))
            result[some.start : some.stop] = both.sum(dim=0).cpu().numpy()
        return result


class OnMPS(OnTorch):
    """Apple's GPUs, for which not every version of PyTorch has factors: those of a panel, and eigenvectors, are the CPU's.

    Nor does every version write products into part of a tensor: they are copied there.
    """

    @_exact
    def gemm(
        self, a: Any, b: Any, c: Any, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False, tb: bool = False
    ) -> None:
        c.copy_(c.contiguous().addmm(a.mT if ta else a, b.mT if tb else b, beta=beta, alpha=alpha))

    def trsm(self, lower: Any, b: Any, *, transpose: bool) -> None:
        if b.numel():
            found = self.host(b)
            blas.trsm(self.host(lower), found, transpose=transpose)
            self._back(found, b)

    def potrf(self, a: Any) -> int:
        found = self.host(a)
        bad = blas.potrf(found)
        self._back(found, a)
        return bad

    def syevd(self, square: Array) -> Array:
        return blas.syevd(square)

    @_exact
    def _back(self, found: Array, to: Any) -> None:
        import torch

        to.copy_(torch.from_numpy(found))


@contextlib.contextmanager
def _feeding(device: str, memories: Sequence[Array]) -> Iterator[Feed]:
    feed = _Feed(device)
    with _page_locked(memories) if feed.overlaps else contextlib.nullcontext():
        yield feed


class _Feed:
    """Two slots on a device, filled in turn."""

    def __init__(self, device: str) -> None:
        import torch

        self.device, self.overlaps = device, device.startswith("cuda")
        self._cuda: Any = torch.cuda
        self._slots: list[Any] = [None, None]
        self._turn = 0
        self._copies = self._cuda.Stream(device) if self.overlaps else None
        self._used: list[Any] = [None, None]

    def __call__(self, *arrays: Array) -> Sequence[Any]:
        """The arrays on the device; when this returns, their memories may be filled again.

        What is asked of an item's slot must be asked before the next call, which marks it; a slot is filled again once
        all that is done.
        """
        with exact_inference(self.device):
            self._mark()
            slots = self._room(sum(array.size for array in arrays), arrays[0].dtype)
            found, offset = [], 0
            for array in arrays:
                found.append(slots[offset : offset + array.size].view(array.shape))
                offset += array.size
            self._copy(arrays, found)
            self._turn = 1 - self._turn
        return found

    def _mark(self) -> None:
        """Note how far the device has to come until the last item is used up."""
        if self._copies is not None:
            event = self._cuda.Event()
            event.record(self._cuda.current_stream(self.device))
            self._used[1 - self._turn] = event

    def _room(self, count: int, dtype: Any) -> Any:
        import torch

        slot = self._slots[self._turn]
        if slot is None or len(slot) < count or slot.dtype != _type(dtype):
            if self._copies is not None:
                self._cuda.synchronize(self.device)  # nothing reads the smaller one any more
            slot = self._slots[self._turn] = torch.empty(count, dtype=_type(dtype), device=self.device)
        return slot

    def _copy(self, arrays: Sequence[Array], found: Sequence[Any]) -> None:
        import torch

        pairs = [(to, torch.from_numpy(array)) for to, array in zip(found, arrays, strict=True)]
        if self._copies is None:
            for to, array in pairs:
                to.copy_(array)
            return
        if (used := self._used[self._turn]) is not None:
            self._copies.wait_event(used)
        with self._cuda.stream(self._copies):
            for to, array in pairs:
                to.copy_(array, non_blocking=True)
            copied = self._cuda.Event()
            copied.record(self._copies)
        self._cuda.current_stream(self.device).wait_event(copied)
        copied.synchronize()


@contextlib.contextmanager
def _page_locked(memories: Sequence[Array]) -> Iterator[None]:
    """Lock the pages of some memories, so that the GPU copies them by itself.

    Where the system allows no more locked pages, copies are slower and the same.
    """
    import torch

    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    locked = [memory for memory in memories if int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)) == 0]
    if len(locked) < len(memories):
        with contextlib.suppress(RuntimeError):  # of the refusal, which the next kernel would take for its own
            torch.zeros(1, device="cuda")
    try:
        yield
    finally:
        cuda.synchronize()
        for memory in locked:
            runtime.cudaHostUnregister(memory.ctypes.data)


def _type(dtype: Any) -> Any:
    import torch

    return getattr(torch, np.dtype(dtype).name)
