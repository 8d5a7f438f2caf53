"""Compare alignments on ten real subjects (Haxby et al. 2011): which of seven categories was seen, in held-out runs.

    python scripts/compare_alignment.py FOLDER [--curve]

FOLDER holds image_data_lh.mat, image_data_rh.mat and label.mat of the repository cameronphchen/SRM. Every run is held
out in turn; alignments, decoders and, for the last line, the choice among all methods are made in the other seven runs.
Intervals are bootstrapped over subjects. ``--curve`` adds a new subject with 1 to 7 runs beside its own ridge.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from leanrecon.alignment.pca import GroupPCA
from leanrecon.alignment.procrustes import Procrustes
from leanrecon.alignment.ridge import RidgeMap
from leanrecon.alignment.srm import SRM

RUNS, CATEGORIES = 8, 7
Votes = np.ndarray
"""Evidence for each category: float [subjects, rows, categories]."""


def load(folder: Path) -> np.ndarray:
    """Betas of all subjects, float64 [subjects, rows, voxels]; rows are runs, each of the categories 1 to 7."""
    from leanrecon.datasets.files.open import open_array

    def read(file: str) -> np.ndarray:
        with open_array(str(folder / f"{file}.mat")) as array:
            return array[:]

    sides = read("image_data_lh"), read("image_data_rh")
    labels = read("label").ravel()
    order = np.concatenate(
        [run + np.argsort(labels[run : run + CATEGORIES]) for run in range(0, len(labels), CATEGORIES)]
    )
    return np.concatenate(sides).transpose(2, 1, 0).astype(np.float64)[:, order]


def targets(rows: int) -> np.ndarray:
    """One column a category: float64 [rows, categories]."""
    return np.tile(np.eye(CATEGORIES), (rows // CATEGORIES, 1))


def z_scored(votes: Votes) -> Votes:
    """Evidence at one scale, so that several kinds of it can be averaged."""
    centred = votes - votes.mean(axis=-1, keepdims=True)
    return centred / np.maximum(centred.std(axis=(1, 2), keepdims=True), 1e-12)


def own_ridge(train: np.ndarray, test: np.ndarray) -> Votes:
    """Each subject's own ridge."""
    known = targets(train.shape[1])
    return np.stack([RidgeMap().fit(x, known).transform(t) for x, t in zip(train, test, strict=True)])


def to_template(train: list[np.ndarray], test: list[np.ndarray]) -> Votes:
    """Correlation of each subject's rows with the mean of the other subjects' rows in the same run."""
    total = sum(test[1:], start=test[0].copy())
    votes = []
    for own in test:
        others = (total - own) / (len(test) - 1)
        runs = zip(own.reshape(-1, CATEGORIES, own.shape[1]), others.reshape(-1, CATEGORIES, own.shape[1]), strict=True)
        votes.append(np.concatenate([np.corrcoef(a, b)[:CATEGORIES, CATEGORIES:] for a, b in runs]))
    return np.stack(votes)


def pooled_ridge(train: list[np.ndarray], test: list[np.ndarray]) -> Votes:
    """One ridge from the shared rows of all subjects."""
    rows = np.concatenate(train)
    decoder = RidgeMap().fit(rows, targets(len(rows)))
    return np.stack([decoder.transform(t) for t in test])


def aligned(make: Callable[[], object], decode: Callable[..., Votes], *, held_out: bool = True):
    """A method that aligns all subjects on the train rows, then decodes in the shared space."""

    def run(train: np.ndarray, test: np.ndarray) -> Votes:
        model = make().fit(list(train))
        shared = model.held_out_ if held_out else model.transform(list(train))
        return decode(shared, model.transform(list(test)))

    return run


def onto_own(train: np.ndarray, test: np.ndarray) -> Votes:
    """All others rotated onto each subject's own voxels, where their mean is the template."""
    votes = []
    for k in range(len(train)):
        model = Procrustes(onto=k).fit(list(train))
        votes.append(to_template([], model.transform(list(test)))[k])
    return np.stack(votes)


def mean_of(*methods):
    """The mean evidence of several methods."""
    return lambda train, test: np.mean([z_scored(method(train, test)) for method in methods], axis=0)


def unaligned(train: np.ndarray, test: np.ndarray) -> Votes:
    """The template of voxels that do not correspond."""
    return to_template([], list(test - train.mean(axis=1, keepdims=True)))


def methods() -> dict[str, Callable[[np.ndarray, np.ndarray], Votes]]:
    """All that is compared; the last column of the table chooses among them within train runs."""
    found = {"unaligned, template": unaligned, "own ridge": own_ridge}
    for k in (20, 30, 40):
        found[f"SRM k {k}, template"] = aligned(lambda k=k: SRM(k, "deterministic"), to_template)
    found["SRM k 30 probabilistic, template"] = aligned(lambda: SRM(30), to_template)
    found["SRM k 30, pooled ridge"] = aligned(lambda: SRM(30, "deterministic"), pooled_ridge)
    found["SRM k 30, pooled ridge, fitted scores"] = aligned(
        lambda: SRM(30, "deterministic"), pooled_ridge, held_out=False
    )
    found["Procrustes onto own, template"] = onto_own
    found["Procrustes, three levels, template"] = aligned(Procrustes, to_template)
    for k in (10, 20, 30):
        found[f"group PCA k {k}, template"] = aligned(lambda k=k: GroupPCA(k), to_template)
        found[f"group PCA k {k}, pooled ridge"] = aligned(lambda k=k: GroupPCA(k), pooled_ridge)
    found["group PCA k 20, pooled ridge, fitted scores"] = aligned(lambda: GroupPCA(20), pooled_ridge, held_out=False)
    pca = aligned(lambda: GroupPCA(20), to_template)
    found["mean of own ridge and group PCA k 20, template"] = mean_of(own_ridge, pca)
    found["mean of own ridge and group PCA k 30, pooled"] = mean_of(
        own_ridge, aligned(lambda: GroupPCA(30), pooled_ridge)
    )
    found["mean of own ridge and SRM k 30, template"] = mean_of(
        own_ridge, aligned(lambda: SRM(30, "deterministic"), to_template)
    )
    return found


def accuracy(votes: Votes) -> np.ndarray:
    """The share of rows whose category has the most evidence, by subject."""
    truth = np.tile(np.arange(CATEGORIES), votes.shape[1] // CATEGORIES)
    return (votes.argmax(axis=2) == truth).mean(axis=1)


def rows_of(runs: list[int]) -> np.ndarray:
    return np.concatenate([np.arange(run * CATEGORIES, (run + 1) * CATEGORIES) for run in runs])


def held_out_runs(betas: np.ndarray, method, runs: list[int]) -> np.ndarray:
    """Accuracy by subject over runs that are held out in turn, all else being learned from the other ``runs``."""
    scores = []
    for run in runs:
        train = betas[:, rows_of([other for other in runs if other != run])]
        scores.append(accuracy(method(train, betas[:, rows_of([run])])))
    return np.mean(scores, axis=0)


def interval(values: np.ndarray) -> str:
    drawn = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return f"{values.mean():6.3f} ({low:.3f}, {high:.3f})"


def compare(betas: np.ndarray) -> None:
    """A line a method, and one for the method that is chosen within the train runs of every held-out run."""
    every = methods()
    runs = list(range(RUNS))
    by_run = {}
    for name, method in every.items():
        scores = []
        for run in runs:
            train = betas[:, rows_of([other for other in runs if other != run])]
            scores.append(accuracy(method(train, betas[:, rows_of([run])])))
        by_run[name] = np.array(scores)  # [runs, subjects]
        difference = (by_run[name] - by_run.get("own ridge", np.nan)).mean(axis=0)
        print(f"{name:50} {interval(by_run[name].mean(axis=0))}   less own ridge {interval(difference)}", flush=True)
    chosen, names = [], []
    for run in runs:
        inner = [other for other in runs if other != run]
        inside = {name: held_out_runs(betas, method, inner).mean() for name, method in every.items()}
        best = max(inside, key=inside.__getitem__)
        chosen.append(by_run[best][run])
        names.append(f"{best} ({inside[best]:.3f} inside)")
        print(f"  run {run}: {names[-1]}", flush=True)
    values = np.array(chosen)
    difference = (values - by_run["own ridge"]).mean(axis=0)
    print(f"{'chosen within train runs':50} {interval(values.mean(axis=0))}   less own ridge {interval(difference)}")


def curve(betas: np.ndarray) -> None:
    """A new subject with few runs: its ridge into the space of the nine others, decoded there, beside its own ridge."""
    print("\nruns   own ridge                ridge into the others' space")
    for count in (1, 2, 3, 5, 7):
        own, joined = [], []
        for subject in range(len(betas)):
            others = np.delete(betas, subject, axis=0)
            for run in range(RUNS):
                known = rows_of([(run + 1 + step) % RUNS for step in range(RUNS - 1)])
                few = known[: count * CATEGORIES]
                group = GroupPCA(20).fit(list(others[:, known]))
                space = np.mean(group.held_out_, axis=0)
                test = betas[subject, rows_of([run])]
                step = RidgeMap().fit(betas[subject, few], space[: len(few)])
                rows = np.concatenate([*group.held_out_, step.held_out_])
                labels = np.concatenate([*[targets(len(known))] * len(others), targets(len(few))])
                votes = RidgeMap().fit(rows, labels).transform(step.transform(test))
                joined.append(accuracy(votes[None])[0])
                ridge = RidgeMap().fit(betas[subject, few], targets(len(few))).transform(test)
                own.append(accuracy(ridge[None])[0])
        values = [interval(np.reshape(part, (len(betas), RUNS)).mean(axis=1)) for part in (own, joined)]
        print(f"{count:4}   {values[0]}   {values[1]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--curve", action="store_true", help="add a new subject with few runs")
    given = parser.parse_args()
    data = load(given.folder)
    compare(data)
    if given.curve:
        curve(data)
