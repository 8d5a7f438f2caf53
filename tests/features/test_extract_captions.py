import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError
from leanrecon.features.extract_captions import (
    check_captions,
    extract_captions,
    read_captions,
)
from leanrecon.features.pixels import Pixels, PixelsSettings
from leanrecon.features.plan import Cost, plan_captions
from leanrecon.memory import parse_bytes
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.layout import plan_chunks

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters(Pixels):
    """How often each letter stands in the captions of a row, as a space that looks at no image."""

    inputs = "captions"

    def __init__(self, seed=0, seconds=0.0, per_image=100_000):
        super().__init__(PixelsSettings(), name="letters")
        self.seed, self.seconds, self.per_image, self.batches = seed, seconds, per_image, []

    def dims(self, image_shape):
        return len(LETTERS)

    def cost(self, image_shape):
        return Cost(held=1_000_000, per_image=self.per_image, batch=64)

    def made_of(self):
        return {"kind": "letters", "seed": self.seed}

    def encode(self, captions, rows):
        time.sleep(self.seconds)
        self.batches.append(list(rows))
        return np.array([np.mean([[t.count(c) for c in LETTERS] for t in texts], 0) for texts in captions], np.float32)


def sentences(rows, seed=0):
    rng = np.random.default_rng(seed)
    words = ["wave", "surfer", "pizza", "cat", "mat", "street", "zebra", "quilt"]
    return [[" ".join(rng.choice(words, 6)) for _ in range(1 + k % 3)] for k in range(rows)]


@pytest.fixture
def captions():
    return sentences(700)


def test_a_feature_store_holds_the_rows_of_all_captions_in_order(captions, tmp_path):
    space = Letters()
    with pytest.raises(SettingsError, match="pixels describes images, not captions"):
        extract_captions(Pixels(PixelsSettings()), captions, tmp_path / "f.zarr")
    store = extract_captions(space, captions, tmp_path / "features" / "train.zarr")
    assert store.complete
    assert (store.shape, store.dtype) == ((700, 26), np.float32)
    np.testing.assert_array_equal(store[:], Letters().encode(captions, range(700)))
    assert store.made_of["space"] == {"kind": "letters", "seed": 0}
    assert Store.open(store.path).notes == {"batch": 64}


@pytest.mark.parametrize("chunk", ["100B", "6kB", "1MB"])
@pytest.mark.parametrize("batch", [1, 7, None])
def test_chunks_and_batches_of_any_size_give_the_same_rows(tmp_path, chunk, batch):
    captions = sentences(150)
    store = extract_captions(
        Letters(), captions, tmp_path / "f.zarr", Context.of(chunk=parse_bytes(chunk)), batch=batch
    )
    np.testing.assert_array_equal(store[:], Letters().encode(captions, range(150)))


def test_only_what_is_missing_is_computed_again_in_the_same_batches(captions, tmp_path, files_of):
    first, again = Letters(), Letters()
    store = extract_captions(first, captions, tmp_path / "f.zarr", Context.of(chunk=20_000), batch=24)
    whole, size = files_of(store.path), store.chunk_rows
    store.discard([(1, 0)])
    (Path(store.path) / "c" / "1" / "0.abc.partial").write_bytes(b"half")
    extract_captions(again, captions, tmp_path / "f.zarr", Context.of(chunk=20_000), batch=5)
    assert again.batches == [rows for rows in first.batches if size <= rows[0] < 2 * size]
    assert files_of(store.path) == whole


SLOW = """
import json, sys
sys.path.insert(0, sys.argv[4])
from test_extract_captions import Context, Letters, extract_captions
captions = json.load(open(sys.argv[1]))
extract_captions(Letters(seconds=float(sys.argv[3])), captions, sys.argv[2], Context.of(chunk=1_000), batch=4)
"""


def test_a_killed_run_ends_with_the_same_bytes(tmp_path, files_of, request):
    captions = sentences(120)
    (tmp_path / "captions.json").write_text(json.dumps(captions))

    def command(target, seconds):
        paths = [str(tmp_path / "captions.json"), str(tmp_path / target)]
        return [sys.executable, "-c", SLOW, *paths, str(seconds), str(request.path.parent)]

    whole = extract_captions(Letters(), captions, tmp_path / "whole.zarr", Context.of(chunk=1_000), batch=4)
    assert whole.row_groups > 6
    killed = tmp_path / "killed.zarr"
    run = subprocess.Popen(command("killed.zarr", 0.1))
    deadline = time.monotonic() + 60
    while len(list(killed.glob("c/*/0"))) < 3 and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not Store.open(killed, incomplete=True).complete
    subprocess.run(command("killed.zarr", 0), check=True)
    assert files_of(killed) == files_of(whole.path)


def test_a_complete_store_is_returned_without_work(captions, tmp_path):
    extract_captions(Letters(), captions, tmp_path / "f.zarr")
    space = Letters()
    assert extract_captions(space, captions, tmp_path / "f.zarr", Context.of("1B")).complete
    assert space.batches == []


def test_a_store_of_other_captions_or_settings_is_refused_by_name(captions, tmp_path):
    extract_captions(Letters(seed=1), captions, tmp_path / "f.zarr")
    with pytest.raises(StoreError, match=r"space\.seed was 1, is 2"):
        extract_captions(Letters(seed=2), captions, tmp_path / "f.zarr")
    with pytest.raises(StoreError, match="captions was"):
        extract_captions(Letters(seed=1), sentences(700, seed=1), tmp_path / "f.zarr")
    store = extract_captions(Letters(seed=2), sentences(700, seed=1), tmp_path / "f.zarr", Context.of(overwrite=True))
    np.testing.assert_array_equal(store[:], Letters().encode(sentences(700, seed=1), range(700)))


def test_too_small_a_budget_is_refused_before_any_work(captions, tmp_path):
    space = Letters(per_image=3_000_000)  # more for all rows than a process gives back from one look to the next
    with pytest.raises(BudgetError, match="features letters needs at least") as error:
        extract_captions(space, captions, tmp_path / "f.zarr", Context.of("1B"))
    assert space.batches == []
    assert not (tmp_path / "f.zarr").exists()
    least = int(str(error.value).split('"')[1][:-2]) * 10**6
    store = extract_captions(space, captions, tmp_path / "f.zarr", Context.of(least + 10_000_000))
    assert 1 <= store.notes["batch"] < 64


def test_the_plan_counts_chunks_rows_and_what_the_space_takes():
    cost = Cost(held=100_000_000, per_image=1_000, batch=8)
    chunks = plan_chunks((1000, 59_136), np.float32, 8_000_000)
    plan = plan_captions(1000, chunks, 59_136, cost, free=10**9)
    assert plan.batch == 8
    gathered, chunk = 256 * 59_136 * 4, 256 * 7_392 * 4  # 59,136 columns in eight blocks
    at_least = 100_000_000 + gathered + 2 * chunk + 8 * (2 * 59_136 * 4 + 1_000)
    assert at_least <= plan.work <= at_least + 9_000_000
    assert plan_captions(1000, chunks, 59_136, cost, free=0).batch == 1


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda rows: rows[:1], "Expected float32 of shape"),
        (lambda rows: rows.astype(np.float64), "gave float64"),
        (lambda rows: rows * np.float32(np.nan), r"NaN or infinite in 64 of 64 rows \(0, 1"),
    ],
)
def test_features_that_are_no_numbers_are_refused(captions, tmp_path, wrong, found):
    space = Letters()
    encode = space.encode
    space.encode = lambda captions, rows: wrong(encode(captions, rows))
    with pytest.raises(InputError, match=found):
        extract_captions(space, captions, tmp_path / "f.zarr")


def test_a_row_without_a_caption_is_named_before_any_work(captions, tmp_path):
    space = Letters()
    for bare in ([], [" ", ""]):
        captions[413] = bare
        with pytest.raises(InputError, match="row 413 has no caption"):
            extract_captions(space, captions, tmp_path / "f.zarr")
    assert space.batches == []
    captions[413] = "a wave"
    with pytest.raises(InputError, match="the captions of row 413 are not a list of strings"):
        check_captions(captions)
    assert check_captions([["a", " "], ["b"]]) == [["a"], ["b"]]


def test_the_captions_of_a_study_are_read_and_checked(tmp_path):
    path = tmp_path / "captions" / "train.json"
    with pytest.raises(InputError, match=r"no captions at .*train\.json.*Give the dataset its captions"):
        read_captions(path, 3)
    path.parent.mkdir()
    path.write_text(json.dumps([["a", "b"], ["c"]]))
    assert read_captions(path, 2) == [["a", "b"], ["c"]]
    with pytest.raises(InputError, match=r"has captions of 2 images\. Expected 3"):
        read_captions(path, 3)
    path.write_text(json.dumps({"a": "b"}))
    with pytest.raises(InputError, match="holds no list of captions"):
        read_captions(path, 1)


def test_progress_counts_rows_and_starts_where_the_last_run_stopped(captions, tmp_path):
    class Counted(Progress):
        tasks: list = []  # noqa: RUF012

        @contextmanager
        def task(self, name, *, total, unit, done=0):
            steps = []
            yield steps.append
            self.tasks.append((name, total, unit, done, sum(steps)))

    store = extract_captions(Letters(), captions, tmp_path / "train.zarr", Context.of(progress=Counted()))
    store.discard([(1, 0)])
    extract_captions(Letters(), captions, tmp_path / "train.zarr", Context.of(progress=Counted()))
    assert Counted.tasks == [("letters, train", 700, "rows", 0, 700), ("letters, train", 700, "rows", 444, 256)]
