"""Gram matrices in panels, their factor and their systems, against SciPy, in memory and on disk."""

import errno
import itertools

import numpy as np
import pytest
import scipy.linalg
import threadpoolctl

from leanrecon.errors import InputError, StoreError
from leanrecon.regression.normalise import Centred, moments
from leanrecon.regression.ridge.hat import gram, hat_matrix
from leanrecon.regression.ridge.kernel import Panels, cholesky, solve
from leanrecon.regression.ridge.triangle import panel_nbytes, pass_groups, triangle_nbytes
from leanrecon.stores.matrix import as_matrix

PRECISIONS = [(np.float32, 1e-5), (np.float64, 1e-13)]


@pytest.fixture
def small(constants):
    """Panels of 64 columns, products over 32."""
    constants(WIDTH=64, DEPTH=32)


def betas_of(n, p, seed=0):
    return np.random.default_rng(seed).standard_normal((n, p)) + 3


def centred(betas):
    matrix = as_matrix(betas)
    return Centred(matrix, moments(matrix), scale=False)


def panels_of(matrix, dtype, directory=None):
    result = Panels(len(matrix), dtype, directory=directory)
    for j, columns in enumerate(result.columns):
        panel = np.ascontiguousarray(matrix[columns.start :, columns.start : columns.stop].astype(dtype))
        result.save(j, panel)
    return result


def square_of(gram_or_factor):
    """The lower triangle in one piece."""
    whole = np.zeros((gram_or_factor.order, gram_or_factor.order), gram_or_factor.dtype)
    memory = gram_or_factor.memories(1)[0]
    for j, columns in enumerate(gram_or_factor.columns):
        whole[columns.start :, columns.start : columns.stop] = gram_or_factor.load(j, memory)
    return np.tril(whole)


# Sizes


def test_the_triangle_of_the_nsd_kernel():
    # 8 full panels of 1024 and one of 667: Σ (8859 − 1024 j) · 1024 + 667², in float32
    assert triangle_nbytes(8859, 4) == 4 * (1024 * (8 * 8859 - 1024 * 28) + 667**2)


@pytest.mark.parametrize("order", [1, 63, 64, 65, 200])
def test_the_triangle_is_the_bytes_of_its_panels(order, small):
    held = panels_of(np.eye(order), np.float32)
    assert triangle_nbytes(order, 4) == sum(held.load(j).nbytes for j in range(len(held.columns)))


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [
        (None, [[0, 1, 2, 3]]),
        (10**9, [[0, 1, 2, 3]]),
        (0, [[0], [1], [2], [3]]),  # one at least
        (51_200 + 34_816, [[0, 1], [2, 3]]),  # 200·64 and 136·64 numbers of 4 bytes, exactly
        (51_200 + 34_815, [[0], [1, 2, 3]]),
    ],
)
def test_as_many_panels_are_formed_in_a_pass_as_fit(nbytes, expected, small):
    assert [panel_nbytes(200, 4, j) for j in range(4)] == [51_200, 34_816, 18_432, 256]
    assert list(pass_groups(200, 4, nbytes)) == expected


# Forming


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("n", "p"), [(150, 333), (150, 150), (333, 150), (40, 1), (1, 7), (2, 65)])
def test_the_smaller_gram_matrix_is_formed(n, p, dtype, tolerance, small):
    betas = betas_of(n, p)
    exact = betas - betas.mean(axis=0)
    expected = exact @ exact.T if n <= p else exact.T @ exact
    formed, cross = gram(centred(betas), dtype)
    assert cross is None
    np.testing.assert_allclose(square_of(formed), np.tril(expected), atol=tolerance * max(n, p))


def test_test_betas_are_multiplied_in_the_same_pass(small):
    betas, test = betas_of(100, 250), betas_of(30, 250, seed=1)
    train = moments(as_matrix(betas))
    x, t = (Centred(as_matrix(a), train, scale=True) for a in (betas, test))
    _, cross = gram(x, np.float64, test=t)
    z, zt = ((a - betas.mean(axis=0)) / betas.std(axis=0, ddof=1) for a in (betas, test))
    np.testing.assert_allclose(cross, zt @ z.T, atol=1e-11)


@pytest.mark.parametrize(("n", "p"), [(300, 500), (500, 300)], ids=["dual", "primal"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("pass_nbytes", "threads"), [(0, 1), (100_000, 2), (10**9, 2)])
def test_the_disk_changes_no_bit_of_kernel_factor_and_hat_matrix(
    n, p, dtype, pass_nbytes, threads, tmp_path, small, request
):
    limit = threadpoolctl.threadpool_limits(threads, "blas")
    request.addfinalizer(limit.restore_original_limits)
    betas, test = betas_of(n, p), centred(betas_of(20, p, seed=1))
    results = []
    for directory in (None, tmp_path):
        train = centred(betas)
        kernel, cross = gram(train, dtype, test=test, directory=directory, pass_nbytes=pass_nbytes)
        assert kernel.on_disk == (directory is not None)
        formed = square_of(kernel)
        cholesky(kernel, 5.0, deflate=n <= p)
        known = hat_matrix(train, test, range(20), kernel, cross=cross)
        results.append([formed, square_of(kernel), known, hat_matrix(train, test, range(3, 9), kernel)])
    for in_memory, on_disk in zip(*results, strict=True):
        assert in_memory.tobytes() == on_disk.tobytes()
    assert list(tmp_path.iterdir()) == []  # the file has no name and vanishes with the process


def test_hat_matrices_predict_a_constant_exactly(small):
    for n, p in ((60, 90), (90, 60)):
        train, test = centred(betas_of(n, p)), centred(betas_of(7, p, seed=1))
        kernel, _ = gram(train, np.float64)
        cholesky(kernel, 1.0, deflate=n <= p)
        hat = hat_matrix(train, test, range(7), kernel)
        np.testing.assert_allclose(hat.sum(axis=1), 1, rtol=1e-13)


# Factor and systems


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("order", [1, 64, 65, 200])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_factor_and_solution_are_scipys(order, dtype, tolerance, on_disk, alpha, tmp_path, small):
    a = np.random.default_rng(order).standard_normal((order, order + 20))
    matrix = a @ a.T + order * np.eye(order)
    rows = np.random.default_rng(1).standard_normal((5, order))
    factor = panels_of(matrix, dtype, tmp_path if on_disk else None)
    cholesky(factor, alpha, deflate=False)
    exact = scipy.linalg.cholesky(matrix + alpha * np.eye(order), lower=True)
    np.testing.assert_allclose(square_of(factor), exact, atol=tolerance * np.abs(exact).max() * 10)
    solved = rows.astype(dtype)
    solve(factor, solved)
    expected = scipy.linalg.cho_solve((exact, True), rows.T).T
    np.testing.assert_allclose(solved, expected, atol=tolerance * np.abs(expected).max() * 10)


def test_deflation_changes_no_solution_orthogonal_to_the_ones(small):
    x = betas_of(100, 300)
    x -= x.mean(axis=0)
    kernel = x @ x.T
    rows = np.random.default_rng(1).standard_normal((5, 300)) @ x.T
    factor = panels_of(kernel, np.float64)
    cholesky(factor, 0.1, deflate=True)
    solved = rows.copy()
    solve(factor, solved)
    np.testing.assert_allclose(solved, np.linalg.solve(kernel + 0.1 * np.eye(100), rows.T).T, rtol=1e-7, atol=1e-11)


def test_without_alpha_the_dual_form_is_the_least_norm_solution():
    x = betas_of(50, 200)
    x -= x.mean(axis=0)
    test = betas_of(4, 200, seed=1) @ x.T
    factor = panels_of(x @ x.T, np.float64)
    cholesky(factor, 0.0, deflate=True)
    solved = test.copy()
    solve(factor, solved)
    np.testing.assert_allclose(solved, test @ np.linalg.pinv(x @ x.T, rcond=1e-12), atol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_singular_matrix_is_refused_with_an_alpha_that_will_do(dtype, small):
    x = betas_of(300, 100)
    x[:, 70] = x[:, 20] - 2 * x[:, 90]  # collinear voxels
    x -= x.mean(axis=0)
    with pytest.raises(InputError, match="alpha = 0 is too small .* singular in float") as refused:
        cholesky(panels_of(x.T @ x, dtype), 0.0, deflate=False)
    alpha = float(refused.value.todo.split()[3])
    assert refused.value.todo == f"raise alpha to {alpha:.1g} or more"
    cholesky(panels_of(x.T @ x, dtype), alpha, deflate=False)


def test_voxels_that_are_left_out_do_not_make_a_matrix_singular(small):
    x = betas_of(300, 100)
    x -= x.mean(axis=0)
    x[:, [0, 70, 99]] = 0
    kept = np.setdiff1d(np.arange(100), [0, 70, 99])
    rows = np.random.default_rng(1).standard_normal((5, 300)) @ x
    factor = panels_of(x.T @ x, np.float64)
    cholesky(factor, 0.0, deflate=False)
    solved = rows.copy()
    solve(factor, solved)
    expected = np.zeros((5, 100))
    expected[:, kept] = np.linalg.solve((x.T @ x)[np.ix_(kept, kept)], rows[:, kept].T).T
    np.testing.assert_allclose(solved, expected, atol=1e-12)


# Disk


def test_panels_are_read_from_any_row_on(tmp_path, small):
    matrix = np.arange(200 * 200, dtype=np.float64).reshape(200, 200)
    for directory in (None, tmp_path):
        held = panels_of(matrix, np.float64, directory)
        (memory,) = held.memories(1)
        for j, skip in itertools.product(range(4), (0, 5)):
            columns = held.columns[j]
            expected = matrix[columns.start + skip :, columns.start : columns.stop]
            np.testing.assert_array_equal(held.load(j, memory, skip=skip), expected)


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere can't be written"):
        Panels(10, np.float32, directory=tmp_path / "nowhere")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    class Full:
        def seek(self, offset):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    held = Panels(10, np.float32, directory=tmp_path)
    monkeypatch.setattr(held, "_file", Full())
    with pytest.raises(StoreError, match="the disk is full"):
        held.save(0, np.zeros((10, 10), np.float32))
