"""Check that the simulated subject's areas hold the information they were built to hold. It says nothing about real brains.

    python scripts/check_simulation.py                 three subjects, 1000 scenes to learn from, 200 to test on

Ridges (one alpha by leave-one-out) decode scenes from voxels of V1, V2 and V3, and from as many ventral voxels. V1 to V3
should be better at layout: the brightness of an 8 x 8 grid, the cells that objects stand in, and the height of the horizon.
Scores are Pearson's r over test scenes, averaged. Ventral voxels should be better at content: which words the caption has
(objects, ground, backdrop, time). The score is the area under the ROC curve (chance .5), averaged over words. The grid's
colours are shown, but not checked: voxels of V1 to V3 do not respond to colour here, and ventral voxels respond to a coarse
colour grid. Subjects differ in voxels and noise, and see the same scenes.
"""

import argparse

import numpy as np

from leanrecon.datasets.simulated.cortex import PANEL, Cortex, trial_numbers, words_of
from leanrecon.datasets.simulated.scenes import TEST, compose, paint
from leanrecon.regression.ridge.ridge import StreamingRidge

LAYOUT = ("brightness", "places of things", "horizon")
GROUPS = {"V1-V3": ("V1", "V2", "V3"), "ventral": ("ventral",)}
SIZE, GRID, VOXELS, REPEATS, NOISE = 64, 8, 1500, 3, 1.0  # the defaults of kind "simulated"


def draw(n_train, n_test):
    """The images of both splits and what they show: {split: (images [n, size, size, 3], contents)}."""
    drawn = {}
    for split, first, n in (("train", 0, n_train), ("test", TEST, n_test)):
        scenes = [compose(0, index) for index in range(first, first + n)]
        images = np.stack([paint(scene, SIZE) for scene in scenes])
        drawn[split] = images, told(scenes, images)
    return drawn


def grid(images):
    """Mean colours on the grid, 0 to 1: [images, GRID, GRID, 3]."""
    side = SIZE // GRID
    return images.reshape(-1, GRID, side, GRID, side, 3).mean((2, 4)) / 255


def places(scenes, fine=4):
    """Share of each grid cell that the boxes of objects cover, 0.8 times as wide as high: [scenes, cells]."""
    at = (np.arange(GRID * fine) + 0.5) / (GRID * fine)
    covered = np.zeros((len(scenes), len(at), len(at)))
    for of, scene in zip(covered, scenes, strict=True):
        for thing in scene.things:
            down, across = (
                np.abs(at - thing.y + thing.size / 2) < thing.size / 2,
                np.abs(at - thing.x) < 0.4 * thing.size,
            )
            of[np.ix_(down, across)] = 1
    return covered.reshape(-1, GRID, fine, GRID, fine).mean((2, 4)).reshape(len(scenes), -1)


def told(scenes, images):
    """What is decoded from the voxels, by name: [scenes, numbers] each."""
    colours = grid(images)
    return {
        "brightness": (colours @ (0.299, 0.587, 0.114)).reshape(len(images), -1),
        "places of things": places(scenes),
        "horizon": np.array([[scene.horizon] for scene in scenes]),
        "words": words_of(scenes),
        "colours": colours.reshape(len(images), -1),
    }


def watch(seed, drawn, voxels=VOXELS):
    """The averaged responses of one subject, {split: [n, voxels]}, and the area of each voxel."""
    rows = sum(len(images) for images, _ in drawn.values())
    cortex = Cortex(seed, SIZE, voxels, NOISE, rows * REPEATS)
    trials = iter(trial_numbers(seed, rows, REPEATS).tolist())
    betas = {}
    for number, (split, (images, shown)) in enumerate(drawn.items()):
        panels = [range(a, min(a + PANEL, len(images))) for a in range(0, len(images), PANEL)]
        clean = [cortex.respond(images[p.start : p.stop], shown["words"][p.start : p.stop], p) for p in panels]
        noise = [cortex.noise(number, row, next(trials)) for row in range(len(images))]
        betas[split] = np.concatenate(clean) + np.stack(noise)
    return betas, cortex.voxels.area


def correlation(predicted, true):
    """Pearson's r of every column."""
    a, b = predicted - predicted.mean(0), true - true.mean(0)
    return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


def roc_area(predicted, shown):
    """Area under the ROC curve of each word; a tie counts half."""
    areas = []
    for values, has in zip(predicted.T, shown.T, strict=True):
        more = values[has][:, None] - values[~has]
        areas.append(((more > 0) + (more == 0) / 2).mean())
    return np.array(areas)


def compare(seed, drawn, voxels=VOXELS):
    """The scores of one subject, {contents: {group: score}}, and the number of voxels of each group."""
    betas, area = watch(seed, drawn, voxels)
    own = {group: np.flatnonzero(np.isin(area, areas)) for group, areas in GROUPS.items()}
    n = min(map(len, own.values()))
    rng = np.random.default_rng(seed)
    chosen = {group: np.sort(rng.choice(there, n, replace=False)) for group, there in own.items()}
    scores = {}
    for what, train in drawn["train"][1].items():
        test = drawn["test"][1][what]
        varies = (train.std(0) > 0) & (test.std(0) > 0)
        train, test = train[:, varies], test[:, varies]
        score = roc_area if what == "words" else correlation
        scores[what] = {}
        for group, columns in chosen.items():
            ridge = StreamingRidge("loo", standardize=True).fit(betas["train"][:, columns], train.astype(np.float32))
            scores[what][group] = float(score(ridge.predict(betas["test"][:, columns]), test).mean())
    return scores, n


def as_built(scores):
    """Whether V1 to V3 are better at all of layout, and ventral voxels at words."""
    ahead = {what: of["V1-V3"] - of["ventral"] for what, of in scores.items()}
    return all(ahead[what] > 0 for what in LAYOUT) and ahead["words"] < 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--subjects", type=int, nargs="+", default=[0, 1, 2], help="their seeds")
    arguments = parser.parse_args()
    drawn = draw(arguments.train, arguments.test)
    scores, voxels = zip(*(compare(seed, drawn) for seed in arguments.subjects), strict=True)
    print(
        f"A sanity test of the simulation, and no finding: {len(scores)} simulated subjects, {voxels[0]} voxels a group,"
    )
    print(
        f"{arguments.train} scenes to learn from, {arguments.test} to test on; means, lowest and highest of the subjects\n"
    )
    print(f"{'':24}" + "".join(f"{group:>22}" for group in GROUPS))
    for what in scores[0]:
        values = [[of[what][group] for of in scores] for group in GROUPS]
        cells = [f"{np.mean(of):.3f} [{min(of):.3f}, {max(of):.3f}]" for of in values]
        print(f"{what + (' (AUC)' if what == 'words' else ' (r)'):24}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"\nas built: {sum(map(as_built, scores))} of {len(scores)} subjects")


if __name__ == "__main__":
    main()
