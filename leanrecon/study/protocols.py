"""Protocols of published tables: at which sizes, by which networks and weights, and by which SSIM each judges."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from leanrecon import kinds

Table = dict[str, Any]

Resample = Literal["bilinear", "bicubic", "tensor"]
"""Pillow's, or "tensor": bilinear between four pixels, as PyTorch resizes tensors without antialiasing."""

_CLIP = {"kind": "clip", "model": "openai/clip-vit-large-patch14"}
_V1, _V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"


def _torchvision(model: str, layer: str, version: str = _V1, **others: Any) -> Table:
    return {"kind": "torchvision", "model": model, "layer": layer, "version": version, **others}


@dataclass(frozen=True)
class Protocol:
    """How one paper judges."""

    source: str = ""
    """The paper, and what of it was read."""
    size: int | None = None
    """Sides at which pixels are compared; None: those of the stimuli."""
    of_reconstruction: bool = False
    """Whether pixels are compared at the size of the final images instead."""
    through: int | None = None
    """Sides that images are resized to first, before they are resized to ``size``; None: they are resized once."""
    resample: Resample = "bilinear"
    ssim: str = ""
    """Which of the definitions of SSIM is the paper's, by its key among the figures."""
    n_test: int | None = None
    """How many test images of NSD it has."""
    judges: Mapping[str, Table] = field(default_factory=dict)
    """The networks as tables [judges.NAME]."""
    remarks: tuple[str, ...] = ()
    """What else a reader must know."""


def _mindeye2(size: int, **others: Any) -> Table:
    return {"through": 256, "resize": "tensor", "size": size, **others}


_BD2023 = {
    "alexnet2": _torchvision("alexnet", "features.4"),
    "alexnet5": _torchvision("alexnet", "features.11"),
    "inception": _torchvision("inception_v3", "avgpool"),
    "clip": {**_CLIP, "size": 224},
    "efficientnet": _torchvision("efficientnet_b1", "avgpool", measure="distance"),
    "swav": {"kind": "swav"},
}
_MINDEYE2 = {
    "alexnet2": _torchvision("alexnet", "features.4", **_mindeye2(256)),
    "alexnet5": _torchvision("alexnet", "features.11", **_mindeye2(256)),
    "inception": _torchvision("inception_v3", "avgpool", **_mindeye2(342)),
    "clip": {**_CLIP, **_mindeye2(224)},
    "efficientnet": _torchvision("efficientnet_b1", "avgpool", _V2, measure="distance", **_mindeye2(255)),
    "swav": {"kind": "swav", **_mindeye2(224)},
}
_TAKAGI_SEES: Table = {"size": 299, "crop": True}

_OF_MINDEYE2 = Protocol(
    source="Scotti et al. 2024 (MindEye2), final_evaluations.ipynb",
    size=425,
    through=256,
    resample="tensor",
    ssim="ssim",
    n_test=1000,
    judges=_MINDEYE2,
    remarks=(
        "EfficientNet-B1 has the weights IMAGENET1K_V2, so its scores are on another scale than Brain-Diffuser's.",
        "The paper's enhanced images hold a quarter of its blurry ones; here that is evaluate.blend = 0.25.",
        "Levels of resized images are rounded to 256 steps for pixels and CLIP, which the paper does not do.",
    ),
)

PROTOCOLS: dict[str, Protocol] = {
    "native": Protocol(),
    "bd2023": Protocol(
        source="Ozcelik & VanRullen 2023 (Brain-Diffuser), its evaluation scripts of 2023",
        size=425,
        resample="bicubic",
        ssim="ssim_1d",
        n_test=982,
        judges=_BD2023,
        remarks=("Every network sees 224 pixels; EfficientNet-B1 has the weights IMAGENET1K_V1.",),
    ),
    "mindeye2": _OF_MINDEYE2,
    "takagi": Protocol(
        source="Takagi & Nishimoto 2023, codes/utils/img2feat_decoded.py and identification.py",
        n_test=982,
        judges={
            "alexnet-5": _torchvision("alexnet", "features.5", **_TAKAGI_SEES),
            "alexnet-12": _torchvision("alexnet", "features.12", **_TAKAGI_SEES),
            "alexnet-18": _torchvision("alexnet", "classifier.5", **_TAKAGI_SEES),
            "inception": _torchvision("inception_v3", "avgpool", **_TAKAGI_SEES),
            "clip": _CLIP,
        },
        remarks=(
            "The paper's direction is the reverse one: an image seen picks out its reconstruction.",
            "The paper takes the mean correlation with five reconstructions of an image; here there is one.",
        ),
    ),
    "kamitani": Protocol(
        source="Shen et al. 2019 and the evaluations of KamitaniLab/bdpy and brain-decoding-cookbook",
        of_reconstruction=True,
        resample="bilinear",
        ssim="ssim_rgb",
        judges={"rgb": {"kind": "space", "space": {"kind": "pixels", "size": [224, 224]}}},
        remarks=("Pairwise identification is by all pixels, at 224 a side.",),
    ),
    "brainit": replace(
        _OF_MINDEYE2,
        source="Beliy et al. 2025 (Brain-IT), whose table stands beside MindEye2's",
        remarks=("Its sizes and weights were not read: MindEye2's are taken, beside which it prints its scores.",),
    ),
}
"""Every protocol by the name of its preset."""


def notes(name: str, judges: Mapping[str, BaseModel], n_test: int) -> Iterator[str]:
    """What a reader must know of figures under a preset: its source, its SSIM, and how this study departs from it."""
    protocol = PROTOCOLS[name]
    if not protocol.source:
        return
    yield f"Judged as {name}: {protocol.source}."
    if protocol.ssim:
        yield f"The SSIM of {name} is {protocol.ssim}; the other definitions are on other scales."
    yield from protocol.remarks
    if protocol.n_test not in (None, n_test):
        yield f"{name} has {protocol.n_test} test images, this study {n_test}: retrieval is among another number."
    missing = [judge for judge in protocol.judges if judge not in judges]
    if missing:
        yield f"Of the networks of {name} this study has none of {', '.join(missing)}."
    for judge, others in departures(name, judges).items():
        yield f"The judge {judge} departs from {name}: {'; '.join(others)}."


def departures(name: str, judges: Mapping[str, BaseModel]) -> dict[str, list[str]]:
    """Where judges that bear the names of a preset's differ from it, in words by judge; empty: nowhere."""
    tables = PROTOCOLS[name].judges
    found = {
        judge: _departures(tables[judge], judges[judge].model_dump(mode="json")) for judge in tables if judge in judges
    }
    return {judge: others for judge, others in found.items() if others}


def _departures(table: Table, found: Table) -> list[str]:
    """Where a judge's settings differ from those that a protocol's table means, defaults included."""
    meant = kinds.settings_of("judges", table, "judges.", default="").model_dump(mode="json")
    differ = [key for key in {**meant, **found} if _named(meant.get(key)) != _named(found.get(key))]
    return [f"{key} = {_named(found.get(key))!r} instead of {_named(meant.get(key))!r}" for key in differ]


def _named(value: Any) -> Any:
    """A value; of a path or a name on the hub its last part, as weights that are here have paths."""
    return Path(value).name if isinstance(value, str) else value
