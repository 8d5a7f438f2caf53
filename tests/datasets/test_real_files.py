"""Sample files that libraries ship, and a few others, are read as their own library reads them, or refused in words."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.datasets.files.nifti import NiftiHeader, NiftiRows
from leanrecon.datasets.files.open import array_keys, open_array
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.errors import InputError

DAMAGED = ("can't be read", "cut short", "behind its array")
"""How sentences on damaged files begin: not to be said of sound ones."""


def folder_of(module: str, *below: str) -> Path:
    library = pytest.importorskip(module)
    folder = Path(library.__file__).parent.joinpath(*below)
    if not folder.is_dir():
        pytest.skip(f"this {module} comes without its sample files")
    return folder


def numbers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim > 0


def arrays_of(path: Path) -> dict[str | None, Any]:
    """Every array that is there: its numbers, or why it was refused."""
    found: dict[str | None, Any] = {}
    for key in array_keys(path):
        try:
            with open_array(str(path) if key is None else f"{path}:{key}") as rows:
                found[key] = rows[0 : len(rows)]
        except InputError as error:
            found[key] = error
    return found


def assert_same(path: Path, found: dict[str | None, Any], truth: dict[str | None, Any]) -> None:
    """Numbers are equal; what holds no numbers is refused, in words that do not call the file damaged."""
    for key, value in found.items():
        if numbers(truth.get(key)):
            assert not isinstance(value, InputError), f"{path}:{key}: {value}"
            np.testing.assert_array_equal(value, truth[key], strict=False)
        elif isinstance(value, InputError):
            assert not any(word in str(value) for word in DAMAGED), f"{path}:{key}: {value}"
        else:
            assert not numbers(value) or value.dtype.kind in "US" or truth.get(key) is None, f"{path}:{key} was read"


DAMAGED_BY_SCIPY = {"bad_miuint32", "corrupted_zlib_checksum", "corrupted_zlib_data", "debigged_m4", "malformed1"}
"""Files that SciPy keeps to see them refused."""


def test_scipys_matlab_files_are_read_as_scipy_reads_them() -> None:
    import scipy.io

    paths = sorted(folder_of("scipy", "io", "matlab", "tests", "data").glob("*.mat"))
    read = refused = 0
    for path in paths:
        try:
            found = arrays_of(path)
            inspect(path)
        except InputError:
            assert path.stem in DAMAGED_BY_SCIPY, path
            refused += 1
            continue
        if path.stem in DAMAGED_BY_SCIPY:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            truth = {}
            for key in found:
                try:
                    truth[key] = scipy.io.loadmat(path, variable_names=[key], spmatrix=True).get(key)
                except (ValueError, NotImplementedError):  # a name beyond ASCII, and version 7.3
                    truth[key] = None
        assert_same(path, found, truth)
        read += 1
    assert read > 90
    assert refused >= 4


@pytest.mark.slow
def test_scipys_arrays_are_read_as_numpy_reads_them() -> None:
    paths = sorted(folder_of("scipy").rglob("*.np[yz]"))
    if not paths:
        pytest.skip("this scipy comes without its sample files")
    for path in paths:
        inspect(path)
        found = arrays_of(path)
        archive = np.load(path)
        plain = [key for key, value in found.items() if "pickled" not in str(value)]
        assert_same(path, found, {key: archive[key] if key else archive for key in plain})


def test_h5pys_files_are_read_as_h5py_reads_them() -> None:
    import h5py

    for path in sorted(folder_of("h5py", "tests", "data_files").glob("*.h5")):
        inspect(path)
        found = arrays_of(path)
        with h5py.File(path) as file:
            truth = {key: file[key][()] for key in found}
        assert_same(path, found, truth)


@pytest.mark.slow
def test_nibabels_files_are_read_as_nibabel_reads_them_or_named_as_other_formats() -> None:
    nibabel = pytest.importorskip("nibabel")
    read = 0
    for path in sorted(file for file in folder_of("nibabel", "tests", "data").iterdir() if file.is_file()):
        try:
            image = nibabel.load(path)
            shape = image.shape
        except Exception:  # its readers of other formats raise anything
            continue
        sound = type(image) in (nibabel.Nifti1Image, nibabel.Nifti2Image)
        if not sound:
            with pytest.raises(InputError, match="of another kind of file"):
                NiftiHeader.read(path)
            continue
        header = NiftiHeader.read(path)
        assert header.shape == shape
        inspect(path)
        rows = NiftiRows(header, np.arange(int(np.prod(header.grid))))
        found = rows[0 : len(rows)]
        rows.release()
        truth = np.asarray(image.dataobj, np.float64).reshape(*header.grid, -1)
        np.testing.assert_array_equal(found, np.moveaxis(truth, -1, 0).reshape(len(rows), -1).astype("f4"))
        read += 1
    assert read >= 7


def test_a_folder_of_other_formats_is_inspected_with_what_is_not_read(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    source = folder_of("nibabel", "tests", "data")
    if not (source / "row_major.dconn.nii").is_file():
        pytest.skip("this nibabel comes without its CIFTI file")
    (tmp_path / "x.dconn.nii").write_bytes((source / "row_major.dconn.nii").read_bytes())
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3, 4), "f4"), np.eye(4)), tmp_path / "betas.nii.gz")
    found = inspect(tmp_path)
    assert found.layout == "nifti"
    assert "of another kind of file (Cifti2)" in found.text()


SHARED = Path(os.environ.get("LEANRECON_SHARED", "/nowhere")) / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason="LEANRECON_SHARED names no folder of real data")
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("miyawaki/V1_mean_figure.mat", {"I2": (100, 80), "R2": (797, 80)}),
        ("odd/string_and_betas_v7.mat", {"betas": (3, 4)}),
    ],
)
def test_files_of_users_are_read(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    import scipy.io

    path = SHARED / name
    found = arrays_of(path)
    assert {key: value.shape for key, value in found.items() if numbers(value)} == shapes
    truth = scipy.io.loadmat(path, variable_names=list(shapes))
    for key in shapes:
        np.testing.assert_array_equal(found[key], truth[key])
    assert all("MATLAB string" in str(value) for key, value in found.items() if key not in shapes)
    text = inspect(path).text()
    assert all(f":{key}" in text for key in shapes)
