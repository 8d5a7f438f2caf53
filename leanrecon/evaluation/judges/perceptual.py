"""LPIPS and DISTS as judges: distances that were fitted to what people see, of two images at a time."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leanrecon.errors import InputError
from leanrecon.evaluation.judges import building
from leanrecon.evaluation.judges.feeding import Rule, feed
from leanrecon.evaluation.judges.judge import Measure
from leanrecon.evaluation.judges.network import IMAGENET_MEAN, IMAGENET_SD, Side
from leanrecon.evaluation.judges.pairs import KEPT
from leanrecon.evaluation.judges.torchvision import TorchvisionJudge, TorchvisionSettings
from leanrecon.images import Array, ImageShape
from leanrecon.places.paths import expanded
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.libraries import exact_inference
from leanrecon.weights.names import WeightsName
from leanrecon.weights.needs import Need
from leanrecon.weights.pickles import open_checkpoint
from leanrecon.weights.published import FILES

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the arithmetic from images to distances."""

_FLOAT = 4


class PerceptualSettings(BaseModel):
    """What LPIPS and DISTS share."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    weights: WeightsName = ""
    """The weights of the network (.pth or .safetensors); by default the file that torchvision publishes."""
    fitted: WeightsName = ""
    """The weights of its channels, fitted to people's judgements; by default the published file."""
    size: Annotated[Side, Field(ge=32)] = 256
    """The side in pixels at which images are compared; larger ones give other distances."""

    @property
    def measure(self) -> Measure:
        """What the judge measures."""
        return "perceptual"

    @property
    def rule(self) -> Rule:
        """How images become what the network sees, before their levels are scaled."""
        return Rule(self.size, None, "pillow", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class LPIPSSettings(PerceptualSettings):
    """``[judges.lpips]``"""

    kind: Literal["lpips"] = "lpips"
    network: Literal["alexnet", "vgg16", "squeezenet1_1"] = "alexnet"
    """The network whose features are compared; each has distances on a scale of its own."""

    @model_validator(mode="before")
    @classmethod
    def _of_network(cls, table: Any) -> Any:
        """Fill in the published files of the network."""
        return _filled(table, _LPIPS.get(table.get("network", "alexnet"))) if isinstance(table, dict) else table


class DISTSSettings(PerceptualSettings):
    """``[judges.dists]``"""

    kind: Literal["dists"] = "dists"

    @model_validator(mode="before")
    @classmethod
    def _published(cls, table: Any) -> Any:
        """Fill in the published files."""
        return _filled(table, _DISTS) if isinstance(table, dict) else table

    @property
    def network(self) -> str:
        """The network whose features are compared."""
        return "vgg16"


class Backbone:
    """A network and the layers of it that are compared."""

    def __init__(self, weights: str, fitted: str, layers: Sequence[int], channels: Sequence[int], numbers: int) -> None:
        self.weights, self.fitted = weights, fitted
        self.layers, self.channels = layers, channels
        self.numbers = numbers
        """Numbers that the layers have together by pixel of the image, at most."""


_LPIPS = {
    "alexnet": Backbone(
        "alexnet-owt-7be5be79.pth", "lpips_alex_v0.1.pth", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 11
    ),
    "vgg16": Backbone("vgg16-397923af.pth", "lpips_vgg_v0.1.pth", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 122),
    "squeezenet1_1": Backbone(
        "squeezenet1_1-b8a52dc0.pth",
        "lpips_squeeze_v0.1.pth",
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        38,
    ),
}
"""By network: published files, modules of its ``features``, their channels, and their numbers by pixel."""

_DISTS = Backbone("vgg16-397923af.pth", "dists_weights.pt", _LPIPS["vgg16"].layers, (3, *_LPIPS["vgg16"].channels), 125)
_POOLINGS = {4: 64, 9: 128, 16: 256, 23: 512}
"""VGG16's poolings, which DISTS replaces, with their channels."""


def _filled(table: dict[str, Any], backbone: Backbone | None) -> dict[str, Any]:
    if backbone is None:
        return table
    defaults = {"weights": backbone.weights, "fitted": backbone.fitted}
    return {**table, **{key: value for key, value in defaults.items() if not table.get(key)}}


class PerceptualJudge(TorchvisionJudge):
    """A distance of two images from several layers of one of torchvision's networks."""

    Settings: ClassVar[type[BaseModel]] = PerceptualSettings
    differentiable: ClassVar[bool] = False
    name_of: ClassVar[str]
    """What the distance is called."""
    sees_levels: ClassVar[bool] = False
    """Whether the levels of pixels are compared as a first layer."""

    settings: Any

    def __init__(self, settings: Any, *, name: str, device: str = "cpu") -> None:
        self.layer = f"features.{self.backbone(settings).layers[-1]}"
        as_network = TorchvisionSettings(
            model=settings.network, layer=self.layer, weights=settings.weights, size=settings.size
        )
        super().__init__(as_network, name=name, device=device)
        self.measure: Measure = settings.measure
        self.compared = settings
        self._weights: list[Tensor] = []
        self._kept: list[Tensor] = []

    @classmethod
    def backbone(cls, settings: Any) -> Backbone:
        """The network, and its layers."""
        raise NotImplementedError

    @classmethod
    def shapes(cls, settings: Any) -> Mapping[str, tuple[int, ...]]:
        """The names and shapes of the fitted weights in their file."""
        raise NotImplementedError

    def between(self, one: Sequence["Tensor"], other: Sequence["Tensor"]) -> float:
        """The distance of two images from the layers of each, [channels, height × width]."""
        raise NotImplementedError

    # What a kind says

    @classmethod
    def needs(cls, settings: Any, prefix: str) -> Iterable[Need]:
        return Need(f"{prefix}weights", settings.weights), Need(f"{prefix}fitted", settings.fitted)

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        yield f"{cls.title(settings)}, weights {Path(settings.weights).name}: {settings.rule.described()}."

    @classmethod
    def title(cls, settings: Any) -> str:
        return f"{cls.name_of} by {settings.network}"

    @property
    def model(self) -> str:
        return self.title(self.compared)

    @property
    def dims(self) -> int:
        return KEPT

    @property
    def batch(self) -> int:
        """Reconstructions whose stimuli are described once for all of them."""
        return 4

    @property
    def at_once(self) -> int:
        return 1

    def check(self) -> None:
        super().check()
        if not self._fitted_path.exists():
            raise InputError(
                f"there is no file {self._fitted_path}", todo=f"set judges.{self.name}.fitted to where it is"
            )
        if file_content(self._fitted_path) != FILES[self.backbone(self.compared).fitted].sha256:
            self._read_fitted()

    def work_nbytes(self, shape: ImageShape) -> int:
        layers: int = self.backbone(self.compared).numbers * self.compared.size**2 * _FLOAT
        images = 3 * (self.batch + 1) * shape[0] * shape[1] * 3
        # The layers of all stimuli and of one reconstruction, and the largest of them in a few steps of arithmetic.
        return super().work_nbytes(shape) + (self.batch + 1 + 1 + 2) * layers + images

    def made_of(self) -> dict[str, Any]:
        table = self.compared.model_dump(mode="json", exclude={"weights", "fitted"})
        contents = {"weights": file_content(self._path), "fitted": file_content(self._fitted_path)}
        return {**table, "format": FORMAT, **contents}

    # Distances

    def encode(self, images: Array) -> Array:
        """The means of every channel of every layer, float32 [b, channels]; what is compared is kept nowhere."""
        with exact_inference(self.device):
            described = [self._described(image) for image in images]
            return np.stack([np.concatenate([layer.mean(1).cpu().numpy() for layer in one]) for one in described])

    def compare(self, drawn: Array, seen: Array, pairs: Array) -> Array:
        """The distances of each drawn image to some of those seen, float32 [b, k]; see ``pairs.ComparesPairs``."""
        with exact_inference(self.device):
            stimuli = [self._described(image) for image in seen]
            of_drawn = ((self._described(image), others) for image, others in zip(drawn, pairs, strict=True))
            found = [[self.between(one, stimuli[k]) for k in others] for one, others in of_drawn]
        return np.asarray(found, np.float32)

    def release(self) -> None:
        super().release()
        self._weights = []

    @property
    def _fitted_path(self) -> Path:
        return expanded(self.compared.fitted)

    def _described(self, image: Array) -> list["Tensor"]:
        """The outputs of the compared layers for one image, each [channels, height × width]."""
        import torch

        network = self._network()
        levels = torch.from_numpy(feed(image, self.compared.rule))[None].to(self.device)
        mean, sd = (torch.tensor(v, device=self.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_SD))
        self._kept = [levels] if self.sees_levels else []
        network((levels - mean) / sd)
        layers, self._kept = self._kept, []
        return [layer[0].flatten(1) for layer in layers]

    def _network(self) -> Any:
        if self._loaded is None:
            network = super()._network()
            network.network.classifier = None  # gives its memory back
            features = network.network.features
            self._prepare(features)
            for k in self.backbone(self.compared).layers:  # before the hook that ends at the last one
                features[k].register_forward_hook(
                    lambda module, inputs, output: self._kept.append(output), prepend=True
                )
            self._weights = [value.to(self.device) for value in self._read_fitted()]
        return self._loaded

    def _prepare(self, features: Any) -> None:
        """Change the network's layers, where the distance is of other ones."""

    def _read_fitted(self) -> list["Tensor"]:
        """The fitted weights in the order of ``shapes``; raises InputError for those of another distance or network."""
        expected = self.shapes(self.compared)
        found = open_checkpoint(self._fitted_path)
        shapes = {str(name): tuple(getattr(value, "shape", ())) for name, value in found.items()}
        building.compare(shapes, expected, self._fitted_path, (), self.model)
        return [found[name].detach().float().flatten() for name in expected]


class LPIPSJudge(PerceptualJudge):
    """LPIPS 0.1: weighted squared differences of unit features (Zhang et al. 2018, arXiv:1801.03924).

    Distances equal those of the package lpips for the same pixels. Its weights are BSD-2-Clause.
    """

    Settings: ClassVar[type[BaseModel]] = LPIPSSettings
    name_of = "LPIPS"

    @classmethod
    def backbone(cls, settings: LPIPSSettings) -> Backbone:
        return _LPIPS[settings.network]

    @classmethod
    def shapes(cls, settings: LPIPSSettings) -> Mapping[str, tuple[int, ...]]:
        return {f"lin{k}.model.1.weight": (1, c, 1, 1) for k, c in enumerate(cls.backbone(settings).channels)}

    def between(self, one: Sequence["Tensor"], other: Sequence["Tensor"]) -> float:
        return lpips(one, other, self._weights)


class DISTSJudge(PerceptualJudge):
    """DISTS: similarity of the means and of the structure of features (Ding et al. 2020, arXiv:2004.07728).

    Distances equal those of the package DISTS-pytorch for the same pixels. Its weights are MIT-licensed.
    """

    Settings: ClassVar[type[BaseModel]] = DISTSSettings
    name_of = "DISTS"
    sees_levels = True

    @classmethod
    def backbone(cls, settings: DISTSSettings) -> Backbone:
        return _DISTS

    @classmethod
    def shapes(cls, settings: DISTSSettings) -> Mapping[str, tuple[int, ...]]:
        every = (1, sum(_DISTS.channels), 1, 1)
        return {"alpha": every, "beta": every}

    def between(self, one: Sequence["Tensor"], other: Sequence["Tensor"]) -> float:
        means, structures = self._weights
        return dists(one, other, means, structures)

    def _prepare(self, features: Any) -> None:
        for k, channels in _POOLINGS.items():
            features[k] = l2_pooling(channels).to(self.device)


# Mathematics


def lpips(one: Sequence["Tensor"], other: Sequence["Tensor"], weights: Sequence["Tensor"]) -> float:
    """The sum over layers of the mean over pixels of Σ w (a/|a| − b/|b|)², with the norms over channels.

    Layers are [channels, pixels], their weights [channels]; ``|·|`` has 1e-10 added, as in the package lpips.
    """
    total = 0.0
    for a, b, weight in zip(one, other, weights, strict=True):
        less = a / (a.norm(dim=0) + 1e-10)
        less -= b / (b.norm(dim=0) + 1e-10)
        total += float(weight @ less.square_().mean(1))
    return total


DISTS_C = 1e-6
"""The constant c of ``dists``, which keeps the quotients of flat features finite."""


def dists(one: Sequence["Tensor"], other: Sequence["Tensor"], means: "Tensor", structures: "Tensor") -> float:
    """1 − Σ α (2 μa μb + c) / (μa² + μb² + c) − Σ β (2 σab + c) / (σa² + σb² + c) over the channels of all layers.

    Layers are [channels, pixels]; α (``means``) and β (``structures``) [channels of all layers] are divided by their sum.
    """
    import torch

    c, alike, textures = DISTS_C, [], []
    for a, b in zip(one, other, strict=True):
        mean_a, mean_b = a.mean(1), b.mean(1)
        a, b = a - mean_a[:, None], b - mean_b[:, None]
        alike.append((2 * mean_a * mean_b + c) / (mean_a.square() + mean_b.square() + c))
        textures.append((2 * (a * b).mean(1) + c) / (a.square().mean(1) + b.square().mean(1) + c))
    weighted = means @ torch.cat(alike) + structures @ torch.cat(textures)
    return 1 - float(weighted / (means.sum() + structures.sum()))


def l2_pooling(channels: int) -> Any:
    """DISTS' pooling by two: the root of squares under a Hann window of 3 × 3, so that no shift changes much."""
    import torch

    one = torch.from_numpy(np.hanning(5)[1:-1]).float()
    window = torch.outer(one, one)
    window = (window / window.sum()).repeat(channels, 1, 1, 1)

    class L2Pooling(torch.nn.Module):
        window: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("window", window)

        def forward(self, x: "Tensor") -> "Tensor":
            squares = torch.nn.functional.conv2d(x.square(), self.window, stride=2, padding=1, groups=channels)
            return (squares + 1e-12).sqrt()

    return L2Pooling()
