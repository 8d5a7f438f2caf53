"""How far an image is from what the brain says of it: by predicted features, or by measured betas."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leanrecon.images import Array

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ByFeatures:
    """Distances of features [b, t] from predicted ones."""

    mean: "Tensor"
    deviation: "Tensor"
    """Mean and standard deviation of each feature over train images, [t]; features that do not vary have 0."""
    carried: "Tensor"
    """Squared correlation of each feature with what was predicted of it for train rows, [t]."""
    cosine: bool

    def __call__(self, features: "Tensor", predicted: "Tensor") -> "Tensor":
        """Σ r²·((f − y)/s)² / Σ r², or 1 − the cosine of (f − mean)/s and (y − mean)/s weighted by r: [b]."""
        varies = self.deviation > 0
        scale = varies / self.deviation.where(varies, self.deviation.new_ones(()))
        if not self.cosine:
            return (((features - predicted) * scale).square() * self.carried).sum(1) / self.carried.sum()
        weight = scale * self.carried.sqrt()
        a, b = ((one - self.mean) * weight for one in (features, predicted))
        found: Tensor = 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
        return found


@dataclass(frozen=True)
class ByResponses:
    """Distances of the responses to features [b, t] from measured ones, both whitened by the noise of train rows."""

    offset: "Tensor"
    map: "Tensor"
    """Whitened responses are offset [v] + features · map [t, v]."""

    def __call__(self, features: "Tensor", measured: "Tensor") -> "Tensor":
        """The mean squared difference of whitened responses, [b]: about 1 + noise where nothing is explained."""
        found: Tensor = (self.offset + features @ self.map - measured).square().mean(1)
        return found


def distance_of(learned: Mapping[str, Array], *, cosine: bool, device: str) -> ByFeatures | ByResponses:
    """The distance that was learned from train rows."""
    import torch

    tensors = {name: torch.tensor(array, device=device) for name, array in learned.items() if array.dtype.kind == "f"}
    if "map" in tensors:
        return ByResponses(tensors["offset"], tensors["map"])
    return ByFeatures(tensors["mean"], tensors["deviation"], tensors["carried"], cosine)


def whitened(learned: Mapping[str, Array], betas: Array) -> Array:
    """Measured betas [b, voxels] as whitened responses of the matched voxels, float32 [b, v]."""
    scores = (betas[:, learned["voxels"]] - learned["beta_mean"]) / learned["beta_deviation"]
    found: Array = scores @ learned["whiten"]
    return found
