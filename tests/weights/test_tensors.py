"""Arrays in a safetensors file: read by the library, refused when damaged, never half there."""

import numpy as np
import pytest

from leanrecon.errors import StoreError
from leanrecon.weights.tensors import TensorFile, write_tensors

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([1.5, -2.0]),
    "c": np.array(7, np.int64),
    "none": np.zeros((0, 3), np.float32),
}
RECORD = {"made_of": {"seed": 1}, "loss": [0.1, None]}


def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    write_tensors(path, ARRAYS | {"t": ARRAYS["a"].T}, RECORD)
    file = TensorFile(path)
    assert file.record == RECORD
    assert file.names == [*ARRAYS, "t"]
    from safetensors.numpy import load_file

    theirs = load_file(path)
    for name, array in (ARRAYS | {"t": ARRAYS["a"].T}).items():
        for found in (file.read(name), theirs[name]):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
    out = np.empty((3, 4), np.float32)
    assert file.read("a", out) is out
    np.testing.assert_array_equal(out, ARRAYS["a"])
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]  # nothing half-written beside


def test_the_same_arrays_make_the_same_file(tmp_path):
    for name in ("x", "y"):
        write_tensors(tmp_path / name, ARRAYS, RECORD)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("where", [0, 3, 60, -1, "cut"])
def test_damage_is_found_wherever_it_is(tmp_path, where):
    path = tmp_path / "x.safetensors"
    write_tensors(path, ARRAYS, RECORD)
    data = bytearray(path.read_bytes())
    if where == "cut":
        del data[-9:]
    else:
        data[where] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(StoreError, match="x.safetensors is damaged .*. Remove it and run again"):
        TensorFile(path)


def test_what_is_not_there_or_no_such_file_is_refused(tmp_path):
    with pytest.raises(StoreError, match="there is no file"):
        TensorFile(tmp_path / "nothing")
    (tmp_path / "text").write_text("not weights")
    with pytest.raises(StoreError, match="damaged"):
        TensorFile(tmp_path / "text")
    write_tensors(tmp_path / "x", ARRAYS, RECORD)
    with pytest.raises(StoreError, match=r"a in .* is float32 \[3, 4\], not float32 \[4, 3\]"):
        TensorFile(tmp_path / "x").read("a", np.empty((4, 3), np.float32))
