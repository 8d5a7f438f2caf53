"""A fetch of NSD whose sessions and images workers share: the bytes and the requests of one process, whoever dies."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.clusters import kill_a_worker, worker_here
from support.memory import held
from support.nsd_server import NAME, Proxy, proxied, serving

import leanrecon
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.layout import SubjectFiles
from leanrecon.datasets.nsd.pieces import MOST_IMAGES
from leanrecon.errors import BudgetError
from leanrecon.execution.tasks import SHARE
from leanrecon.net.ranges import BLOCK
from leanrecon.progress import Progress
from leanrecon.stores.store import Store

pytest.importorskip("distributed", reason="dask.distributed is not installed (extra cluster)")
pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")

pytestmark = [pytest.mark.slow, pytest.mark.long]

SESSIONS = 5
STORES = ("betas/trials", "betas/train", "betas/test", "stimuli/train", "stimuli/test")
APART = {"run.json"}
"""Files that tell how long stages took."""


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sessions of a small NSD, in either format."""
    from leanrecon.datasets.nsd.simulate import simulate_nsd

    folder = tmp_path_factory.mktemp("nsd")
    simulate_nsd(folder, sessions=SESSIONS, scale=0.15)
    return folder


@pytest.fixture(scope="module")
def s3(nsd: Path) -> Iterator[str]:
    with serving(nsd) as url:
        yield url


class Said(Progress):
    """Keeps what is said, and what tasks were begun."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tasks: dict[str, int] = {}

    @contextmanager
    def task(self, name: str, *, total: int, done: int = 0, **options: Any) -> Iterator[Any]:
        self.tasks[name] = done

        def advance(n: int) -> None:
            self.tasks[name] += n
            self.after(name)

        yield advance
        assert self.tasks[name] == total, f"{name} is told of all that is done"

    def after(self, name: str) -> None:
        """Called after each piece of a task."""

    def say(self, text: str) -> None:
        self.lines.append(text)


class Deadly(Said):
    """Kills a worker once in each of these tasks, after their first piece has come."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = list(names)

    def after(self, name: str) -> None:
        if name in self.names:
            self.names.remove(name)
            kill_a_worker()


def settings_of(root: str, **changes: Any) -> dict[str, Any]:
    """Sessions end within a row group, and images come in many groups."""
    dataset = {"kind": "nsd", "root": root, "sessions": SESSIONS, "accept_terms": True} | changes
    return {"dataset": dataset, "features": {"pixels": {"size": 16}}, "stores": {"chunk": "100KB"}}


def remote(url: str, **changes: Any) -> dict[str, Any]:
    return settings_of("s3://natural-scenes-dataset", endpoint_url=url, **changes)


def run(settings: dict[str, Any], study: Path, progress: Progress, **options: Any) -> Path:
    leanrecon.run(settings, study=study, until="dataset", progress=progress, **options)
    return study


def contents(study: Path) -> dict[str, bytes]:
    files = (file for file in study.rglob("*") if file.is_file() and file.name not in APART)
    return {file.relative_to(study).as_posix(): file.read_bytes() for file in files}


def asked(proxy: Proxy) -> dict[tuple[str, str, str | None], int]:
    """How often each range was asked for."""
    found: dict[tuple[str, str, str | None], int] = {}
    for answer in proxy.answers:
        key = (answer.method, answer.path, answer.range)
        found[key] = found.get(key, 0) + 1
    return found


@pytest.fixture(scope="module")
def alone(s3: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(run(remote(s3), tmp_path_factory.mktemp("alone") / "study", Progress()))


def test_workers_ask_a_bucket_for_what_one_process_asks_for_and_write_the_same_bytes(s3, tmp_path):
    studies = {}
    with proxied(s3) as proxy:
        settings, found = remote(proxy.url), []
        for name, options in (("alone", {}), ("shared", {"cluster": "local:2"})):
            progress = Said()
            proxy.answers.clear()
            studies[name] = contents(run(settings, tmp_path / name, progress, **options))
            found.append(asked(proxy))
            [line] = [line for line in progress.lines if line.startswith("fetched ")]
            assert f"in {sum(found[-1].values())} requests" in line
    again = {key: n - found[0].get(key, 0) for key, n in found[1].items() if n != found[0].get(key)}
    assert found[0].keys() == found[1].keys()
    assert list(again.values()) == [1], (
        "the same ranges, each as often, but for what the driver read of a session itself"
    )
    assert next(iter(again))[1:] == (f"/{NAME}/{SubjectFiles(1).betas(1, 'hdf5')}", f"bytes=0-{BLOCK - 1}")
    assert studies["alone"] == studies["shared"]
    groups = {name for name in studies["alone"] if name.startswith("betas/trials.zarr/c/")}
    assert len(groups) > SESSIONS, "sessions end within groups"


@pytest.mark.parametrize("form", ["hdf5", "nii.gz"])
def test_sessions_of_a_folder_and_of_either_format_give_the_same_bytes(nsd, alone, form, tmp_path):
    settings, progress = settings_of(str(nsd), betas_format=form), Said()
    shared = contents(run(settings, tmp_path / "shared", progress, cluster="local:2"))
    assert shared.keys() == alone.keys()
    differing = [name for name, data in alone.items() if shared[name] != data]
    assert set(differing) <= {"study.toml", "betas/sources.json"}, "which name the bucket or the folder"
    here = [line for line in progress.lines if line.startswith("stage 1")]
    assert "on workers" in here[0]


def test_downloads_of_nii_gz_by_workers_that_die_leave_nothing_behind(s3, alone, tmp_path):
    progress = Deadly("betas")
    settings = remote(s3, betas_format="nii.gz")
    shared = contents(run(settings, tmp_path / "shared", progress, cluster="local:2"))
    assert progress.names == [], "a worker was killed"
    assert shared.keys() == alone.keys()
    assert all(shared[name] == data for name, data in alone.items() if "/c/" in name)


def test_a_worker_that_dies_while_it_fetches_costs_its_task_alone(s3, alone, tmp_path):
    with proxied(s3) as proxy:
        progress = Deadly("betas", "stimuli")
        shared = contents(run(remote(proxy.url), tmp_path / "shared", progress, cluster="local:2"))
        again = sum(n - 1 for n in asked(proxy).values())
    assert progress.names == [], "a worker was killed in both"
    assert shared.keys() == alone.keys()
    assert all(shared[name] == data for name, data in alone.items() if "/c/" in name)
    assert again < 0.6 * sum(asked(proxy).values()), "what was done is kept"


@pytest.mark.kills
def test_a_driver_and_workers_that_are_killed_continue_with_what_they_have(s3, alone, tmp_path):
    import tomli_w

    shared = tmp_path / "shared"
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--until", "dataset", "--study", "shared"]
    with proxied(s3) as proxy:
        proxy.choose = lambda number, method, path: time.sleep(0.02)  # as far away as a bucket is
        (tmp_path / "s.toml").write_text(tomli_w.dumps(remote(proxy.url)))
        for reached in ("betas/trials.fetched/*/*.rows", "betas/trials.zarr/c/9/0", "stimuli/train.zarr/c/3/0/0/0"):
            driver = subprocess.Popen(
                [*command, "--cluster", "local:2"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            until = time.monotonic() + 300
            while not list(shared.glob(reached)) and driver.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            assert driver.poll() is None, "it was killed in the middle"
            children = psutil.Process(driver.pid).children(recursive=True)
            for process in (*children, driver):
                process.kill()
            driver.wait()
            psutil.wait_procs(children, timeout=60)
        proxy.choose = lambda number, method, path: None
        subprocess.run([*command], cwd=tmp_path, check=True, capture_output=True)  # the rest by one process
        again = {key: n - 1 for key, n in asked(proxy).items() if n > 1}
    sessions = {path for _, path, _ in again if "betas_session" in path}
    assert len(sessions) <= 4, "each of two workers lost what it was at, at the two kills while sessions came"
    assert sum(n for (_, path, _), n in again.items() if "nsd_stimuli" in path) <= 2 * MOST_IMAGES + 4
    assert not [path for _, path, _ in again if "expdesign" in path or "/roi/" in path], "these were kept"
    found = contents(shared)
    assert found.keys() == alone.keys(), "nothing is left behind"
    assert all(found[name] == data for name, data in alone.items() if "/c/" in name)
    for name in STORES:
        Store.open(shared / f"{name}.zarr")


def test_a_worker_too_small_for_a_session_is_refused_with_the_limit_that_would_do(nsd, tmp_path):
    limit = int((held() + 60_000_000) / SHARE)
    with (
        worker_here(limit) as client,
        pytest.raises(
            BudgetError, match=r"fetching sessions needs at least .* on a worker .*--memory-limit \d+MB"
        ) as refused,
    ):
        run(settings_of(str(nsd)), tmp_path / "study", Progress(), cluster=client)
    assert not list((tmp_path / "study" / "betas" / "trials.zarr").glob("c/*")), "nothing was begun"
    enough = int(str(refused.value).split('limit of "')[1].split("MB")[0])
    assert enough * 1_000_000 > limit


def test_what_a_worker_holds_stays_below_what_it_was_planned(nsd, tmp_path):
    study = run(settings_of(str(nsd)), tmp_path / "study", Progress(), cluster="local:2")
    record = json.loads((study / "run.json").read_text())["stages"]["dataset"]
    assert record["workers"] >= 1
    assert record["worker_peak_bytes"] > 50_000_000
    work = NSD(NSDSettings(**settings_of(str(nsd))["dataset"])).plan(base_dir=None, chunk=100_000, free=0).work
    assert record["worker_peak_bytes"] < work + 150_000_000, "150 MB are what a worker of Dask holds before"


def test_images_that_lie_several_in_a_chunk_are_read_in_the_driver(nsd, alone, tmp_path):
    import h5py

    root, name = tmp_path / "nsd", "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    shutil.copytree(nsd, root, copy_function=lambda a, b: Path(b).hardlink_to(a))
    (root / name).unlink()
    with h5py.File(nsd / name) as old, h5py.File(root / name, "w", libver="earliest") as new:
        shape = old["imgBrick"].shape
        bricks = new.create_dataset("imgBrick", shape, "u1", chunks=(4, *shape[1:]))
        ids = json.loads(alone["stimuli/ids.json"])
        for image in sorted(int(one) for split in ("train", "test") for one in ids[split]):
            bricks[image] = old["imgBrick"][image]
    progress = Said()
    shared = contents(run(settings_of(str(root)), tmp_path / "shared", progress, cluster="local:2"))
    assert "stimuli: in this process, because the file keeps several images in a chunk" in progress.lines
    assert all(shared[name] == data for name, data in alone.items() if "/c/" in name)


def test_tasks_carry_no_secrets(nsd, tmp_path, monkeypatch):
    """What a task holds is what study.toml and the betas' records hold."""
    from leanrecon.execution import tasks, workers

    sent: list[Any] = []
    plain = workers._Sharing._send

    def send(self: Any, one: Any) -> None:
        sent.append((self.whole, one))
        plain(self, one)

    monkeypatch.setattr(workers._Sharing, "_send", send)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    run(settings_of(str(nsd)), tmp_path / "study", Progress(), cluster="local:1")
    assert {task.named["what"] for task, _ in sent} == {"sessions", "images"}
    assert all(isinstance(task, tasks.Task) and "do-not-tell" not in repr(task) for task, _ in sent)
    assert SubjectFiles(1).betas(1, "hdf5") not in repr(sent[0]), "files are told by the study's records"


@pytest.mark.parametrize("cluster", [None, "local:2"])
def test_a_study_in_a_bucket_keeps_the_ends_of_sessions_there_until_they_are_sealed(nsd, alone, cluster, tmp_path):
    from support.buckets import at, environment, keys
    from support.buckets import serving as studies

    with studies() as url, environment(url, cache=tmp_path / "cache"):
        study, progress = at("study"), Said()
        run(settings_of(str(nsd)), study, progress, cluster=cluster)
        found = {file.relative_to(study): file.read_bytes() for file in study.files()}
        assert not [key for key in keys(study) if "fetched" in key], "nothing is left behind"
    assert found.keys() - APART == alone.keys()
    assert all(found[name] == data for name, data in alone.items() if "/c/" in name)
