"""Compare networks with the ridge, on a simulated subject and on real responses to handwritten digits.

    python scripts/compare_mlp.py                                   the simulated subject, 3 seeds
    python scripts/compare_mlp.py --digits digit69_28x28.mat        also digit-69, ten folds of its 100 trials

Every method learns the same train rows and predicts the same test rows. A seed draws the subject (or the folds) and the
network's random numbers. Figures are means over seeds and test rows: the Pearson correlation of each predicted row of
features with the true one, two-way identification, and R². Differences from the ridge are paired by test row, with 95 %
bootstrap intervals over images. Settings were chosen on seed 100, which is not shown.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np

RESAMPLES = 2000

SMALL = {"hidden": 512, "blocks": 1, "epochs": 40}
VOXELS = {"inputs": "betas", "noise": 0.1, "voxel_dropout": 0.1}

METHODS = {
    "ridge": None,
    "network alone": SMALL | VOXELS | {"skip": "none"},
    "network beside ridge": SMALL | VOXELS,
    "network on ridge's predictions": SMALL | {"validation": 0.2, "patience": 20},
}
"""Settings that differ from the defaults; None: no network."""


def simulated(folder, seed, n_train, n_test):
    """Betas and features of one simulated subject: [(space, X, Y, T, true rows)]."""
    import leanrecon

    tables = {
        "seed": seed,
        "dataset": {"kind": "simulated", "n_train": n_train, "n_test": n_test, "voxels": 1500, "noise": 2.0},
        "features": {"pca": {"components": 100, "size": 32}, "pixels": {"size": 16}},
    }
    done = leanrecon.run(tables, study=folder / f"seed{seed}", until="features")
    X, T = done.betas("train"), done.betas("test")
    return [(name, X, done.features(name, "train"), T, done.features(name, "test")) for name in tables["features"]]


def digits(path, seed):
    """Ten folds of digit-69: [(space, X, Y, T, true rows)] a fold, pixels from 0 to 1."""
    from leanrecon.datasets.layouts.files import whole_array

    found = {key: whole_array(Path(path), key) for key in ("fmriTrn", "fmriTest", "stimTrn", "stimTest")}
    X = np.vstack([found["fmriTrn"], found["fmriTest"]]).astype(np.float32)
    S = np.vstack([found["stimTrn"], found["stimTest"]]).astype(np.float32) / 255
    order = np.random.default_rng(seed).permutation(len(X))
    for test in np.array_split(order, 10):
        train = np.setdiff1d(order, test)
        test = np.sort(test)
        yield ("digits", X[train], S[train], X[test], S[test])


def predict(settings, X, Y, T, seed, batch):
    from leanrecon.regression.mlp.mlp import StreamingMLP
    from leanrecon.regression.ridge.ridge import StreamingRidge

    if settings is None:
        return StreamingRidge().fit(X, Y).predict(T)
    return StreamingMLP(**settings, seed=seed, batch_size=batch).fit(X, Y).predict(T)


def correlations(a, b):
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def explained(predicted, true, mean):
    """One less the squared error of each row over the mean squared distance of rows from the train mean: its mean is R²."""
    return 1 - ((predicted - true) ** 2).sum(1) / ((true - mean) ** 2).sum(1).mean()


def two_way(predicted, true):
    """How often each predicted row correlates more with its own row than with another; ties lose."""
    z = [(a - a.mean(1, keepdims=True)) / a.std(1, keepdims=True) for a in (predicted, true)]
    r = z[0] @ z[1].T
    return (r < np.diag(r)[:, None]).sum(1) / (len(r) - 1)


def interval(rows, seed=0):
    """The mean of paired differences [seeds, rows], and its 95 % interval over rows, all seeds of a row drawn together."""
    drawn = np.random.default_rng(seed).integers(0, rows.shape[1], (RESAMPLES, rows.shape[1]))
    means = rows.mean(axis=0)[drawn].mean(axis=1)
    return rows.mean(), *np.percentile(means, [2.5, 97.5])


def scored(cases, seed, batch):
    """Scores of every method: {(space, method): (correlations, two-way)}, of all cases one after another."""
    found = {}
    for space, X, Y, T, true in cases:
        for method, settings in METHODS.items():
            predicted = predict(settings, X, Y, T, seed, batch)
            parts = found.setdefault((space, method), ([], [], []))
            parts[0].append(correlations(predicted, true))
            parts[1].append(two_way(predicted, true))
            parts[2].append(explained(predicted, true, Y.mean(axis=0)))
    return {key: tuple(np.concatenate(part) for part in parts) for key, parts in found.items()}


def show(results):
    """Print one table over seeds."""
    print(
        f"{'space':10}{'method':34}{'r':>8}{'  less ridge (95 %)':28}{'two-way':>9}{'  less ridge (95 %)':28}{'R²':>8}{'  less ridge (95 %)':28}"
    )
    for space, method in results[0]:
        line = f"{space:10}{method:34}"
        for k in range(3):
            own = np.array([result[space, method][k] for result in results])
            line += f"{own.mean():8.4f}"
            if METHODS[method] is None:
                line += " " * 28
                continue
            base = np.array([result[space, "ridge"][k] for result in results])
            mean, low, high = interval(own - base)
            mark = "+" if low > 0 else "-" if high < 0 else " "
            line += f"  {mean:+.4f} ({low:+.4f} to {high:+.4f}){mark}".ljust(28)
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=900)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--digits", type=Path, help="digit69_28x28.mat")
    parser.add_argument("--data", type=Path, help="folder to keep the simulated subjects in")
    parser.add_argument("--skip-simulated", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # an alpha at the end of its grid
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        if not arguments.skip_simulated:
            print(
                f"simulated subject, {arguments.train} train and {arguments.test} test images, seeds {arguments.seeds}"
            )
            show([scored(simulated(folder, s, arguments.train, arguments.test), s, 64) for s in arguments.seeds])
        if arguments.digits:
            print(f"digit-69, ten folds of 100 trials, seeds {arguments.seeds}")
            results = []
            for seed in arguments.seeds:
                found = scored(digits(arguments.digits, seed), seed, 16)
                order = np.argsort(
                    np.concatenate(
                        [np.sort(p) for p in np.array_split(np.random.default_rng(seed).permutation(100), 10)]
                    )
                )
                results.append({key: tuple(part[order] for part in parts) for key, parts in found.items()})
            show(results)


if __name__ == "__main__":
    main()
