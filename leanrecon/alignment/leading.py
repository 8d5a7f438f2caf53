"""The leading eigenvectors of a Gram matrix without all others: block Lanczos (Golub and Underwood 1977)."""

from typing import Any

import numpy as np

from leanrecon.memory import buffer

Array = np.ndarray[Any, Any]

DENSE = 2000
"""Rows up to which LAPACK finds the eigenvectors, which takes seconds."""

BLOCK = 16
"""Vectors that are multiplied with the matrix together: more would need a larger basis."""

PRECISION = 1e-10
"""Largest residual |G·v − λ·v| of what is found, as a share of the largest eigenvalue: G itself is less precise."""

_DOUBLE = 8


def leading_nbytes(rows: int, k: int) -> int:
    """Most bytes of ``leading`` and the matrix, or of its making: two such, and vectors."""
    return (2 * rows * rows + (4 * k + 32 * BLOCK) * rows) * _DOUBLE


def leading(matrix: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` largest eigenvalues of a symmetric matrix [n, n], descending, and their vectors [n, k].

    The matrix may be overwritten. Where eigenvalues lie so close that half of all vectors don't tell them apart, LAPACK
    finds them instead.
    """
    if not _is_small(len(matrix), k) and (found := _lanczos(matrix, k)) is not None:
        return found
    return _dense(matrix, k)


def _dense(matrix: Array, k: int) -> tuple[Array, Array]:
    """The same by LAPACK, in the memory of the matrix."""
    from scipy.linalg import eigh

    n = len(matrix)  # its transpose has the order that LAPACK works in
    values, vectors = eigh(matrix.T, subset_by_index=(n - k, n - 1), overwrite_a=True, check_finite=False)
    return values[::-1], vectors[:, ::-1]


def _is_small(rows: int, k: int) -> bool:
    return rows <= DENSE or 3 * k > rows


def _most(rows: int) -> int:
    """Vectors of the basis at most: half of all, in whole blocks."""
    return rows // 2 // BLOCK * BLOCK


def _lanczos(matrix: Array, k: int) -> tuple[Array, Array] | None:
    """What ``leading`` says; None where the basis does not reach ``PRECISION``."""
    n, most = len(matrix), _most(len(matrix))
    basis, inner = buffer((most, n), np.float64), buffer((most, most), np.float64)
    block = np.linalg.qr(np.random.default_rng(0).standard_normal((n, BLOCK)))[0].T
    used, tried = 0, -(-2 * k // BLOCK) * BLOCK
    while used < most:
        basis[used : used + BLOCK] = block
        known, new = basis[: used + BLOCK], block @ matrix
        used += BLOCK
        inner[used - BLOCK : used, :used] = part = new @ known.T
        new -= part @ known
        block, rest = np.linalg.qr(new.T)
        block -= known.T @ (known @ block)  # again, since rounding errors may be all that is left
        block, again = np.linalg.qr(block)
        block, rest = block.T, again @ rest
        if used >= tried or used == most:
            values, vectors = _dense(np.triu(inner[:used, :used].T), k)
            if np.linalg.norm(rest @ vectors[-BLOCK:], axis=0).max() <= PRECISION * values[0]:
                return values, known.T @ vectors
            tried = used + used // 4 // BLOCK * BLOCK + BLOCK
    return None
