"""Images of NSD that come while sessions do: the same bytes and requests, and an end to both where either fails."""

import threading
from pathlib import Path

import pytest
from support.memory import held
from support.nsd_server import Proxy, proxied

from leanrecon.context import Context
from leanrecon.datasets.nsd.aside import Aside
from leanrecon.datasets.nsd.dataset import NSD, OVERHEAD, NSDSettings
from leanrecon.errors import NetworkError
from leanrecon.net import retry, s3
from leanrecon.progress import Advance
from leanrecon.study.layout import Study

pytestmark = pytest.mark.slow


def nothing() -> None:
    return


def test_work_aside_is_counted_and_waited_for() -> None:
    go = threading.Event()

    def work(advance: Advance) -> None:
        advance(3)
        go.wait()
        advance(4)

    told: list[int] = []
    with Aside(work, nothing) as aside:
        while aside.count < 3:
            aside.look()
        seen = aside.count
        go.set()
        aside.wait(told.append, seen)
        assert aside.count == 7
    assert seen + sum(told) == 7


def test_an_error_of_work_aside_is_raised_at_the_next_look() -> None:
    def work(advance: Advance) -> None:
        raise NetworkError("no image")

    with pytest.raises(NetworkError, match="no image"), Aside(work, nothing) as aside:
        while True:
            aside.look()


def test_an_error_of_work_aside_is_raised_at_the_end() -> None:
    def work(advance: Advance) -> None:
        raise NetworkError("no image")

    with pytest.raises(NetworkError, match="no image"), Aside(work, nothing):
        pass


def test_work_aside_is_stopped_where_the_block_fails() -> None:
    interrupted = threading.Event()
    steps: list[int] = []

    def work(advance: Advance) -> None:
        while True:
            steps.append(1)
            interrupted.wait()  # as for an answer
            advance(1)

    with pytest.raises(KeyboardInterrupt), Aside(work, interrupted.set):
        raise KeyboardInterrupt
    assert len(steps) == 1


# Through a bucket


@pytest.fixture
def proxy(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3, "CONNECTIONS", 16)  # a busy server that answers late is asked again
    with proxied(s3_url) as found:
        yield found


def settings_of(proxy: Proxy) -> NSDSettings:
    return NSDSettings(endpoint_url=proxy.url, sessions=2, betas_format="hdf5", accept_terms=True)


def fetch(proxy: Proxy, folder: Path, work: int) -> tuple[dict[str, bytes], list[str]]:
    """Fetch with so many bytes for the work: the files, and which were asked for, one after the other."""
    dataset, proxy.answers[:] = NSD(settings_of(proxy)), []
    context = Context.of(held() + work, chunk=100_000)
    dataset.ingest(Study(folder), base_dir=None, context=context)
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "sources.json"]
    asked = [answer.path for answer in proxy.answers if answer.method == "GET"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}, asked


def test_memory_decides_whether_images_come_while_sessions_do(proxy: Proxy, tmp_path: Path) -> None:
    plan = NSD(settings_of(proxy)).plan
    least, most = (plan(base_dir=None, chunk=100_000, free=free).work for free in (0, 10**9))
    assert OVERHEAD < least < most
    assert plan(base_dir=None, chunk=100_000, free=most - 1).work == least
    assert plan(base_dir=None, chunk=100_000, free=most).work == most
    alone, in_turns = fetch(proxy, tmp_path / "alone", least + 1_000_000)
    together, mixed = fetch(proxy, tmp_path / "together", most + 20_000_000)
    assert together == alone
    assert sorted(mixed) == sorted(in_turns)
    last_session = max(k for k, path in enumerate(in_turns) if "betas_session" in path)
    of_images = [k for k, path in enumerate(in_turns) if "nsd_stimuli" in path]
    assert sum(k > last_session for k in of_images) > 0.9 * len(of_images)
    last_session = max(k for k, path in enumerate(mixed) if "betas_session" in path)
    assert any("nsd_stimuli" in path for path in mixed[: last_session // 2])


@pytest.mark.parametrize("broken", ["nsd_stimuli", "betas_session02"])
def test_either_ends_where_the_other_cannot_be_had(
    broken: str, proxy: Proxy, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    heads = iter(range(10**9))

    def choose(number: int, method: str, path: str) -> str | None:
        return "503" if method == "GET" and broken in path and next(heads) >= 4 else None

    proxy.choose = choose
    with pytest.raises(NetworkError, match=f"{broken}.* could not be read"):
        fetch(proxy, tmp_path, 10**9)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]
    proxy.choose = lambda number, method, path: None
    assert fetch(proxy, tmp_path, 10**9)[0] == undisturbed


@pytest.fixture(scope="module")
def undisturbed(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with proxied(s3_url) as found:
        return fetch(found, tmp_path_factory.mktemp("undisturbed"), 10**9)[0]
