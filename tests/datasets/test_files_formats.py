"""What other programs leave in files, and what is missing from them."""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from leanrecon.datasets.files.captions import read_captions, stream_captions
from leanrecon.datasets.files.mat5 import read_numbers
from leanrecon.datasets.files.open import open_array
from leanrecon.datasets.nsd.voxels import parse_nifti, unscaled
from leanrecon.datasets.splits import read_test_rows
from leanrecon.errors import InputError
from leanrecon.memory import PeakMemory, process_memory

NUMBERS = np.random.default_rng(0).normal(size=(12, 5))


def refused(spec: object, words: str) -> str:
    with pytest.raises(InputError, match=words) as error, open_array(str(spec)) as rows:
        rows[:]
    return str(error.value)


# MATLAB 4 and 5


@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_class_of_matlab_numbers_is_read_as_scipy_reads_it(tmp_path, dtype, packed):
    array = (np.abs(NUMBERS) * 100).astype(dtype)
    scipy.io.savemat(tmp_path / "x.mat", {"a": "text", "x": array, "s": {"f": 1}}, do_compression=packed)
    with open_array(f"{tmp_path / 'x.mat'}:x") as rows:
        assert rows.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(rows[:], scipy.io.loadmat(tmp_path / "x.mat")["x"])


def test_matlab_4_is_read_as_scipy_reads_it(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"x": NUMBERS, "t": np.array(["one", "three"])}, format="4")
    with open_array(f"{tmp_path / 'x.mat'}:x") as rows:
        np.testing.assert_array_equal(rows[:], NUMBERS)
    assert read_captions(f"{tmp_path / 'x.mat'}:t") == [["one"], ["three"]]


@pytest.mark.parametrize(
    ("value", "words"),
    [({"f": 1}, "MATLAB struct"), ("text", "MATLAB char"), (np.array([[1, "a"]], object), "MATLAB cell")],
)
def test_other_classes_are_named_when_asked_for_and_passed_over_when_not(tmp_path, value, words):
    scipy.io.savemat(tmp_path / "x.mat", {"odd": value, "x": NUMBERS})
    refused(f"{tmp_path / 'x.mat'}:odd", words)
    with open_array(f"{tmp_path / 'x.mat'}:x") as rows:
        assert rows.shape == NUMBERS.shape


def test_a_variable_that_inflates_to_more_than_it_says_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"x": NUMBERS})
    data = (tmp_path / "x.mat").read_bytes()
    packed = zlib.compress(data[128:] + bytes(1000))
    (tmp_path / "x.mat").write_bytes(data[:128] + struct.pack("<II", 15, len(packed)) + packed)
    refused(tmp_path / "x.mat", "more than it says")


def test_two_variables_of_one_name_and_bytes_behind_the_last_are_refused(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"x": NUMBERS})
    data = (tmp_path / "x.mat").read_bytes()
    (tmp_path / "x.mat").write_bytes(data + data[128:])
    refused(f"{tmp_path / 'x.mat'}:x", "2 arrays named 'x'")
    (tmp_path / "x.mat").write_bytes(data + b"more bytes")
    refused(f"{tmp_path / 'x.mat'}:x", "can't be read")


def test_a_text_file_named_mat_is_no_matlab_file(tmp_path):
    (tmp_path / "x.mat").write_text("1 2 3\n" * 100)
    assert "copied whole" not in refused(tmp_path / "x.mat", "not a MATLAB file")


def test_a_flipped_byte_in_a_deflated_variable_is_an_input_error():
    file = io.BytesIO()
    scipy.io.savemat(file, {"x": np.arange(30_000)}, do_compression=True)
    data = bytearray(file.getvalue())
    data[len(data) // 3] ^= 1
    with pytest.raises(InputError, match="design"):
        read_numbers("design", bytes(data), "x")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_matlab_variable_of_100_mb_is_never_held_whole(tmp_path, packed):
    scipy.io.savemat(tmp_path / "x.mat", {"x": np.zeros((500, 320, 320), np.uint16)}, do_compression=packed)
    with open_array(str(tmp_path / "x.mat")) as rows:
        base = process_memory()
        with PeakMemory() as memory:
            rows.read(np.arange(10), np.empty((10, 320, 320), np.uint8))
        assert rows.held == 0
        assert memory.peak - base < rows.scratch + 10 * 320 * 320 < 40e6


# NumPy


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_bytes_behind_an_array_are_refused(tmp_path, name):
    np.save(tmp_path / "x.npy", NUMBERS)
    data = (tmp_path / "x.npy").read_bytes() * 2
    (tmp_path / "x.npy").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    refused(tmp_path / name, "bytes behind its array")


def test_two_members_of_one_name_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=NUMBERS)
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", b"")
    refused(f"{tmp_path / 'x.npz'}:x", "2 arrays named 'x'")


def test_records_are_named(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3, [("left", "f4"), ("right", "f4")]))
    refused(tmp_path / "x.npy", "records of left, right")


def test_a_number_that_is_no_character_is_refused_with_its_row(tmp_path):
    np.save(tmp_path / "x.npy", np.array(["one", "two"]))
    data = bytearray((tmp_path / "x.npy").read_bytes())
    data[-1] = 0xFF
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(InputError, match="row 1 .* not the code of a character"):
        read_captions(str(tmp_path / "x.npy"))


# HDF5


def test_rows_that_hdf5_would_make_up_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("chunks", (12, 5), "f8", chunks=(4, 5))[:5] = NUMBERS[:5]
        file.create_dataset("never", (12, 5), "f8")
        file.create_dataset("beside", (12, 5), "f8", external=[("part.bin", 0, 480)])[:] = NUMBERS
        layout = h5py.VirtualLayout((12, 5), "f8")
        for k in range(2):
            with h5py.File(f"ses{k}.h5", "w") as part:
                part["x"] = NUMBERS[6 * k : 6 * k + 6]
            layout[6 * k : 6 * k + 6] = h5py.VirtualSource(f"ses{k}.h5", "x", (6, 5))
        file.create_virtual_dataset("joined", layout)
        half = h5py.VirtualLayout((12, 5), "f8")
        half[:6] = h5py.VirtualSource("ses0.h5", "x", (6, 5))
        file.create_virtual_dataset("half", half)
    for key in ("joined", "beside"):
        with open_array(f"x.h5:{key}") as rows:
            np.testing.assert_array_equal(rows[:], NUMBERS)
    refused("x.h5:chunks", r"1 of its 3 chunks were never written; the first begins at \[8, 0\]")
    refused("x.h5:never", "never written")
    refused("x.h5:half", "30 of its 60 numbers come from no file")
    Path("ses1.h5").unlink()
    refused("x.h5:joined", "ses1.h5 is not there")
    os.truncate("part.bin", 100)
    refused("x.h5:beside", "380 bytes")
    Path("part.bin").unlink()
    refused("x.h5:beside", "part.bin")


def test_what_hdf5_keeps_other_than_numbers_is_named_rightly(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["records"] = np.zeros(3, [("left", "f4"), ("right", "f4")])
        file["complex"] = np.zeros(3, complex)
        file.create_dataset("arrays", (3,), np.dtype(("f4", (2,))))[:] = np.ones((3, 2))
        file.create_dataset("lists", (3,), h5py.vlen_dtype("i4"))[0] = [1]
        file["scalar"] = 3.0
        file["empty"] = h5py.Empty("f4")
        file["half"] = np.ones((3, 2), "f2")
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        h5py.h5d.create(file.id, b"time", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((3,)), plist)
        file["loop"] = h5py.SoftLink("/loop")
        file["gone"] = h5py.ExternalLink("gone.h5", "/x")
    for key, words in {
        "records": "records of left, right", "complex": "complex numbers", "arrays": "small arrays of float32",
        "lists": "lists of varying length", "scalar": "a single number", "empty": "an empty dataset", "time": "times",
        "loop": "a link to /loop", "gone": "a link to gone.h5:/x",
    }.items():  # fmt: skip
        assert "copied whole" not in refused(f"{tmp_path / 'x.h5'}:{key}", words)
    with open_array(f"{tmp_path / 'x.h5'}:half") as rows:
        assert rows[:].sum() == 6


def test_a_named_dataset_is_opened_without_looking_at_thousands_of_others(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for k in range(300):
            file[f"a{k}"] = NUMBERS[0]
    monkeypatch.setattr(h5py.File, "visititems", None)
    with open_array(f"{tmp_path / 'x.h5'}:a7") as rows:
        assert rows.shape == (5,)
    monkeypatch.undo()
    assert "and 280 more" in refused(f"{tmp_path / 'x.h5'}:b", "no array 'b'")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"compression": "gzip", "compression_opts": 1}])
def test_one_large_chunk_is_planned_for_what_it_takes(tmp_path, how):
    array = np.random.default_rng(0).integers(0, 9, (2000, 5000), np.uint8).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=array, chunks=array.shape, **how)
    with open_array(str(tmp_path / "x.h5")) as rows:
        out = np.zeros((200, 5000), np.float32)
        base = process_memory()
        with PeakMemory() as memory:
            for start in range(0, 2000, 200):
                rows.read(np.arange(start, start + 200), out)
                np.testing.assert_array_equal(out, array[start : start + 200])
        assert memory.peak - base < rows.scratch + 4e6
        assert rows.scratch < 3.5 * array.nbytes if how else rows.scratch < 20e6


# Text


def test_halves_of_characters_are_refused_and_whole_ones_kept(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(["a \U0001f600", "b"]))
    assert read_captions(str(tmp_path / "c.json")) == [["a \U0001f600"], ["b"]]
    (tmp_path / "c.json").write_text('["a", "b \\ud83d"]')
    with pytest.raises(InputError, match=r"row 1 .* half of a character \(U\+D83D\)"):
        read_captions(str(tmp_path / "c.json"))


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, '{"a": ' * 5000, '["a"] 3', '["a",]', '["a" "b"]', '["a\\q"]', "null", ""]
)
def test_what_is_no_list_of_captions_is_an_input_error(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=r"c\.json"):
        read_captions(str(tmp_path / "c.json"))


def test_json_reads_as_the_json_module_reads_it_across_pieces(tmp_path, monkeypatch):
    from leanrecon.datasets.files import text

    rows = [['say "hi" \\', "tab\t"], ["ö" * 50, "😀"], ["\\\\"]]
    for form in (
        json.dumps({"z": [1, {"q": 'a"]'}], "k": rows}),
        json.dumps({"k": rows}, ensure_ascii=False, indent=2),
    ):
        (tmp_path / "c.json").write_text(form, encoding="utf-8")
        for piece in (1, 3, 17, 2**18):
            monkeypatch.setattr(text, "PIECE", piece)
            found = [t for t in stream_captions(f"{tmp_path / 'c.json'}:k") if t[1]]
            assert found == [(row, t.strip()) for row, texts in enumerate(rows) for t in texts]


CAPTIONS = """
import sys
from leanrecon.datasets.files.captions import captions_nbytes, read_captions
from leanrecon.memory import PeakMemory, process_memory
base = process_memory()
with PeakMemory() as memory:
    size = captions_nbytes(sys.argv[1])
assert memory.peak - base < size.scratch, (memory.peak - base, size)
with PeakMemory() as memory:
    captions = read_captions(sys.argv[1])
assert size.rows == len(captions) == 10
assert 40e6 <= size.held < 42e6, size
assert memory.peak - base < size.held + size.scratch, (memory.peak - base, size)
"""


@pytest.mark.slow
def test_long_captions_are_read_within_what_their_size_says(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps([["word " * 800_000] for _ in range(10)]))
    subprocess.run([sys.executable, "-c", CAPTIONS, str(tmp_path / "c.json")], check=True)  # memory of its own


def test_row_numbers_of_savetxt_are_read_and_a_table_longer_than_the_rows_is_refused(tmp_path):
    np.savetxt(tmp_path / "t.txt", [3, 7, 11], header="test rows")
    assert read_test_rows(str(tmp_path / "t.txt"), 20).tolist() == [3, 7, 11]
    (tmp_path / "t.txt").write_text("1 " * 1000)
    with pytest.raises(InputError, match="more than 20 numbers"):
        read_test_rows(str(tmp_path / "t.txt"), 20)


# Pointers and links, masks


def test_what_was_never_fetched_is_called_so(tmp_path):
    (tmp_path / "a.npy").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n")
    (tmp_path / "b.npy").symlink_to(".git/annex/objects/0f/x.npy")
    (tmp_path / "c").mkdir()
    refused(tmp_path / "a.npy", "git lfs pull")
    refused(tmp_path / "b.npy", "datalad get")
    assert "is meant" not in refused(tmp_path / "c", "is a folder")


@pytest.mark.parametrize("form", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_mask_saved_with_a_scaling_has_the_same_voxels(tmp_path, form, suffix):
    mask = np.zeros((5, 4, 3))
    mask[1:3, 2, :] = 1
    for values in (mask * 0.37, mask * 3):
        image = form(values, np.eye(4))
        image.header.set_data_dtype(np.int16)
        nibabel.save(image, tmp_path / f"m.{suffix}")
        volume = parse_nifti("m", (tmp_path / f"m.{suffix}").read_bytes())
        np.testing.assert_array_equal(volume.numbers > 0, mask > 0)
        np.testing.assert_allclose(volume.numbers, values, atol=1e-5)


def test_scaled_labels_are_whole_and_other_numbers_stay():
    raw = np.array([-32767, 0, 32767], np.int16)
    slope = 7 / 65534
    np.testing.assert_array_equal(unscaled(raw, slope, 3.5 + slope / 3), [0, raw[1] + 3.5 + slope / 3, 7])
