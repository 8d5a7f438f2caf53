"""A study that is killed anywhere, and continued under another budget, ends with the same bytes.

Eight rounds by default; ``LEANRECON_KILLS=50 pytest tests/test_kill.py`` for more. A fresh study each round.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROUNDS = int(os.environ.get("LEANRECON_KILLS", "8"))
AT_ONCE = 2
BUDGETS = ("250MB", "400MB", "1GB", "3GB")
N_TRAIN, N_TEST, N_VOXELS = 300, 60, 200
STORES, FOLDERS = 12, 5
"""Stores of betas, stimuli, features and predictions, two of them of shuffled betas; folders of images."""

SETTINGS = """
[dataset]
betas_train = "betas_train.npy"
betas_test = "betas_test.npy"
stimuli_train = "stimuli_train.npy"
stimuli_test = "stimuli_test.npy"
[stores]
chunk = "1KB"
[features.pixels]
[features.pca]
components = 200
[regression]
alpha = 100.0
[evaluate]
permutations = 2
resamples = 100
"""

pytestmark = [pytest.mark.slow, pytest.mark.kills, pytest.mark.skipif(os.name == "nt", reason="needs signals")]


def start(data: Path, study: Path, memory: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "leanrecon", "run", "study.toml", "--study", str(study), "--memory", memory]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # the promise is for one number of threads
    return subprocess.Popen(command, cwd=data, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(data: Path, study: Path, memory: str) -> float:
    started = time.monotonic()
    process = start(data, study, memory)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    return time.monotonic() - started


def contents(study: Path) -> dict[str, bytes]:
    """Every file and folder, but for those that tell the budget and the time taken; no half-written ones."""
    found = {}
    for path in study.rglob("*"):
        name = str(path.relative_to(study))
        if path.is_dir():
            found[name + "/"] = b""
        elif path.name == "zarr.json":  # without the batch, which is the first run's
            record = json.loads(path.read_text())["attributes"]["leanrecon"]
            found[name] = json.dumps({key: record[key] for key in ("fingerprint", "content", "complete")}).encode()
        elif name not in ("run.json", "study.toml", "report.html"):
            found[name] = path.read_bytes()
    return found


def store_of(chunk: str) -> str:
    """The store that a chunk is in, or the folder that an image is in."""
    return chunk.rpartition("/")[0] if chunk.endswith(".png") else chunk.partition("/c/")[0]


@dataclass
class Undisturbed:
    """A run that nothing disturbs: what it left, and the order and times in which it left it."""

    data: Path
    contents: dict[str, bytes]
    chunks: list[str]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    mixing = rng.standard_normal((256, N_VOXELS))
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        stimuli = rng.integers(0, 256, (n, 16, 16), np.uint8)
        betas = stimuli.reshape(n, -1) / 255 @ mixing + rng.standard_normal((n, N_VOXELS))
        np.save(data / f"stimuli_{split}.npy", stimuli)
        np.save(data / f"betas_{split}.npy", betas.astype(np.float32))
    (data / "study.toml").write_text(SETTINGS)
    study = data / "undisturbed"
    seconds = finish(data, study, "2GB")
    chunks = [path for path in study.rglob("*.zarr/c/**/*") if path.is_file()] + list(study.rglob("*.png"))
    chunks.sort(key=lambda path: path.stat().st_mtime_ns)
    names = [path.relative_to(study).as_posix() for path in chunks]
    stores = Counter(map(store_of, names))
    assert len(stores) == STORES + FOLDERS
    assert min(stores.values()) >= 20
    return Undisturbed(data, contents(study), names, seconds)


def test_every_store_of_the_undisturbed_run_is_complete(undisturbed: Undisturbed) -> None:
    stores = [json.loads(data) for name, data in undisturbed.contents.items() if name.endswith("zarr.json")]
    assert len(stores) == STORES
    assert all(store["complete"] for store in stores)
    assert {"evaluation/metrics.json", "evaluation/scores.csv", "reconstructions/final/00059.png"} < set(
        undisturbed.contents
    )


def kill(undisturbed: Undisturbed, study: Path, k: int) -> str:
    """Start a run and kill it in round ``k``.

    Most rounds kill when the chunk that is k/ROUNDS along the way is there; some after a time, start-up
    included, and some in the second after a store is done, where the fits and the ends of stages lie.
    """
    rng = np.random.default_rng((ROUNDS, k))
    chunks, place = undisturbed.chunks, (k + rng.random()) / ROUNDS
    process = start(undisturbed.data, study, BUDGETS[k % len(BUDGETS)])
    if k % 8 == 3:
        chunk, seconds = None, place * undisturbed.seconds
    elif k % 8 == 7:
        ends = [one for one, other in pairwise(chunks) if store_of(one) != store_of(other)]
        chunk, seconds = ends[(k // 8 * 2 + 5) % len(ends)], 0.8 * float(rng.random()) ** 2
    else:
        chunk, seconds = chunks[int(place * len(chunks))], 0.002 * float(rng.random())
    while chunk and not (study / chunk).exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    moment = f"{seconds:.3f} s after {chunk or 'the start'}"
    return f"killed {moment}" if process.returncode == -signal.SIGKILL else f"ended before it was killed {moment}"


def test_killed_runs_end_with_the_same_bytes(undisturbed: Undisturbed, tmp_path: Path) -> None:
    def one(k: int) -> str:
        study = tmp_path / f"study{k}"
        moment = kill(undisturbed, study, k)
        written = sum((study / chunk).exists() for chunk in undisturbed.chunks)
        report = f"{moment}, {written} of {len(undisturbed.chunks)} chunks written"
        finish(undisturbed.data, study, BUDGETS[(k + 1) % len(BUDGETS)])
        found = contents(study)
        differ = [name for name in {*found, *undisturbed.contents} if found.get(name) != undisturbed.contents.get(name)]
        assert differ == [], f"{report}: {len(differ)} files differ, such as {sorted(differ)[:5]}"
        shutil.rmtree(study)
        return report

    with ThreadPoolExecutor(AT_ONCE) as pool:
        reports = list(pool.map(one, range(ROUNDS)))
    print("", *reports, sep="\n")
    assert sum(report.startswith("killed") for report in reports) >= 0.8 * ROUNDS, reports
