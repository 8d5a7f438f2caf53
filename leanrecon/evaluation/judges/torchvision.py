"""Torchvision's classifiers as judges: any layer of any of them, with the weights that torchvision publishes."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from leanrecon.errors import InputError
from leanrecon.evaluation.judges.building import OWN, Blueprint, Description
from leanrecon.evaluation.judges.feeding import convolved
from leanrecon.evaluation.judges.network import NetworkJudge, NetworkSettings
from leanrecon.stores.fingerprint import file_content
from leanrecon.weights.names import WeightsName
from leanrecon.weights.published import digits_in

VERSIONS = {
    ("alexnet", "IMAGENET1K_V1"): "alexnet-owt-7be5be79.pth",
    ("inception_v3", "IMAGENET1K_V1"): "inception_v3_google-0cc3c7bd.pth",
    ("efficientnet_b1", "IMAGENET1K_V1"): "efficientnet_b1_rwightman-bac287d4.pth",
    ("efficientnet_b1", "IMAGENET1K_V2"): "efficientnet_b1-c27df63c.pth",
}
"""The file of each version of the weights that protocols name, as torchvision 0.29 lists them (``_api.WeightsEnum``)."""

TRANSFORMS_INPUT = ("inception_v3", "googlenet")
"""Networks that map ImageNet's normalisation to their own, as torchvision builds them with published weights."""

_CONV1, _POOL, _CONV2 = (11, 4, 2), (3, 2, 0), (5, 1, 2)  # AlexNet: kernel, stride, padding

_ALEXNET = {
    "features.4": (192, (_CONV1, _POOL, _CONV2)),
    "features.5": (192, (_CONV1, _POOL, _CONV2, _POOL)),
    "features.11": (256, (_CONV1, _POOL, _CONV2, _POOL)),
    "features.12": (256, (_CONV1, _POOL, _CONV2, _POOL, _POOL)),
}
"""Channels of AlexNet's layers, and what decides their sides: convolutions 3 to 5 keep them."""

_AVERAGED = {
    "inception_v3": (2048, 75, 87_146_000, 40),
    "efficientnet_b1": (1280, 32, 26_053_000, 64),
    "resnet50": (2048, 32, 94_033_000, 40),
}
"""Of networks up to avgpool: dims, least side, bytes of weights, and numbers of a module at most by input pixel."""


def build(model: str) -> Any:
    """One of torchvision's classifiers, without weights."""
    from torchvision.models import get_model, list_models

    from leanrecon.errors import SettingsError
    from leanrecon.validation import nearest

    known = [name for name in list_models() if "/" not in name]
    if model not in known:
        raise SettingsError(f"model = {model!r} is not one of torchvision's ({nearest(model, known)})")
    options = {"transform_input": True, "init_weights": False} if model in TRANSFORMS_INPUT else {}
    return get_model(model, weights=None, **options)


class TorchvisionSettings(NetworkSettings):
    """``[judges.NAME]``"""

    kind: Literal["torchvision"] = "torchvision"
    model: Annotated[str, Field(min_length=1)]
    """The network by torchvision's name, as in "alexnet"."""
    version: str | None = None
    """The version of the published weights, as in "IMAGENET1K_V1"; absent: any weights are taken."""
    weights: WeightsName = ""
    """The file of the weights (.pth or .safetensors); by default the published one of the version."""

    @model_validator(mode="before")
    @classmethod
    def _of_version(cls, table: Any) -> Any:
        """Fill in the published file of the version."""
        if isinstance(table, dict) and table.get("version") and not table.get("weights"):
            published = VERSIONS.get((str(table.get("model")), str(table["version"])))
            return {**table, "weights": published} if published else table
        return table

    @model_validator(mode="after")
    def _has_weights(self) -> Self:
        if not self.weights:
            known = [f"{version} of {model}" for model, version in VERSIONS]
            raise ValueError(
                f"weights are not given, and version does not name known ones ({', '.join(known)}); "
                "set weights to a file, or to the name of one of torchvision's"
            )
        if self.version and (self.model, self.version) not in VERSIONS:
            known = [version for model, version in VERSIONS if model == self.model]
            raise ValueError(
                f"version = {self.version!r} of {self.model} is not known here ({', '.join(known) or 'none is'}); "
                "leave it out, and set weights to the file"
            )
        return self


class TorchvisionJudge(NetworkJudge):
    """A layer of one of torchvision's classifiers: AlexNet, Inception-v3, EfficientNet-B1 or any other.

    Embeddings equal what ``create_feature_extractor`` gives for the same pixels. Networks and weights are BSD-licensed.
    """

    Settings: ClassVar[type[BaseModel]] = TorchvisionSettings

    @classmethod
    def blueprint(cls, settings: TorchvisionSettings) -> Blueprint:
        return Blueprint(OWN, json.dumps({"model": settings.model}))

    @classmethod
    def title(cls, settings: TorchvisionSettings) -> str:
        return f"{settings.model}, {settings.version or Path(str(settings.weights)).name}"

    def known(self) -> Description | None:
        settings = self.settings
        if settings.layer == "avgpool":
            return averaged(settings.model, settings.size)
        if settings.model == "alexnet" and settings.layer in _ALEXNET:
            channels, steps = _ALEXNET[settings.layer]
            return Description(channels * convolved(settings.size, *steps) ** 2, 9_879_000, 12 * settings.size**2)
        return None

    def prove(self, path: Path) -> bool:
        settings, content = self.settings, file_content(path)
        if settings.version is None:
            if (digits := digits_in(path.name)) and not content.startswith(digits):
                raise InputError(
                    f"{path} is damaged, or another file: its SHA-256 begins with {content[: len(digits)]}",
                    expected=f"{digits}, as its name says",
                    todo="download it again with `leanrecon fetch-weights RECIPE_OR_FILE`",
                )
            return False
        if content.startswith(digits_in(VERSIONS[settings.model, settings.version])):
            return True
        others = [key for key, file in VERSIONS.items() if content.startswith(digits_in(file))]
        found = " ".join(others[0]) if others else f"another file, or damaged (its SHA-256 begins with {content[:8]})"
        raise InputError(
            f"{path} is {found}",
            expected=f"{settings.model} {settings.version}, {VERSIONS[settings.model, settings.version]}",
            todo=f"set judges.{self.name}.weights to that file, or leave out version to take any weights",
        )

    def classifier(self) -> "TorchvisionJudge | None":
        """The network up to the classes of ImageNet-1k; None for weights that torchvision does not publish."""
        settings = self.settings
        if settings.version is None and not digits_in(Path(str(settings.weights)).name):
            return None
        size = 299 if settings.model == "inception_v3" else 224
        as_trained = {"layer": "", "size": size, "through": None, "resize": "pillow", "crop": False}
        return TorchvisionJudge(settings.model_copy(update=as_trained), name=self.name, device=self.device)

    @classmethod
    def notes(cls, settings: TorchvisionSettings) -> Iterable[str]:
        yield from super().notes(settings)
        if settings.version is None:
            yield (
                f"The weights of {settings.model} ({Path(str(settings.weights)).name}) are of no version that is known: "
                "compare its scores with no published ones."
            )


def averaged(model: str, size: int) -> Description | None:
    """The average pooling at the end of a network that is known here."""
    if model not in _AVERAGED:
        return None
    dims, least, weights, numbers = _AVERAGED[model]
    return Description(dims if size >= least else 0, weights, numbers * size**2)
