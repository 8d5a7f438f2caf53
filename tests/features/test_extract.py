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
from leanrecon.features.extract import decode_rows, extract
from leanrecon.features.pixels import Pixels, PixelsSettings
from leanrecon.features.plan import Cost
from leanrecon.features.space import FixedSpace, make_space
from leanrecon.memory import parse_bytes
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.images import ImageReader

pytestmark = pytest.mark.slow


class Noisy(Pixels):
    """Pixels and noise from (seed, row), with a record of the batches that came."""

    def __init__(self, seed=0):
        super().__init__(PixelsSettings(), name="noisy")
        self.seed = seed
        self.batches = []

    def made_of(self):
        return super().made_of() | {"kind": "noisy", "seed": self.seed}

    def encode(self, images, rows):
        self.batches.append(list(rows))
        noise = [np.random.default_rng((self.seed, row)).standard_normal(images[0].size) for row in rows]
        return super().encode(images, rows) + np.float32(noise)


class Clip(FixedSpace):
    """A space without a decoder, as CLIP is; it has only the parts that every space must have."""

    Settings = PixelsSettings

    def dims(self, image_shape):
        return 3

    def cost(self, image_shape):
        return Cost(held=0, per_image=0, batch=8)

    def made_of(self):
        return {"kind": "clip"}

    def encode(self, images, rows):
        return images.reshape(len(images), -1)[:, :3].astype(np.float32)


@pytest.fixture
def images(store_of, smooth_images):
    return store_of(smooth_images(700, 10, 10, 1))


def test_a_feature_store_holds_the_rows_of_all_images_in_order(images, tmp_path):
    store = extract(make_space("pixels", {}), images, tmp_path / "features" / "train.zarr")
    assert store.complete
    assert (store.shape, store.dtype) == ((700, 100), np.float32)
    np.testing.assert_array_equal(store[:], images[:].reshape(700, 100) / np.float32(255))
    assert store.made_of["images"] == images.content
    assert store.made_of["space"] == {"kind": "pixels", "size": "original"}
    assert Store.open(store.path).notes == {"batch": 64}


@pytest.mark.parametrize("source", ["100B", "1kB", "7kB", "1MB"])
@pytest.mark.parametrize("target", ["400B", "6kB", "1MB"])
@pytest.mark.parametrize("batch", [7, None])
def test_chunks_of_any_size_give_the_same_rows(smooth_images, store_of, tmp_path, source, target, batch):
    pixels = smooth_images(150, 10, 10, 1)
    images = store_of(pixels, chunk=source)
    store = extract(Noisy(), images, tmp_path / "f.zarr", Context.of(chunk=parse_bytes(target)), batch=batch)
    np.testing.assert_array_equal(store[:], Noisy().encode(pixels, range(150)))


def test_each_chunk_of_the_source_is_read_once(smooth_images, store_of, tmp_path, monkeypatch):
    images = store_of(smooth_images(300, 10, 10, 1), chunk="3200B")  # 32 rows
    read, original = [], Store.read_chunk

    def counted(self, i, j, memory, **options):
        read.append(i)
        return original(self, i, j, memory, **options)

    monkeypatch.setattr(Store, "read_chunk", counted)
    extract(Noisy(), images, tmp_path / "f.zarr", Context.of(chunk=6_000), batch=5)  # groups of 8 rows
    assert read == list(range(10))


@pytest.mark.parametrize("budget", ["huge", "tight"])
def test_budget_and_batch_change_no_byte(images, tmp_path, budget):
    space = make_space("pca", {"components": 20})
    space.fit(images, tmp_path / "fitted.npz")
    reference = extract(space, images, tmp_path / "a.zarr")
    context = Context.of()
    if budget == "tight":
        with pytest.raises(BudgetError) as error:
            extract(space, images, tmp_path / "b.zarr", Context.of("1B"))
        assert not (tmp_path / "b.zarr").exists()
        context = Context.of(int(str(error.value).split('"')[1][:-2]) * 10**6 + 10**6)
    store = extract(space, images, tmp_path / "b.zarr", context)
    assert store.content == reference.content
    for batch in (1, 7, 64):
        assert extract(space, images, tmp_path / f"{batch}.zarr", batch=batch).content == reference.content


def test_a_tight_budget_makes_batches_smaller(smooth_images, store_of, tmp_path):
    images = store_of(smooth_images(64, 128, 128, 3))
    space = Noisy()
    with pytest.raises(BudgetError, match="features noisy needs at least") as error:
        extract(space, images, tmp_path / "f.zarr", Context.of("1B"))
    least = int(str(error.value).split('"')[1][:-2]) * 10**6
    store = extract(space, images, tmp_path / "f.zarr", Context.of(least + 5_000_000))
    assert 1 <= store.notes["batch"] < 64
    assert max(map(len, space.batches)) == store.notes["batch"]


def test_only_what_is_missing_is_computed_again_in_the_same_batches(images, tmp_path, files_of):
    first, again = Noisy(), Noisy()
    store = extract(
        first, images, tmp_path / "f.zarr", Context.of(chunk=100_000), batch=24
    )  # groups of 128 or 256 rows
    whole, size = files_of(store.path), store.chunk_rows
    store.discard([(1, 0)])
    (Path(store.path) / "c" / "1" / "0.abc.partial").write_bytes(b"half")
    extract(again, images, tmp_path / "f.zarr", Context.of(chunk=100_000), batch=5)
    assert again.batches == [rows for rows in first.batches if size <= rows[0] < 2 * size]
    assert files_of(store.path) == whole


def test_a_complete_store_is_returned_without_work(images, tmp_path):
    extract(Noisy(), images, tmp_path / "f.zarr")
    space = Noisy()
    store = extract(space, images, tmp_path / "f.zarr", Context.of("1B"))
    assert store.complete
    assert space.batches == []


def test_a_store_of_other_images_or_settings_is_refused_by_name(images, store_of, smooth_images, tmp_path):
    extract(Noisy(seed=1), images, tmp_path / "f.zarr")
    with pytest.raises(StoreError, match=r"space\.seed was 1, is 2"):
        extract(Noisy(seed=2), images, tmp_path / "f.zarr")
    others = store_of(smooth_images(700, 10, 10, 1, seed=1), "other.zarr")
    with pytest.raises(StoreError, match="images was"):
        extract(Noisy(seed=1), others, tmp_path / "f.zarr")
    store = extract(Noisy(seed=2), others, tmp_path / "f.zarr", Context.of(overwrite=True))
    np.testing.assert_array_equal(store[:], Noisy(seed=2).encode(others[:], range(700)))


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from leanrecon.context import Context
from leanrecon.features.extract import extract
from leanrecon.features.pixels import Pixels, PixelsSettings
from leanrecon.stores import Store

class Slow(Pixels):
    def encode(self, images, rows):
        time.sleep(float(sys.argv[3]))
        return super().encode(images, rows)

images = Store.open(sys.argv[1])
extract(Slow(PixelsSettings(), name="slow"), images, Path(sys.argv[2]), Context.of(chunk=6_000), batch=4)
"""


def test_a_killed_run_ends_with_the_same_bytes(images, tmp_path, files_of):
    def command(target, seconds):
        return [sys.executable, "-c", SLOW, str(images.path), str(tmp_path / target), str(seconds)]

    subprocess.run(command("whole.zarr", 0), check=True)
    killed = tmp_path / "killed.zarr"
    for groups in (3, 9):
        run = subprocess.Popen(command("killed.zarr", 0.02))
        deadline = time.monotonic() + 60
        while len(list(killed.glob("c/*/0"))) < groups and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    assert not Store.open(killed, incomplete=True).complete
    with pytest.raises(StoreError, match="is not complete"):
        Store.open(killed)
    (killed / "c" / "5").mkdir(exist_ok=True)
    (killed / "c" / "5" / "0.abc.partial").write_bytes(b"half")
    subprocess.run(command("killed.zarr", 0), check=True)
    assert files_of(killed) == files_of(tmp_path / "whole.zarr")
    assert not list(killed.rglob("*.partial"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_named_and_not_written(images, tmp_path, value):
    class Broken(Noisy):
        def encode(self, images, rows):
            out = super().encode(images, rows)
            out[np.isin(np.array(rows), [300, 301])] = value
            return out

    with pytest.raises(InputError, match=r"noisy gave features that are NaN or infinite in 2 of 64 rows \(300, 301\)"):
        extract(Broken(), images, tmp_path / "f.zarr")
    store = Store.open(tmp_path / "f.zarr", incomplete=True)
    assert store.missing_row_groups() == [1, 2]
    space = Noisy()
    extract(space, images, tmp_path / "f.zarr")
    assert space.batches[0][0] == 256


@pytest.mark.parametrize("wrong", [lambda f: f[:1], lambda f: f[:, :1], lambda f: f.astype(np.float64)])
def test_features_of_a_wrong_shape_or_type_are_refused(images, tmp_path, wrong):
    space = Noisy()
    encode = space.encode
    space.encode = lambda images, rows: wrong(encode(images, rows))
    with pytest.raises(InputError, match=r"expected float32 of shape \(64, 100\)".replace("e", "[eE]", 1)):
        extract(space, images, tmp_path / "f.zarr")


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (np.zeros((5, 4, 4, 3), np.float32), "holds float32 of shape"),
        (np.zeros((5, 48), np.uint8), "holds uint8 of shape"),
        (np.zeros((5, 4, 4, 4), np.uint8), "have 4 channels"),
    ],
)
def test_stores_that_hold_no_images_are_refused(store_of, tmp_path, rows, found):
    store = store_of(rows)
    for use in (
        lambda: extract(make_space("pixels", {}), store, tmp_path / "f.zarr"),
        lambda: make_space("pca", {}).fit(store, tmp_path / "fitted.npz"),
    ):
        with pytest.raises(InputError, match=found):
            use()
    assert not (tmp_path / "f.zarr").exists()


def test_images_that_are_not_complete_or_damaged_are_refused(images, tmp_path):
    with Path(images.chunk_path(1)).open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    with pytest.raises(StoreError, match=r"c/1/0/0/0 of .* does not match its checksum"):
        extract(Noisy(), images, tmp_path / "f.zarr")
    images.discard([(1, 0)])
    with pytest.raises(StoreError, match="is not complete"):
        extract(Noisy(), images, tmp_path / "g.zarr")


def test_progress_counts_images_and_starts_where_the_last_run_stopped(images, tmp_path):
    class Counted(Progress):
        tasks: list = []  # noqa: RUF012

        @contextmanager
        def task(self, name, *, total, unit, done=0):
            steps = []
            yield steps.append
            self.tasks.append((name, total, unit, done, sum(steps)))

    store = extract(Noisy(), images, tmp_path / "train.zarr", Context.of(progress=Counted()))
    store.discard([(1, 0)])
    extract(Noisy(), images, tmp_path / "train.zarr", Context.of(progress=Counted()))
    assert Counted.tasks == [("noisy, train", 700, "images", 0, 700), ("noisy, train", 700, "images", 444, 256)]


def test_a_reader_cuts_rows_into_runs_of_one_chunk(store_of, smooth_images):
    pixels = smooth_images(40, 10, 10, 1)
    reader = ImageReader(store_of(pixels, chunk="1600B"))  # 16 rows
    rows = [0, 1, 2, 5, 14, 15, 16, 17, 39]
    runs = [(place, images.copy()) for place, images in reader.runs(rows)]
    assert [(place.start, place.stop) for place, _ in runs] == [(0, 3), (3, 4), (4, 6), (6, 8), (8, 9)]
    np.testing.assert_array_equal(np.concatenate([images for _, images in runs]), pixels[rows])
    assert list(reader.runs([])) == []


# The way back


def test_rows_are_decoded_image_by_image(images, tmp_path):
    space = make_space("pixels", {})
    store = extract(space, images, tmp_path / "f.zarr", Context.of(chunk=40_000))
    decoded = list(decode_rows(space, store, (10, 10, 1), batch=50))
    assert [row for row, _ in decoded] == list(range(700))
    np.testing.assert_array_equal(np.stack([image for _, image in decoded]), images[:])


def test_some_rows_are_decoded_in_the_batches_of_all(images, tmp_path):
    class Watched(Pixels):
        def decode(self, features, rows, image_shape):
            seen.append(rows)
            return super().decode(features, rows, image_shape)

    seen = []
    space = Watched(PixelsSettings())
    store = extract(space, images, tmp_path / "f.zarr")
    decoded = dict(decode_rows(space, store, (10, 10, 1), rows=[3, 4, 300, 699], batch=100))
    assert list(decoded) == [3, 4, 300, 699]
    assert seen == [range(100), range(256, 356), range(612, 700)]
    assert all(np.array_equal(image, images[row : row + 1][0]) for row, image in decoded.items())


def test_what_can_not_be_decoded_is_refused_before_any_work(images, tmp_path, store_of):
    space = make_space("pixels", {})
    store = extract(space, images, tmp_path / "f.zarr")
    with pytest.raises(SettingsError, match="clip can't be decoded"):
        decode_rows(Clip(PixelsSettings(), name="clip"), store, (10, 10, 1))
    assert extract(Clip(PixelsSettings(), name="clip"), images, tmp_path / "c.zarr").columns == 3
    with pytest.raises(InputError, match="float32 rows of 75 numbers"):
        decode_rows(space, store, (5, 5, 3))
    with pytest.raises(InputError, match="do not ascend"):
        decode_rows(space, store, (10, 10, 1), rows=[700])
    with pytest.raises(BudgetError, match="stage1 pixels needs at least"):
        decode_rows(space, store, (10, 10, 1), Context.of("1B"))
    broken = np.zeros((5, 100), np.float32)
    broken[2, 3] = np.nan
    with pytest.raises(InputError, match=r"broken\.zarr holds features that are NaN .* in 1 of 5 rows \(2\)"):
        list(decode_rows(space, store_of(broken, "broken.zarr"), (10, 10, 1)))


# Memory

MEASURED = """
import json, sys
from pathlib import Path
from leanrecon.features.plan import Cost
from leanrecon.features.space import FixedSpace, make_space
from leanrecon.features.extract import decode_rows, extract
from leanrecon.features.plan import plan_decode, plan_extract
from leanrecon.context import Context
from leanrecon.memory import PeakMemory
from leanrecon.stores import Store
from leanrecon.stores.layout import plan_chunks

images, folder, stage, kind = Store.open(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
table = json.loads(sys.argv[5])
space, shape = make_space(kind, table), images.shape[1:]
if stage != "fit":
    space.fit(images, folder / "fitted.npz")
context = Context.of()
with PeakMemory() as memory:
    if stage == "fit":
        space.fit(images, folder / "fitted.npz", context)
    elif stage == "extract":
        extract(space, images, folder / "features.zarr", context)
    else:
        assert sum(1 for _ in decode_rows(space, Store.open(folder / "features.zarr"), shape, context)) == images.rows
print(json.dumps([context.peaks.projected[0], memory.peak]))
"""


@pytest.mark.parametrize(
    ("kind", "table", "shape", "stages"),
    [
        ("pca", {"components": 40}, (1500, 280, 280, 3), ("fit", "extract", "decode")),
        ("pixels", {}, (300, 256, 256, 3), ("extract", "decode")),
    ],
)
def test_measured_memory_stays_under_the_plan(tmp_path, kind, table, shape, stages):
    images = Store.create(tmp_path / "train.zarr", shape, np.uint8, made_of={})
    some = np.random.default_rng(0).integers(0, 256, (images.chunk_rows, *shape[1:]), np.uint8)
    for i in range(images.row_groups):
        images.write_rows(i, some[: len(images.group_rows(i))] // np.uint8(1 + i % 7))
    images.finish()
    for stage in stages:
        command = [sys.executable, "-c", MEASURED, str(images.path), str(tmp_path), stage, kind, json.dumps(table)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        projected, measured = json.loads(run.stdout)
        print(f"{kind} {stage}: measured {measured / 1e6:.0f} MB of {projected / 1e6:.0f} MB projected")
        assert measured <= projected
        assert measured >= 0.6 * projected or measured < 300e6
