import hashlib
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.stores.fingerprint import differences, file_fingerprint, fingerprint

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_a_fingerprint_is_the_hash_of_sorted_json():
    expected = hashlib.sha256(b'{"alpha":50000.0,"rows":[1,2],"space":{"kind":"pca"}}').hexdigest()
    assert fingerprint({"space": {"kind": "pca"}, "rows": [1, 2], "alpha": 50000.0}) == expected


@given(st.dictionaries(st.text(), values, min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(made_of):
    assert fingerprint(made_of) == fingerprint(dict(reversed(made_of.items())))


@given(st.dictionaries(st.text(), values, max_size=5), st.dictionaries(st.text(), values, max_size=5))
def test_fingerprints_differ_exactly_when_a_setting_is_named(then, now):
    named = list(differences(then, now))
    if fingerprint(then) == fingerprint(now):
        assert named == []
    if named:
        assert fingerprint(then) != fingerprint(now)


def test_values_that_are_not_plain_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint({"alpha": float("nan")})
    with pytest.raises(TypeError):
        fingerprint({"alpha": object()})


def test_differences_name_each_setting_with_both_values():
    then = {"regression": {"alpha": 1.0, "standardize": True}, "seed": 0, "images": "a"}
    now = {"regression": {"alpha": 2.0, "standardize": True}, "seed": 0, "betas": "b"}
    assert list(differences(then, now)) == [
        'betas was not set, is "b"',
        'images was "a", is not set',
        "regression.alpha was 1.0, is 2.0",
    ]


def test_long_values_are_cut_in_the_middle():
    (text,) = differences({"rows": list(range(100))}, {"rows": 1})
    assert len(text) < 90
    assert text.startswith("rows was [0, 1, 2")
    assert text.endswith("98, 99], is 1")


@given(data=st.binary(min_size=1, max_size=200), place=st.integers(0, 199), flip=st.integers(1, 255))
def test_every_byte_of_a_file_counts(tmp_path_factory, data, place, flip):
    path = tmp_path_factory.getbasetemp() / "small"
    path.write_bytes(data)
    before = file_fingerprint(path)
    place %= len(data)
    path.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
    assert file_fingerprint(path) != before
    path.write_bytes(data + b"\0")
    assert file_fingerprint(path) != before


def test_a_copy_under_another_name_has_the_same_fingerprint(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"betas")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "a.npy", tmp_path / "elsewhere" / "b.npy")
    assert file_fingerprint(tmp_path / "a.npy") == file_fingerprint(tmp_path / "elsewhere" / "b.npy")


def test_a_file_is_known_by_the_hash_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 20_000
    (tmp_path / "large").write_bytes(data)
    assert file_fingerprint(tmp_path / "large") == hashlib.sha256(data).hexdigest()
