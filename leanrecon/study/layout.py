"""Where the parts of one study lie on disk: a contract that users and other tools rely on."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Study:
    """The folder of one study, or of one of its variants (a fold, an area, another regressor).

    Paths only: nothing is read or made here.
    """

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "study.toml"

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    def betas(self, split: str) -> Path:
        return self.root / "betas" / f"{split}.zarr"

    @property
    def rows(self) -> Path:
        """Stimulus id, trial ids and repeats of every row."""
        return self.root / "betas" / "rows.json"

    @property
    def voxels(self) -> Path:
        return self.root / "betas" / "voxels.npz"

    def stimuli(self, split: str) -> Path:
        return self.root / "stimuli" / f"{split}.zarr"

    def captions(self, split: str) -> Path:
        return self.root / "captions" / f"{split}.json"

    def features(self, space: str, split: str) -> Path:
        return self.root / "features" / space / f"{split}.zarr"

    @property
    def reliability(self) -> Path:
        """How alike responses to repeats of an image are (NSD)."""
        return self.root / "betas" / "reliability.json"

    def unconditional(self, space: str) -> Path:
        """What a feature space says of an empty text or a black image: one row, where a generator is led away from it."""
        return self.root / "features" / space / "unconditional.zarr"

    def fitted(self, space: str) -> Path:
        """What a feature space learned from the train images (the components of a PCA)."""
        return self.root / "features" / space / "fitted.npz"

    def network(self, space: str) -> Path:
        """A network's weights, what it was trained on besides the stores, and, while it is trained, its checkpoint."""
        return self.root / "networks" / space

    @property
    def embeddings(self) -> Path:
        """What the CLIP that judges says of the images that are compared: a store for each source of them."""
        return self.root / "embeddings"

    def predictions(self, space: str) -> Path:
        return self.root / "predictions" / space / "test.zarr"

    @property
    def folds(self) -> Path:
        """Which rows every fold tests, where there are folds."""
        return self.root / "folds.json"

    def reconstructions(self, stage: str) -> Path:
        """One image a test row: ``stage1`` or ``final``."""
        return self.root / "reconstructions" / stage

    @property
    def weights(self) -> Path:
        """Weights of a generator as they are read block by block: merged or cast once, and made again if removed."""
        return self.root / "weights"

    @property
    def metrics(self) -> Path:
        return self.root / "evaluation" / "metrics.json"

    @property
    def scores(self) -> Path:
        """The scores of every test row."""
        return self.root / "evaluation" / "scores.csv"

    def latent_r2(self, space: str) -> Path:
        """R² of every latent of a feature space."""
        return self.root / "evaluation" / "latent_r2" / f"{space}.npy"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def variant(self, name: str) -> "Study":
        return Study(self.root / "variants" / name)
