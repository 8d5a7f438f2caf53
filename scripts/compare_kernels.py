"""Where does a linear kernel win, where an rbf, and what do voxel weights give? A table over simulated subjects and figures.

    python scripts/compare_kernels.py                              simulated subjects of several noise levels and sizes
    python scripts/compare_kernels.py --miyawaki V1_mean_figure.mat    also ten figures, each decoded from the other nine
    python scripts/compare_kernels.py --nsd 2                      also a small simulated NSD of two sessions

A simulated subject has seeds of its own and a test set of images that chose nothing. Every form is fitted with the alpha
of least leave-one-out error to principal components of the pixels; the correlation is that of the decoded images with
the seen ones, averaged over images. Below it stands what it gains over the linear form, with its paired 95 % interval over
images. "auto" is what held-out train images chose.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from leanrecon.errors import LeanreconWarning
from leanrecon.evaluation.bootstrap import LEVELS, Resampling
from leanrecon.regression.ridge.ridge import StreamingRidge

FORMS = {
    "linear": {},
    "linear, weighed": {"voxel_weights": "accuracy", "voxel_power": 1.0},
    "rbf": {"kernel": "rbf", "gamma": 0.5},
    "rbf, weighed": {"kernel": "rbf", "gamma": 0.5, "voxel_weights": "accuracy", "voxel_power": 1.0},
    "auto": {"kernel": "auto", "voxel_weights": "auto"},
}

LEVELS_OF_NOISE = [(1.0, 400), (2.0, 400), (4.0, 400), (8.0, 400), (2.0, 100)]
"""Noise of simulated voxels, and train rows."""

RESAMPLES = 2000


def simulated(folder, seed, noise, n, voxels):
    """Betas and images of a simulated subject."""
    dataset = {"kind": "simulated", "n_train": n, "n_test": 60, "voxels": voxels, "noise": noise, "size": 32}
    return read({"seed": seed, "dataset": dataset}, folder)


def read(settings, folder):
    """Train betas, train images, test betas and test images of a dataset whose rows show an image each."""
    from leanrecon.api import run
    from leanrecon.stores import Store

    run(settings | {"features": {"pixels": {"size": 32}}}, study=folder, until="dataset")
    for split in ("train", "test"):
        for name in ("betas", "stimuli"):
            store = Store.open(folder / name / f"{split}.zarr")
            yield store[0 : store.rows].reshape(store.rows, -1).astype(np.float32)


def correlations(predicted, seen):
    return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted, seen, strict=True)])


def decoded(betas, images, test, components, stimulus=None, **how):
    """Images decoded from test betas, and the fit; ``images`` hold each image once where there is a ``stimulus``."""
    counts = np.ones(len(images)) if stimulus is None else np.bincount(stimulus, minlength=len(images))
    mean = np.average(images, axis=0, weights=counts)
    axes = np.linalg.svd(images - mean, full_matrices=False)[2][:components]
    ridge = StreamingRidge(**how)
    ridge.warns = False
    ridge.fit(betas, (images - mean) @ axes.T, stimulus=stimulus)
    return ridge.predict(test) @ axes + mean, ridge


def row(name, results):
    print(f"{name:34}" + "".join(f"{value:>26}" for value in results), flush=True)


def told(name, scores, chosen):
    """Print the correlations [images] of each form, what they gain over the linear form, and what was chosen."""
    row(name, [f"{values.mean():.3f}" for values in scores.values()])
    linear = scores["linear"]
    resampling = Resampling(np.arange(len(linear)), RESAMPLES, 0)
    gains = [""]
    for values in list(scores.values())[1:]:
        gain = values - linear
        low, high = np.percentile(resampling.means(gain[:, None]), LEVELS)
        gains.append(f"{gain.mean():+.3f} ({low:+.3f}, {high:+.3f})")
    row("    less linear", gains)
    print("    " + "; ".join(f"{form} ({chosen.count(form)})" for form in dict.fromkeys(chosen)), flush=True)


def compare_simulated(seeds, levels):
    for noise, n in levels:
        scores = {form: [] for form in FORMS}
        chosen = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as temporary:
                rows = list(simulated(Path(temporary), seed, noise, n, 1500))
            chosen.append(add(scores, *rows))
        told(f"simulated, noise {noise:g}, {n} rows", joined(scores), chosen)


def compare_nsd(sessions, seed):
    """A simulated subject in NSD's layout, its trials averaged over the repeats of an image."""
    from leanrecon.datasets.nsd.simulate import simulate_nsd

    scores = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "nsd"
        simulate_nsd(root, sessions=sessions, scale=0.4, seed=seed, formats=["hdf5"])
        dataset = {"kind": "nsd", "root": str(root), "sessions": sessions, "image_size": 32}
        rows = list(read({"dataset": dataset}, Path(temporary) / "study"))
    chosen = add(scores, *rows)
    told(f"simulated NSD, {len(rows[0])} x {rows[0].shape[1]}", joined(scores), [chosen])


def add(scores, betas, images, test, seen):
    """Add the correlations of each form for one subject; returns the form that was chosen."""
    for form, how in FORMS.items():
        predicted, ridge = decoded(betas, images / 255, test, 100, **how)
        scores[form].append(correlations(predicted, seen))
    return str(ridge.learned_.form)


def joined(scores):
    return {form: np.concatenate(values) for form, values in scores.items()}


def compare_figures(path):
    """Miyawaki et al. 2008: every image decoded by a fit to the others, its moments and alpha included."""
    from leanrecon.datasets.files.open import open_array

    with open_array(f"{path}:R2") as voxels, open_array(f"{path}:I2") as pixels:  # as in VBCCA: both [_, trials]
        data, shown = np.ascontiguousarray(voxels[:].T), pixels[:].T
    images, stimulus = np.unique(shown, axis=0, return_inverse=True)
    stimulus = stimulus.reshape(-1)
    results, chosen = {}, []
    for form, how in FORMS.items():
        scores, forms = [], []
        for image in range(len(images)):
            rest = np.flatnonzero(stimulus != image)
            shown, index = np.unique(stimulus[rest], return_inverse=True)
            predicted, ridge = decoded(
                data[rest], images[shown].astype(float), data[stimulus == image], 100, stimulus=index, **how
            )
            seen = np.repeat(images[image : image + 1], len(predicted), axis=0)
            scores.append(correlations(predicted, seen).mean())
            forms.append(str(ridge.learned_.form))
        results[form] = np.array(scores)
        chosen = forms
    told(f"figures, {len(images)} images", results, chosen)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--miyawaki", type=Path, help="V1_mean_figure.mat")
    parser.add_argument("--nsd", type=int, metavar="SESSIONS", help="sessions of a small simulated NSD")
    parser.add_argument("--seeds", type=int, default=2, help="simulated subjects of each level of noise; 0: none")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", LeanreconWarning)
    started = time.process_time()
    row("mean correlation of images", FORMS)
    if arguments.miyawaki:
        compare_figures(arguments.miyawaki)
    if arguments.nsd:
        compare_nsd(arguments.nsd, 11)
    if arguments.seeds:
        compare_simulated(range(11, 11 + arguments.seeds), LEVELS_OF_NOISE)  # of seeds that nothing was chosen on
    print(f"{time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
