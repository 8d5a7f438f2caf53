"""Files in a bucket, on a real S3 server behind a proxy that makes requests fail: the same bytes, or one sentence."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import buckets
from support.nsd_server import Proxy

from leanrecon.errors import InputError, LeanreconError, LeanreconWarning, NetworkError, SettingsError, StoreError
from leanrecon.places import Location, bucket, lease

pytestmark = pytest.mark.slow

DATA = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
"""A file of three pieces."""


@pytest.fixture
def root(proxy: Proxy, tmp_path: Path) -> Location:
    return buckets.at(tmp_path.name)


def often(fault: str) -> Callable[[int, str, str], str | None]:
    """A third of the requests fails, never the same ones in every attempt."""
    chosen = np.random.default_rng(5).random(10_000) < 1 / 3
    return lambda number, method, path: fault if chosen[number] else None


@pytest.mark.parametrize(
    "fault", ["truncate", *(pytest.param(fault, marks=pytest.mark.long) for fault in ("503", "500", "drop", "lost"))]
)
def test_requests_that_fail_give_the_same_bytes(root: Location, proxy: Proxy, fault: str) -> None:
    proxy.choose = often(fault)
    file = root / "c" / "0"
    file.write_bytes(DATA, b"four")
    assert file.size() == len(DATA) + 4
    memory = np.zeros(len(DATA), np.uint8)
    assert file.place.read_into(file.key, memory, 4) == len(DATA)
    assert memory.tobytes() == DATA[4:].tobytes() + b"four"
    rows = np.zeros((20, 1000), np.uint8)
    assert file.place.read_rows(file.key, rows, 17, 100_000) == 20
    np.testing.assert_array_equal(rows, [DATA[17 + 100_000 * k :][:1000] for k in range(20)])
    assert root.place.children(root.key) == ["c/"]
    with root.hold("another run", "wait"):
        assert [found.name for found in root.files()] == ["0"]
        with (root / "long").writing() as out:
            for _ in range(4):
                out.write(DATA.data)
        assert (root / "long").size() == 4 * len(DATA)
    (root / "long").unlink()
    file.unlink()
    proxy.choose = lambda *_: None
    assert buckets.keys(root) == []


def test_a_server_that_stays_away_ends_in_one_sentence(root: Location, proxy: Proxy) -> None:
    (root / "a").write_bytes(b"x")
    proxy.choose = lambda *_: "503"
    for tried in (lambda: (root / "a").read_bytes(), lambda: (root / "a").write_bytes(b"y")):
        with pytest.raises(NetworkError, match=r"could not be \w+ in 8 attempts \(status 503( SlowDown)?\)"):
            tried()


def test_an_answer_that_takes_too_long_is_asked_for_again(
    root: Location, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").write_bytes(b"x")
    monkeypatch.setattr(bucket, "TIMEOUT", 0.3)
    bucket.bucket_of.cache_clear()
    slow = iter(["slow"])
    proxy.choose = lambda *_: next(slow, None)
    assert root.place.read_into((root / "a").key, np.zeros(1, np.uint8)) == 1
    assert [answer.fault for answer in proxy.answers[-2:]] == ["slow", None]


def test_while_a_folder_is_held_what_is_known_is_not_asked_for(root: Location, proxy: Proxy) -> None:
    for k in range(5):
        (root / f"s/{k}").write_bytes(b"x" * k)
    with root.hold("another run", "wait"):
        before = len(proxy.answers)
        assert [(root / f"s/{k}").size() for k in range(6)] == [0, 1, 2, 3, 4, None]
        assert not (root / "t").exists()
        (root / "t/0").write_bytes(b"new")
        assert [(path.key, path.exists()) for path in root.iterdir()] == [((root / n).key, True) for n in ("s", "t")]
        (root / "s/1").unlink()
        (root / "s/1").unlink(missing_ok=True)
        assert [file.name for file in (root / "s").files()] == ["0", "2", "3", "4"]
        assert len(proxy.answers) - before == 2, "one file was written, and one deleted"
        root.place._bucket.put(f"{root.key}/s/9", [b"of another process"])
        root.place.refresh((root / "s").key)
        assert (root / "s/9").size() == 18


def test_a_folder_that_is_only_read_is_listed_once(root: Location, proxy: Proxy) -> None:
    for k in range(5):
        (root / f"s/{k}").write_bytes(b"x" * k)
    before = len(proxy.answers)
    with root.place.listed(root.key):
        assert [(root / f"s/{k}").size() for k in range(6)] == [0, 1, 2, 3, 4, None]
        assert [file.name for file in (root / "s").files()] == ["0", "1", "2", "3", "4"]
    assert len(proxy.answers) - before == 1
    assert (root / "s/1").size() == 1
    assert len(proxy.answers) - before == 2


# Refusals


def test_what_may_not_be_written_is_told_without_what_the_server_said(root: Location, proxy: Proxy) -> None:
    proxy.choose = lambda number, method, path: "403" if method == "PUT" else None
    with pytest.raises(StoreError, match="can't be written: the S3 server refused it") as refused, root.hold("a", "b"):
        pass
    assert buckets.KEY not in str(refused.value)
    assert "AWS_ACCESS_KEY_ID" in str(refused.value)


def test_a_bucket_that_is_not_there_and_missing_credentials_are_told(s3: str, root: Location) -> None:
    from leanrecon.places import as_location

    other = as_location("s3://nowhere-at-all/study")
    with pytest.raises(StoreError, match=r"there is no bucket s3://nowhere-at-all"), other.hold("a", "b"):
        pass
    with buckets.environment(s3, key=None), pytest.raises(StoreError, match="no credentials in the environment"):
        root.is_dir()


@pytest.mark.parametrize("name", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_a_profile_without_keys_is_refused_before_any_request(
    name: str, proxy: Proxy, root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(proxy.answers)
    with buckets.environment(proxy.url, key=None):
        monkeypatch.setenv(name, "my lab")
        with pytest.raises(SettingsError) as refused:
            root.is_dir()
    assert f"{name} is set to 'my lab', but leanrecon reads no profiles" in str(refused.value)
    assert "Expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY." in str(refused.value)
    assert "aws configure export-credentials --profile 'my lab' --format env" in str(refused.value)
    assert f"or unset {name}" in str(refused.value)
    assert len(proxy.answers) == before


def test_a_profile_beside_keys_is_left_alone(proxy: Proxy, root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    with buckets.environment(proxy.url):
        monkeypatch.setenv("AWS_PROFILE", "lab")
        assert not (root / "nothing").is_dir()


@pytest.mark.parametrize("variable", [None, "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_file_of_profiles_that_is_not_read_is_named(
    variable: str | None, s3: str, root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".aws" / "credentials" if variable is None else tmp_path / "elsewhere"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"[default]\naws_access_key_id = {buckets.KEY}\naws_secret_access_key = {buckets.SECRET}\n")
    with buckets.environment(s3, key=None):
        monkeypatch.setenv("HOME", str(tmp_path))
        if variable is not None:
            monkeypatch.setenv(variable, str(file))
        with pytest.raises(StoreError) as refused:
            root.is_dir()
    told = str(refused.value)
    assert f"there are no credentials in the environment, and leanrecon does not read {file}" in told
    assert 'eval "$(aws configure export-credentials --format env)"' in told
    assert buckets.KEY not in told
    assert buckets.SECRET not in told


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "AWS_ENDPOINT_URL",
            "not a url",
            "AWS_ENDPOINT_URL is not the address of a server. Expected a URL such as https://",
        ),
        ("AWS_ENDPOINT_URL", "localhost:9000", "AWS_ENDPOINT_URL is not the address of a server"),
        ("AWS_ENDPOINT_URL", "http://localhost:port", "AWS_ENDPOINT_URL is not the address of a server"),
        ("AWS_ACCESS_KEY_ID", "hidden\n", "AWS_ACCESS_KEY_ID holds a space, a line break"),
        ("AWS_SECRET_ACCESS_KEY", " hidden", "AWS_SECRET_ACCESS_KEY holds a space"),
        ("AWS_SESSION_TOKEN", "hid\tden", "AWS_SESSION_TOKEN holds a space"),
    ],
)
def test_variables_that_no_request_can_carry_are_named_and_not_shown(
    name: str, value: str, words: str, root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    bucket.bucket_of.cache_clear()
    with pytest.raises(SettingsError, match=words) as error:
        (root / "a").size()
    assert value.strip() not in str(error.value)
    bucket.bucket_of.cache_clear()


def test_a_panic_of_the_library_is_one_sentence(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    def panics(*_: object, **__: object) -> None:
        raise type("PanicException", (BaseException,), {})("called `Result::unwrap()` on an `Err` value")

    monkeypatch.setattr(obstore, "head", panics)
    with pytest.raises(InputError, match="can't be reached: an environment variable") as error:
        (root / "a").size()
    assert "unwrap" not in str(error.value)


def test_a_cache_that_cant_be_written_is_named(root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "file"))
    with (
        pytest.raises(StoreError, match="file/studies.* can't be written: Not a directory"),
        root.hold("a run", "wait"),
    ):
        pass
    assert not [key for key in buckets.keys(root) if key.endswith(".hold")]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from leanrecon.places import as_location

    monkeypatch.setitem(sys.modules, "obstore.store", None)
    bucket.bucket_of.cache_clear()
    with pytest.raises(SettingsError, match=r"pip install '\.\[cloud\]' in the folder"):
        as_location("s3://studies/x").is_file()


# Holding


def write_hold(root: Location, **changes: object) -> None:
    """Leave the file of a holder as this process would write it, but for some entries."""
    (root / ".hold").unlink(missing_ok=True)
    with root.hold("another run", "wait"):
        found = json.loads(b"".join(map(bytes, root.place._bucket.pieces(f"{root.key}/.hold", 0, 10_000))))
    (root / ".hold").write_bytes(json.dumps(found | changes).encode())


def test_a_second_holder_is_told_who_holds_it_and_since_when(root: Location) -> None:
    with root.hold("another run", "wait for it"):
        assert buckets.keys(root) == [f"{root.key}/.hold"]
        with pytest.raises(StoreError) as refused, root.hold("another run", "wait for it"):
            pass
    assert f"another run is using {root} (process {os.getpid()} on {socket.gethostname()}, since 20" in str(
        refused.value
    )
    assert buckets.keys(root) == []


def test_a_holder_that_was_killed_on_this_machine_is_followed_at_once(root: Location) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {os.fspath(Path(__file__).parents[1])!r})
from leanrecon.places import as_location
with as_location({str(root)!r}).hold("another run", "wait"):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert buckets.keys(root) == [f"{root.key}/.hold"]
    with root.hold("another run", "wait"):
        pass
    assert buckets.keys(root) == []


def test_a_holder_elsewhere_is_followed_once_it_gives_no_sign(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.2)
    write_hold(root, machine="another", host="node7")
    with (
        pytest.raises(StoreError, match=r"on node7, .*a run can start 3 minutes after"),
        root.hold("another run", "w"),
    ):
        pass
    write_hold(root, machine="another", host="node7", renewed="2020-01-01T00:00:00+00:00")
    with pytest.warns(LeanreconWarning, match="node7.*ended without releasing it"), root.hold("another run", "w"):
        pass
    # A clock that is wrong by years: the other holder lives, and renews its file.
    write_hold(root, machine="another", renewed="2020-01-01T00:00:00+00:00")
    renewal = threading.Timer(0.1, lambda: (root / ".hold").write_bytes(b"{}"))
    renewal.start()
    with pytest.raises(StoreError, match="another run is using"), root.hold("another run", "w"):
        pass
    renewal.join()


def test_a_holder_that_was_followed_writes_no_more(root: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    with root.hold("another run", "wait"):
        (root / "a").write_bytes(b"x")
        root.place._bucket.put(f"{root.key}/.hold", [b'{"token": "of another"}'])
        for _ in range(100):
            with contextlib.suppress(LeanreconError):
                (root / "a").write_bytes(b"x")
                threading.Event().wait(0.05)
                continue
            break
        with pytest.raises(StoreError, match="another run took over"):
            (root / "b").write_bytes(b"y")
    assert buckets.keys(root) == [f"{root.key}/.hold", f"{root.key}/a"], "the hold of the other stays"


def test_a_server_without_conditions_is_warned_of(root: Location, proxy: Proxy) -> None:
    proxy.unheard = ("if-none-match",)
    with pytest.warns(LeanreconWarning, match="ignores conditional writes"), root.hold("another run", "wait"):
        pass
