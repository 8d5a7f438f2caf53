"""The comparator: a network whose features of generated and true images are compared, and which itself never learns.

It is any feature space or judge whose kind sets ``differentiable``: gradients go through its ``rows_of``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.errors import SettingsError, shown
from leanrecon.weights.libraries import imports_nbytes
from leanrecon.weights.needs import Need

if TYPE_CHECKING:
    import torch

NONE = "none"

SETTING = "decode.comparator."

NAMED: dict[str, dict[str, Any]] = {
    "alexnet": {
        "kind": "torchvision",
        "model": "alexnet",
        "version": "IMAGENET1K_V1",
        "layer": "features.12",
        "size": 227,
    },
    "vgg16": {"kind": "torchvision", "model": "vgg16", "weights": "vgg16-397923af.pth", "layer": "features.30"},
}
"""Comparators that have a name: the last pooling of a network, as published (of CaffeNet, which torchvision lacks)."""

GROUPS = ("features", "judges")

Compare = Callable[["torch.Tensor"], "torch.Tensor"]


def group_of(kind: str) -> str | None:
    """The group that has a kind whose networks can compare; None where there is none of this name."""
    return next((group for group in GROUPS if kind in kinds.names(group)), None)


def checked(given: Any) -> Any:
    """The settings of a comparator, or "none"; raises ValueError for what can't compare."""
    if isinstance(given, BaseModel) or given == NONE:
        return given
    table = NAMED.get(given) if isinstance(given, str) else given
    if not isinstance(table, Mapping) or not isinstance(table.get("kind"), str):
        known = ", ".join((NONE, *NAMED))
        raise ValueError(f'one of {known} is expected, or a table with a kind, as in {{kind = "vdvae", …}}')
    group = group_of(table["kind"])
    if group is None:
        raise ValueError(f"{shown(table['kind'])} is not the kind of a feature space or of a judge")
    if not getattr(kinds.get(group, table["kind"]), "differentiable", False):
        raise ValueError(f"{table['kind']} can't compare images in training, as it gives no gradients")
    try:
        return kinds.settings_of(group, table, SETTING, default="")
    except SettingsError as error:
        raise ValueError(str(error).rstrip(".")) from None


def make(settings: BaseModel, device: str) -> Any:
    """The feature space or judge of a comparator's settings; its weights are loaded when they are needed."""
    table = settings.model_dump(include={"kind"})
    group = group_of(table["kind"])
    assert group is not None, "it was checked when the settings were read"
    return kinds.get(group, table["kind"])(settings, name="comparator", device=device)


def nbytes(settings: BaseModel, at_once: int) -> int:
    """Bytes of a comparator and of so many images in it, and of the library that it brings beside PyTorch."""
    made = make(settings, "cpu")
    library = getattr(made, "library", None)
    brought = imports_nbytes(library) - imports_nbytes() if library in ("transformers", "diffusers") else 0
    taken: int = made.gradient_nbytes(at_once) + brought
    return taken


def needs(settings: Any) -> Iterable[Need]:
    """The published weights that a comparator reads."""
    if settings == NONE:
        return ()
    group = group_of(settings.kind)
    assert group is not None, "it was checked when the settings were read"
    found: list[Need] = kinds.optional(kinds.get(group, settings.kind), "needs", settings, SETTING)
    return found
