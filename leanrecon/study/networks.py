"""Trained networks of a study: the checksums of their files, fixed when a training has finished."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.places import Location, LocationLike, as_location, seals
from leanrecon.places.files import read_json, write_json
from leanrecon.stores.copies import opened
from leanrecon.stores.fingerprint import file_fingerprint
from leanrecon.stores.pictures import Pictures, beside
from leanrecon.stores.store import Store
from leanrecon.study.layout import GENERATOR, Study


class Network:
    """A folder of trained weights, and ``FOLDER.json`` with the bytes and the SHA-256 of each of its files.

    The record is complete once the training has finished. Checkpoints of a training that goes on are not in it.
    """

    def __init__(self, path: LocationLike, record: dict[str, Any]) -> None:
        self.path = as_location(path)
        self.record = record

    @classmethod
    def open(cls, path: LocationLike) -> "Network":
        """The record of a network; raises StoreError where there is none that can be read."""
        path = as_location(path)
        record = read_json(beside(path))
        if not _is_record(record):
            study = seals.sealing_root(beside(path))
            raise StoreError(
                f"{beside(path)} is damaged, or no record of a network",
                todo="remove it and run the same command again" if study is None else seals.repair(study),
            )
        return cls(path, record)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Bytes and SHA-256 of each file, by its key within the folder."""
        return dict(self.record["files"])

    @property
    def complete(self) -> bool:
        return bool(self.record.get("complete"))

    def missing(self) -> list[str]:
        """The files that are not there, or not at their full size."""
        return [name for name, file in self.files.items() if (self.path / name).size() != file["bytes"]]

    def damage(self) -> Iterator[tuple[str, str]]:
        """The files that are missing or altered, with what is wrong; of a training that goes on, the checkpoints."""
        if not self.complete:
            for path in self.path.files():
                if seals.state(path) is seals.State.DAMAGED:
                    yield path.relative_to(self.path), f"{path} does not match its checksum"
            return
        for name, file in self.files.items():
            path = self.path / name
            if not path.is_file():
                yield name, f"{path} is missing"
            elif file_fingerprint(path) != file["sha256"]:
                yield name, f"{path} does not match its checksum"

    def discard(self, names: Sequence[str]) -> None:
        """Remove files, and a part of what the network was used for: the next run trains again from what is left.

        The part that is made again shows whether the network is the same; otherwise completing its store warns.
        """
        if names:
            unseal(self.path)
            self._discard_output()
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def _discard_output(self) -> None:
        study = Study(self.path.parent.parent)
        pictures = "final" if self.path.name == GENERATOR else "stage1"
        for path in (study.predictions(self.path.name), study.reconstructions(pictures)):
            output = opened(path)
            if isinstance(output, Store) and output.complete:
                return output.discard([(0, 0)])
            if isinstance(output, Pictures) and output.complete:
                return output.discard([0])


def _is_record(record: Any) -> bool:
    """Whether a record lists files within its folder, each with its bytes and its SHA-256."""
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        return False
    return all(
        isinstance(file, dict)
        and type(file.get("bytes")) is int
        and isinstance(file.get("sha256"), str)
        and not (name.startswith("/") or ".." in PurePosixPath(name).parts)
        for name, file in record["files"].items()
    )


def unseal(path: Location) -> None:
    """Note that a network is about to be trained: until ``seal`` its checksums count for nothing."""
    if beside(path).is_file():
        write_json(beside(path), {**Network.open(path).record, "complete": False})


def seal(path: Location) -> None:
    """Fix the checksums of a network whose training has finished; nothing to do where there is none.

    Warns where a network that was trained again differs from the one before.
    """
    files = {file.relative_to(path): {"bytes": file.size(), "sha256": file_fingerprint(file)} for file in path.files()}
    if not files:
        beside(path).unlink(missing_ok=True)
        return
    before = Network.open(path) if beside(path).is_file() else None
    if before is not None and before.complete:
        return
    if before is not None and before.files != files:
        warnings.warn(
            f"{path} was trained again, but not to the same weights: another kind of processor or another version of a "
            "library trained the earlier ones. What was made with them has to be made again too (--overwrite)",
            LeanreconWarning,
            stacklevel=2,
        )
    write_json(beside(path), {"complete": True, "files": files})
