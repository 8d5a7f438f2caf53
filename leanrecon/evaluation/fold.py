"""What the evaluation reads of one fold: stimuli, predictions and images, by test row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from leanrecon.evaluation.plan import EvaluateShapes
from leanrecon.images import Array, ImageShape
from leanrecon.places import LocationLike
from leanrecon.stores.matrix import Matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store

TRUE_FEATURES, ORACLE = "true_features", "oracle"
"""Upper bounds as they are named among the figures: first and final images from the true features."""


@dataclass(frozen=True)
class ShownImages:
    """The images that the rows of a split show. A store holds each image once; rows may share one."""

    store: Store
    """uint8 [images, height, width, channels]"""
    index: Array
    """For each row the row of its image in ``store``, int [rows]."""


@dataclass(frozen=True)
class Predictions:
    """Features of one space by test row: what was predicted, and the true features of the image shown."""

    predicted: Matrix
    """float32 [test rows, dims]"""
    true: Matrix
    """float32 [test rows, dims]"""
    every: Matrix | None = None
    """The true features of the test rows of all folds, in this fold's features; None: of this fold's alone."""


@dataclass(frozen=True)
class RandomPairing:
    """What a decoder makes that was trained on betas and images paired at random."""

    stage1: Pictures
    predicted: Matrix | None = None
    """Predicted features of the space that first images are decoded from; None where nothing predicts features."""


@dataclass(frozen=True)
class Area:
    """The same test rows, decoded from the voxels of one area alone."""

    voxels: int
    stage1: Pictures
    final: Pictures | None = None
    """None where nothing refines first images."""
    spaces: Mapping[str, Predictions] = field(default_factory=dict)


@dataclass(frozen=True)
class Fold:
    """The one split of a study, or one of its folds. Everything by row is in the order of its test rows."""

    rows: Array
    """The number of every test row in its split, int [m]."""
    names: Sequence[str]
    """The stimulus id of every test row."""
    test: ShownImages
    train: ShownImages
    stage1: Pictures
    final: Pictures | None = None
    """None where nothing refines first images."""
    spaces: Mapping[str, Predictions] = field(default_factory=dict)
    """Empty where a decoder goes from betas to images without features."""
    space: str | None = None
    """The feature space that first images are decoded from."""
    train_features: Matrix | None = None
    """Features in that space of each train image once, [images, dims], in ascending order of ``train.index``."""
    refined: Mapping[str, Pictures] = field(default_factory=dict)
    """Final images of the generator's baselines, by the generator's name for them: prior, shuffled."""
    pairings: Sequence[RandomPairing] = ()
    upper_bounds: Mapping[str, Pictures] = field(default_factory=dict)
    """Images from the true features: ``true_features`` before refinement, ``oracle`` after it."""
    areas: Mapping[str, Area] = field(default_factory=dict)
    """In the order in which the report shows them."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """The mean weight that a feature space learned for each of its groups, as scales of patches; empty where none did."""
    subjects: Sequence[str] = ()
    """Who saw the image of every test row; empty where a study has one subject."""
    n_trained: int = 0
    """How many test rows show an image that was trained on."""
    test_set: str = ""
    """The test set that the rows are of, where a study has several."""
    label: str = ""
    """What stands before the stage's name in progress, as ``fold00: ``."""
    embeddings: LocationLike | None = None
    """The folder of the judges' embeddings; None: no judge looks at this fold."""

    @property
    def image_shape(self) -> ImageShape:
        height, width, channels = self.test.store.shape[1:]
        return height, width, channels

    def shapes(self) -> EvaluateShapes:
        """The shapes that decide how much memory its evaluation takes."""
        drawn = [self.stage1, self.final, *self.refined.values(), *self.upper_bounds.values()]
        return EvaluateShapes(
            images=self.image_shape,
            test_rows=len(self.names),
            train_images=len(set(self.train.index.tolist())),
            dims={name: space.true.shape[1] for name, space in self.spaces.items()},
            chunk=self.test.store.buffer_nbytes(),
            block=1 if self.train_features is None else self.train_features.block,
            pictures=sorted({pictures.shape for pictures in drawn if pictures is not None}),
            final=(self.final or self.stage1).shape,
            refined=len(self.refined),
            areas=len(self.areas),
        )
