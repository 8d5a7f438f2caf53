"""Local decoders compared: scales, estimators and combinations beside images that know no brain, with paired intervals.

    python scripts/compare_local.py V1_mean_figure.mat                     every image left out once
    python scripts/compare_local.py V1_mean_figure.mat --scheme image-run  and no row of its run either
    python scripts/compare_local.py STUDY                                  a study of kind miyawaki: train to test
    python scripts/compare_local.py STUDY --estimators ridge,omp --scales 1,12

V1_mean_figure.mat is the sample of KamitaniLab/VBCCA: R2 [voxels, rows] and I2 [pixels, rows]. A study has to have run its
stage dataset. Figures are means over distinct images; differences are to pixels by ridge, image by image.
"""

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import LeanreconWarning
from leanrecon.evaluation.bootstrap import LEVELS, Resampling
from leanrecon.features.combination import learned_weights
from leanrecon.features.space import make_space
from leanrecon.memory import PeakMemory, format_bytes
from leanrecon.regression.out_of_fold import out_of_fold
from leanrecon.regression.regressor import Output, RegressionData
from leanrecon.stages.regression import FOLDS
from leanrecon.stores import Store, as_matrix

Array = np.ndarray[Any, Any]

SCALES = {
    "1": [[1, 1]],
    "12": [[1, 1], [1, 2], [2, 1], [2, 2]],
    "13": [[1, 1], [1, 3], [3, 1], [3, 3]],
    "15": [[1, 1], [1, 5], [5, 1], [5, 5]],
    "123": [[1, 1], [1, 2], [2, 1], [2, 2], [1, 3], [3, 1], [3, 3]],
}
"""Sets of scales by the sides of their patches."""

ESTIMATORS: dict[str, dict[str, Any]] = {
    "auto": {"kind": "local"},
    "ridge": {"kind": "local", "estimator": "ridge"},
    "univariate": {"kind": "local", "estimator": "univariate"},
    "omp": {"kind": "local", "estimator": "omp"},
    "omp_nilearn": {"kind": "local", "estimator": "omp", "nonzero": 10, "voxels": 500, "select": "f"},
    "linear": {"kind": "local", "estimator": "linear"},
    "bayesian_ridge": {"kind": "local", "estimator": "bayesian_ridge"},
    "logistic": {"kind": "local", "estimator": "logistic"},
    "most_probable": {"kind": "local", "estimator": "logistic", "output": "most_probable"},
    "ard": {"kind": "local", "estimator": "ard", "voxels": 50},
}
"""Settings of the regression by name; omp_nilearn are those of nilearn's example."""

COMBINATIONS = ("equal", "scale", "patch")
RESAMPLES = 2000


@dataclass(frozen=True)
class Rows:
    """Rows of betas with the images that they show."""

    betas: Array
    stimulus: Array
    """The image of each row."""
    images: Array
    """uint8 [images, height, width, 1]"""
    folds: list[tuple[Array, Array]]
    """Train rows and test rows."""

    @property
    def cells(self) -> tuple[int, int]:
        return int(self.images.shape[1]), int(self.images.shape[2])

    @property
    def pixels(self) -> Array:
        return self.images.reshape(len(self.images), -1) / 255

    @property
    def tested(self) -> Array:
        return np.concatenate([test for _, test in self.folds])


def read_mat(path: Path, scheme: str) -> Rows:
    """The rows of V1_mean_figure.mat, each image left out once; with ``image-run`` also the run that it is tested in."""
    from leanrecon.datasets.files.open import open_array

    with open_array(f"{path}:I2") as pixels, open_array(f"{path}:R2") as voxels:
        patterns, betas = pixels[:].T, voxels[:].T.astype(np.float32)
    distinct, stimulus = np.unique(patterns, axis=0, return_inverse=True)
    stimulus = stimulus.ravel()
    images = distinct.reshape(-1, 10, 10).transpose(0, 2, 1)[..., None].astype(np.uint8) * 255
    run = np.arange(len(betas)) // 10
    cells = [(k, None) for k in range(len(images))]
    if scheme == "image-run":
        cells = [(k, int(r)) for k in range(len(images)) for r in np.unique(run[stimulus == k])]
    folds = []
    for image, of_run in cells:
        own = stimulus == image
        there = run == of_run
        folds.append((np.flatnonzero(~own & ~there), np.flatnonzero(own & (there if of_run is not None else own))))
    return Rows(betas, stimulus, images, folds)


def read_study(folder: Path) -> Rows:
    """Train and test rows of a study with one split."""
    from leanrecon.study.layout import Study
    from leanrecon.study.rows import Rows as StudyRows

    study = Study(folder)
    rows = StudyRows.read(study)
    betas, images, stimulus = [], [], []
    for split in ("train", "test"):
        store, pictures = Store.open(study.betas(split)), Store.open(study.stimuli(split))
        stimulus.append(rows[split].stimulus + sum(map(len, images)))
        betas.append(store[0 : store.rows])
        images.append(pictures[0 : pictures.rows])
    n, m = map(len, betas)
    return Rows(
        np.concatenate(betas), np.concatenate(stimulus), np.concatenate(images), [(np.arange(n), n + np.arange(m))]
    )


@dataclass
class Predicted:
    """Patches of all scales: of the test rows of every fold, and of its train rows out of fold."""

    test: list[Array]
    train: list[Array]
    seconds: float = 0.0
    peak: int = 0


def predict(rows: Rows, given: dict[str, Any], targets: Array, weighted: bool) -> Predicted:
    """Predict the targets [images, patches] by one regression, in every fold; train rows too if ``weighted``."""
    settings = kinds.settings_of("regressors", given, "regression.", default="local")
    regressor = kinds.kind_of("regressors", settings)(settings)
    result = Predicted([], [])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        for k, (train, test) in enumerate(rows.folds):
            context = Context.of("3GB", scratch=Path(folder))
            shown, index = np.unique(rows.stimulus[train], return_inverse=True)
            data = RegressionData(
                as_matrix(rows.betas[train]),
                as_matrix(targets[shown]),
                as_matrix(rows.betas[test]),
                [str(stimulus) for stimulus in rows.stimulus[train]],
                None if len(shown) == len(train) and (np.diff(index) == 1).all() else index,
            )
            where = Path(folder) / f"{k}"
            store = Store.create(where / "test.zarr", (len(test), targets.shape[1]), np.float32, made_of={"fold": k})
            regressor.predict(data, [Output(store, where / "network")], context, {})
            result.test.append(store[0 : store.rows])
            if weighted:
                store = Store.create(
                    where / "train.zarr", (len(train), targets.shape[1]), np.float32, made_of={"fold": k}
                )
                out_of_fold(regressor, data, store, FOLDS, context)
                result.train.append(store[0 : store.rows])
    result.seconds, result.peak = time.monotonic() - began, memory.peak
    return result


def reconstruct(rows: Rows, predicted: Predicted, scales: list[list[int]], combine: str, columns: Array) -> Array:
    """The images [test rows of all folds, pixels], from 0 to 1, put together from the patches of some scales."""
    space = make_space("patches", {"scales": scales, "combine": combine})
    shape = (*rows.cells, 1)
    drawn = []
    for k, (train, test) in enumerate(rows.folds):
        if combine != "equal":
            weights = learned_weights(
                space, as_matrix(predicted.train[k][:, columns]), rows.pixels, rows.stimulus[train], rows.cells
            )
            space._take((weights, rows.cells))
        images = space.decode(predicted.test[k][:, columns], range(len(test)), shape)
        drawn.append(images.reshape(len(test), -1) / 255)
    return np.concatenate(drawn)


def scores(rows: Rows, drawn: Array) -> dict[str, Array]:
    """Correlation, accuracy, two-way identification among the distinct test images, and error, by test row."""
    shown = rows.stimulus[rows.tested]
    distinct = np.unique(shown)
    r = np.stack([correlation(drawn, np.broadcast_to(rows.pixels[k], drawn.shape)) for k in distinct], axis=1)
    own = r[np.arange(len(shown)), np.searchsorted(distinct, shown)]
    wins = (own[:, None] - 1e-6 > r).sum(axis=1)
    seen = rows.pixels[shown]
    return {
        "r": own,
        "accuracy": ((drawn >= 0.5) == (seen >= 0.5)).mean(axis=1),
        "two-way": wins / (len(distinct) - 1),
        "error": ((drawn - seen) ** 2).mean(axis=1),
    }


def correlation(a: Array, b: Array) -> Array:
    """Pearson's r of each row; 0 where a row is constant."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    length = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    return np.divide(np.einsum("ij,ij->i", a, b), length, out=np.zeros(len(a)), where=length > 0)


def constants(rows: Rows) -> dict[str, Array]:
    """Images that know no brain, for every test row: all dark, the best constant, and those of the train rows."""
    shown = rows.stimulus[rows.tested]
    best = (rows.pixels[np.unique(shown)].mean(axis=0) > 0.5).astype(float)
    mean = [np.broadcast_to(rows.pixels[rows.stimulus[a]].mean(axis=0), (len(b), best.size)) for a, b in rows.folds]
    return {
        "all dark": np.zeros((len(shown), best.size)),
        "best constant (knows the test)": np.broadcast_to(best, (len(shown), best.size)),
        "train majority": np.concatenate([(of > 0.5).astype(float) for of in mean]),
        "mean train image": np.concatenate(mean),
    }


class Table:
    """Rows of figures, printed as soon as they are there."""

    def __init__(self, rows: Rows) -> None:
        self.shown = rows.stimulus[rows.tested]
        self.reference: dict[str, Array] | None = None
        self.lines: list[dict[str, Any]] = []
        print("| decoder | scales | weights | r | accuracy | two-way | error | r less pixel ridge | two-way less |")
        print("|---|---|---|---|---|---|---|---|---|")

    def add(self, name: str, scales: str, combine: str, found: dict[str, Array], keep: bool = False) -> None:
        if keep:
            self.reference = found
        cells = [self.interval(found[key]) for key in ("r", "accuracy", "two-way")]
        cells.append(f"{self.mean(found['error']):.3f}")
        for key in ("r", "two-way"):
            less = None if self.reference is None or keep else found[key] - self.reference[key]
            cells.append("" if less is None else self.interval(less, "+"))
        self.lines.append(
            {"decoder": name, "scales": scales, "weights": combine} | {key: self.mean(v) for key, v in found.items()}
        )
        print(f"| {name} | {scales} | {combine} | {' | '.join(cells)} |", flush=True)

    def mean(self, values: Array) -> float:
        """The mean over distinct images."""
        return float(np.mean([values[self.shown == k].mean() for k in np.unique(self.shown)]))

    def interval(self, values: Array, sign: str = "") -> str:
        of_image = np.array([values[self.shown == k].mean() for k in np.unique(self.shown)])
        means = Resampling(np.arange(len(of_image)), RESAMPLES, 0).means(of_image[:, None])
        low, high = np.percentile(means, LEVELS)
        return f"{of_image.mean():{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--scheme", choices=["image", "image-run"], default="image")
    parser.add_argument("--estimators", default="ridge,univariate,omp,omp_nilearn,linear,auto")
    parser.add_argument("--scales", default="1,12,13,15,123")
    parser.add_argument("--combinations", default=",".join(COMBINATIONS))
    parser.add_argument("--json", type=Path, help="also write the means here")
    given = parser.parse_args()
    warnings.simplefilter("ignore", LeanreconWarning)
    rows = read_study(given.source) if given.source.is_dir() else read_mat(given.source, given.scheme)
    wanted = given.scales.split(",")
    union = list(dict.fromkeys(tuple(scale) for name in wanted for scale in SCALES[name]))
    space = make_space("patches", {"scales": [list(scale) for scale in union]})
    targets = space.encode(rows.images, range(len(rows.images)))
    part = dict(zip(union, space.slices(rows.cells), strict=True))
    table = Table(rows)
    for name, drawn in constants(rows).items():
        table.add(name, "", "", scores(rows, drawn))
    took = {}
    for name in given.estimators.split(","):
        combinations = [c for c in given.combinations.split(",") if wanted != ["1"] or c == "equal"]
        predicted = predict(rows, ESTIMATORS[name], targets, combinations != ["equal"])
        took[name] = f"{predicted.seconds:.0f} s, {format_bytes(predicted.peak)}"
        for scales in wanted:
            columns = np.concatenate([np.arange(part[tuple(s)].start, part[tuple(s)].stop) for s in SCALES[scales]])
            for combine in ["equal"] if scales == "1" else combinations:
                found = scores(rows, reconstruct(rows, predicted, SCALES[scales], combine, columns))
                table.add(name, scales, combine, found, keep=(name, scales) == ("ridge", "1"))
    print("\ntime and peak memory of all folds:", "; ".join(f"{name} {text}" for name, text in took.items()))
    if given.json:
        given.json.write_text(json.dumps(table.lines, indent=1))


if __name__ == "__main__":
    main()
