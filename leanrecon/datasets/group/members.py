"""The studies of a group's members, opened and found to fit together; only rows and headers are read."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanrecon import kinds
from leanrecon.datasets.group.areas import in_areas
from leanrecon.errors import InputError, LeanreconError
from leanrecon.places import as_location
from leanrecon.places.inputs import is_url
from leanrecon.places.paths import find
from leanrecon.stores.images import image_shape
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import SPLITS, Rows

if TYPE_CHECKING:
    from leanrecon.datasets.group.dataset import GroupSettings


CAPTIONS = 5
"""Bytes for each byte of a captions file: strings of plain text with their heads, twice while they are written."""


@dataclass(frozen=True)
class Member:
    """One subject's study."""

    name: str
    study: Study
    rows: Rows
    betas: Mapping[str, Any]
    """By split: a store, or some rows or voxels of one (see ``chosen.ChosenRows``, ``areas.ChosenVoxels``)."""
    stimuli: Mapping[str, Store]
    """By split."""

    @property
    def voxels(self) -> int:
        return int(self.betas["train"].columns)


@dataclass(frozen=True)
class Members:
    """All members, and the images that they saw."""

    each: list[Member]
    images: dict[str, dict[str, tuple[int, int]]]
    """For each split: ids in order of first appearance, each with its first member and its row in that one's store."""
    shared: list[str]
    """Ids of the train images that all members saw, in the order of the first member."""
    image_shape: tuple[int, int, int]

    @property
    def voxels(self) -> dict[str, int]:
        """Number of voxels of each member."""
        return {member.name: member.voxels for member in self.each}

    @property
    def max_repeats(self) -> int:
        """Most trials of one image in one member."""
        return max(max(_trials(member.rows, split)) for member in self.each for split in SPLITS)

    @property
    def captions_nbytes(self) -> int:
        """Most bytes that reading and keeping the captions of all members takes, beyond what overheads hold."""
        sizes = [member.study.captions(split).size() or 0 for member in self.each for split in SPLITS]
        return CAPTIONS * sum(sizes) if min(sizes) else 0

    def n_rows(self, split: str) -> int:
        """Rows of all members."""
        return sum(len(member.rows[split]) for member in self.each)

    def chunk_nbytes(self, role: str) -> int:
        """Bytes that reading the largest chunk of the members' betas or stimuli takes."""
        stores: list[Store] = [store for member in self.each for store in getattr(member, role).values()]
        return max(store.buffer_nbytes() for store in stores)


def open_members(settings: "GroupSettings", base_dir: Path | None, *, shared: bool) -> Members:
    """Open the members' studies; ``shared`` says that there have to be train images that all of them saw.

    Raises InputError for folders that are not studies, members with folds or without images, images of different
    shapes, and an area that a member lacks. It also does for images trained on and tested, and where no train images are
    shared. Raises StoreError for members whose dataset stage is not complete.
    """
    each = [
        open_member(name, folder, base_dir) for name, folder in zip(settings.names(), settings.members, strict=True)
    ]
    if areas := settings.chosen_areas:
        each = [replace(m, betas=in_areas(m.name, m.study, m.betas, areas)) for m in each]
    shapes = {member.name: image_shape(member.stimuli["train"]) for member in each}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise InputError(f"the members' images have different shapes: {listed}", expected="one shape in all members")
    images: dict[str, dict[str, tuple[int, int]]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        for k, member in enumerate(each):
            for row, name in enumerate(member.rows.ids[split]):
                images[split].setdefault(name, (k, row))
    both = [name for name in images["test"] if name in images["train"]]
    if both and not settings.allow_shared_stimuli:
        trained, tested = (each[images[split][both[0]][0]].name for split in SPLITS)
        raise InputError(
            f"{len(both)} images are train images of one subject and test images of another; the first is {both[0]} "
            f"({trained} trains on it, {tested} is tested on it)",
            expected="test images that no subject is trained on",
            todo="make the members with one split, or set dataset.allow_shared_stimuli = true if this is meant",
        )
    seen = [set(member.rows.ids["train"]) for member in each]
    common = [name for name in each[0].rows.ids["train"] if all(name in ids for ids in seen)]
    if shared and not common:
        raise InputError(
            "no train image was seen by all members, so there is nothing to align them on",
            expected="train images with the same ids in every member",
            todo="leave out members that saw other images; members of NSD need some of the images that all saw: dataset.shared_train",
        )
    return Members(each, images, common, shapes[each[0].name])


def is_simulated(folder: str) -> bool:
    """Whether the study of a member says that no brain was measured."""
    try:
        table = tomllib.loads((Path(folder) / "study.toml").read_text(encoding="utf-8"))["dataset"]
        settings = kinds.settings_of("datasets", table, "dataset.", default="arrays")
        return bool(getattr(settings, "simulated", False))
    except (OSError, ValueError, KeyError, LeanreconError):
        return False


def find_member(folder: str, base_dir: Path | None, role: str = "dataset.members") -> Study:
    """The study of a member, whose dataset stage is complete; ``role`` is the setting that names it in messages."""
    if is_url(folder):
        raise InputError(
            f"{role}: {folder} is a URL",
            expected="the folder of a study on this machine",
            todo="copy that study here, as by `aws s3 sync`, and name its folder",
        )
    path = find(folder, base_dir, Path.is_dir)
    if path is None:
        raise InputError(f"{role}: there is no folder {folder}", expected="the folder of a study")
    study = Study(as_location(path))
    if not study.rows.is_file():
        known = study.settings.is_file()
        raise InputError(
            f"{role}: the dataset of {folder} is not complete" if known else f"{role}: {folder} is not a study",
            expected="the folder of a study whose dataset stage is complete",
            todo=f"run `leanrecon run {folder} --until dataset` first" if known else None,
        )
    return study


def open_member(name: str, folder: str, base_dir: Path | None, *, role: str = "dataset.members") -> Member:
    """Open one study; ``role`` is the setting that names it in messages."""
    study = find_member(folder, base_dir, role)
    rows = Rows.read(study)
    if "test" not in rows:
        raise InputError(f"{role}: {folder} has folds", expected="members whose train and test rows are split once")
    betas = {split: Store.open(study.betas(split)) for split in SPLITS}
    if not study.stimuli("train").exists():
        raise InputError(f"{role}: {folder} has no images", expected="images, by which members are matched")
    return Member(name, study, rows, betas, {split: Store.open(study.stimuli(split)) for split in SPLITS})


def _trials(rows: Rows, split: str) -> list[int]:
    """Number of trials of each image."""
    counts = [0] * len(rows.ids[split])
    for image, n in zip(rows[split].stimulus.tolist(), rows[split].repeats, strict=True):
        counts[image] += n
    return counts
