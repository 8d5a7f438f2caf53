"""The BLAS and LAPACK routines of the ridge, on row-major arrays, without the interpreter's lock.

SciPy's own wrappers hold the lock while they compute, so no thread could read ahead meanwhile, and
they copy every sub-matrix. The same routines are reached here through the function pointers that
SciPy publishes for Cython (``scipy.linalg.cython_blas``), which take any row stride.

All arrays are float32 or float64, two-dimensional, with contiguous rows (``strides[1] == itemsize``).
A row-major matrix is the transpose of what Fortran sees, hence the swapped operands below.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import cython_blas, cython_lapack

from leanrecon.memory import buffer

Array = np.ndarray[Any, Any]

_PREFIX = {np.dtype(np.float32): "s", np.dtype(np.float64): "d"}


@cache
def _routine(module: Any, name: str, n_arguments: int) -> Any:
    capsule = module.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    pointer = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)(pointer)


def _call(module: Any, name: str, dtype: np.dtype[Any], *arguments: Any) -> None:
    """Call a Fortran routine: str, int and float become references, arrays their first element's address."""
    scalar = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    kept: list[Any] = []  # keeps the references alive during the call
    addresses: list[int] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            if argument.dtype != dtype and argument.dtype != np.int32:
                raise TypeError(f"{name}: an array of {argument.dtype} among {dtype}")
            addresses.append(argument.ctypes.data)
            continue
        if isinstance(argument, str):
            value: Any = ctypes.c_char(argument.encode())
        elif isinstance(argument, int):
            value = ctypes.c_int(argument)
        else:
            value = scalar(argument)
        kept.append(value)
        addresses.append(ctypes.addressof(value))
    _routine(module, _PREFIX[dtype] + name, len(addresses))(*addresses)


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
    info = np.zeros(1, np.int32)
    _call(cython_lapack, "potrf", a.dtype, "U", a.shape[0], a, _stride(a), info)
    return int(info[0])


def syevd(a: Array) -> Array:
    """The eigenvalues of a symmetric matrix, ascending, from its lower triangle; ``a`` is overwritten by the
    eigenvectors, one a row.
    """
    order = a.shape[0]
    values = np.empty(order, a.dtype)
    work = buffer((1 + 6 * order + 2 * order * order,), a.dtype)
    integers = np.empty(3 + 5 * order, np.int32)
    info = np.zeros(1, np.int32)
    _call(
        cython_lapack, "syevd", a.dtype, "V", "U", order, a, _stride(a), values,
        work, len(work), integers, len(integers), info,
    )  # fmt: skip
    if info[0]:
        raise ArithmeticError(f"LAPACK's syevd gave up with {int(info[0])}")
    return values
