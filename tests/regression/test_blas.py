"""The BLAS routines against NumPy and SciPy, on matrices and on parts of larger ones."""

import ctypes
import threading
import types

import numpy as np
import pytest
import scipy.linalg

from leanrecon.errors import LeanreconError
from leanrecon.regression.ridge import blas

PRECISIONS = [(np.float32, 2e-5), (np.float64, 1e-13)]


@pytest.fixture
def draw():
    """Random matrices whose rows lie apart in memory, as those of a part of a larger matrix do."""
    rng = np.random.default_rng(0)

    def matrix(rows, columns, dtype, *, apart=5):
        return rng.standard_normal((rows + 3, columns + apart)).astype(dtype)[2 : rows + 2, 1 : columns + 1]

    return matrix


def positive(a):
    return a @ a.T + len(a) * np.eye(len(a), dtype=a.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (-1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(37, 53, 29), (1, 53, 29), (37, 1, 29), (37, 53, 1), (1, 1, 1)])
def test_a_product_is_added_in_place(draw, dtype, tolerance, ta, tb, alpha, beta, rows, depth, columns):
    a = draw(depth, rows, dtype) if ta else draw(rows, depth, dtype)
    b = draw(columns, depth, dtype) if tb else draw(depth, columns, dtype)
    c = draw(rows, columns, dtype)
    exact = [m.astype(np.float64) for m in (a.T if ta else a, b.T if tb else b, c)]
    expected = alpha * exact[0] @ exact[1] + beta * exact[2]
    blas.gemm(a, b, c, alpha=alpha, beta=beta, ta=ta, tb=tb)
    np.testing.assert_allclose(c, expected, atol=tolerance * np.sqrt(depth))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_written_beside_the_product(dtype):
    whole = np.full((20, 20), 7, dtype)
    blas.gemm(np.ones((4, 3), dtype), np.ones((3, 5), dtype), whole[2:6, 10:15], beta=0)
    expected = np.full((20, 20), 7, dtype)
    expected[2:6, 10:15] = 3
    np.testing.assert_array_equal(whole, expected)


def test_what_was_there_is_not_read_where_it_is_replaced():
    c = np.full((2, 2), np.nan)
    blas.gemm(np.ones((2, 3)), np.ones((3, 2)), c, beta=0)
    np.testing.assert_array_equal(c, np.full((2, 2), 3.0))


def test_products_of_nothing():
    c = np.ones((3, 4))
    blas.gemm(np.empty((3, 0)), np.empty((0, 4)), c)
    np.testing.assert_array_equal(c, np.ones((3, 4)))
    blas.gemm(np.empty((0, 5)), np.ones((5, 4)), np.empty((0, 4)))
    blas.trsm(np.eye(3), np.empty((0, 3)), transpose=True)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("ta", [False, True])
def test_the_upper_triangle_of_a_symmetric_product_is_left_alone(draw, dtype, tolerance, ta):
    a, c = draw(41, 41, dtype)[:, :17], draw(41, 41, dtype)
    a = np.ascontiguousarray(a.T) if ta else a
    before = c.astype(np.float64)
    exact = (a.T if ta else a).astype(np.float64)
    blas.syrk(a, c, alpha=-1, beta=2, ta=ta)
    lower = np.tri(41, dtype=bool)
    np.testing.assert_allclose(c[lower], (2 * before - exact @ exact.T)[lower], atol=20 * tolerance)
    np.testing.assert_array_equal(c[~lower], before[~lower].astype(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_cholesky_and_its_triangular_systems(draw, dtype, tolerance):
    matrix, rows = positive(draw(33, 33, dtype)), draw(8, 33, dtype)
    factor = np.triu(np.full((33, 33), np.nan, dtype), 1) + np.tril(matrix)  # the upper triangle is not looked at
    assert blas.potrf(factor) == 0
    exact = scipy.linalg.cholesky(matrix.astype(np.float64), lower=True)
    np.testing.assert_allclose(np.tril(factor), exact, atol=50 * tolerance)
    for transpose, expected in (
        (True, scipy.linalg.solve_triangular(exact, rows.T.astype(np.float64), lower=True).T),  # b L⁻ᵀ
        (False, scipy.linalg.solve_triangular(exact.T, rows.T.astype(np.float64), lower=False).T),  # b L⁻¹
    ):
        solved = rows.copy()
        blas.trsm(factor, solved, transpose=transpose)
        np.testing.assert_allclose(solved, expected, atol=50 * tolerance)


def test_cholesky_names_the_row_at_which_a_matrix_is_not_positive():
    matrix = np.diag([4.0, 1.0, -1.0, 2.0])
    assert blas.potrf(matrix) == 3


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_eigenvectors_are_rows(draw, dtype, tolerance):
    matrix = positive(draw(30, 30, dtype))
    vectors = np.triu(np.full((30, 30), np.nan, dtype), 1) + np.tril(matrix)
    values = blas.syevd(vectors)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix.astype(np.float64)), rtol=20 * tolerance)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(30), atol=20 * tolerance)
    np.testing.assert_allclose(vectors.T @ (values[:, None] * vectors), matrix, rtol=1e-3, atol=500 * tolerance)


@pytest.mark.parametrize(
    ("a", "b", "c", "error"),
    [
        (np.ones((3, 4)), np.ones((5, 2)), np.ones((3, 2)), ValueError),  # depths that differ
        (np.ones((3, 4)), np.ones((4, 2)), np.ones((3, 3)), ValueError),  # no room for the product
        (np.ones((3, 8))[:, ::2], np.ones((4, 2)), np.ones((3, 2)), TypeError),  # rows with gaps
        (np.ones((3, 4), np.float32), np.ones((4, 2)), np.ones((3, 2)), TypeError),
        (np.ones((3, 4)), np.ones((4, 2)), np.ones((2, 3)).T, TypeError),
    ],
)
def test_what_blas_would_misread_is_refused(a, b, c, error):
    with pytest.raises(error):
        blas.gemm(a, b, c)


def test_a_product_lets_other_threads_run():
    a = np.ones((1600, 1600))
    c = np.empty_like(a)
    turns = 0
    done = threading.Event()

    def count():
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = turns
    blas.gemm(a, a, c, beta=0)
    during = turns - before
    done.set()
    thread.join()
    assert during >= 5  # the product takes 50 ms or more


# The width of LAPACK's integers

REAL = "__pyx_t_5scipy_6linalg_13cython_lapack_d *"
CAPSULE = {
    32: f"void (char *, int *, {REAL}, int *, int *)",
    64: f"void (char *, int64_t *, {REAL}, int64_t *, int64_t *)",
}
"""The signature of ``dpotrf`` in builds with 32-bit integers (SciPy 1.17's own) and with 64-bit integers."""


def stub(signature, routine, n_arguments):
    """A module whose ``dpotrf`` is a Python function of addresses, published as SciPy publishes its own."""
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)(routine)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = signature.encode()
    capsule = new(ctypes.cast(function, ctypes.c_void_p), name, None)
    return types.SimpleNamespace(__name__="stub", __pyx_capi__={"dpotrf": capsule}, kept=(function, name))


class Module(types.SimpleNamespace):
    __hash__ = object.__hash__


@pytest.mark.parametrize("bits", [32, 64])
def test_integers_have_the_width_that_the_signature_names(monkeypatch, bits):
    whole = np.dtype(f"i{bits // 8}")
    seen = []

    def potrf(uplo, order, matrix, stride, info):
        read = ctypes.c_int32 if bits == 32 else ctypes.c_int64
        seen.extend([ctypes.c_char.from_address(uplo).value, read.from_address(order).value])
        seen.extend([ctypes.c_double.from_address(matrix).value, read.from_address(stride).value])
        read.from_address(info).value = 2 ** (bits - 2) + 1  # all bytes of the integer come back

    module = Module(**vars(stub(CAPSULE[bits], potrf, 5)))
    monkeypatch.setattr(blas, "cython_lapack", module)
    assert blas.integer_dtype(module, "potrf", np.float64) == whole
    assert blas.potrf(np.full((3, 7), 5.0)[:, :3]) == 2 ** (bits - 2) + 1
    assert seen == [b"U", 3, 5.0, 7]


def test_this_scipy_is_read_as_its_build_says():
    assert blas.integer_dtype(blas.cython_lapack, "syevd", np.float32).itemsize in (4, 8)
    assert blas._typedef_nbytes() == blas.integer_dtype(blas.cython_blas, "gemm", np.float64).itemsize


def test_an_integer_type_of_scipys_own_is_measured():
    own = CAPSULE[32].replace("int *", "__pyx_t_5scipy_6linalg_13cython_lapack_blas_int *")
    module = Module(**vars(stub(own, lambda *_: None, 5)))
    assert blas.integer_dtype(module, "potrf", np.float64).itemsize == blas._typedef_nbytes()


@pytest.mark.parametrize(
    "signature",
    [
        CAPSULE[32].replace("int *", "short *"),
        CAPSULE[32].replace("int *", "int64_t *", 1),  # both widths
        CAPSULE[32].replace("void", "int"),
        f"void (char *, int, {REAL}, int *, int *)",  # by value
        f"void (char *, {REAL})",  # no integer
        "potrf",
    ],
)
def test_a_signature_that_is_not_understood_is_refused_by_name(signature):
    module = Module(**vars(stub(signature, lambda *_: None, 5)))
    with pytest.raises(LeanreconError) as refused:
        blas.integer_dtype(module, "potrf", np.float64)
    assert f"SciPy {scipy.__version__} publishes stub.dpotrf as {signature!r}" in str(refused.value)


def test_an_integer_that_would_overflow_is_refused():
    with pytest.raises(LeanreconError, match="4294967296, more than an integer of 32 bits holds"):
        blas._refuse_overflow("syevd", 2**32, np.dtype(np.int32))
    blas._refuse_overflow("syevd", 2**32, np.dtype(np.int64))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("rows", "order"), [(7, 33), (1, 90), (5, 1), (0, 4)])
def test_rows_times_a_lower_triangle(draw, dtype, tolerance, rows, order):
    lower, b = draw(order, order, dtype), draw(rows, order, dtype)
    expected = b.astype(np.float64) @ np.tril(lower.astype(np.float64))
    blas.trmm(lower, b)
    np.testing.assert_allclose(b, expected, atol=10 * tolerance * np.sqrt(order))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("order", [1, 2, 33, 90])
def test_a_tridiagonal_form_has_the_eigenvalues_of_the_matrix_and_turns_rows_into_it(draw, dtype, tolerance, order):
    matrix = positive(draw(order, order, dtype)).astype(dtype)
    exact = matrix.astype(np.float64)
    square = np.tril(matrix)  # the upper triangle is not read
    diagonal, other, tau = blas.sytrd(square)
    whole = np.diag(diagonal.astype(np.float64)) + np.diag(other, 1) + np.diag(other, -1)
    scale = np.linalg.norm(exact, 2)
    np.testing.assert_allclose(np.linalg.eigvalsh(whole), np.linalg.eigvalsh(exact), atol=20 * tolerance * scale)
    turned = np.eye(order, dtype=dtype)
    blas.ormtr(square, tau, turned)
    np.testing.assert_allclose(turned @ whole @ turned.T, exact, atol=40 * tolerance * scale)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("order", [1, 2, 33])
def test_rows_over_a_tridiagonal_matrix(draw, dtype, tolerance, order):
    diagonal, other, b = np.arange(3, order + 3, dtype=dtype), np.full(order - 1, -1, dtype), draw(4, order, dtype)
    whole = np.diag(diagonal.astype(np.float64)) + np.diag(other, 1) + np.diag(other, -1)
    expected = np.linalg.solve(whole, b.T.astype(np.float64)).T
    assert blas.ptsv(diagonal, other, b) == 0
    np.testing.assert_allclose(b, expected, atol=4 * tolerance)


def test_a_tridiagonal_matrix_that_is_not_positive_is_told():
    assert blas.ptsv(np.array([1.0, 0.5, 1.0]), np.array([1.0, 0.0]), np.ones((2, 3))) == 2
