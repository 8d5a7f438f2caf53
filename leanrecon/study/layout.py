"""The layout of a study: every file, what it holds, and which stage writes it. Users and other tools rely on it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from leanrecon.places import Location, LocationLike, as_location

FORMAT = 2
"""Version of the layout: 2 since stimuli are counted apart from rows."""

VARIANTS = "variants"
"""The folder of the variants of a study; each has the layout of a study."""


class Role(StrEnum):
    """How the files of a study are written, copied, checked and made again."""

    STORE = "store"
    """A folder that is a Zarr array, written chunk by chunk."""
    PICTURES = "images"
    """A folder of PNG images with its record beside it (FOLDER.json)."""
    NETWORK = "network"
    """A folder of trained weights and checkpoints on a local disk, with checksums beside it (FOLDER.json)."""
    RECORD = "record"
    """A small file, written whole."""
    FITTED = "fitted"
    """A small file of numbers that were learned, written whole."""
    SCRATCH = "scratch"
    """Files that are made again when they are missed: neither mirrored nor verified."""


@dataclass(frozen=True)
class Item:
    """Files of one kind. ``*`` in a pattern stands for one name, ``**`` at its end for all files below."""

    pattern: str
    role: Role
    stages: tuple[str, ...]
    """The stages that may write it."""
    holds: str
    """Its contents in a few words: types, shapes."""
    replaced: bool = False
    """Whether it is replaced without ``--overwrite`` when settings change, as figures are."""

    @property
    def marker(self) -> str:
        """The pattern of the file whose presence says that there is such an item."""
        if self.role is Role.STORE:
            return f"{self.pattern}/zarr.json"
        if self.role in (Role.PICTURES, Role.NETWORK):
            return f"{self.pattern}.json"
        return self.pattern


def _items(*items: Item) -> dict[str, Item]:
    return {item.pattern: item for item in items}


_DATASET, _ALL = ("dataset",), ()

LAYOUT = _items(
    Item("study.toml", Role.RECORD, _ALL, "the settings as run, with all defaults"),
    Item("run.json", Role.RECORD, _ALL, "seconds and memory of every stage, versions of libraries, checksums of records"),
    Item("betas/*.zarr", Role.STORE, _DATASET, "train, test: float32 [rows, voxels]; trials (NSD): int16 [trials, voxels]"),
    Item("betas/rows.json", Role.RECORD, _DATASET, "stimulus, subject, session, run, trials and repeats of each row"),
    Item("betas/voxels.npz", Role.RECORD, _DATASET, "coordinates, areas and ncsnr of each voxel, where known"),
    Item("betas/*.json", Role.RECORD, _DATASET, "the files a dataset was read from, and what it says of them"),
    Item("betas/*.npz", Role.RECORD, _DATASET, "other tables of a dataset"),
    Item("betas/**", Role.SCRATCH, _DATASET, "downloads and copies of inputs, for a while"),
    Item("stimuli/*.zarr", Role.STORE, _DATASET, "train, test: uint8 [images, height, width, channels], each image once"),
    Item("stimuli/ids.json", Role.RECORD, _DATASET, "the id of each image of train and test"),
    Item("stimuli/**", Role.SCRATCH, _DATASET, "images that are still incomplete"),
    Item("captions/*.json", Role.RECORD, _DATASET, "train, test: a list of captions for each image"),
    Item("folds.json", Role.RECORD, _DATASET, "the test rows of each fold, in studies with folds"),
    Item("features/*/*.zarr", Role.STORE, ("features",), "train, test: float32 [images, dims]; unconditional: one row"),
    Item("features/*/fitted.npz", Role.FITTED, ("features",), "what a feature space learned from the train images"),
    Item("features/*/*.json", Role.RECORD, ("features",), "what else a feature space keeps"),
    Item("features/*/*.npz", Role.FITTED, ("features",), "numbers that a feature space keeps"),
    Item("predictions/*/*.zarr", Role.STORE, ("regression",), "test (with folds: all rows), train (out of fold): float32 [rows, dims]"),
    Item("predictions/*/out_of_fold/**", Role.SCRATCH, ("regression",), "predictions of folds, until those of all are merged"),
    Item("predictions/*/blocks/**", Role.SCRATCH, ("regression",), "predictions of blocks of targets, until all are there"),
    Item("predictions/*/hats/**", Role.SCRATCH, ("regression",), "hat matrices that workers stream targets through, for a while"),
    Item("predictions/*/fit/**", Role.SCRATCH, ("regression",), "parts of a fit that workers make, until it is used"),
    Item("predictions/*/test-members/**", Role.SCRATCH, ("regression",), "predictions of the members of a stack, until they are combined"),
    Item("predictions/*/voxel_weights.npz", Role.FITTED, ("regression",), "how well voxels carry the images, and their weights"),
    Item("predictions/*/calibration.npz", Role.FITTED, ("stage1",), "what a feature space learned from predicted train rows"),
    Item("networks/*", Role.NETWORK, ("regression", "stage1", "decode", "refine"), "trained regressors, calibrations, decoders and what searches learned, and their checkpoints"),
    Item("calibration/**", Role.SCRATCH, ("stage1",), "first images of train rows, until a calibration has learned from them"),
    Item("reconstructions/stage1", Role.PICTURES, ("stage1", "decode"), "one image a test row (with folds: of all rows), before refinement"),
    Item("reconstructions/final", Role.PICTURES, ("refine",), "one image a test row; links to stage1 without refinement"),
    Item("weights/**", Role.SCRATCH, ("refine",), "weights of a generator, merged or cast once for reading"),
    Item("embeddings/*/*.zarr", Role.STORE, ("evaluate",), "embeddings of compared images by a judge", replaced=True),
    Item("evaluation/metrics.json", Role.RECORD, ("evaluate",), "figures with intervals and chance, baselines, notes"),
    Item("evaluation/scores.csv", Role.RECORD, ("evaluate",), "the scores of each test row"),
    Item("evaluation/latent_r2/*.npy", Role.RECORD, ("evaluate",), "R² of each dimension of a feature space"),
    Item("evaluation/latent_r/*.npy", Role.RECORD, ("evaluate",), "correlation of each dimension, in studies without images"),
    Item("evaluation/check.json", Role.SCRATCH, ("check",), "whether train betas carry information about the images, by `leanrecon check`"),
    Item("evaluation/*", Role.RECORD, ("evaluate",), "other tables of the evaluation"),
    Item("maps/**", Role.SCRATCH, ("export",), "maps in the space of the data, by `leanrecon export`"),
    Item("figures/**", Role.SCRATCH, ("export",), "scores and plots for papers, by `leanrecon export figures`"),
    Item("retrieval/**", Role.SCRATCH, ("retrieve",), "features of galleries, and the pictures nearest to predictions"),
    Item("report.html", Role.RECORD, ("evaluate",), "figures and images as one page"),
)  # fmt: skip
"""All files of a study by their pattern. The first pattern that matches a file is the one that holds."""

GENERATOR = "refine"
"""The folder below ``networks`` of what a generator learned."""

KEPT = (Role.STORE, Role.PICTURES)
SMALL = (Role.RECORD, Role.FITTED)


@dataclass(frozen=True)
class Found:
    """An item that is there."""

    item: Item
    name: str
    """Its key within the study, such as ``variants/fold00/betas/train.zarr``."""
    path: Location


@dataclass(frozen=True)
class Study:
    """The folder of a study, or of one of its variants (a fold, an area, a baseline).

    The properties and methods name locations; nothing is read or made here. ``networks`` and ``weights`` have to lie
    on a local disk, as PyTorch reads them from paths: use their ``local_path()``.
    """

    root: Location

    def __init__(self, root: LocationLike) -> None:
        object.__setattr__(self, "root", as_location(root))

    def at(self, pattern: str, *names: str) -> Location:
        """The location of an item of the layout, each ``*`` of its pattern replaced by a name."""
        item, parts = LAYOUT[pattern], pattern.split("*")
        key = "".join(part + name for part, name in zip(parts, (*names, ""), strict=True))
        where = self.root / key
        return Location(where.place, where.key, written_by=" or ".join(item.stages))

    @property
    def settings(self) -> Location:
        return self.at("study.toml")

    @property
    def record(self) -> Location:
        return self.at("run.json")

    def betas(self, split: str) -> Location:
        return self.at("betas/*.zarr", split)

    @property
    def rows(self) -> Location:
        """Stimulus, subject, session, run, trials and repeats of each row."""
        return self.at("betas/rows.json")

    @property
    def voxels(self) -> Location:
        return self.at("betas/voxels.npz")

    @property
    def reliability(self) -> Location:
        """How alike responses to repeats of an image are (NSD)."""
        return self.at("betas/*.json", "reliability")

    @property
    def voxel_reliability(self) -> Location:
        """How alike each voxel answers to repeats, where voxels are chosen by it."""
        return self.at("betas/*.npz", "voxel_reliability")

    def stimuli(self, split: str) -> Location:
        return self.at("stimuli/*.zarr", split)

    @property
    def stimulus_ids(self) -> Location:
        """The id of each image of each split."""
        return self.at("stimuli/ids.json")

    def captions(self, split: str) -> Location:
        return self.at("captions/*.json", split)

    @property
    def folds(self) -> Location:
        """The test rows of each fold, where there are folds."""
        return self.at("folds.json")

    def features(self, space: str, split: str) -> Location:
        return self.at("features/*/*.zarr", space, split)

    def unconditional(self, space: str) -> Location:
        """The unconditional embedding (empty caption, black image) of a feature space: one row."""
        return self.features(space, "unconditional")

    def fitted(self, space: str) -> Location:
        """What a feature space learned from the train images, such as the components of a PCA."""
        return self.at("features/*/fitted.npz", space)

    def network(self, name: str) -> Location:
        """The folder of a trained regressor or decoder: its weights, and its checkpoints while it is trained."""
        return self.at("networks/*", name)

    def predictions(self, space: str, split: str = "test") -> Location:
        """Predicted features of the test rows, or of the train rows out of fold."""
        return self.at("predictions/*/*.zarr", space, split)

    def calibration(self, space: str) -> Location:
        """What a feature space learned from out-of-fold predictions of the train rows."""
        return self.at("predictions/*/calibration.npz", space)

    @property
    def first_images(self) -> Location:
        """First images of the train rows and the images they show, while a calibration learns from them."""
        return self.root / "calibration"

    def reconstructions(self, stage: str) -> Location:
        """One image a test row: ``stage1`` or ``final``."""
        return self.at(f"reconstructions/{stage}")

    @property
    def weights(self) -> Location:
        """Weights of a generator as they are read block by block: merged or cast once, and made again if removed."""
        return self.root / "weights"

    @property
    def embeddings(self) -> Location:
        """The embeddings of the images that are compared: a folder for each judge."""
        return self.root / "embeddings"

    def retrieval(self, space: str) -> Location:
        """The folder of features of galleries that predictions of a feature space are looked up among."""
        return self.root / "retrieval" / space

    @property
    def metrics(self) -> Location:
        return self.at("evaluation/metrics.json")

    @property
    def scores(self) -> Location:
        """The scores of each test row."""
        return self.at("evaluation/scores.csv")

    @property
    def check(self) -> Location:
        """What was found of the train rows before any training."""
        return self.at("evaluation/check.json")

    def latent_r2(self, space: str) -> Location:
        """R² of each dimension of a feature space."""
        return self.at("evaluation/latent_r2/*.npy", space)

    def latent_r(self, space: str) -> Location:
        """Pearson's r of each dimension of a feature space, in studies without images."""
        return self.at("evaluation/latent_r/*.npy", space)

    @property
    def report(self) -> Location:
        return self.at("report.html")

    # Variants and what is there

    def variant(self, name: str) -> "Study":
        """A variant by its name; a variant lies one folder below its study."""
        return Study(self.root / VARIANTS / name)

    def variants(self) -> "list[Study]":
        """The variants that are there."""
        names = (self.root / VARIANTS).iterdir()
        return [Study(path) for path in names if path.is_dir()]

    def found(self, *roles: Role) -> Iterator[Found]:
        """The items of these roles that are there, in the study and then in its variants, in the order of the layout."""
        for study in (self, *self.variants()):
            seen: set[Location] = set()
            for item in LAYOUT.values():
                if item.role is Role.SCRATCH and item.role not in roles:
                    continue
                for path in _matches(study.root, item):
                    if path not in seen:  # the first pattern holds
                        seen.add(path)
                        if item.role in roles and not path.leads_out_of(self.root):
                            yield Found(item, path.relative_to(self.root), path)

    def scratch_stores(self) -> Iterator[Location]:
        """The stores that are made again when they are missed, such as predictions of folds until they are merged."""
        kept = [found.path for found in self.found(*KEPT)]
        for found in self.found(Role.SCRATCH):
            store = found.path.parent
            if found.path.name == "zarr.json" and store not in kept and not store.leads_out_of(self.root):
                yield store

    def links(self) -> list[Location]:
        """The links in the study that lead out of it: what they lead to is not part of it, and is not followed."""
        root = self.root.place.local_path(self.root.key)
        return [] if root is None else [self.root / link.relative_to(root).as_posix() for link in _links(root, root)]

    def folders(self, *roles: Role) -> Iterator[Location]:
        """The folders that files of these roles lie in, of the study and of its variants, there or not."""
        for study in (self, *self.variants()):
            patterns = dict.fromkeys(item.marker.rpartition("/")[0] for item in LAYOUT.values() if item.role in roles)
            for pattern in patterns:
                yield from _expand(study.root, pattern.split("/") if pattern else [])


def item_of(name: str) -> Item | None:
    """The item of the layout that a file or folder belongs to, by its key within the study; None for others."""
    name = re.sub(rf"^{VARIANTS}/[^/]+/", "", name)
    return next((item for item in LAYOUT.values() if re.fullmatch(_regex(item), name)), None)


def describe() -> str:
    """The layout as a Markdown table: for the documentation."""
    lines = ["| file | kind | written by | holds |", "|---|---|---|---|"]
    for item in LAYOUT.values():
        name = f"{item.pattern}/" if item.role in (Role.STORE, Role.PICTURES, Role.NETWORK) else item.pattern
        lines.append(f"| `{name}` | {item.role} | {' or '.join(item.stages) or 'every stage'} | {item.holds} |")
    return "\n".join(
        [*lines, f"| `{VARIANTS}/NAME/` | | every stage | the same files of a fold, an area or a baseline |"]
    )


def _regex(item: Item) -> str:
    below = {Role.STORE: "(/.*)?", Role.PICTURES: r"(/.*|\.json)?", Role.NETWORK: r"(/.*|\.json)?"}.get(item.role, "")
    parts = re.split(r"(\*\*|\*)", item.pattern)
    return "".join({"**": ".*", "*": "[^/]+"}.get(part, re.escape(part)) for part in parts) + below


def _matches(root: Location, item: Item) -> Iterator[Location]:
    """The items of one pattern that are there, by their markers."""
    *folders, last = item.marker.split("/")
    ends = len(item.marker) - len(item.pattern)
    for folder in _expand(root, folders):
        if last == "**":
            paths: Iterator[Location] = folder.files()
        elif "*" in last:
            named = re.compile(re.escape(last).replace(r"\*", ".+"))
            paths = (
                folder / name for name in folder.place.children(folder.key) if named.fullmatch(name) and name[-1] != "/"
            )
        else:
            paths = iter([folder / last] if (folder / last).is_file() else [])
        for path in paths:
            yield Location(path.place, path.key[: len(path.key) - ends], written_by=" or ".join(item.stages))


def _links(folder: Path, root: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if not entry.is_symlink():
            if entry.is_dir():
                yield from _links(path, root)
        elif as_location(path).leads_out_of(as_location(root)):
            yield path


def _expand(root: Location, folders: list[str]) -> Iterator[Location]:
    """The folders that a pattern names; the stores among them are left out unless their name is spelled out."""
    if not folders:
        yield root
        return
    first, *rest = folders
    if "*" not in first:
        yield from _expand(root / first, rest)
        return
    named = re.compile(re.escape(first).replace(r"\*", "[^/]+") + "/")
    for name in root.place.children(root.key):
        if named.fullmatch(name) and (first.endswith(".zarr") or not name.endswith(".zarr/")):
            yield from _expand(root / name.rstrip("/"), rest)
