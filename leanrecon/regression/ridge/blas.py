"""The BLAS and LAPACK routines of the ridge, on row-major arrays, without the interpreter's lock.

SciPy's own wrappers hold the lock while they compute, so no thread could read ahead meanwhile, and
they copy every sub-matrix. The same routines are reached here through the function pointers that
SciPy publishes for Cython (``scipy.linalg.cython_blas``), which take any row stride.

All arrays are float32 or float64, two-dimensional, with contiguous rows (``strides[1] == itemsize``).
A row-major matrix is the transpose of what Fortran sees, hence the swapped operands below.
"""

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy
from scipy.linalg import cython_blas, cython_lapack

from leanrecon.errors import LeanreconError
from leanrecon.memory import buffer

Array = np.ndarray[Any, Any]

_PREFIX = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}

_INTEGERS = {
    "int": ctypes.sizeof(ctypes.c_int),
    "int32_t": 4,
    "npy_int32": 4,
    "long": ctypes.sizeof(ctypes.c_long),
    "long long": 8,
    "int64_t": 8,
    "npy_int64": 8,
}
"""Bytes of the integer types that signatures of BLAS and LAPACK routines name."""

_TYPEDEF = "blas_int"
"""The end of the name of SciPy's own integer type, whose width the name does not tell (SciPy 1.18)."""

_BLOCK = 64
"""Columns that LAPACK's blocked routines take at once, at most."""

_REFLECTORS = 65 * _BLOCK
"""Numbers that LAPACK keeps of a block of reflections."""

_REAL = re.compile(r"(float|double|__pyx_t_\w*_[sd])")


@dataclass(frozen=True)
class _Routine:
    """A Fortran routine that takes addresses, and the integers that it reads."""

    call: Any
    integer: np.dtype[Any]


@cache
def _routine(module: Any, name: str) -> _Routine:
    """A routine by its name with prefix, as in ``dgemm``.

    The name of its capsule is its C signature. Raises LeanreconError for a signature that is not understood.
    """
    signature, pointer = _published(module, name)
    count, nbytes = _read_signature(module, name, signature)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * count)(pointer)
    return _Routine(call, np.dtype(f"i{nbytes or _typedef_nbytes()}"))


def _published(module: Any, name: str) -> tuple[str, int]:
    """The C signature of a routine and its address."""
    capsule = module.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    return signature.decode(), api.PyCapsule_GetPointer(capsule, signature)


def _read_signature(module: Any, name: str, signature: str) -> tuple[int, int]:
    """The number of arguments of a routine and the bytes of its integers, 0 where they are SciPy's own type."""
    shape = re.fullmatch(r"void \((.*)\)(?: noexcept)?(?: nogil)?", signature)
    arguments = [] if shape is None else [part.strip() for part in shape[1].split(",")]
    types = {part.removesuffix("*").strip() for part in arguments if part.endswith("*")}
    integers = {kind for kind in types if kind != "char" and not _REAL.fullmatch(kind)}
    widths = {0 if kind.endswith(_TYPEDEF) else _INTEGERS.get(kind) for kind in integers}
    if len(widths) != 1 or None in widths or not all(part.endswith("*") for part in arguments):
        raise LeanreconError(
            f"SciPy {scipy.__version__} publishes {module.__name__}.{name} as {signature!r}",
            expected="a routine that returns nothing and takes addresses of characters, numbers and int or int64_t",
            todo="install another version of SciPy, and report this one as a bug",
        )
    return len(arguments), widths.pop() or 0


@cache
def _typedef_nbytes() -> int:
    """The bytes of SciPy's own integer type, by what ``dscal`` makes of a count whose lower half alone is positive.

    It scales one number where it reads 4 bytes, and none where it reads 8: a negative count does nothing.
    """
    _, pointer = _published(cython_blas, "dscal")
    count, step = (np.array([value], "<i8") for value in (1 - 2**32, 1))
    factor, number = np.array([3.0]), np.array([1.0])
    scal = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(pointer)
    scal(*(a.ctypes.data for a in (count, factor, number, step)))
    return 4 if number[0] == 3.0 else 8


def integer_dtype(module: Any, name: str, dtype: Any) -> np.dtype[Any]:
    """The integers that a routine reads and writes, as in ``integer_dtype(cython_lapack, "potrf", "float32")``."""
    return _routine(module, _PREFIX[np.dtype(dtype)] + name).integer


def _call(module: Any, name: str, dtype: np.dtype[Any], *arguments: Any) -> None:
    """Call a Fortran routine: str, int and float become references, arrays their first element's address."""
    routine = _routine(module, _PREFIX[dtype] + name)
    scalar = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    whole: Any = ctypes.c_int32 if routine.integer.itemsize == 4 else ctypes.c_int64
    kept: list[Any] = []  # keeps the references alive during the call
    addresses: list[int] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            if argument.dtype != dtype and argument.dtype != routine.integer:
                raise TypeError(f"{name}: an array of {argument.dtype} among {dtype}")
            addresses.append(argument.ctypes.data)
            continue
        if isinstance(argument, str):
            value: Any = ctypes.c_char(argument.encode())
        elif isinstance(argument, int):
            _refuse_overflow(name, argument, routine.integer)
            value = whole(argument)
        else:
            value = scalar(argument)
        kept.append(value)
        addresses.append(ctypes.addressof(value))
    routine.call(*addresses)


def _refuse_overflow(name: str, number: int, integer: np.dtype[Any]) -> None:
    if number > np.iinfo(integer).max:
        raise LeanreconError(
            f"{name} would be given {number}, more than an integer of {8 * integer.itemsize} bits holds",
            expected="matrices that this build of SciPy can address",
            todo="use fewer rows or voxels, or a SciPy that is built with 64-bit integers (ILP64)",
        )


def _stride(a: Array) -> int:
    if a.ndim != 2 or (a.size and a.shape[1] > 1 and a.strides[1] != a.itemsize):
        raise TypeError(f"rows must be contiguous; got shape {a.shape}, strides {a.strides}")
    return max(a.strides[0] // a.itemsize if a.shape[0] > 1 else a.shape[1], 1)


def gemm(
    a: Array, b: Array, c: Array, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False, tb: bool = False
) -> None:
    """c ← alpha · op(a) op(b) + beta · c, in place; ``ta`` and ``tb`` transpose."""
    rows, depth = a.shape[::-1] if ta else a.shape
    depth_b, columns = b.shape[::-1] if tb else b.shape
    if depth != depth_b or c.shape != (rows, columns):
        raise ValueError(f"shapes do not fit: {(rows, depth)} by {(depth_b, columns)} into {c.shape}")
    if c.size:
        _call(
            cython_blas, "gemm", c.dtype, "T" if tb else "N", "T" if ta else "N", columns, rows, depth,
            float(alpha), b, _stride(b), a, _stride(a), float(beta), c, _stride(c),
        )  # fmt: skip


def syrk(a: Array, c: Array, *, alpha: float = 1.0, beta: float = 1.0, ta: bool = False) -> None:
    """The lower triangle of c ← alpha · a aᵀ + beta · c (aᵀ a with ``ta``), in place; the upper one is left alone."""
    order, depth = a.shape[::-1] if ta else a.shape
    if c.shape != (order, order):
        raise ValueError(f"{c.shape} cannot hold a product of order {order}")
    if c.size:
        _call(
            cython_blas, "syrk", c.dtype, "U", "N" if ta else "T", order, depth,
            float(alpha), a, _stride(a), float(beta), c, _stride(c),
        )  # fmt: skip


def trmm(lower: Array, b: Array) -> None:
    """b ← b L, in place; ``lower`` holds L in its lower triangle."""
    if b.size:
        _call(
            cython_blas, "trmm", b.dtype, "L", "U", "N", "N", b.shape[1], b.shape[0],
            1.0, lower, _stride(lower), b, _stride(b),
        )  # fmt: skip


def trsm(lower: Array, b: Array, *, transpose: bool) -> None:
    """b ← b L⁻¹, or b L⁻ᵀ with ``transpose``, in place; ``lower`` holds L in its lower triangle."""
    if b.size:
        # Row-major b L⁻ᵀ is Fortran's L⁻¹ bᵀ, and our lower triangle is Fortran's upper one.
        _call(
            cython_blas, "trsm", b.dtype, "L", "U", "T" if transpose else "N", "N", b.shape[1], b.shape[0],
            1.0, lower, _stride(lower), b, _stride(b),
        )  # fmt: skip


def potrf(a: Array) -> int:
    """The Cholesky factor L of a symmetric matrix, over its lower triangle; returns 0, or the first bad row + 1."""
    info = np.zeros(1, integer_dtype(cython_lapack, "potrf", a.dtype))
    _call(cython_lapack, "potrf", a.dtype, "U", a.shape[0], a, _stride(a), info)
    return int(info[0])


def syevd(a: Array) -> Array:
    """The eigenvalues of a symmetric matrix, ascending, from its lower triangle.

    ``a`` is overwritten by the eigenvectors, one a row.
    """
    order = a.shape[0]
    values = np.empty(order, a.dtype)
    work = buffer((1 + 6 * order + 2 * order * order,), a.dtype)
    integer = integer_dtype(cython_lapack, "syevd", a.dtype)
    integers, info = np.empty(3 + 5 * order, integer), np.zeros(1, integer)
    _call(
        cython_lapack, "syevd", a.dtype, "V", "U", order, a, _stride(a), values,
        work, len(work), integers, len(integers), info,
    )  # fmt: skip
    if info[0]:
        raise ArithmeticError(f"LAPACK's syevd failed with info = {int(info[0])}")
    return values


def sytrd(a: Array) -> tuple[Array, Array, Array]:
    """Diagonal, other diagonal and factors τ of Q T Qᵀ = a, tridiagonal T, from the lower triangle of a symmetric matrix.

    ``a`` is overwritten by the reflections that Q is a product of, as ``ormtr`` takes them.
    """
    order = a.shape[0]
    diagonal, other, tau = np.empty(order, a.dtype), np.empty(max(order - 1, 1), a.dtype), np.empty(order, a.dtype)
    work = buffer((max(order, 1) * _BLOCK,), a.dtype)
    info = np.zeros(1, integer_dtype(cython_lapack, "sytrd", a.dtype))
    _call(
        cython_lapack, "sytrd", a.dtype, "U", order, a, _stride(a), diagonal, other, tau, work, len(work), info
    )  # fmt: skip
    return diagonal, other[: order - 1], tau


def ormtr(a: Array, tau: Array, rows: Array) -> None:
    """Each of ``rows`` [m, order] times Q, in place: Qᵀ of each as a vector; ``a`` and ``tau`` come from ``sytrd``."""
    count, order = rows.shape
    if rows.size:
        work = buffer((max(order, count) * _BLOCK + _REFLECTORS,), a.dtype)
        info = np.zeros(1, integer_dtype(cython_lapack, "ormtr", a.dtype))
        _call(
            cython_lapack, "ormtr", a.dtype, "L", "U", "T", order, count, a, _stride(a), tau, rows, _stride(rows),
            work, len(work), info,
        )  # fmt: skip


def ptsv(diagonal: Array, other: Array, rows: Array) -> int:
    """Each of ``rows`` [m, order] over a positive definite tridiagonal matrix, in place; returns 0, or the first bad row + 1.

    ``diagonal`` and ``other`` are overwritten by its factors.
    """
    info = np.zeros(1, integer_dtype(cython_lapack, "ptsv", rows.dtype))
    if rows.size:
        count, order = rows.shape
        below = other if len(other) else np.zeros(1, rows.dtype)
        _call(
            cython_lapack, "ptsv", rows.dtype, order, count, diagonal, below, rows, _stride(rows), info
        )  # fmt: skip
    return int(info[0])
