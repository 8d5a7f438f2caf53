"""Benchmark the ridge on single trials: images shown three times, against the same with their targets repeated.

    python scripts/bench_repeats.py                    27,000 rows of 9,000 images, 15,724 voxels, 20,000 targets
    python scripts/bench_repeats.py --images 900 --voxels 1500 --targets 4000

Each measurement is a process of its own that reads stores and writes one. Shown are seconds of the fit and of all,
bytes of targets read, planned and measured memory (RssAnon), and the largest difference between both predictions over
the targets' standard deviation. The data take 5 GB on disk at full size, for as long as the benchmark runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ALPHA = 50_000.0
REPEATS = 3
SIGNAL = 16  # numbers that tell an image, in betas and targets alike


def stimulus_of(images):
    """The image of each row: every image three times, in random order."""
    import numpy as np

    return np.random.default_rng(0).permutation(np.repeat(np.arange(images), REPEATS))


def write(path, shape, block_of):
    """Write a store by groups of rows; ``block_of`` makes the rows of a range."""
    import numpy as np

    from leanrecon.stores import Store

    store = Store.create(path, shape, np.float32, made_of={"shape": list(shape)})
    for i in store.missing_row_groups():
        rows = store.group_rows(i)
        store.write_rows(i, block_of(rows).astype(np.float32))
    store.finish()


def make_data(folder, images, voxels, targets, test):
    """Write betas, test betas, the targets of each image, and the same repeated for each row."""
    import numpy as np

    stimulus = stimulus_of(images)
    latent = np.random.default_rng(1).standard_normal((images, SIGNAL))
    to_voxels = np.random.default_rng(2).standard_normal((SIGNAL, voxels)) / 8
    to_targets = np.random.default_rng(3).standard_normal((SIGNAL, targets)) / 4

    def noise(seed, rows, columns):
        return np.random.default_rng((seed, rows.start)).standard_normal((len(rows), columns), dtype=np.float32)

    def betas(rows):
        return latent[stimulus[rows.start : rows.stop]] @ to_voxels + noise(4, rows, voxels)

    def image_targets(numbers):
        own = [np.random.default_rng((5, int(k))).standard_normal(targets, dtype=np.float32) for k in numbers]
        return latent[numbers] @ to_targets + np.stack(own)

    write(folder / "X.zarr", (len(stimulus), voxels), betas)
    write(folder / "T.zarr", (test, voxels), lambda rows: noise(6, rows, voxels))
    write(folder / "images.zarr", (images, targets), lambda rows: image_targets(np.arange(rows.start, rows.stop)))
    write(
        folder / "rows.zarr",
        (len(stimulus), targets),
        lambda rows: image_targets(stimulus[rows.start : rows.stop]),
    )


def worker(folder, name, budget):
    """One measurement, in this process; prints its result as JSON."""
    import numpy as np

    from leanrecon.memory import PeakMemory
    from leanrecon.regression.ridge.ridge import StreamingRidge
    from leanrecon.stores import Store

    targets = Store.open(folder / f"{name}.zarr")
    read = [0]
    for method in ("read_chunk", "read_columns"):
        count_reads(Store, method, targets, read)
    images = Store.open(folder / "images.zarr").rows
    stimulus = stimulus_of(images) if name == "images" else None
    out = Store.create(
        folder / f"P-{name}.zarr", (Store.open(folder / "T.zarr").rows, targets.columns), "f4", made_of={}
    )
    started = time.perf_counter()
    with PeakMemory() as memory:
        ridge = StreamingRidge(ALPHA, standardize=True, budget=budget, scratch=folder)
        ridge.fit(folder / "X.zarr", targets, stimulus=stimulus, test=folder / "T.zarr")
        fitted = time.perf_counter() - started
        ridge.predict_into(folder / "T.zarr", out)
        out.finish()
    seconds = time.perf_counter() - started
    found = {"fit": fitted, "seconds": seconds, "read": read[0], "planned": ridge.peaks_.largest, "anon": memory.peak}
    assert np.isfinite(out[0:1]).all()
    print(json.dumps(found))


def count_reads(kind, method, store, read):
    """Add the bytes that a method of stores reads from one of them."""
    original = getattr(kind, method)

    def counted(self, i, j, *rest, **options):
        if str(self.path) == str(store.path):
            columns = len(rest[0]) if method == "read_columns" else self.chunk_columns
            read[0] += self.chunk_rows * columns * self.dtype.itemsize
        return original(self, i, j, *rest, **options)

    setattr(kind, method, counted)


def difference(folder):
    """The largest difference between both predictions over the standard deviation of each target."""
    import numpy as np

    from leanrecon.stores import Store

    one, other, targets = (Store.open(folder / f"{name}.zarr") for name in ("P-images", "P-rows", "images"))
    step = max(one.columns // 20, 1)
    worst = 0.0
    for start in range(0, one.columns, step):
        columns = slice(start, start + step)
        spread = targets[0 : min(targets.rows, 2000)][:, columns].std(axis=0)
        apart = np.abs(one[0 : one.rows][:, columns] - other[0 : other.rows][:, columns])
        worst = max(worst, float((apart / spread).max()))
    return worst


def measure(folder, name, budget):
    command = [sys.executable, __file__, "--worker", name, "--data", str(folder), "--budget", budget]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=9000)
    parser.add_argument("--voxels", type=int, default=15_724)
    parser.add_argument("--targets", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--budget", default="4GB")
    parser.add_argument("--data", type=Path, help="folder for the data; by default a temporary one")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.data, arguments.worker, arguments.budget)
        return
    with tempfile.TemporaryDirectory(dir=arguments.data) as temporary:
        folder = Path(temporary)
        make_data(folder, arguments.images, arguments.voxels, arguments.targets, arguments.test)
        rows = REPEATS * arguments.images
        print(f"{rows} rows of {arguments.images} images, {arguments.voxels} voxels, {arguments.targets} targets")
        print(f"{'targets':12}{'fit':>8}{'seconds':>9}{'read':>12}{'planned':>11}{'measured':>11}{'share':>7}")
        for name in ("images", "rows"):
            it = measure(folder, name, arguments.budget)
            print(
                f"{name:12}{it['fit']:8.1f}{it['seconds']:9.1f}{it['read'] / 1e6:9,.0f} MB{it['planned'] / 1e6:8,.0f} MB"
                f"{it['anon'] / 1e6:8,.0f} MB{it['anon'] / it['planned']:7.2f}",
                flush=True,
            )
        print(f"largest difference of predictions: {difference(folder):.1e} of the targets' standard deviation")
        shutil.rmtree(folder / "X.zarr")


if __name__ == "__main__":
    main()
