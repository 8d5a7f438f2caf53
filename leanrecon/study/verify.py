"""Verifying a study: every chunk, image, network and record is read, and what is damaged is named."""

from collections.abc import Iterator, Sequence
from typing import Any

from leanrecon.errors import InputError, StoreError
from leanrecon.places import Location, LocationLike, as_location, seals
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.stores.copies import distrust, opened
from leanrecon.stores.pictures import Pictures, beside
from leanrecon.study.layout import KEPT, SMALL, Role, Study
from leanrecon.study.networks import Network
from leanrecon.study.readable import problem_of
from leanrecon.study.record import study_above


class Whole:
    """Something at one path that is sound or damaged as a whole."""

    complete = True

    def __init__(self, path: Location) -> None:
        self.path = path

    def missing(self) -> list[str]:
        return []

    def damage(self) -> Iterator[tuple[str, str]]:
        """Its name with what is wrong, if something is."""
        if problem := self.problem():
            yield self.path.name, problem

    def problem(self) -> str:
        """What is wrong with it; nothing where it is sound."""
        raise NotImplementedError


class SmallFile(Whole):
    """A record or another small file, compared with the checksum that its study keeps.

    Studies of earlier versions keep no checksum: there the file only has to be readable.
    """

    def __init__(self, path: Location, told: str = "", of: Location | None = None) -> None:
        super().__init__(path)
        self.told = told
        """What is known to be wrong with it."""
        self.of = of
        """The store or the folder of images that it is the record of, if it is one."""

    def problem(self) -> str:
        return self.told or small_problem(self.path)

    def discard(self, names: Sequence[str]) -> None:
        """Remove the file, so that the next run writes it again; a record's store or images are proven and kept."""
        if names and self.of is not None:
            distrust(self.of)
        elif names:
            self.path.unlink(missing_ok=True)


class Misplaced(Whole):
    """A folder where a file of a study belongs."""

    def problem(self) -> str:
        return f"{self.path} is a folder where a file belongs"

    def discard(self, names: Sequence[str]) -> None:
        """Remove the folder if it is empty; raises StoreError for one that holds something."""
        if self.path.is_dir():
            raise StoreError(self.problem(), todo="move it elsewhere and run again")
        self.path.delete_tree()


class Link(Whole):
    """A link that leads out of a study: no part of it, and never followed."""

    def problem(self) -> str:
        return f"{self.path} is a link that leads out of the study: what it leads to is not read"

    def discard(self, names: Sequence[str]) -> None:
        """Remove the link, and nothing of what it leads to."""
        if names:
            self.path.delete_tree()


Verified = Store | Pictures | Network | SmallFile | Misplaced | Link

Damage = dict[Verified, list[tuple[Any, str]]]
"""The damaged chunks of a store, rows of a folder of images or files of a network, each with what is wrong."""

_PARTS: dict[type, str] = {Store: "chunks", Pictures: "images", Network: "files"}


def find_damage(path: LocationLike, *, progress: Progress | None = None) -> Damage:
    """Read and check all that is at or below a location of a study; returns what is damaged, and how.

    A record that can't be read is damage as well; the rest is verified all the same. Of what is not finished, the parts
    that are there are checked. Raises InputError where there is nothing to verify.
    """
    path = as_location(path)
    study = study_above(path)
    root = path if study is None else study.root
    with root.place.listed(root.key):
        return _find_damage(path, progress or Progress())


def _find_damage(path: Location, progress: Progress) -> Damage:
    kept = _kept(path, progress)
    if not kept:
        raise InputError(f"there is no store in {path}", expected="a study, or one of its stores")
    damaged: Damage = {}
    with progress.task("verify", total=len(kept), unit="stores") as advance:
        for one in kept:
            if not one.complete:
                parts, missing = _PARTS[type(one)], len(one.missing())
                progress.say(f"{one.path} is not finished ({missing} {parts} to go): run the same command again")
            if damage := list(one.damage()):
                damaged[one] = damage
            advance(1)
    return damaged


def _kept(path: Location, progress: Progress) -> list[Verified]:
    """What there is to verify at or below a location: by the layout of its study, or by looking where it has none."""
    study = study_above(path)
    if study is None:
        stores = [file.parent for file in path.files() if file.name == "zarr.json"]
        records = [file for file in (*path.files(), beside(path)) if file.suffix == ".json" and file.is_file()]
        images = [file.with_name(file.stem) for file in records if file.parent.name == "reconstructions"]
        return [_opened(where, Role.STORE) for where in dict.fromkeys((*stores, *images))]
    if (study.record.is_file() or study.rows.is_file()) and not _keeps_checksums(study):
        progress.say(
            f"{study.root} keeps no checksums of its records, as an earlier version wrote it: they are only checked for "
            "being readable. The next `leanrecon run` keeps them"
        )
    links = [link for link in study.links() if link.is_within(path)]
    within = [found for found in study.found(*KEPT, Role.NETWORK, *SMALL) if found.path.is_within(path)]
    own = [f for f in within if not any(link.is_within(f.path) for link in links)]
    scratch = [_opened(store, Role.STORE) for store in study.scratch_stores() if store.is_within(path)]
    begun = [SmallFile(file) for file in _begun(study) if file.is_within(path)]
    folders = [Misplaced(folder) for folder in _folders_for_files(study) if folder.is_within(path)]
    return [*map(Link, links), *folders, *(_opened(found.path, found.item.role) for found in own), *scratch, *begun]


def _begun(study: Study) -> Iterator[Location]:
    """The files of networks whose first training has not finished, so that there is no record of the network yet."""
    for file in seals.files_of(study.root):
        if file.parent.parent.name == "networks" and file.is_file() and not beside(file.parent).is_file():
            yield file


def _folders_for_files(study: Study) -> Iterator[Location]:
    """The folders that stand where the study had a file, or has its run.json."""
    known = seals.files_of(study.root)
    for path in dict.fromkeys([study.record, study.settings, study.rows, *known]):
        local = path.place.local_path(path.key)
        if local is not None and local.is_dir() and not path.is_link():
            yield path


def _keeps_checksums(study: Study) -> bool:
    try:
        return seals.CHECKSUMS in (seals.load(study.root) or {})
    except StoreError:  # it is damaged, which is said of run.json itself
        return True


def _opened(path: Location, role: Role) -> Verified:
    if role in SMALL:
        return SmallFile(path)
    try:
        kept = Network.open(path) if role is Role.NETWORK else opened(path)
    except StoreError as error:
        record = path / "zarr.json"
        of = None if role is Role.NETWORK else path
        return SmallFile(record if record.is_file() else beside(path), error.found, of)
    assert kept is not None, f"{path} was there a moment ago"
    return kept


def small_problem(path: Location) -> str:
    """What is wrong with a small file; nothing where it is sound."""
    if problem := problem_of(path):
        return problem
    try:
        if seals.state(path) is not seals.State.DAMAGED:
            return ""
    except StoreError as error:
        return error.found
    if path.name == seals.SETTINGS:
        return f"{path} is not as leanrecon wrote it: it was edited by hand, or is damaged"
    return f"{path} does not match its checksum"
