"""The feature spaces by name; each is imported when it is first asked for.

``extract`` (in ``leanrecon.features.extract``) is the one loop over images that serves them all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from leanrecon.errors import SettingsError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from leanrecon.features.space import FeatureSpace


@dataclass(frozen=True)
class Kind:
    """Where one kind of feature space is to be found."""

    module: str
    settings: str
    space: str


KINDS: dict[str, Kind] = {
    "autokl": Kind("leanrecon.features.autokl", "AutoKLSettings", "AutoKL"),
    "clip-text": Kind("leanrecon.features.clip", "CLIPTextSettings", "CLIPText"),
    "clip-vision": Kind("leanrecon.features.clip", "CLIPVisionSettings", "CLIPVision"),
    "pca": Kind("leanrecon.features.pca", "PCASettings", "PCA"),
    "pixels": Kind("leanrecon.features.pixels", "PixelsSettings", "Pixels"),
    "vdvae": Kind("leanrecon.features.vdvae", "VDVAESettings", "VDVAESpace"),
}


def settings_model(kind: str) -> "type[BaseModel]":
    """The settings of a kind of feature space, as a pydantic model."""
    if kind not in KINDS:
        from leanrecon.validation import nearest

        raise SettingsError(
            f"{kind!r} is not a feature space ({nearest(kind, KINDS)})", expected=f"one of {', '.join(sorted(KINDS))}"
        )
    model: type[BaseModel] = getattr(import_module(KINDS[kind].module), KINDS[kind].settings)
    return model


def settings_of(name: str, table: Mapping[str, Any]) -> "BaseModel":
    """Validate a table ``[features.NAME]``; its ``kind`` is NAME unless it says otherwise.

    Raises SettingsError with every problem of the table.
    """
    from leanrecon.validation import validate

    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):  # it names a folder
        raise SettingsError(f"features.{name} is not a name", expected="letters, digits, _, - and .")
    kind = table.get("kind", name)
    try:
        model = settings_model(str(kind))
    except SettingsError as error:
        raise SettingsError(
            f"features.{name}: {error.found}",
            expected=error.expected,
            todo=f'give [features.{name}] a kind, as in kind = "pca"' if "kind" not in table else None,
        ) from None
    return validate(model, {**table, "kind": kind}, f"features.{name}.")


def guides(settings: "BaseModel") -> bool:
    """Whether this kind of feature space knows what describes nothing (see ``space.GuidingSpace``)."""
    found = KINDS[settings.model_dump()["kind"]]
    return hasattr(getattr(import_module(found.module), found.space), "unconditional")


def make(name: str, settings: "Mapping[str, Any] | BaseModel", *, seed: int = 0, device: str = "cpu") -> "FeatureSpace":
    """Make the feature space of a table ``[features.NAME]``; cheap, no weights are loaded.

    ``seed`` is for spaces that draw noise, and part of what their rows are made of; ``device`` is where models run.
    """
    checked = settings_of(name, settings if isinstance(settings, Mapping) else settings.model_dump())
    found = KINDS[checked.model_dump()["kind"]]
    space: FeatureSpace = getattr(import_module(found.module), found.space)(
        checked, name=name, seed=seed, device=device
    )
    return space
