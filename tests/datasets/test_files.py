import itertools
import json
import os
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanrecon.datasets.files import rows as rows_module
from leanrecon.datasets.files.captions import read_captions
from leanrecon.datasets.files.hdf5 import H5Rows
from leanrecon.datasets.files.open import locate, open_array
from leanrecon.datasets.files.rows import NpyRows, Pooled, block_shape, row_blocks
from leanrecon.errors import InputError
from leanrecon.memory import PeakMemory, process_memory

FORMATS = [
    "npy",
    "npy fortran",
    "npz",
    "npz compressed fortran",
    "mat 5",
    "mat 7.3",
    "mat 7.3 chunked",
    "h5",
    "h5 gzip",
]


def save_matlab_73(path: Path, arrays: dict[str, np.ndarray], **how: object) -> None:
    """A file as MATLAB's `save -v7.3` lays it out: a text header, then HDF5 with reversed dimensions."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for key, array in arrays.items():
            data = array.T.astype(np.uint8) if array.dtype == bool else array.T
            dataset = file.create_dataset(key, data=data, **how)
            names = {"f8": "double", "f4": "single", "b1": "logical", "u1": "uint8", "i2": "int16"}
            dataset.attrs["MATLAB_class"] = np.bytes_(names[array.dtype.str[1:]])
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128, b" "))


def save(folder: Path, kind: str, array: np.ndarray) -> str:
    """Write an array in one of the formats; returns how to name it."""
    if kind.startswith("npy"):
        np.save(folder / "x.npy", np.asfortranarray(array) if "fortran" in kind else array)
        return str(folder / "x.npy")
    if kind.startswith("npz"):
        write = np.savez_compressed if "compressed" in kind else np.savez
        write(folder / "x.npz", other=np.zeros(3), x=np.asfortranarray(array) if "fortran" in kind else array)
        return f"{folder / 'x.npz'}:x"
    if kind == "mat 5":
        scipy.io.savemat(folder / "x.mat", {"other": np.zeros(3), "x": array}, do_compression=True)
        return f"{folder / 'x.mat'}:x"
    if kind.startswith("mat 7.3"):
        chunks = {"chunks": tuple(min(n, 3) for n in array.T.shape), "compression": 4} if "chunked" in kind else {}
        save_matlab_73(folder / "x.mat", {"x": array}, **chunks)
        return f"{folder / 'x.mat'}:x"
    with h5py.File(folder / "x.h5", "w") as file:
        chunks = {"chunks": tuple(min(n, 3) for n in array.shape), "compression": 4} if "gzip" in kind else {}
        file.create_dataset("group/x", data=array, **chunks)
    return f"{folder / 'x.h5'}:group/x"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(11, 7), (11, 7, 5), (11, 7, 5, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_any_rows_of_every_format_equal_numpy(tmp_path, monkeypatch, kind, shape, dtype):
    array = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    spec = save(tmp_path, kind, array)
    for block, near in [(4 * 2**20, 16 * 1024), (200, 0), (1, 0)]:  # all at once, a few numbers at a time, one by one
        monkeypatch.setattr(rows_module, "BLOCK", block)
        monkeypatch.setattr(rows_module, "_NEAR_COLUMNS", near)
        with open_array(spec) as rows:
            assert rows.shape == shape
            assert rows.dtype == dtype
            assert len(rows) == 11
            for a, b in [(0, 11), (3, 5), (10, 11), (4, 4), (0, 2)]:
                np.testing.assert_array_equal(rows[a:b], array[a:b], strict=True)
            for index in ([0, 2, 9], [5], list(range(11)), [1, 2, 3, 7, 8, 10]):
                out = np.zeros((len(index), *shape[1:]), dtype)
                rows.read(np.array(index), out)
                np.testing.assert_array_equal(out, array[index])


@given(
    st.lists(st.integers(0, 40), unique=True, max_size=30).map(sorted),
    st.integers(1, 50),
    st.none() | st.integers(0, 5),
)
def test_row_blocks_take_each_row_once_within_the_span_allowed(index, most, gap):
    index = np.array(index, np.int64)
    seen = []
    for rows, first, last, picks in row_blocks(index, most, gap):
        assert last - first <= most
        if gap is not None:
            assert (np.diff(index[rows]) <= gap + 1).all()
        np.testing.assert_array_equal(np.arange(first, last)[picks], index[rows])
        seen += range(rows.start, rows.stop)
    assert seen == list(range(len(index)))


@pytest.mark.parametrize(
    ("span", "shape", "itemsize", "chunks", "by_columns", "expected"),
    [
        (10, (100, 50), 8, None, False, (10, 50)),  # small: all of it
        (10_000, (10_000, 1024), 8, None, False, (512, 1024)),  # contiguous rows: 4 MiB / 8 KiB
        (10_000, (10_000, 1024), 8, None, True, (10_000, 52)),  # contiguous columns: 4 MiB / 80 kB
        (1024, (9000, 15000), 8, (100, 100), True, (1024, 500)),  # 512 columns, down to whole chunks
        (10_000, (10_000, 15000), 4, (10_000, 1000), False, (10_000, 1000)),  # at least one chunk
        (10_000, (10_000, 15000), 4, (100, 10_000), False, (100, 10_000)),  # and no more rows than it has
        (8, (8, 425, 425, 3), 1, (1, 425, 425, 3), False, (7, 425)),  # 7 images of 542 kB
    ],
)
def test_hdf5_is_read_in_whole_chunks_of_about_four_megabytes(span, shape, itemsize, chunks, by_columns, expected):
    assert block_shape(span, shape, itemsize, chunks, by_columns=by_columns) == expected


def sparse_npy(path: Path, shape: tuple[int, ...], *, fortran: bool) -> None:
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": fortran, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)) * 4)


@pytest.mark.alone
@pytest.mark.parametrize("fortran", [False, True])
def test_a_300_mb_npy_is_never_held_whole(tmp_path, fortran):
    sparse_npy(tmp_path / "big.npy", (5000, 15_000), fortran=fortran)
    with open_array(str(tmp_path / "big.npy")) as rows:
        base = process_memory()
        with PeakMemory() as memory:
            for start in range(0, 5000, 500):
                rows[start : start + 200]
    assert memory.peak - base < 60e6
    assert rows.scratch + 200 * rows.row_nbytes < 60e6


@pytest.mark.alone
def test_a_hdf5_of_matlab_is_never_held_whole(tmp_path):
    with h5py.File(tmp_path / "big.mat", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # room in the file without a byte on disk
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((15_000, 5000))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plist)
    with open_array(str(tmp_path / "big.mat")) as rows:
        assert rows.shape == (5000, 15_000)
        base = process_memory()
        with PeakMemory() as memory:
            rows[1000:1200]
    assert memory.peak - base < 60e6


def test_numbers_of_the_other_byte_order_are_read_right(tmp_path):
    array = np.arange(12, dtype=">i2").reshape(4, 3)
    np.save(tmp_path / "x.npy", array)
    with open_array(str(tmp_path / "x.npy")) as rows:
        np.testing.assert_array_equal(rows[1:3], array[1:3])


def test_matlab_5_doubles_stored_as_bytes_and_logicals_keep_their_class(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"mask": np.array([[True], [False], [True]])})
    with open_array(str(tmp_path / "x.mat")) as rows:
        assert rows.dtype == bool
        np.testing.assert_array_equal(rows[:], [[True], [False], [True]])
        assert rows.held == 0
        rows.release()
        np.testing.assert_array_equal(rows[:], [[True], [False], [True]])


def test_matlab_73_logicals_are_bools(tmp_path):
    save_matlab_73(tmp_path / "x.mat", {"mask": np.array([[True, False, True]])})
    with open_array(str(tmp_path / "x.mat")) as rows:
        assert rows.dtype == bool
        np.testing.assert_array_equal(rows[:], [[True, False, True]])


def test_pooled_rows_follow_one_another(tmp_path):
    a, b = np.arange(12.0).reshape(4, 3), 100 + np.arange(9).reshape(3, 3)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    with open_array(str(tmp_path / "a.npy")) as first, open_array(str(tmp_path / "b.npy")) as second:
        pooled = Pooled([first, second])
        both = np.concatenate([a, b])
        for x, y in itertools.combinations(range(8), 2):
            np.testing.assert_array_equal(pooled[x:y], both[x:y])
        assert pooled.locate(3) == f"row 3 of {tmp_path / 'a.npy'}"
        assert pooled.locate(4) == f"row 0 of {tmp_path / 'b.npy'}"


# Naming files and keys


@pytest.mark.parametrize(
    ("spec", "file", "key"),
    [
        ("data.h5", "data.h5", None),
        ("data.h5:a", "data.h5", "a"),
        ("data.h5:a:b", "data.h5", "a:b"),
        ("odd:name.npy", "odd:name.npy", None),
        ("odd:data.h5:a", "odd:data.h5", "a"),
        (":a", "default.h5", "a"),
    ],
)
def test_a_colon_parts_file_and_key_only_where_the_left_is_a_file(tmp_path, monkeypatch, spec, file, key):
    for name in ("data.h5", "default.h5", "odd:name.npy", "odd:data.h5"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert locate(spec, "default.h5", None) == (Path(file), key)


def test_relative_paths_start_here_and_then_at_the_settings_folder(tmp_path, monkeypatch):
    here, settings_folder = tmp_path / "here", tmp_path / "settings"
    for folder in (here, settings_folder):
        folder.mkdir()
        (folder / "both.npy").touch()
    (settings_folder / "only.npy").touch()
    monkeypatch.chdir(here)
    assert locate("both.npy", None, settings_folder)[0].resolve() == (here / "both.npy").resolve()
    assert locate("only.npy:k", None, settings_folder) == (settings_folder / "only.npy", "k")


def test_captions_that_were_not_fetched_are_named_with_the_command_that_does(tmp_path):
    with pytest.raises(InputError, match="Download them with `leanrecon fetch-weights RECIPE_OR_FILE`"):
        locate("COCO_73k_annots_curated.npy", None, tmp_path)


@pytest.mark.parametrize("spec", ["https://host/x.h5:/a", "file:///x.npy", "ftp://host/x.npz:betas"])
def test_an_array_at_a_url_of_no_bucket_is_to_be_downloaded(spec: str) -> None:
    with pytest.raises(InputError, match=r"\w+://\S+ is a URL.*in a bucket \(s3://.*Download it"):
        open_array(spec)


@pytest.mark.parametrize("spec", ["S3://bucket/x.h5:a", "gcs://bucket/x.npy", "abfs://bucket/x.npy"])
def test_an_array_in_a_bucket_by_another_scheme_is_told_how_to_write_it(spec: str) -> None:
    with pytest.raises(InputError, match=r"is a URL that can't be read from.*Write it as (s3|gs|az)://bucket/x"):
        open_array(spec)


@pytest.mark.parametrize("spec", ["bteas.npy", "bteas.npy:key", r"C:\bteas.npy"])
def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path, monkeypatch, spec):
    (tmp_path / "betas.npy").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no file") as error:
        open_array(spec)
    assert "betas.npy" in str(error.value)


def test_a_key_without_a_file_says_so():
    with pytest.raises(InputError, match="a key without a file"):
        open_array(":betas")


@pytest.mark.parametrize("kind", ["npz", "mat 5", "mat 7.3", "h5"])
def test_a_missing_key_lists_those_there_with_shapes_and_the_nearest(tmp_path, kind):
    array = np.zeros((4, 5))
    path = tmp_path / {"npz": "x.npz", "h5": "x.h5"}.get(kind, "x.mat")
    keys = {"fmriTrn": array, "fmriTest": array[:2]}
    if kind == "npz":
        np.savez(path, **keys)
    elif kind == "mat 5":
        scipy.io.savemat(path, keys)
    elif kind == "mat 7.3":
        save_matlab_73(path, keys)
    else:
        with h5py.File(path, "w") as file:
            for key, value in keys.items():
                file[key] = value
    with pytest.raises(InputError) as error:
        open_array(f"{path}:fmriTrain")
    for words in ("no array 'fmriTrain'", "fmriTrn 4x5", "fmriTest 2x5", 'Perhaps "fmri'):
        assert words in str(error.value)
    with pytest.raises(InputError, match="no key was given"):
        open_array(str(path))


def test_the_only_array_of_a_file_needs_no_key(tmp_path):
    np.savez(tmp_path / "x.npz", betas=np.ones((2, 3)))
    with open_array(str(tmp_path / "x.npz")) as rows:
        assert rows.key == "betas"


def test_an_npy_file_takes_no_key(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(InputError, match="holds one array"):
        open_array(f"{tmp_path / 'x.npy'}:k")


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "x.nii").touch()
    with pytest.raises(InputError, match="unknown kind"):
        open_array(str(tmp_path / "x.nii"))


# Damage


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_pickled_objects_are_refused_without_being_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    bombs = np.array([Bomb(), Bomb()], object)
    np.save(name, bombs, allow_pickle=True) if name == "x.npy" else np.savez(name, x=bombs)
    with pytest.raises(InputError, match="pickled Python objects"):
        open_array(name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_is_an_input_error(tmp_path, kind):
    spec = save(tmp_path, kind, np.random.default_rng(0).normal(size=(40, 30)))
    path, _ = locate(spec, None, None)
    whole = path.read_bytes()
    for size in (0, 5, 60, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="x\\.") as error, open_array(spec) as rows:
            rows[:]
        assert str(path) in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(position=st.floats(0, 1), value=st.integers(0, 255), name=st.sampled_from(["npy", "npz", "mat 5"]))
def test_a_flipped_byte_never_raises_anything_but_an_input_error(tmp_path, position, value, name):
    spec = save(tmp_path, name, np.arange(30.0).reshape(5, 6))
    path, _ = locate(spec, None, None)
    damaged = bytearray(path.read_bytes())
    damaged[int(position * (len(damaged) - 1))] = value
    path.write_bytes(damaged)
    try:
        with open_array(spec) as rows:
            assert rows[:].shape == rows.shape
    except InputError:
        pass


def test_a_flipped_byte_in_an_npz_is_found_by_its_checksum(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.arange(1000.0).reshape(100, 10))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[4000] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with open_array(str(tmp_path / "x.npz")) as rows, pytest.raises(InputError, match="CRC"):
        rows[:]


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.mat", "x.h5"])
def test_a_file_of_something_else_is_an_input_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>404 not found</html>" * 40)
    with pytest.raises(InputError, match=f"{name} can't be read"):
        open_array(str(tmp_path / name))


def test_complex_numbers_in_a_matlab_5_file_are_refused_on_reading(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"x": np.ones((2, 2)) + 1j})
    with open_array(str(tmp_path / "x.mat")) as rows, pytest.raises(InputError, match="complex"):
        rows[:]


def test_a_compressed_archive_is_read_forwards_and_again_from_the_start(tmp_path):
    array = np.random.default_rng(0).normal(size=(300, 50))
    np.savez_compressed(tmp_path / "x.npz", x=array)
    with open_array(str(tmp_path / "x.npz")) as rows:
        assert isinstance(rows, NpyRows)
        for a, b in [(0, 10), (200, 210), (50, 60), (290, 300), (0, 1)]:
            np.testing.assert_array_equal(rows[a:b], array[a:b])


def test_a_dataset_behind_a_link_is_found(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/betas"] = np.ones((2, 3))
        file["betas"] = h5py.SoftLink("/deep/betas")
    with open_array(f"{tmp_path / 'a.h5'}:/betas") as rows:
        assert isinstance(rows, H5Rows)
        assert rows[:].sum() == 6


# Captions

CAPTIONS = [["a cat", "a grey cat"], ["zwei Öfen"], ["three"]]


def test_captions_of_every_kind_of_file_read_the_same(tmp_path):
    square = [["a cat", "a grey cat"], ["zwei Öfen", ""], ["three", ""]]
    (tmp_path / "c.txt").write_text("a cat\ta grey cat\nzwei Öfen\nthree\n", encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    (tmp_path / "k.json").write_text(json.dumps({"train": CAPTIONS}), encoding="utf-8")
    np.save(tmp_path / "c.npy", np.array(square))
    np.savez(tmp_path / "c.npz", c=np.array(square))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("c", data=square, dtype=h5py.string_dtype())
    scipy.io.savemat(tmp_path / "c.mat", {"c": np.array(square, object)})
    with h5py.File(tmp_path / "seven.mat", "w") as file:
        cells = file.create_dataset("c", (2, 3), h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = np.bytes_("cell")
        for i, j in np.ndindex(2, 3):
            codes = np.array([[ord(letter)] for letter in square[j][i]], np.uint16).reshape(-1, 1)
            text = file.create_dataset(f"#refs#/{i}{j}", data=codes)
            text.attrs["MATLAB_class"] = np.bytes_("char")
            cells[i, j] = text.ref
    for spec in ("c.txt", "c.json", "k.json:train", "c.npy", "c.npz:c", "c.h5", "c.mat", "seven.mat"):
        assert read_captions(spec, None, tmp_path) == CAPTIONS, spec


def test_a_row_of_matlab_cells_is_one_caption_a_row(tmp_path):
    scipy.io.savemat(tmp_path / "c.mat", {"c": np.array([["one", "two", "three"]], object)})
    assert read_captions(str(tmp_path / "c.mat")) == [["one"], ["two"], ["three"]]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.json", "{}", "doesn't hold captions"),
        ("c.json", "[1, 2]", "doesn't hold captions"),
        ("c.json", "[", "can't be read"),
        ("c.txt", "one\n\nthree", "row 1 of .* has no caption"),
        ("c.txt", b"\xff\xfe\x00", "can't be read"),
    ],
)
def test_bad_captions_are_input_errors(tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        read_captions(str(tmp_path / name))


def test_numbers_are_no_captions(tmp_path):
    np.save(tmp_path / "c.npy", np.zeros((3, 2)))
    with pytest.raises(InputError, match="float64"):
        read_captions(str(tmp_path / "c.npy"))


def test_encrypted_members_are_an_input_error(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3)))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        start = archive.start_dir
    data[6] |= 1
    data[start + 8] |= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(InputError, match="can't be read"):
        open_array(str(tmp_path / "x.npz"))


def test_rows_may_lie_along_the_last_axis(tmp_path: Path) -> None:
    from leanrecon.datasets.files.turned import Turned

    array = np.random.default_rng(0).standard_normal((4, 3, 7))
    np.save(tmp_path / "a.npy", array)
    rows = Turned(open_array(str(tmp_path / "a.npy")))
    assert rows.shape == (7, 4, 3)
    np.testing.assert_array_equal(rows[1:5], np.moveaxis(array, -1, 0)[1:5])
    out = np.empty((2, 4, 3))
    rows.read(np.array([0, 6]), out)
    np.testing.assert_array_equal(out, np.moveaxis(array, -1, 0)[[0, 6]])
    rows.close()
    np.save(tmp_path / "b.npy", np.arange(3.0))
    with pytest.raises(InputError, match="two axes or more"):
        Turned(open_array(str(tmp_path / "b.npy")))
