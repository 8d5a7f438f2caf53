"""Run NSD subject 1 at its true size with random numbers, from fetched trials to predictions, under a hard limit.

    python scripts/simulate_nsd_run.py                    37 sessions, 15,724 voxels; 8 GB of disk
    python scripts/simulate_nsd_run.py --loo              also with alpha chosen by leave-one-out
    python scripts/simulate_nsd_run.py --scale 0.05       the same, small

Random trials (27,750 in int16) and images are written into the stores that a fetch would fill. From there the package's
stages run: trials are checked and averaged over repeats, and two feature spaces are predicted for the test images. These
spaces draw random numbers instead of running networks: 91,168 (as 31 VDVAE latents) and 59,136 (as CLIP text embeddings).
Every stage is a process of its own whose address space is bounded by ``--limit`` (ulimit -v), and by a memory cgroup where
systemd allows it. Prints the seconds, planned and measured peak memory, and bytes of stores of each stage.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SESSIONS, TRAIN, TEST, VOXELS = 37, 8859, 982, 15_724
SPACES = {"vdvae": 91_168, "clip": 77 * 768}
ALPHAS = {"vdvae": 50_000.0, "clip": 100_000.0}
"""As Brain-Diffuser has them."""

CODE = 16
"""Numbers of an image that both responses and features depend on."""

SIDE = 16
"""Images are that many pixels wide: the first sixteen of them are the numbers."""

SIGNAL = 0.15
"""Spread of a response's signal beside noise of 1, in percent signal change."""


def shapes(scale):
    """Sessions, rows and columns, scaled down."""
    sessions = max(round(SESSIONS * scale), 1)
    train, test = max(round(TRAIN * scale), 24), max(round(TEST * scale), 12)
    return sessions, train, test, max(round(VOXELS * scale), 32)


def settings_of(given):
    from leanrecon.study.settings import check_settings

    spaces = {name: {"kind": "pixels"} for name in SPACES}  # replaced by random ones of the same names
    regression = {name: {"alpha": "loo" if given.loo_now else alpha} for name, alpha in ALPHAS.items()}
    return check_settings(
        {
            "memory": given.memory,
            "dataset": {"kind": "nsd", "sessions": given.sessions, "image_size": SIDE, "accept_terms": True},
            "features": spaces,
            "regression": regression,
            "evaluate": {"permutations": 0},
        }
    )


# What a fetch writes


def prepared(given):
    """The design of some images in some trials, each image two or three times, and a mask."""
    import numpy as np

    from leanrecon.datasets.nsd.files import Prepared
    from leanrecon.datasets.nsd.layout import TRIALS, Design
    from leanrecon.datasets.nsd.voxels import Voxels

    rng = np.random.default_rng(0)
    images, trials = given.train + given.test, given.sessions * TRIALS
    stimulus = np.resize(rng.permutation(images), trials)
    rng.shuffle(stimulus)
    design = Design(list(range(1, given.sessions + 1)), np.arange(trials), stimulus, stimulus < given.test)
    shape = (81, 104, 83)
    index = np.sort(rng.choice(np.prod(shape), given.voxels, replace=False)).astype(np.int64)
    areas, ncsnr = np.full(given.voxels, "", "<U12"), np.ones(given.voxels, np.float32)
    voxels = Voxels(shape, np.eye(4), index, areas, ncsnr, {})
    names = {session: f"made-up session {session}" for session in design.sessions}
    return Prepared(design, voxels, names, (73_000, 425, 425, 3), {})


def picture(image):
    """The image with a number, uint8 [side, side, 3]."""
    import numpy as np

    return np.random.default_rng((1, image)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def codes(pictures):
    """The codes of images, of about zero mean and unit variance: float32 [rows, 16]."""
    import numpy as np

    return (pictures.reshape(len(pictures), -1)[:, :CODE].astype(np.float32) - 127.5) / np.float32(73.9)


def mixing(seed, columns):
    import numpy as np

    return np.random.default_rng(seed).standard_normal((CODE, columns), dtype=np.float32)


def fetch_of(given, study):
    from leanrecon.context import Context
    from leanrecon.datasets.nsd.fetch import Fetch
    from leanrecon.progress import PlainProgress

    dataset = settings_of(given).dataset
    return Fetch(dataset, study, None, Context.of(given.memory, progress=PlainProgress()))


def make(given, study):
    """Write trials, images and notes as a fetch would."""
    import numpy as np

    from leanrecon.datasets.nsd.files import deciding, keep

    ready, fetch = prepared(given), fetch_of(given, study)
    keep(ready, study, deciding(fetch.settings, None))
    store, weights = fetch._create_trials(ready), mixing(2, given.voxels) * np.float32(SIGNAL / CODE**0.5)
    for i in store.missing_row_groups():
        rows = store.group_rows(i)
        seen = codes(np.stack([picture(image) for image in ready.design.stimulus[rows.start : rows.stop]]))
        values = np.random.default_rng((3, i)).standard_normal((len(rows), given.voxels), dtype=np.float32)
        values += seen @ weights
        store.write_rows(i, np.rint(values * np.float32(300)).astype(np.int16))
    store.finish()
    for split, images in fetch._create_stimuli(ready).items():
        shown = list(ready.design.shown(split))
        for i in images.missing_row_groups():
            rows = images.group_rows(i)
            images.write_rows(i, np.stack([picture(shown[row]) for row in rows]))
        images.finish()


def average(given, study):
    """Check that trials and images match, and average the trials: the rest of the dataset stage."""
    from leanrecon.context import Context
    from leanrecon.datasets.nsd.average import average_nbytes
    from leanrecon.datasets.nsd.dataset import OVERHEAD, SAMPLE
    from leanrecon.datasets.nsd.layout import TRIALS
    from leanrecon.study.record import recorded

    fetch, ready = fetch_of(given, study), prepared(given)
    trials = fetch._create_trials(ready)
    context = Context.of(given.memory)
    with recorded("dataset", study, context, [study.betas("train")]):
        check = trials.rows * min(given.voxels, SAMPLE) * (2 + 4) + 3 * TRIALS * SAMPLE * 4 + 2 * fetch.context.chunk
        averaging = average_nbytes(trials.shape, given.train + given.test, fetch.context.chunk, sessions=0)
        context.require("averaging", OVERHEAD + max(averaging, check))  # as nsd.plan_fetch has them
        betas = fetch._create_betas(ready, trials)
        fetch._check(ready, trials)
        fetch._make_betas(ready, trials, betas)
        fetch._write_rows(ready)


# The stages


def made_up(name, dims):
    """A feature space whose rows are a random mixture of the image's codes, and as much noise."""
    import numpy as np

    from leanrecon.features.pixels import PixelsSettings
    from leanrecon.features.plan import Cost
    from leanrecon.features.space import FixedSpace

    class MadeUp(FixedSpace):
        Settings = PixelsSettings
        library = None

        def __init__(self):
            super().__init__(PixelsSettings(), name=name)
            self.weights = None

        def dims(self, image_shape):
            return dims

        def cost(self, image_shape):
            return Cost(held=3 * CODE * dims * 4, per_image=2 * dims * 4, batch=64)

        def made_of(self):
            return {"made up": name, "dims": dims}

        def encode(self, images, rows):
            if self.weights is None:
                self.weights = mixing(len(name), dims) / np.float32(CODE**0.5)
            out = codes(images) @ self.weights
            for row, values in zip(rows, out, strict=True):
                values += np.random.default_rng((4, row)).standard_normal(dims, dtype=np.float32)
            return out

        def release(self):
            self.weights = None

    return MadeUp()


def pipeline(given, study, until):
    """Run the package's stages up to one."""
    from leanrecon.progress import PlainProgress
    from leanrecon.stages.pipeline import Pipeline

    running = Pipeline(settings_of(given), study, progress=PlainProgress())
    running._run.spaces = {name: made_up(name, round(dims * given.scale)) for name, dims in SPACES.items()}
    running.run(until)


def correlations(study, name):
    """Mean correlation of predicted and true features over up to 64 test images; the noise allows 0.7."""
    import numpy as np

    from leanrecon.stores import Store

    predicted, true = (Store.open(path) for path in (study.predictions(name), study.features(name, "test")))
    a, b = (store[0 : min(64, store.rows)] for store in (predicted, true))
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]))


# Measuring


def worker(given):
    import resource

    from leanrecon.study.layout import Study

    resource.setrlimit(resource.RLIMIT_AS, (given.limit_bytes, given.limit_bytes))
    study = Study(given.folder / "study")
    started = time.monotonic()
    if given.worker == "make":
        make(given, study)
    elif given.worker == "dataset":
        average(given, study)
    else:
        pipeline(given, study, given.worker)
    print(json.dumps({"seconds": time.monotonic() - started}))


def stage(given, name, *more):
    """Run one stage in a process of its own; returns its seconds from start to end."""
    from run_notebook import cgroup

    command = [*cgroup(given.limit_bytes), sys.executable, __file__, "--worker", name, *more, *given.passed]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed under a limit of {given.limit}")
    return json.loads(done.stdout.splitlines()[-1])["seconds"]


def line(name, record, disk):
    peak, planned = record["peak_bytes"], record["planned_bytes"]
    within = "" if peak <= planned else "  ABOVE THE PLAN"
    print(
        f"{name:28}{record['seconds']:9.1f}{planned / 1e6:12,.0f} MB{peak / 1e6:12,.0f} MB{disk / 1e6:12,.0f} MB{within}",
        flush=True,
    )


def used(*folders):
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def show(given):
    from run_notebook import cgroup

    from leanrecon.study.layout import Study

    study = Study(given.folder / "study")
    held = "with a memory cgroup" if cgroup(given.limit_bytes) else "no memory cgroup: this machine allows none"
    print(f"{given.sessions} sessions, {given.train} + {given.test} images, {given.voxels} voxels, ", end="")
    print(f"{sum(round(dims * given.scale) for dims in SPACES.values())} targets; budget {given.memory},", end=" ")
    print(f"hard limit {given.limit} of address space, {held}")
    seconds = stage(given, "make")
    print(f"made up what a fetch leaves in {seconds:.0f} s", flush=True)
    print(f"{'stage':28}{'seconds':>9}{'planned':>15}{'measured':>15}{'on disk':>15}")
    stage(given, "dataset")
    records = lambda: json.loads(study.record.read_text())["stages"]  # noqa: E731
    line(
        "dataset (check, average)",
        records()["dataset"],
        used(given.folder / "study" / "betas", given.folder / "study" / "stimuli"),
    )
    stage(given, "features")
    for name in SPACES:
        line(f"features {name}", records()[f"features {name}"], used(given.folder / "study" / "features" / name))
    for how, more in (("fixed alpha", ()), *((("leave-one-out", ("--loo-now",)),) if given.loo else ())):
        shutil.rmtree(given.folder / "study" / "predictions", ignore_errors=True)  # of the other alpha
        whole = stage(given, "regression", *more)
        for name in SPACES:
            line(
                f"regression {name}",
                records()[f"regression {name}"],
                used(given.folder / "study" / "predictions" / name),
            )
        found = ", ".join(f"{name} {correlations(study, name):.3f}" for name in SPACES)
        print(
            f"{f'regression, {how}':28}{whole:9.1f}   (correlation of predictions with the truth: {found})", flush=True
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the study goes; by default one that is removed afterwards")
    parser.add_argument("--scale", type=float, default=1.0, help="shrinks sessions, images, voxels and targets")
    parser.add_argument("--memory", default="3GB", help="the budget of every stage")
    parser.add_argument("--limit", default="12GB", help="what a process may map")
    parser.add_argument("--loo", action="store_true", help="also with alpha by leave-one-out")
    parser.add_argument("--loo-now", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.append(str(Path(__file__).parent))
    from leanrecon.memory import parse_bytes

    given.sessions, given.train, given.test, given.voxels = shapes(given.scale)
    given.limit_bytes = parse_bytes(given.limit)
    if given.worker:
        worker(given)
        return
    with tempfile.TemporaryDirectory() as temporary:
        given.folder = given.folder or Path(temporary)
        given.passed = ["--folder", str(given.folder), "--scale", str(given.scale), "--memory", given.memory]
        given.passed += ["--limit", given.limit]
        show(given)


if __name__ == "__main__":
    main()
