"""Which trials are trained on and which tested: by a column of the table, a list of ids, a fraction or folds."""

from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.arrays.repeats import Repeats
from leanrecon.datasets.builder.materials import Images, Trials
from leanrecon.datasets.builder.settings import BuilderSettings
from leanrecon.datasets.files.named import needed_file
from leanrecon.datasets.splits import check_split, fraction_rows
from leanrecon.errors import InputError
from leanrecon.places.inputs import open_text
from leanrecon.study.rows import joined_groups

Array = np.ndarray[Any, Any]

SPLITS = ("train", "test")
_OTHER_NAMES = {"training": "train", "testing": "test", "val": "test", "validation": "test"}


def split_trials(trials: Trials, settings: BuilderSettings, seed: int, base_dir: Path | None) -> dict[str, Array]:
    """The trials of each split, ascending; with folds all are train trials. Trials of neither split are left out.

    Raises InputError where nothing says what is tested, and for a split that is empty.
    """
    every = np.arange(len(trials))
    if settings.folds:
        return {"train": every}
    if settings.test_ids is not None:
        test = _listed(trials, settings.test_ids, base_dir)
    elif settings.test_fraction is not None:
        groups = list(trials.stimulus)
        if settings.group == "run":
            groups = [str(group) for group in joined_groups(groups, trials.groups("run").tolist())]
        test = fraction_rows(groups, settings.test_fraction, seed)
    elif trials.split is not None:
        names = [_OTHER_NAMES.get(name.lower(), name.lower()) for name in trials.split]
        parts = {split: np.flatnonzero([name == split for name in names]) for split in SPLITS}
        check_split(len(parts["train"]), len(parts["test"]))
        return parts
    else:
        raise InputError(
            "nothing says which trials are tested",
            expected="a column split (train, test) in the table of trials",
            todo="set dataset.test_ids, dataset.test_fraction or dataset.folds",
        )
    train = np.setdiff1d(every, test)
    check_split(len(train), len(test))
    return {"train": train, "test": test}


def repeats_of(
    trials: Trials, parts: dict[str, Array], settings: BuilderSettings, images: Images | None
) -> dict[str, Repeats]:
    """The trials of each split with the images that they show, which are in the order of their file.

    Raises InputError for images of both splits.
    """
    runs = None if trials.run is None and trials.session is None else _run_numbers(trials)
    every = {
        split: Repeats(
            index,
            [trials.stimulus[row] for row in index.tolist()],
            settings.averages(split),
            None if runs is None else runs[index],
            None if images is None else images.row_of,
            _sets(trials, index) if split == "test" and trials.test_set is not None else None,
        )
        for split, index in parts.items()
    }
    if len(every) == 2 and not settings.allow_shared_stimuli:
        shared = sorted(set(every["train"].ids) & set(every["test"].ids))
        if shared:
            raise InputError(
                f"{len(shared)} images are among the train and the test trials; the first is {shared[0]}",
                expected="test images that were never trained on",
                todo="take them out of one split, or set dataset.allow_shared_stimuli = true if this is meant",
            )
    return every


def _sets(trials: Trials, index: Array) -> dict[str, str]:
    """The test set of each image of some trials; raises InputError for an image of two."""
    assert trials.test_set is not None
    found: dict[str, str] = {}
    for row in index.tolist():
        name, of = trials.stimulus[row], trials.test_set[row]
        if found.setdefault(name, of) != of:
            raise InputError(
                f"{name} is an image of two test sets, {found[name]} and {of}",
                expected="images of one test set each",
                todo="take it out of one, or give each set its own folder of images (dataset.tests.NAME.images)",
            )
    return found


def _run_numbers(trials: Trials) -> Array:
    return trials.groups("run" if trials.run is not None else "session")


def _listed(trials: Trials, spec: str, base_dir: Path | None) -> Array:
    path = needed_file(spec, base_dir, "test_ids")
    try:
        with open_text(path) as file:
            wanted = {line.strip() for line in file.read().splitlines() if line.strip()}
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error}", expected="stimuli, one a line, in UTF-8") from error
    if unknown := sorted(wanted - set(trials.stimulus)):
        raise InputError(
            f"{path} names {len(unknown)} stimuli that no trial shows; the first is {unknown[0]!r}",
            expected=f"names as in the table of trials, such as {trials.stimulus[0]!r}",
        )
    return np.flatnonzero([stimulus in wanted for stimulus in trials.stimulus])
