"""NSD from a real S3 server, through every fault a network has, and killed anywhere: always the same bytes.

Four kills by default; ``LEANRECON_KILLS=20 pytest tests/datasets/test_nsd_faults.py`` for more.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.damage import flipped
from support.nsd_server import FAULTS, NAME, PUBLIC, Proxy, proxied, writer

from leanrecon.context import Context
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.layout import SubjectFiles
from leanrecon.datasets.nsd.staging import Staging
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.errors import InputError
from leanrecon.memory import parse_bytes
from leanrecon.net import ranges, retry, s3
from leanrecon.progress import Progress
from leanrecon.study.layout import Study

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("LEANRECON_KILLS", "4"))
SPAN = 150_000  # bytes fetched as one: small, so that there are many requests to fail and to be killed in
CONNECTIONS = 4
HELD = 12 * SPAN  # bytes fetched ahead
NAMES = SubjectFiles(1)


def ingest_nsd(
    settings: NSDSettings, study: Study, *, chunk: str | int = 8_000_000, budget: str | None = None, **options: object
) -> None:
    NSD(settings).ingest(study, base_dir=None, context=Context.of(budget, chunk=parse_bytes(chunk), **options))


def plan_nsd(settings: NSDSettings, *, free: int) -> DatasetPlan:
    return NSD(settings).plan(base_dir=None, chunk=8_000_000, free=free)


def settings_for(url: str, form: str = "hdf5", **changes: object) -> NSDSettings:
    given = {"endpoint_url": url, "sessions": 2, "betas_format": form, "accept_terms": True} | changes
    return NSDSettings(**given)


def contents(study: Study) -> dict[str, bytes]:
    """Every file but the one that names the server."""
    root = Path(study.root)
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "sources.json"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture
def proxy(s3_url: str, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(s3, "TIMEOUT", 1.0)
    monkeypatch.setattr(s3, "CONNECTIONS", CONNECTIONS)
    monkeypatch.setattr(ranges, "SPAN", SPAN)
    monkeypatch.setattr(ranges, "HELD", HELD)
    with proxied(s3_url) as found:
        yield found


@dataclass
class Undisturbed:
    contents: dict[str, bytes]
    requests: int
    nbytes: int


@pytest.fixture(scope="module")
def undisturbed(s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    """What a fetch through either format leaves and moves when nothing disturbs it."""
    found = {}
    for form in ("hdf5", "nii.gz"):
        study = Study(tmp_path_factory.mktemp("undisturbed"))
        with proxied(s3_url) as proxy:
            finish(proxy.url, form, study.root)
            found[form] = Undisturbed(contents(study), proxy.requests(), proxy.nbytes())
    return found


PROGRAM = f"""
import sys
from pathlib import Path
from leanrecon.net import ranges
from leanrecon.net import s3
from leanrecon.context import Context
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.study.layout import Study
ranges.SPAN, ranges.HELD, s3.CONNECTIONS = {SPAN}, {HELD}, {CONNECTIONS}
settings = NSDSettings(endpoint_url=sys.argv[1], sessions=2, betas_format=sys.argv[2], accept_terms=True)
NSD(settings).ingest(Study(Path(sys.argv[3])), base_dir=None, context=Context.of(chunk=100_000))
"""


def start(url: str, form: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, url, form, str(folder)], stderr=subprocess.PIPE)


def finish(url: str, form: str, folder: Path) -> None:
    process = start(url, form, folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()


# A network that fails


@pytest.mark.parametrize(
    ("form", "fault"), [*(("hdf5", fault) for fault in FAULTS), ("nii.gz", "drop"), ("nii.gz", "truncate")]
)
def test_faults_change_nothing(proxy: Proxy, undisturbed, tmp_path: Path, form: str, fault: str) -> None:
    whole = undisturbed[form]
    rare = 40 if fault == "slow" else 8
    proxy.choose = lambda number, method, path: fault if number % rare == 3 else None
    ingest_nsd(settings_for(proxy.url, form), Study(tmp_path), chunk="100KB")
    assert contents(Study(tmp_path)) == whole.contents
    failed = [answer for answer in proxy.answers if answer.fault]
    assert len(failed) >= 2
    again = len(failed) * (SPAN if form == "hdf5" else 2 * 2**20)  # what failed came again, and nothing else
    assert proxy.nbytes() <= whole.nbytes + again


@pytest.mark.parametrize("form", ["hdf5", "nii.gz"])
def test_all_faults_at_random_change_nothing(proxy: Proxy, undisturbed, tmp_path: Path, form: str) -> None:
    whole = undisturbed[form]
    rng = random.Random(7)
    lock = threading.Lock()

    def choose(number: int, method: str, path: str) -> str | None:
        with lock:
            return rng.choice(FAULTS[:4]) if rng.random() < 0.3 else None

    proxy.choose = choose
    ingest_nsd(settings_for(proxy.url, form), Study(tmp_path), chunk="100KB")
    assert contents(Study(tmp_path)) == whole.contents
    assert len({answer.fault for answer in proxy.answers}) == 5


# Kills


@pytest.mark.kills
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("k", range(ROUNDS))
def test_a_killed_fetch_goes_on_and_fetches_nothing_again(s3_url: str, undisturbed, tmp_path: Path, k: int) -> None:
    form = ("hdf5", "nii.gz")[k % 2]
    whole = undisturbed[form]
    rng = random.Random(f"{k} {ROUNDS}")
    at = int((k + rng.random()) / ROUNDS * whole.requests)
    reached = threading.Event()

    def choose(number: int, method: str, path: str) -> None:
        if number >= at:
            reached.set()

    with proxied(s3_url) as proxy:
        proxy.choose = choose
        process = start(proxy.url, form, tmp_path)
        while not reached.wait(0.01) and process.poll() is None:
            pass
        time.sleep(0.01 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        proxy.choose = lambda number, method, path: None
        before = proxy.nbytes()
        finish(proxy.url, form, tmp_path)
        after = proxy.nbytes() - before
    assert contents(Study(tmp_path)) == whole.contents
    # Lost: what was on its way, and of .hdf5 the session that it was on its way to.
    session = max(len(data) for name, data in whole.contents.items() if "trials.zarr/c" in name) * 16
    small = 500_000  # design, masks and headers, read before anything is kept
    on_its_way = HELD if form == "hdf5" or at > whole.requests // 2 else HELD + 2 * 2**20
    assert before + after <= whole.nbytes + on_its_way + session + small, f"killed at request {at} of {whole.requests}"


@pytest.mark.parametrize(("form", "share"), [("hdf5", 0.5), ("nii.gz", 0.15)])
def test_what_came_before_the_network_vanished_is_kept(
    proxy: Proxy, undisturbed, tmp_path: Path, form: str, share: float
) -> None:
    whole = undisturbed[form]
    proxy.choose = lambda number, method, path: "drop" if number > share * whole.requests else None
    with pytest.raises(s3.NetworkError, match="same command again; everything fetched so far is kept"):
        ingest_nsd(settings_for(proxy.url, form), Study(tmp_path), chunk="100KB")
    proxy.choose = lambda number, method, path: None
    assert proxy.nbytes() > 500_000
    ingest_nsd(settings_for(proxy.url, form), Study(tmp_path), chunk="100KB")
    assert contents(Study(tmp_path)) == whole.contents
    on_its_way = HELD if form == "hdf5" else 3 * 2 * 2**20
    assert proxy.nbytes() <= whole.nbytes + on_its_way + 2 * ranges.BLOCK


@pytest.mark.parametrize("file", ["session01.hdf5", "nsd_stimuli", "nsdgeneral", "expdesign"])
def test_a_file_that_cannot_be_reached_is_not_taken_for_a_damaged_one(proxy: Proxy, tmp_path: Path, file: str) -> None:
    proxy.choose = lambda number, method, path: "503" if file in path else None
    with pytest.raises(s3.NetworkError, match=f"{file}.* could not be read in 8 attempts"):
        ingest_nsd(settings_for(proxy.url), Study(tmp_path))


def test_the_disk_holds_the_stores_and_one_session_file_at_most(
    proxy: Proxy, undisturbed, small_nsd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    def put(self: Staging, first: int, block: object) -> None:
        nonlocal most
        plain(self, first, block)
        most = max(most, sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))

    plain = Staging.put
    monkeypatch.setattr(Staging, "put", put)
    ingest_nsd(settings_for(proxy.url, "nii.gz"), Study(tmp_path), chunk="100KB")
    stores = sum(len(data) for data in undisturbed["nii.gz"].contents.values())
    session = max((small_nsd / NAMES.betas(s, "nii.gz")).stat().st_size for s in (1, 2))
    assert most <= stores + session + 100_000


# What the network is asked


def test_nothing_is_asked_of_the_network_once_all_is_there(proxy: Proxy, tmp_path: Path) -> None:
    settings = settings_for(proxy.url)
    ingest_nsd(settings, Study(tmp_path))
    asked = proxy.requests()
    assert asked > 20
    before = contents(Study(tmp_path))
    ingest_nsd(settings, Study(tmp_path))
    assert proxy.requests() == asked
    assert contents(Study(tmp_path)) == before


def test_only_the_masked_voxels_and_the_shown_images_are_moved(proxy: Proxy, small_nsd: Path, tmp_path: Path) -> None:
    ingest_nsd(settings_for(proxy.url), Study(tmp_path))
    file = (small_nsd / NAMES.betas(1, "hdf5")).stat().st_size
    assert proxy.nbytes("session01.hdf5") < 0.1 * file
    images = sum(len(data) for name, data in contents(Study(tmp_path)).items() if "stimuli" in name and "/c/" in name)
    assert proxy.nbytes("nsd_stimuli") < 1.05 * images + 2 * ranges.BLOCK


def test_the_plan_moves_headers_and_masks_alone(proxy: Proxy) -> None:
    plan = plan_nsd(settings_for(proxy.url, accept_terms=False), free=10**9)
    assert proxy.nbytes() < 600_000
    assert plan.download > 10_000_000
    assert plan.scratch == 0
    with_niftis = plan_nsd(settings_for(proxy.url, "nii.gz"), free=10**9)
    assert with_niftis.download > plan.download + 5_000_000
    assert with_niftis.scratch > 3_000_000


def test_the_plan_says_what_is_moved(proxy: Proxy, tmp_path: Path) -> None:
    plan = plan_nsd(settings_for(proxy.url, "nii.gz"), free=10**9)
    before = proxy.nbytes()
    ingest_nsd(settings_for(proxy.url, "nii.gz"), Study(tmp_path))
    assert plan.download == pytest.approx(proxy.nbytes() - before, rel=0.05)


# Terms, missing and changed objects


def test_the_terms_have_to_be_accepted_and_are_shown_once(proxy: Proxy, tmp_path: Path) -> None:
    said: list[str] = []

    class Said(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    with pytest.raises(InputError, match=r"terms of use.*naturalscenesdataset\.org.*accept_terms = true"):
        ingest_nsd(settings_for(proxy.url, accept_terms=False), Study(tmp_path))
    assert proxy.requests() == 0
    for _ in range(2):
        ingest_nsd(settings_for(proxy.url), Study(tmp_path), progress=Said())
    assert sum("naturalscenesdataset.org" in text for text in said) == 1


def test_forbidden_sessions_are_named_like_missing_ones(proxy: Proxy, s3_url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"session 3 of subject 1 does not exist, or may not be read.*\[1, 2\]"):
        ingest_nsd(settings_for(proxy.url, sessions=3), Study(tmp_path))
    writer(s3_url).put_object(Bucket=NAME, Key=NAMES.betas(3, "hdf5"), Body=b"held out until 2023")
    with pytest.raises(InputError, match=r"session 3 of subject 1 does not exist, or may not be read.*\[1, 2\]"):
        ingest_nsd(settings_for(proxy.url, sessions=3), Study(tmp_path))


def test_a_session_that_changes_between_two_runs_is_an_error(
    proxy: Proxy, s3_url: str, small_nsd: Path, tmp_path: Path
) -> None:
    key = NAMES.betas(2, "hdf5")

    class StopError(Exception):
        pass

    class Stopping(Progress):
        def task(self, name: str, **how):
            if name == "stimuli":
                raise StopError
            return super().task(name, **how)

    with pytest.raises(StopError):
        ingest_nsd(settings_for(proxy.url), Study(tmp_path), progress=Stopping())
    from leanrecon.stores import Store

    Store.open(tmp_path / "betas" / "trials.zarr").discard([(5, 0)])  # session 2 is needed again
    data = (small_nsd / key).read_bytes()
    try:
        writer(s3_url).put_object(Bucket=NAME, Key=key, Body=flipped(data), **PUBLIC)
        with pytest.raises(
            InputError, match=r"session02\.hdf5 has changed since its first bytes were read.*--overwrite"
        ):
            ingest_nsd(settings_for(proxy.url), Study(tmp_path))
    finally:
        writer(s3_url).upload_file(str(small_nsd / key), NAME, key, ExtraArgs=PUBLIC)  # with the ETag it had
    ingest_nsd(settings_for(proxy.url), Study(tmp_path))
