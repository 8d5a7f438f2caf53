"""Arrays in a bucket: the stores of the same arrays on a disk, whatever their format, and whatever requests end in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import zarr
from support import buckets
from support.nsd_server import Proxy

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.arrays.ingest import Ingest
from leanrecon.datasets.files.open import locate, located_array, open_array
from leanrecon.datasets.files.zarrs import open_zarr
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.errors import InputError, LeanreconError, NetworkError, SettingsError, StoreError
from leanrecon.places import Location, bucket
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_tables
from leanrecon.study.settings import check_settings

RNG = np.random.default_rng(4)
ARRAYS = {
    "betas_train": RNG.standard_normal((90, 400)).astype(np.float32),
    "betas_test": RNG.standard_normal((12, 400)).astype(np.float32),
    "stimuli_train": RNG.integers(0, 256, (90, 24, 24, 3), np.uint8),
    "stimuli_test": RNG.integers(0, 256, (12, 24, 24, 3), np.uint8),
}


def write_npy(folder: Path) -> dict[str, str]:
    for name, array in ARRAYS.items():
        np.save(folder / f"{name}.npy", np.asfortranarray(array) if name == "betas_train" else array)
    return {name: f"{name}.npy" for name in ARRAYS}


def write_npz(folder: Path, save: Callable[..., None] = np.savez) -> dict[str, str]:
    save(folder / "all.npz", **ARRAYS)
    return {name: f"all.npz:{name}" for name in ARRAYS}


def write_packed(folder: Path) -> dict[str, str]:
    return write_npz(folder, np.savez_compressed)


def write_hdf5(folder: Path, **how: Any) -> dict[str, str]:
    with h5py.File(folder / "all.h5", "w") as file:
        for name, array in ARRAYS.items():
            file.create_dataset(f"of/{name}", data=array, **how)
    return {name: f"all.h5:of/{name}" for name in ARRAYS}


def write_gzip(folder: Path) -> dict[str, str]:
    return write_hdf5(folder, compression="gzip", chunks=True)


def write_matlab(folder: Path) -> dict[str, str]:
    scipy.io.savemat(folder / "all.mat", ARRAYS, do_compression=True)
    return {name: f"all.mat:{name}" for name in ARRAYS}


def write_zarr(folder: Path) -> dict[str, str]:
    for name, array in ARRAYS.items():
        chunks = (20, *array.shape[1:-1], array.shape[-1] // 3 + 1)
        zarr.create_array(str(folder / f"{name}.zarr"), shape=array.shape, dtype=array.dtype, chunks=chunks)[:] = array
    return {name: f"{name}.zarr" for name in ARRAYS}


def write_group(folder: Path) -> dict[str, str]:
    group = zarr.open_group(str(folder / "all.zarr"), mode="w", zarr_format=2)
    for name, array in ARRAYS.items():
        group.create_array(f"of/{name}", shape=array.shape, dtype=array.dtype, chunks=(7, *array.shape[1:]))[:] = array
    return {name: f"all.zarr:of/{name}" for name in ARRAYS}


def write_shards(folder: Path) -> dict[str, str]:
    for name, array in ARRAYS.items():
        store = zarr.create_array(
            str(folder / f"{name}.zarr"), shape=array.shape, dtype=array.dtype, chunks=(5, *array.shape[1:]),
            shards=(20, *array.shape[1:]),
        )  # fmt: skip
        store[:] = array
    return {name: f"{name}.zarr" for name in ARRAYS}


FORMATS = [
    write_npy, write_npz, write_packed, write_hdf5, write_gzip, write_matlab, write_zarr, write_group, write_shards
]  # fmt: skip


@dataclass
class Twice:
    """The same arrays here and in a bucket, by their names in settings."""

    here: dict[str, str]
    away: dict[str, str]
    root: Location


@pytest.fixture
def twice(write: Callable[[Path], dict[str, str]], proxy: Proxy, tmp_path: Path) -> Twice:
    (files := tmp_path / "in").mkdir()
    names, root = write(files), buckets.at(tmp_path.name)
    buckets.put(files, root)
    here, away = ({name: f"{folder}/{of}" for name, of in names.items()} for folder in (files, root))
    return Twice(here, away, root)


def contents(root: Path) -> dict[str, bytes]:
    own = {"sources.json"}  # the names of the files
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in own}


def ingest(settings: dict[str, Any], study: Path, **how: Any) -> Arrays:
    dataset = Arrays(ArraysSettings(**settings))
    dataset.ingest(Study(study), base_dir=None, context=Context.of("8GB", chunk=20_000, **how))
    return dataset


# URLs in settings


@pytest.mark.parametrize(
    ("spec", "file", "key"),
    [
        ("s3://bucket/in/betas.npy", "s3://bucket/in/betas.npy", None),
        ("gs://bucket/all.npz:betas", "gs://bucket/all.npz", "betas"),
        ("az://container/all.h5:of/betas", "az://container/all.h5", "of/betas"),
        ("s3://bucket/day 1: late/all.mat:x/y:z", "s3://bucket/day 1: late/all.mat", "x/y:z"),
        ("s3://bucket/a.zarr:b/c", "s3://bucket/a.zarr", "b/c"),
        ("s3://bucket/captions.json:train", "s3://bucket/captions.json", "train"),
        (":betas", "s3://bucket/all.h5", "betas"),
    ],
)
def test_a_url_and_its_key_are_told_apart_without_a_request(spec: str, file: str, key: str | None) -> None:
    found, of = locate(spec, "s3://bucket/all.h5", None)
    assert (str(found), of) == (file, key)
    assert located_array(spec, Path("/anywhere")) == spec, "study.toml keeps it as it is"


@pytest.mark.parametrize("url", ["s3://user:secret@bucket/x.npy", "s3://bucket/x.npy?X-Amz-Signature=abcdef"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="a URL with a user, a token or a signature") as refused:
        read_tables({"dataset": {"kind": "arrays", "betas": url, "test_fraction": 0.5}}, Path())
    assert "secret" not in str(refused.value)
    assert "abcdef" not in str(refused.value)


def test_a_url_that_names_no_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="names no bucket"):
        open_array("s3://../x.npy")


# The same stores


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMATS)
def test_arrays_in_a_bucket_give_the_stores_of_those_on_a_disk(twice: Twice, proxy: Proxy, tmp_path: Path) -> None:
    ingest(twice.here, tmp_path / "here")
    # A third of the requests fails, each in its own way, as the run goes on.
    faults = np.random.default_rng(1).choice(["503", "drop", "truncate", "500"], 100_000)
    chosen = np.random.default_rng(2).random(100_000) < 1 / 3
    proxy.choose = lambda number, *_: str(faults[number]) if chosen[number] else None
    ingest(twice.away, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert sum(answer.fault is not None for answer in proxy.answers) > 5
    proxy.choose = lambda *_: None
    (tmp_path / "there/betas/rows.json").unlink()
    before = len(proxy.answers)
    ingest(twice.away, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    received = sum(answer.nbytes for answer in proxy.answers[before:])
    assert received < sum(array.nbytes for array in ARRAYS.values()) / 2, "what stayed the same is not read again"
    ingest(twice.here, tmp_path / "there")  # it goes on with a copy


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMATS)
def test_a_network_that_goes_away_ends_in_one_sentence(twice: Twice, proxy: Proxy, tmp_path: Path) -> None:
    first = proxy.numbers
    ingest(twice.away, tmp_path / "whole")
    every = proxy.numbers - first
    from leanrecon.places import inputs

    for share in (0.0, 0.3, 0.7, 0.95):
        inputs._PAGES._of.clear()
        last = proxy.numbers + int(share * every)
        proxy.choose = lambda number, *_, last=last: "drop" if number >= last else None
        with pytest.raises(NetworkError, match="could not be (read|listed) in 8 attempts"):
            ingest(twice.away, tmp_path / f"at {share}")
        proxy.choose = lambda *_: None
        ingest(twice.away, tmp_path / f"at {share}")
        assert contents(tmp_path / f"at {share}") == contents(tmp_path / "whole")


# Refusals


@pytest.mark.slow
def test_what_cant_be_read_is_told_in_a_sentence(proxy: Proxy, tmp_path: Path) -> None:
    root = buckets.at(tmp_path.name)
    (root / "betas.npy").write_bytes(b"\x93NUMPY no array")
    for spec, kind, words in (
        (f"{root}/bteas.npy", InputError, r"there is no file s3://studies/\S+/bteas\.npy\..*check the key"),
        (f"{root}", InputError, "is of an unknown kind"),
        (f"{root}/a.zarr", InputError, "there is no Zarr array in s3://"),
        (f"{root}/all.h5:betas", InputError, "there is no file"),
        (f"{root}/betas.npy", InputError, "can't be read: "),
        (f"{root}/betas.npy:key", InputError, "has no key 'key': an .npy file holds one array"),
        ("s3://not-there/betas.npy", StoreError, "there is no bucket s3://not-there"),
    ):
        with pytest.raises(kind, match="(?i)" + words):
            open_array(spec)


@pytest.mark.slow
def test_refused_requests_are_told_without_what_the_server_said(proxy: Proxy, tmp_path: Path) -> None:
    root = buckets.at(tmp_path.name)
    np.save(tmp_path / "x.npy", ARRAYS["betas_test"])
    (root / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes())
    proxy.choose = lambda *_: "403"
    with pytest.raises(StoreError, match="can't be read: the S3 server refused it.*AWS_ACCESS_KEY_ID") as refused:
        open_array(f"{root}/x.npy")
    assert buckets.KEY not in str(refused.value)
    with buckets.environment(proxy.url, key=None), pytest.raises(LeanreconError, match="no credentials in the environ"):
        open_array(f"{root}/x.npy")


@pytest.mark.slow
def test_a_public_bucket_is_read_without_credentials(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = buckets.at(tmp_path.name)
    np.save(tmp_path / "x.npy", ARRAYS["betas_test"])
    (root / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes())
    import boto3

    keys = {"aws_access_key_id": buckets.KEY, "aws_secret_access_key": buckets.SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=proxy.url, **keys)
    client.put_object_acl(Bucket=buckets.NAME, Key=f"{root.key}/x.npy", ACL="public-read")
    with buckets.environment(proxy.url, key=None):
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        with open_array(f"{root}/x.npy") as rows:
            np.testing.assert_array_equal(rows[0 : len(rows)], ARRAYS["betas_test"])


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_npy, write_zarr])
def test_a_file_that_is_replaced_while_it_is_read_leaves_no_store(
    write: Callable[[Path], dict[str, str]], twice: Twice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, fill = twice.root, Ingest._fill_betas

    def replaced(self: Ingest, *of: Any) -> None:
        if write is write_npy:
            np.save(tmp_path / "other.npy", -ARRAYS["betas_test"])
            (root / "betas_test.npy").write_bytes((tmp_path / "other.npy").read_bytes())
        else:
            file = next(file for file in (root / "betas_test.zarr/c").files())
            bucket.bucket_of("s3://studies").put(file.key, [file.read_bytes()[::-1]])
        fill(self, *of)

    monkeypatch.setattr(Ingest, "_fill_betas", replaced)
    with pytest.raises(InputError, match=r"changed while it was read|can't be read"):
        ingest(twice.away, tmp_path / "study")
    assert not (tmp_path / "study/betas/rows.json").exists()


@pytest.mark.slow
def test_an_array_that_lacks_chunks_is_refused_here_and_there(proxy: Proxy, tmp_path: Path) -> None:
    (files := tmp_path / "in").mkdir()
    write_shards(files)
    (files / "betas_train.zarr/c/2/0").unlink()
    root = buckets.at(tmp_path.name)
    buckets.put(files, root)
    for file in (files / "betas_train.zarr", root / "betas_train.zarr"):
        with pytest.raises(InputError, match=r"1 of its 5 chunks are not there; the first is \(2, 0\)"):
            open_zarr(file, None)


@pytest.mark.slow
def linked(folder: Path) -> None:
    """A file with links to another one, whose names it has too."""
    write_hdf5(folder)
    with h5py.File(folder / "links.h5", "w") as file:
        file["of/betas_train"] = np.zeros((90, 400), np.float32)
        file["betas"] = h5py.ExternalLink("all.h5", "/of/betas_train")
        file["other"] = h5py.ExternalLink("all.h5", "/of")
        file["soft"] = h5py.SoftLink("/betas")


@pytest.mark.parametrize("key", ["betas", "soft", "other/betas_train"])
def test_a_link_to_another_hdf5_file_leads_there_on_a_disk(key: str, tmp_path: Path) -> None:
    linked(tmp_path)
    with open_array(f"{tmp_path}/links.h5:{key}") as rows:
        np.testing.assert_array_equal(rows[0:90], ARRAYS["betas_train"])
        assert rows.path == tmp_path / "all.h5", "known by its content, and not by that of the file with the link"


@pytest.mark.parametrize("key", ["betas", "soft"])
def test_a_link_to_another_hdf5_file_is_refused_in_a_bucket(key: str, proxy: Proxy, tmp_path: Path) -> None:
    linked(tmp_path)
    root = buckets.at(f"in/{tmp_path.name}")
    buckets.put(tmp_path, root)
    with pytest.raises(InputError, match="links.h5:.* is a link to another HDF5 file.*in a bucket"):
        open_array(f"{root}/links.h5:{key}")


def test_an_hdf5_file_that_leads_to_others_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    write_hdf5(tmp_path)
    layout = h5py.VirtualLayout((90, 400), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "all.h5"), "of/betas_train", (90, 400))
    with h5py.File(tmp_path / "joined.h5", "w") as file:
        file.create_virtual_dataset("betas", layout)
    root = buckets.at(tmp_path.name)
    (root / "joined.h5").write_bytes((tmp_path / "joined.h5").read_bytes())
    with pytest.raises(InputError, match="keeps its numbers in other files, which are not looked for in a bucket"):
        open_array(f"{root}/joined.h5:betas")


# Looking at a bucket


@pytest.mark.slow
def test_inspect_prints_settings_that_read_the_urls(proxy: Proxy, tmp_path: Path) -> None:
    (files := tmp_path / "in").mkdir()
    write_zarr(files)
    root = buckets.at(tmp_path.name)
    buckets.put(files, root)
    for where in (Path(str(root)), root):  # a Path has lost a slash
        found = inspect(where)
        assert found.settings == {"kind": "arrays"} | {name: f"{root}/{name}.zarr" for name in ARRAYS}
    assert inspect(files).settings == {"kind": "arrays"} | {name: str(files / f"{name}.zarr") for name in ARRAYS}
    settings = check_settings({"dataset": found.settings})
    assert settings.located(tmp_path).dataset == settings.dataset
    ingest(found.settings, tmp_path / "study")
