"""The parts of a study that are run alike: its one split or its folds, and the baselines beside each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanrecon.errors import StoreError
from leanrecon.features.space import Array, FeatureSpace
from leanrecon.places.files import read_json
from leanrecon.stores import Matrix, RowSubset, Store, as_matrix
from leanrecon.study.layout import Study


@dataclass(frozen=True)
class Variant:
    """Which rows are trained on and tested: those of the split, or those of one fold (then all lie in the train stores)."""

    parent: Study
    study: Study
    train: list[int] | None = None
    test: list[int] | None = None

    @property
    def is_fold(self) -> bool:
        return self.test is not None

    @property
    def prefix(self) -> str:
        return f"{self.study.root.name}: " if self.is_fold else ""

    @property
    def test_split(self) -> str:
        """The split whose stores hold the test rows."""
        return "train" if self.is_fold else "test"

    def train_rows(self, store: Store) -> Matrix:
        return _rows(store, self.train)

    def test_rows(self, store: Store) -> Matrix:
        return _rows(store, self.test)

    def index(self, store: Store, rows: Sequence[int] | None) -> Array:
        return np.arange(store.rows) if rows is None else np.asarray(rows)

    def of(self, space: FeatureSpace) -> Study:
        """Where the features of a space are: what learns nothing describes an image alike in every fold."""
        return self.study if space.learns else self.parent

    def shuffled(self, count: int) -> list[Study]:
        """Where the baselines of betas and stimuli paired at random are."""
        return [self.study.variant(f"shuffled{k:02d}") for k in range(count)]

    def refined(self, baselines: Sequence[str]) -> dict[str, Study]:
        """Where the final images of baselines that predictions alone can give are, by name."""
        return {name: self.study.variant(name) for name in baselines if name != "oracle"}

    @property
    def oracle(self) -> Study:
        """Where the images decoded from the true features of the test stimuli are."""
        return self.study.variant("oracle")

    def names(self) -> list[str]:
        """The stimulus of every test row."""
        return self._stimuli(self.test_split, self.test)

    def learned(self) -> list[str]:
        """The stimulus of every train row."""
        return self._stimuli("train", self.train)

    def trained(self) -> int:
        """How many test rows show a stimulus that was trained on."""
        learned = set(self.learned())
        return sum(name in learned for name in self.names())

    def _stimuli(self, split: str, rows: list[int] | None) -> list[str]:
        records = read_json(self.parent.rows)
        if records is None:
            raise StoreError(f"there is no {self.parent.rows}", todo="run the stage dataset first")
        names: list[str] = records[split]["stimulus"]
        return names if rows is None else [names[row] for row in rows]


def variants(study: Study, folds: int | None) -> list[Variant]:
    """The one split, or every fold: each row is tested once and trained on in all other folds."""
    if not folds:
        return [Variant(study, study)]
    tests: list[list[int]] = (read_json(study.folds) or {}).get("folds", [])
    if not tests:
        raise StoreError(f"there is no {study.folds}", todo="run the stage dataset first")
    rows = sorted(row for fold in tests for row in fold)
    return [
        Variant(study, study.variant(f"fold{k:02d}"), sorted(set(rows) - set(fold)), fold)
        for k, fold in enumerate(tests)
    ]


def _rows(store: Store, rows: list[int] | None) -> Matrix:
    matrix = as_matrix(store)
    return matrix if rows is None else RowSubset(matrix, rows)
