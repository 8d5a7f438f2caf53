"""The variants of a study: its split or its folds, its areas, and the baselines beside each.

A variant is one way from betas to images. Its axes say which rows are learned from and tested, which voxels are used,
and what stands in for the brain. Its folder follows from its axes: ``variants/NAME``, or the study itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.places.files import read_record, unreadable
from leanrecon.stores.gather import gathered
from leanrecon.stores.matrix import ColumnSubset, Matrix, RowSubset, as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Group, Rows
from leanrecon.study.voxels import area_voxels, read_reliability

if TYPE_CHECKING:
    from leanrecon.study.settings import Settings

Array = np.ndarray[Any, Any]

ORACLE = "oracle"
"""The baseline that is drawn from true features of the test images: an upper bound, which no brain gave."""


@dataclass(frozen=True)
class Variant:
    """One way from betas to images."""

    parent: Study
    """The study, whose betas, stimuli and captions all variants read."""
    rows: Rows
    fold: int | None = None
    train: tuple[int, ...] | None = None
    """Train rows of a fold, in the train stores; None: all train rows."""
    test: tuple[int, ...] | None = None
    """Test rows of a fold, in the train stores; None: the rows of the test stores."""
    area: str = ""
    """Name of the area whose voxels are used; empty: all voxels."""
    voxels: tuple[int, ...] | None = None
    """The voxels of the area, ascending."""
    subject: str = ""
    """The subject whose rows are tested; empty: all."""
    pairing: int | None = None
    """Number of the random pairing of betas and images; None: as measured."""
    group: Group = "stimulus"
    """What folds and validation keep together."""
    baseline: str = ""
    """What the images are made of without this brain's predictions: oracle, or a baseline of the generator."""

    @property
    def name(self) -> str:
        """The axes joined, as in ``fold00-V1-shuffled00``; empty for the study itself."""
        fold = "" if self.fold is None else f"fold{self.fold:02d}"
        pairing = "" if self.pairing is None else f"shuffled{self.pairing:02d}"
        return "-".join(part for part in (fold, self.area, self.subject, pairing, self.baseline) if part)

    @property
    def study(self) -> Study:
        """The folder of this variant."""
        return self.parent.variant(self.name) if self.name else self.parent

    @property
    def label(self) -> str:
        """The variant's name as a prefix of progress and messages."""
        return f"{self.name}: " if self.name else ""

    @property
    def parent_label(self) -> str:
        """The label of the variant that this one stands beside: without its pairing and baseline."""
        return replace(self, pairing=None, baseline="").label

    @property
    def test_split(self) -> str:
        """The split whose stores hold the test rows."""
        return "test" if self.test is None else "train"

    # Variants beside this one

    def shuffled(self, count: int) -> list["Variant"]:
        """The variants with betas and images paired at random."""
        return [replace(self, pairing=k) for k in range(count)]

    def made_from(self, baseline: str) -> "Variant":
        """The variant whose images a baseline gives."""
        return replace(self, baseline=baseline)

    def features(self, learns: bool) -> Study:
        """Where features lie: of the fold for a space that learns from its train images, else of the study."""
        return (
            replace(self, area="", voxels=None, subject="", pairing=None, baseline="").study if learns else self.parent
        )

    # Rows

    @cached_property
    def train_rows(self) -> Array:
        """Train rows of betas in the train store, int [n]."""
        return np.arange(len(self.rows["train"])) if self.train is None else np.asarray(self.train, np.int64)

    @cached_property
    def test_rows(self) -> Array:
        """Test rows of betas in the store of ``test_split``, int [m]."""
        return np.arange(len(self.rows["test"])) if self.test is None else np.asarray(self.test, np.int64)

    @cached_property
    def train_images(self) -> Array:
        """The different images of the train rows in the train stores of stimuli and features, ascending, int [s]."""
        return np.unique(self.rows["train"].stimulus[self.train_rows])

    @cached_property
    def test_images(self) -> Array:
        """The image of every test row in the stores of ``test_split``, int [m]."""
        images: Array = self.rows[self.test_split].stimulus[self.test_rows]
        return images

    @cached_property
    def images_of_train_rows(self) -> Array:
        """The image of every train row in the train stores, int [n]."""
        images: Array = self.rows["train"].stimulus[self.train_rows]
        return images

    @property
    def target_of_row(self) -> Array | None:
        """Which of ``train_images`` every train row shows, int [n]; None where row i shows image i."""
        index = np.searchsorted(self.train_images, self.images_of_train_rows)
        return None if np.array_equal(index, np.arange(len(self.train_images))) else index

    @property
    def train_names(self) -> list[str]:
        """The stimulus id of every train row."""
        names = self.rows.stimulus_ids("train")
        return [names[row] for row in self.train_rows]

    @property
    def test_names(self) -> list[str]:
        """The stimulus id of every test row."""
        names = self.rows.stimulus_ids(self.test_split)
        return [names[row] for row in self.test_rows]

    @property
    def test_subjects(self) -> list[str]:
        """Who saw the image of every test row; empty where a study has one subject."""
        subjects = self.rows[self.test_split].subject
        return [] if subjects is None else [subjects[row] for row in self.test_rows]

    @property
    def test_sets(self) -> list[str]:
        """The test set of every test row; empty where a study has one."""
        sets = self.rows[self.test_split].test_set
        return [] if sets is None else [sets[row] for row in self.test_rows]

    @property
    def groups(self) -> list[str]:
        """The label of every train row that folds and validation keep together: its stimulus or its run."""
        if self.group == "stimulus":
            return self.train_names
        labels = self.rows.groups("train", self.group)
        return [str(labels[row]) for row in self.train_rows]

    @property
    def trained_on(self) -> int:
        """How many test rows show an image that was trained on."""
        learned = set(self.train_names)
        return sum(name in learned for name in self.test_names)

    def reliability(self) -> Array | None:
        """The share of each voxel's variance in the train rows that is signal, by the dataset's ncsnr; None without it.

        Where rows are means of unequally many trials n, 1/n is its mean over rows, as in the noise ceiling.
        """
        repeats = np.asarray(self.rows["train"].repeats, np.float64)
        found = read_reliability(self.parent, float(1 / np.mean(1 / repeats[self.train_rows])))
        found = found if found is None or self.voxels is None else found[list(self.voxels)]
        return None if found is None or not np.isfinite(found).any() else found

    # Matrices

    def train_betas(self) -> Matrix:
        """Betas to learn from, [n, voxels]."""
        return self._betas("train", self.train)

    def test_betas(self) -> Matrix:
        """Betas to predict from, [m, voxels]."""
        return self._betas(self.test_split, self.test)

    def _betas(self, split: str, rows: Sequence[int] | None) -> Matrix:
        betas = as_matrix(Store.open(self.parent.betas(split)))
        chosen = betas if rows is None else RowSubset(betas, rows)
        return chosen if self.voxels is None else ColumnSubset(chosen, np.asarray(self.voxels))

    def train_features(self, space: str, learns: bool) -> Matrix:
        """Features of the train images, each image once, [s, dims]."""
        return gathered(as_matrix(Store.open(self.features(learns).features(space, "train"))), self.train_images)

    def test_features(self, space: str, learns: bool) -> Matrix:
        """True features of the image of every test row, [m, dims]."""
        store = Store.open(self.features(learns).features(space, self.test_split))
        return gathered(as_matrix(store), self.test_images)


def variants(study: Study, settings: "Settings") -> list[Variant]:
    """The variants that are predicted from the brain: every fold or the one split, with all voxels and by area.

    Raises StoreError before the stage dataset has run, InputError for areas without voxels.
    """
    areas = area_voxels(study, settings.areas)
    rows = Rows.read(study)
    split = _split(Variant(study, rows, group=settings.dataset.group), settings.dataset.folds)
    return [variant for whole in split for variant in (whole, *_by_area(whole, areas))]


def whole_brain(every: Sequence[Variant]) -> list[Variant]:
    """Of some variants those that use all voxels."""
    return [variant for variant in every if not variant.area]


def _split(whole: Variant, folds: int | None) -> list[Variant]:
    if not folds:
        return [whole]
    path = whole.parent.folds
    tests: list[list[int]] = (read_record(path) or {}).get("folds", [])
    if not (isinstance(tests, list) and all(isinstance(f, list) and all(type(r) is int for r in f) for f in tests)):
        raise unreadable(path, "it lists no folds")
    if not tests:
        raise StoreError(f"there is no {path}", todo="run the stage dataset first")
    every = sorted(row for fold in tests for row in fold)
    return [
        replace(whole, fold=k, train=tuple(sorted(set(every) - set(fold))), test=tuple(fold))
        for k, fold in enumerate(tests)
    ]


def _by_area(variant: Variant, areas: Mapping[str, Array]) -> list[Variant]:
    return [replace(variant, area=name, voxels=tuple(index.tolist())) for name, index in areas.items()]
