"""Google Cloud Storage and Azure: obstore's clients against servers on this machine, and what is said without keys."""

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support import buckets, gcs_server

import leanrecon
from leanrecon.errors import LeanreconError, StoreError
from leanrecon.places import Location, as_location, lease, seals
from leanrecon.places.bucket import Bucket, TakenError, bucket_of
from leanrecon.progress import Progress
from leanrecon.study.verify import find_damage

obstore = pytest.importorskip("obstore", reason="buckets are read by obstore: pip install 'leanrecon[cloud]'")
pytestmark = pytest.mark.slow

DATA = bytes(range(256)) * 40_000
"""A file that is sent in two parts."""


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variables of a vendor, and no bucket that was opened with others."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE", "STORAGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    bucket_of.cache_clear()
    yield
    bucket_of.cache_clear()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Location]:
    with gcs_server.serving("studies") as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        yield as_location("gs://studies/one")


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Location]:
    """A container of Azurite, the emulator that Microsoft publishes in npm's registry."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite-blob is not on PATH: npm install azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = [
        "--silent",
        "--location",
        str(tmp_path),
        "--blobPort",
        str(port),
        "--skipApiVersionCheck",
        "--disableTelemetry",
    ]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        make_container(url, "studies")
        monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", url)
        yield as_location("az://studies/one")
    finally:
        process.kill()
        process.wait()


def make_container(url: str, name: str) -> None:
    """Make a container of the emulator's one account, whose key its documentation tells."""
    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
    told = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items())
    told += f"/{account}/{account}/{name}\nrestype:container"
    signed = base64.b64encode(hmac.digest(base64.b64decode(key), told.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {account}:{signed}", "Content-Length": "0"}
    request = urllib.request.Request(f"{url}/{account}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()


def holds_and_keeps(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is held by one process, which renews its hold, and files of it are written and read as anywhere."""
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    hold = root / lease.NAME
    with root.hold("another run", "wait"):
        before = bucket_of(root.place.address("")).head(hold.key)
        with pytest.raises(StoreError, match="another run is using"), root.hold("another run", "wait"):
            pass
        for _ in range(50):
            time.sleep(0.1)
            if (now := bucket_of(root.place.address("")).head(hold.key)) != before:
                break
        assert now not in (before, None)
        assert now is not None
        with (root / "a/long").writing() as file:
            file.write(DATA)
        (root / "a/short").write_bytes(b"1")
        assert root.place.link((root / "a/short").key, (root / "b").key)
    assert (root / "a/long").read_bytes() == DATA
    assert [file.name for file in root.files()] == ["long", "short", "b"]
    assert root.place.children(root.key) == ["a/", "b"]
    (root / "a").delete_tree()
    root.place._bucket.delete((root / "gone").key, (root / "b").key)
    assert buckets.bucket_of(root.place.address("")).head((root / "b").key) is None
    assert [key for key, _ in root.place._bucket.list(root.key)] == []
    with pytest.raises(StoreError, match=r"there is no bucket \w\w://nowhere. Create it, or check its name and \w+"):
        as_location(root.place.address("").replace("studies", "nowhere") + "/a").write_bytes(b"x")


def test_a_folder_of_google_is_held_by_one_process(google: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    holds_and_keeps(google, monkeypatch)


@pytest.mark.long
def test_a_folder_of_azure_is_held_by_one_process(azure: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    holds_and_keeps(azure, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("vendor", ["google", "azure"])
def test_a_study_has_the_same_bytes_with_every_vendor(
    vendor: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    settings = {
        "dataset": {"kind": "simulated", "n_train": 40, "n_test": 8, "voxels": 20, "size": 16},
        "features": {"pca": {"components": 10}},
        "regression": {"alpha": 100.0},
        "evaluate": {"permutations": 0, "resamples": 100},
    }
    there, here = request.getfixturevalue(vendor), as_location(tmp_path / "here")
    leanrecon.run(settings, study=here, progress=Progress())
    leanrecon.run(settings, study=tmp_path / "begun", until="features", mirror=there, progress=Progress())
    leanrecon.run(settings, study=there, progress=Progress())
    found = [
        {name: seals.digest_of(root / name) for file in root.files() if (name := file.relative_to(root)) not in own}
        for own in ({"run.json", "report.html"},)
        for root in (there, here)
    ]
    assert found[0] == found[1]
    assert find_damage(there) == {}


@pytest.mark.parametrize("vendor", ["google", "azure"])
def test_inputs_are_read_from_every_vendor(vendor: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    there, here = request.getfixturevalue(vendor), tmp_path / "in"
    rng = np.random.default_rng(0)
    arrays = {"betas": rng.standard_normal((40, 30)).astype("f4"), "stimuli": rng.integers(0, 256, (40, 8, 8, 3), "u1")}
    here.mkdir()
    np.save(here / "betas.npy", arrays["betas"])
    zarr.create_array(str(here / "stimuli.zarr"), shape=(40, 8, 8, 3), dtype="u1", chunks=(9, 8, 8, 3))[:] = arrays[
        "stimuli"
    ]
    for file in here.rglob("*"):
        if file.is_file():
            (there / file.relative_to(here).as_posix()).write_bytes(file.read_bytes())
    found = []
    for name, folder in (("here", here), ("there", there)):
        dataset = {"kind": "arrays", "betas": f"{folder}/betas.npy", "stimuli": f"{folder}/stimuli.zarr"}
        settings = {"dataset": dataset | {"test_fraction": 0.25}, "features": {"pca": {"components": 4}}}
        for _ in range(2):  # the second run finds that nothing has changed
            leanrecon.run(settings, study=tmp_path / name, until="dataset", progress=Progress())
        stores = (tmp_path / name).rglob("*.zarr/**/*")
        found.append({file.relative_to(tmp_path / name): file.read_bytes() for file in stores if file.is_file()})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("url", "variables", "said"),
    [
        ("az://studies/a", {}, "there are no credentials in the environment. Set AZURE_STORAGE_ACCOUNT_NAME and"),
        (
            "az://studies/a",
            {"AZURE_STORAGE_ACCOUNT_NAME": "one", "AZURE_STORAGE_ACCOUNT_KEY": "not-base-64-!"},
            "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        ),
        ("gs://studies/a", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"}, "Set GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://studies/a", {"GOOGLE_SERVICE_ACCOUNT_KEY": "no-json-secret"}, "Set GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_missing_and_broken_credentials_are_told_and_not_repeated(
    url: str, variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LeanreconError) as refused:
        as_location(url).write_bytes(b"x")
    assert said in str(refused.value)
    for secret in ("not-base-64-!", "no-json-secret"):
        assert secret not in str(refused.value)


def test_a_server_that_compares_stamps_without_quotes_renews_a_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ceph's does: a stamp in quotes never matches there."""
    from obstore.exceptions import PreconditionError

    asked: list[str] = []
    call = Bucket._call

    def compared(self: Bucket, name: str, key: str, *more: Any, **options: Any) -> Any:
        if isinstance(mode := options.get("mode"), dict):
            asked.append(mode["e_tag"])
            if mode["e_tag"].startswith('"'):
                raise PreconditionError("412")
        return call(self, name, key, *more, **options)

    monkeypatch.setattr(Bucket, "_call", compared)
    with buckets.serving() as url, buckets.environment(url):
        bucket = bucket_of(f"s3://{buckets.NAME}")
        first = bucket.put("a", [b"one"], only_if="create")
        second = bucket.put("a", [b"two"], only_if=first)
        assert asked == [first.stamp, first.stamp.strip('"')]
        assert bucket.head("a") == second
        with pytest.raises(TakenError):
            bucket.put("a", [b"three"], only_if=first)
        assert b"".join(map(bytes, bucket.pieces("a", 0, 9))) == b"two"
