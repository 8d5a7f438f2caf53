"""A Gram matrix as G = Q·B·Q' with an orthogonal Q and a band B: what a ridge of any penalty needs of it.

Eigenvectors say the same. But their way leads through a tridiagonal matrix, half of it at the speed of memory. A band is
reached by products of matrices alone (Bischof, Lang and Sun 2000, "A framework for symmetric band reduction").
"""

from typing import Any

import numpy as np

from leanrecon.memory import buffer

Array = np.ndarray[Any, Any]

BAND = 64
"""Rows of a block: B has a diagonal of such blocks and one below it."""

ROWS = 512
"""Rows of G that are updated together."""

_DOUBLE = 8


def banded_nbytes(rows: int) -> int:
    """Most bytes of a ``Banded`` and its making: G, whose memory holds the reflections, Q, and panels beside them."""
    return 2 * rows * rows * _DOUBLE + (2 * min(rows, ROWS) + 8 * BAND) * rows * _DOUBLE


class Banded:
    """A symmetric matrix [n, n] as Q·B·Q'; the matrix that is given is overwritten."""

    def __init__(self, matrix: Array) -> None:
        self.diagonal: list[Array] = []
        """Blocks of B on the diagonal, [BAND, BAND]."""
        self.below: list[Array] = []
        """The blocks below them."""
        n = len(matrix)
        halves = []
        for start in range(0, n - BAND, BAND):
            stop = start + BAND
            self.diagonal.append(_symmetric(matrix[start:stop, start:stop]))
            reflections, half, rest = _reflections(matrix[stop:, start:stop])
            self.below.append(rest[:BAND])
            matrix[stop:, start:stop] = 0
            matrix[stop:, start : start + reflections.shape[1]] = reflections
            halves.append(half)
            _reflect_both(matrix[stop:, stop:], reflections, half)
        last = len(self.diagonal) * BAND
        self.diagonal.append(_symmetric(matrix[last:, last:]))
        self.turn = _turn(matrix, halves)
        """Q', float64 [n, n]."""

    def solve(self, alpha: float, turned: Array) -> tuple[Array, Array]:
        """(G + αI)⁻¹·Y [n, k] from ``turned`` = Q'·Y, and the diagonal of (G + αI)⁻¹ [n]."""
        n = len(turned)
        solved, diagonal = np.empty(turned.shape), np.zeros(n)
        factors = []
        previous: tuple[Array, Array, Array] | None = None
        for i, block in enumerate(self.diagonal):
            rows = slice(i * BAND, i * BAND + len(block))
            shifted, own, all_rows = block + alpha * np.eye(len(block)), turned[rows], self.turn[rows]
            down = np.zeros((len(block), 0))
            if previous is not None:
                inverse, before, all_before = previous
                down = self.below[i - 1] @ inverse.T
                shifted -= down @ down.T
                own, all_rows = own - down @ before, all_rows - down @ all_before
            inverse = np.linalg.inv(np.linalg.cholesky(shifted))
            solved[rows], all_rows = inverse @ own, inverse @ all_rows
            diagonal += np.einsum("ij,ij->j", all_rows, all_rows)
            previous = inverse, solved[rows], all_rows
            factors.append((rows, inverse, down))
        after: tuple[slice, Array] | None = None
        for rows, inverse, down in reversed(factors):
            if after is not None:
                solved[rows] -= after[1].T @ solved[after[0]]
            solved[rows] = inverse.T @ solved[rows]
            after = rows, down
        return self.turn.T @ solved, diagonal


def _symmetric(block: Array) -> Array:
    lower = np.tril(block)
    return lower + np.tril(block, -1).T


def _reflections(panel: Array) -> tuple[Array, Array, Array]:
    """V [m, r], T [r, r] and R of a panel [m, BAND] = (I − V·T·V')·R, V being unit lower triangular."""
    from scipy.linalg import qr

    (packed, shares), rest = qr(panel, mode="raw", check_finite=False)
    r = len(shares)
    vectors = np.tril(packed[:, :r], -1)
    vectors[np.arange(r), np.arange(r)] = 1
    inner, half = vectors.T @ vectors, np.zeros((r, r))
    for i, share in enumerate(shares):
        half[:i, i] = -share * (half[:i, :i] @ inner[:i, i])
        half[i, i] = share
    return vectors, half, rest


def _reflect_both(matrix: Array, vectors: Array, half: Array) -> None:
    """H'·M·H in place with H = I − V·T·V', of the lower half of a symmetric M, whose upper half is not looked at."""
    given = vectors @ half
    through = np.zeros(given.shape)
    for rows in _panels(len(matrix)):
        left = matrix[rows, : rows.start]
        through[: rows.start] += left.T @ given[rows]
        corner = _symmetric(matrix[rows, rows])
        through[rows] += left @ given[: rows.start] + corner @ given[rows]
    through -= vectors @ (0.5 * (half.T @ (vectors.T @ through)))
    left, right = np.hstack([through, vectors]), np.hstack([vectors, through])
    for rows in _panels(len(matrix)):
        matrix[rows, : rows.stop] -= left[rows] @ right[: rows.stop].T


def _turn(matrix: Array, halves: list[Array]) -> Array:
    """Q' from the reflections that lie below the blocks of ``matrix``."""
    n = len(matrix)
    turn = buffer((n, n), np.float64)
    np.fill_diagonal(turn, 1)
    for i, half in reversed(list(enumerate(halves))):
        stop = (i + 1) * BAND
        vectors = matrix[stop:, i * BAND :][:, : len(half)]
        given = vectors @ half
        for rows in _panels(n - stop):
            part = turn[stop:, stop:][rows]
            part -= (part @ vectors) @ given.T
    return turn


def _panels(rows: int) -> list[slice]:
    return [slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS)]
