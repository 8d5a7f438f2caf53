"""Reference embeddings: networks are checked on two photographs, and their numbers kept to see later changes of libraries.

What is checked needs no record. An image's embedding hardly moves where another library resizes it. Two parts of a
photograph are more alike than two photographs. A classifier names what a photograph shows.
"""

import datetime
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from leanrecon.app.networks import Network
from leanrecon.errors import InputError
from leanrecon.images import Array, Sees
from leanrecon.places.files import write_json
from leanrecon.places.paths import cache_folder
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.weights import libraries
from leanrecon.weights.folders import read_config
from leanrecon.weights.samples import CAPTIONS, CLASSES, photograph

FIRST = 8
"""Numbers of an embedding that are kept."""

TOLERANCE = 0.01
"""How far kept numbers may move, as a share of the root mean square of the embedding's numbers; and the norm, of itself."""

HALF_TOLERANCE = 0.1
"""The same in bfloat16 and float16."""

RESIZED_TOLERANCE = 0.1
"""How far an embedding may move, as a share of its norm, where PyTorch resizes the image instead of Pillow or NumPy.
EfficientNet-Lite0 moves by 2.1 to 4.4 %, as both round levels in other places; kept numbers of it move by 3 to 28 %."""

PART = 176
"""Sides in pixels of the two parts of a photograph, from opposite corners."""

MOST_PROBABLE = 5
"""Classes of a classifier among which one must be right."""

LIBRARIES = ("torch", "torchvision", "transformers", "diffusers", "safetensors", "pillow", "numpy")
"""Libraries that a record names with their versions."""

RECORD = "references.json"
"""The record, in the cache of downloaded files."""


@dataclass
class Checked:
    """What a network gave."""

    key: str
    """A fingerprint of its settings and weights, and the device."""
    precision: str
    samples: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By photograph or caption: the first numbers of its embedding, its norm and its length."""
    said: list[str] = field(default_factory=list)
    """What was found, in words."""
    problems: list[str] = field(default_factory=list)
    """What is wrong, in words."""


def key_of(network: Network) -> str:
    """A fingerprint of all that decides a network's numbers but libraries."""
    return fingerprint({"made_of": network.made.made_of(), "device": network.device})


def check(network: Network) -> Checked:
    """Encode the photographs, or the captions, and check what must hold for any weights that were trained."""
    made_of = network.made.made_of()
    precision = made_of.get("precision") or (made_of.get("space") or {}).get("precision") or "float32"
    found = Checked(key_of(network), precision)
    (_check_captions if network.captions else _check_images)(network, found)
    return found


def _check_images(network: Network, found: Checked) -> None:
    images = {name: photograph(name) for name in CLASSES}
    rows = {name: network.encode(image) for name, image in images.items()}
    found.samples = {name: _kept(row) for name, row in rows.items()}
    if (sees := network.sees) is not None:
        moved = max(_moved(rows[name], network.encode(resized(image, sees))) for name, image in images.items())
        found.said.append(f"resized by PyTorch it moves by {moved:.1%}")
        if moved > RESIZED_TOLERANCE:
            found.problems.append(
                f"an embedding moves by {moved:.1%} where PyTorch resizes the image, and may by {RESIZED_TOLERANCE:.0%}"
            )
    parts = min(_alike(network.encode(image[:PART, :PART]), network.encode(image[-PART:, -PART:])) for image in images.values())  # fmt: skip
    others = _alike(*rows.values())
    found.said.append(f"parts of a photograph correlate by {parts:.3f}, two photographs by {others:.3f}")
    if not parts > others:  # NaN for embeddings that are constant
        found.problems.append(
            f"two parts of a photograph correlate by {parts:.3f}, two different photographs by {others:.3f}"
        )
    if (classifier := network.classifier()) is not None:
        network.made.release()
        found.problems += _misnamed(classifier, images, found.said)


def _misnamed(classifier: Network, images: Mapping[str, Array], said: list[str]) -> Iterator[str]:
    """What a classifier gets wrong."""
    try:
        for name, image in images.items():
            likely = np.argsort(-classifier.encode(image))[:MOST_PROBABLE].tolist()
            right = [CLASSES[name][k] for k in likely if k in CLASSES[name]]
            if right:
                said.append(f"classifies the {name} as {right[0]}")
            else:
                yield f"it takes the {name} for ImageNet's classes {', '.join(map(str, likely))}"
    finally:
        classifier.made.release()


def _check_captions(network: Network, found: Checked) -> None:
    rows = {name: network.encode(caption) for name, caption in CAPTIONS.items()}
    found.samples = {name: _kept(row) for name, row in rows.items()}
    for name, caption in CAPTIONS.items():
        if (moved := _moved(rows[name], network.encode(f" {caption.upper()}  "))) > TOLERANCE:
            found.problems.append(f"capitals and spaces move the embedding of {caption!r} by {moved:.1%}")
    others = _moved(*rows.values())
    found.said.append(f"captions differ by {others:.1%}")
    if not others > TOLERANCE:
        found.problems.append("two captions have the same embedding")


def resized(image: Array, sees: Sees) -> Array:
    """An image at the size that a network sees, resized by PyTorch."""
    import torch

    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None]
    for side in sees.sides:
        how = {"bicubic": sees.how == "bicubic", "antialias": sees.how != "tensor"}
        tensor = libraries.resized(tensor, (side, side), **how)
    levels: Array = tensor[0].clamp(0, 255).round().to(torch.uint8).numpy().transpose(1, 2, 0)
    return np.ascontiguousarray(levels)


def _alike(one: Array, other: Array) -> float:
    """The correlation of two embeddings; NaN where one of them is constant."""
    if one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _moved(one: Array, other: Array) -> float:
    """How far two embeddings lie apart, as a share of the first one's norm."""
    return float(np.linalg.norm(other - one)) / max(float(np.linalg.norm(one)), 1e-30)


def _kept(row: Array) -> dict[str, Any]:
    return {"first": row[:FIRST].tolist(), "norm": float(np.linalg.norm(row)), "dims": len(row)}


# The record


def versions() -> dict[str, str]:
    """The versions of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"Python": platform.python_version(), "processor": platform.machine()}


def read_references() -> dict[str, Any]:
    """The kept numbers by the keys of networks; raises InputError for a record that can't be read."""
    path = cache_folder() / RECORD
    if not path.is_file():
        return {}
    content = read_config(path)
    try:
        for of in content.values():
            for sample in of["samples"].values():
                _ = float(sample["norm"]), int(sample["dims"]), np.asarray(sample["first"], float)
            _ = dict(of["libraries"]), str(of["date"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path} holds no reference embeddings",
            todo="remove it, and record them again with `leanrecon doctor --weights`",
        ) from None
    return content


def write_references(content: Mapping[str, Any]) -> None:
    """Keep the numbers of networks."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    write_json(cache_folder() / RECORD, dict(content), indent=1)


def entry_of(found: Checked, title: str) -> dict[str, Any]:
    """What is kept of a network."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"network": title, "date": today, "libraries": versions(), "samples": found.samples}


def changed(found: Checked, then: Mapping[str, Any]) -> str | None:
    """How a network's numbers differ from those kept, with the libraries that changed; None within the tolerance."""
    tolerance = TOLERANCE if found.precision == "float32" else HALF_TOLERANCE
    worst, moved = "", 0.0
    for name, now in found.samples.items():
        before = then["samples"].get(name)
        if before is None or before["dims"] != now["dims"] or len(before["first"]) != len(now["first"]):
            return f"the embedding of the {name} had another length ({_libraries(then)})"
        scale = max(float(before["norm"]) / np.sqrt(now["dims"]), 1e-30)
        numbers = np.abs(np.subtract(now["first"], before["first"])).max() / scale
        norm = abs(now["norm"] - before["norm"]) / max(float(before["norm"]), 1e-30)
        if max(numbers, norm) > moved:
            worst, moved = name, float(max(numbers, norm))
    if moved <= tolerance:
        return None
    return (
        f"the embedding of the {worst} is not the one of {then['date']}: it moved by {moved:.1%} of its numbers' root mean "
        f"square, and may by {tolerance:.0%} ({_libraries(then)})"
    )


def _libraries(then: Mapping[str, Any]) -> str:
    """Which libraries have another version than then."""
    now, before = versions(), dict(then["libraries"])
    differ = [
        f"{name} was {before.get(name, 'not installed')}, is {now.get(name, 'not installed')}"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]
    return "; ".join(differ) or "no library has another version: the processor or its settings may be others"
