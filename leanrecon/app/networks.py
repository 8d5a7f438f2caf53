"""The networks that settings name and whose weights are on this machine, judges and feature spaces alike."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.devices import choose
from leanrecon.errors import InputError, LeanreconError
from leanrecon.images import Array, ImageShape, Sees
from leanrecon.study.protocols import PROTOCOLS
from leanrecon.study.recipes import read_settings, recipes, resolved
from leanrecon.study.settings import Settings, check_settings
from leanrecon.weights.needs import Need, missing, require_packaged


@dataclass(frozen=True)
class Named:
    """The settings of a network, and where they stand."""

    group: Literal["features", "judges"]
    settings: BaseModel
    places: tuple[str, ...]
    """As in "judges.inception of bd2023"."""

    @property
    def needs(self) -> list[Need]:
        """The published weights that it reads."""
        return kinds.optional(kinds.kind_of(self.group, self.settings), "needs", self.settings, "")

    def make(self, device: str) -> "Network":
        """The network, ready to be loaded; raises LeanreconError for weights that are damaged, or a missing library."""
        require_packaged(self.needs)
        device = choose(device)
        made: Any = kinds.kind_of(self.group, self.settings)(self.settings, name="network", device=device)
        if (check := getattr(made, "check", None)) is not None:
            check()
        return (_Judge if self.group == "judges" else _Space)(made, device)

    @property
    def title(self) -> str:
        """The kind and its weights in words."""
        kind = self.settings.model_dump(include={"kind"})["kind"]
        layer = getattr(self.settings, "layer", None)
        weights = " and ".join(dict.fromkeys(Path(need.name).name for need in self.needs))
        return f"{kind} of {weights}" + (f", {layer}" if layer else "")


class Network:
    """A judge or a feature space: encodes one image, or one caption, at a time."""

    captions = False

    def __init__(self, made: Any, device: str) -> None:
        self.made = made
        self.device = device

    def nbytes(self, shape: ImageShape) -> int:
        """Bytes that encoding an image takes beyond what the process holds."""
        raise NotImplementedError

    def encode(self, sample: Any) -> Array:
        """Float64 [dims] of a uint8 image [height, width, 3], or of a caption; raises InputError unless all are finite."""
        row = np.asarray(self._encoded(sample)[0], np.float64)
        if not np.isfinite(row).all():
            raise InputError("it gives NaN or infinite numbers", todo="fetch its weights again")
        return row

    def _encoded(self, sample: Any) -> Array:
        raise NotImplementedError

    @property
    def sees(self) -> Sees | None:
        """How images become what the network sees, where it says so."""
        found: Sees | None = getattr(self.made, "sees", None)
        return found

    def classifier(self) -> "Network | None":
        """The same weights up to the classes of ImageNet-1k, where they have them."""
        make = getattr(self.made, "classifier", None)
        found = None if make is None else make()
        return None if found is None else _Judge(found, self.device)


class _Judge(Network):
    def nbytes(self, shape: ImageShape) -> int:
        return int(self.made.staying_nbytes + self.made.work_nbytes(shape))

    def _encoded(self, sample: Any) -> Array:
        rows: Array = self.made.encode(sample[None])
        return rows


class _Space(Network):
    def __init__(self, made: Any, device: str) -> None:
        super().__init__(made, device)
        self.captions = made.inputs == "captions"

    def nbytes(self, shape: ImageShape) -> int:
        cost = self.made.cost(shape)
        return int(cost.held + cost.batch * cost.per_image)

    def _encoded(self, sample: Any) -> Array:
        rows: Array = self.made.encode([[sample]] if self.captions else sample[None], np.arange(1))
        return rows


def named(sources: Sequence[str]) -> list[Named]:
    """The networks of some recipes or settings files; of all recipes and presets that come with leanrecon by default."""
    found: dict[tuple[str, str], Named] = {}
    for label, settings in _read(sources) if sources else _packaged():
        for group, tables in (("features", settings.features), ("judges", settings.judges)):
            for name, table in tables.items():
                key = (group, f"{type(table)}{table.model_dump_json()}")
                before = found[key].places if key in found else ()
                found[key] = Named(group, table, (*before, f"{group}.{name} of {label}"))  # type: ignore[arg-type]
    return [one for one in found.values() if one.needs and not _learns(one)]


def here(networks: Iterable[Named]) -> tuple[list[Named], list[Named]]:
    """Those whose weights are all on this machine, and the others."""
    there: list[Named] = []
    lacking: list[Named] = []
    for one in networks:
        (lacking if missing(one.needs) else there).append(one)
    return there, lacking


def _learns(one: Named) -> bool:
    """Whether rows follow from train images, which are not here."""
    return bool(getattr(kinds.kind_of(one.group, one.settings), "learns", False))


def _read(sources: Sequence[str]) -> Iterator[tuple[str, Settings]]:
    for source in sources:
        yield source, read_settings(source)[0]


def _packaged() -> Iterator[tuple[str, Settings]]:
    for name, path in recipes().items():
        try:
            yield name, read_settings(path)[0]
        except LeanreconError:  # the doctor's table of recipes says what is wrong
            continue
    for name, protocol in PROTOCOLS.items():
        if protocol.judges:
            tables = {"dataset": {"kind": "simulated"}, "evaluate": {"preset": name, "judges": "preset"}}
            yield name, resolved(check_settings(tables), Path.cwd())
