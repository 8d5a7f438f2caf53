"""What a regressor is: from train betas and features to predicted features of test betas."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel

from leanrecon.context import Context
from leanrecon.errors import SettingsError

if TYPE_CHECKING:
    from leanrecon.stores.matrix import Matrix
    from leanrecon.stores.store import Store

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RegressionShapes:
    """Shapes of one regression, known before anything is read."""

    n: int
    """Train rows of betas."""
    p: int
    """Voxels."""
    m: int
    """Test rows of betas."""
    s: int
    """Train images: rows of the targets, each image once."""
    t: int
    """Targets: numbers of a feature row."""
    x_block: int
    """Voxels of a chunk of the betas store."""
    y_block: int
    """Targets of a chunk of the features store."""
    subset: bool = False
    """Whether rows or voxels are picked from larger stores, as in folds and areas."""
    pairings: int = 0
    """How often betas and images are paired at random and predicted again."""
    fits: int = 1
    """Fits from the same betas: of all feature spaces, and of what is calibrated on train rows."""
    device: str = "cpu"
    """Where it is wanted to run: auto, cuda, mps or cpu."""


@dataclass(frozen=True)
class RegressionPlan:
    """What a regression will hold and write."""

    work: int
    """Bytes of memory at the peak, beside what the process holds."""
    summary: str
    """How it will run, as one line of the plan's table."""
    disk: int = 0
    """Bytes on disk that stay, beside the predictions."""
    scratch: int = 0
    """Bytes on disk that are needed for a while."""
    kept: int = 0
    """Bytes on disk for the fits of other variants, until the stage is done."""
    held: int = 0
    """Bytes of libraries that stay in the process afterwards."""
    library: str | None = None
    """The library among them that networks run in, if there is one."""
    operations: float | None = None
    """Floating-point operations of the fit, beside those that each target takes; None: not counted."""
    shared_operations: float = 0
    """Those of them that workers share, where there are any."""
    parts: int = 0
    """Bytes on disk of the parts of the fit that these workers leave for a while."""
    passes: float = 2
    """How often the train betas are read for it."""
    target_passes: float = 0
    """How often the targets are read before they are predicted."""
    factor: str = ""
    """Feature spaces of the same one share a fit; empty: each has its own."""


@dataclass(frozen=True)
class RegressionData:
    """The betas and features to learn from, and the betas to predict from."""

    betas: "Matrix"
    """[n, p]"""
    targets: "Matrix"
    """[s, t], each image once"""
    test: "Matrix"
    """[m, p]"""
    groups: Sequence[str]
    """[n] labels; rows of one label are never torn apart by validation or folds (the stimulus, or the run)."""
    stimulus: Array | None = None
    """[n] the row of ``targets`` that each train row shows; None where row i shows image i."""
    reliability: Array | None = None
    """[p] the share of each voxel's variance that is not noise, by the dataset's ncsnr; None where that is unknown."""


@dataclass(frozen=True)
class Output:
    """Where the predictions of one pairing of betas and images go."""

    store: "Store"
    """float32 [m, t]"""
    folder: Path
    """Where a trained network is kept."""
    pairing: int | None = None
    """Number of the random pairing of betas and images, for a baseline; None: as measured."""


class Regressor(Protocol):
    """A kind of regression; made from its settings, cheap until it works."""

    Settings: ClassVar[type[BaseModel]]

    def __init__(self, settings: Any) -> None: ...

    @classmethod
    def needs(cls, settings: Any, prefix: str) -> Iterable[Any]:
        """The published weights that it reads (``weights.needs.Need``); ``prefix`` is what its settings are called."""

    @classmethod
    def notes(cls, settings: Any, space: str) -> Iterable[str]:
        """Sentences that a reader of the report must know, about the predictions of a feature space."""

    def made_of(self) -> dict[str, Any]:
        """All settings that decide the predictions, as plain values."""

    def plan(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        """Plan the work into ``free`` bytes of memory: arithmetic only. ``work`` may exceed ``free``."""

    def predict(
        self, data: RegressionData, outputs: Sequence[Output], context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill the stores of all outputs, and finish them; returns what run.json keeps.

        ``shared`` lives through one variant: feature spaces with the same settings may share a factor there. Under
        ``kept.KEPT`` it has what fits leave on disk for one another.
        """


class LeavesOut(Protocol):
    """What a regressor has besides that predicts train rows in closed form, each without the rows of its image."""

    leaves_out: bool
    """Whether its settings allow that."""

    def plan_left_out(self, shapes: RegressionShapes, free: int) -> RegressionPlan:
        """Plan the predictions of all train rows, beside the fit that they need."""

    def predict_left_out(
        self, data: RegressionData, store: "Store", context: Context, shared: dict[str, Any]
    ) -> dict[str, Any]:
        """Fill a store [n, t] with predictions of the train rows, and finish it; returns what run.json keeps."""


def check_test_rows(kind: str, rows: int) -> None:
    """Refuse ``transductive`` moments of a single test row: its prediction would be the train mean, whatever its betas."""
    if kind == "transductive" and rows == 1:
        raise SettingsError(
            'restandardize = "transductive" takes the spread of predictions from the test rows, and there is one: its '
            "prediction would be the train mean, whatever its betas",
            expected="two test rows or more",
            todo='set restandardize = "inductive", which takes it from train rows, or "none"',
        )


def notes_on_moments(kind: str, space: str) -> Iterator[str]:
    """What a reader of the report must know of ``restandardize``."""
    if kind == "transductive":
        yield (
            f"Predictions of {space} were re-standardised with the mean and spread of all test predictions together "
            '(restandardize = "transductive"): a row depends on which others were tested.'
        )


def tell_betas(context: Context, data: RegressionData, left_out: int, odd: Sequence[str]) -> None:
    """Say how many voxels are left out of a fit, and what is odd about the betas, under the context's label."""
    if left_out:
        voxels = data.betas.shape[1]
        context.progress.say(f"{context.label}: {left_out} of {voxels} voxels do not vary and are left out")
    for sentence in odd:
        context.progress.say(f"{context.label}: {sentence}")
