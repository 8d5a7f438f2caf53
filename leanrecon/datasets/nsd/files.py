"""The files of NSD that a study is made from: found once, recorded beside the betas, and checked for changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.datasets.files.nifti import nibabel_library
from leanrecon.datasets.files.open import locate
from leanrecon.datasets.nsd.betas import betas_layout, check_trials, nifti_shape
from leanrecon.datasets.nsd.layout import (
    ATLASES,
    DESIGN,
    FORMATS,
    GENERAL,
    STIMULI,
    Design,
    SubjectFiles,
    check_simulation,
    chosen_sessions,
    read_design,
)
from leanrecon.datasets.nsd.stimuli import stimuli_layout
from leanrecon.datasets.nsd.voxels import Voxels, check_shape, mask_files, read_voxels
from leanrecon.datasets.sidecars import sources_path
from leanrecon.errors import InputError, StoreError
from leanrecon.net.ahead import done_together
from leanrecon.net.ranges import Cache, Folder, Found, RangeFile, Source, changed
from leanrecon.places import Location
from leanrecon.places.paths import find
from leanrecon.study.layout import Study

if TYPE_CHECKING:
    from leanrecon.datasets.nsd.dataset import NSDSettings

Array = np.ndarray[Any, Any]

LISTED = 8
"""The most missing sessions that an error names."""


def open_source(root: str, endpoint_url: str | None, base_dir: Path | None, attempts: int | None = None) -> Source:
    """The files of ``s3://BUCKET``, or of a folder (in the current folder or, failing that, in ``base_dir``).

    ``attempts`` is the number of failures in a row after which a request is given up; None: the default.
    Raises InputError if there is no such folder, or an earlier version simulated it.
    """
    if root.startswith("s3://"):
        from leanrecon.net.s3 import Bucket

        return Bucket(root, endpoint_url=endpoint_url, attempts=attempts)
    if (folder := find(root, base_dir, Path.is_dir)) is not None:
        check_simulation(folder)
        return Folder(folder)
    raise InputError(f"dataset.root: there is no folder {root}", expected='a folder in NSD\'s layout, or "s3://BUCKET"')


@dataclass
class Files:
    """Files by name, each with its state when it was first found."""

    source: Source
    found: dict[str, Found] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    caches: dict[str, Cache] = field(default_factory=dict)
    """Headers by the name of their file: what was read of them is not read again."""

    def find(self, name: str) -> Found | None:
        """The file of a name, found now or earlier; None if there is none."""
        return self.find_all([name])[0]

    def find_all(self, names: Sequence[str]) -> list[Found | None]:
        """The files of these names, None where there is none; new names are looked for at once."""
        new = [name for name in names if name not in self.found and name not in self.absent]
        for name, now in zip(new, self.source.find_all(new), strict=True):
            if now is None:
                self.absent.add(name)
            else:
                self.found[name] = now
        return [self.found.get(name) for name in names]

    def open(self, name: str) -> RangeFile | None:
        """Open a file; None if there is none."""
        found = self.find(name)
        if found is None:
            return None
        file = self.source.open(name, found)
        file.cache = self.caches.setdefault(name, file.cache)
        return file

    def need(self, name: str) -> RangeFile:
        """Open a file; raises InputError if there is none."""
        file = self.open(name)
        if file is None:
            raise InputError(
                f"{self.source.where(name)} does not exist, or may not be read",
                expected="the Natural Scenes Dataset in its authors' layout",
                todo="check dataset.root and dataset.subject",
            )
        return file


@dataclass(frozen=True)
class Prepared:
    """All information that is read before the first session is fetched."""

    design: Design
    voxels: Voxels
    betas: dict[int, str]
    """The name of the file of each session."""
    stimuli: tuple[int, ...]
    """Shape of the file of images: number, height, width, channels."""
    found: dict[str, Found]
    """All files by name."""


def prepare(settings: "NSDSettings", files: Files, base_dir: Path | None) -> Prepared:
    """Find all files and read the small ones; raises InputError for files that don't belong together."""
    sessions = chosen_sessions(settings.subject, settings.sessions)
    if settings.captions is not None:
        locate(settings.captions, None, base_dir)
    if files.source.aside is not None:
        files.source.aside.submit(nibabel_library)  # which takes a while, as do the first answers
    betas = _find_sessions(files, settings, sessions)

    def images() -> tuple[int, ...]:
        with files.need(STIMULI) as file:
            return stimuli_layout(file).shape

    def presented() -> Design:
        with files.need(DESIGN) as file:
            return read_design(file, settings.subject, sessions, settings.shared_train)

    def masked() -> Voxels:
        return read_voxels(settings.roi, settings.subject, files.open, base_dir)

    def first() -> tuple[str, tuple[int, ...]]:
        with files.need(betas[sessions[0]]) as file:
            return file.name, _shape(file)

    works: tuple[Callable[[], Any], ...] = (images, presented, masked, first)
    stimuli, design, voxels, (name, shape) = done_together(files.source.aside, works)
    if design.stimulus.max() >= stimuli[0]:
        raise InputError(
            f"the design shows image {design.stimulus.max() + 1}, and {files.source.where(STIMULI)} has {stimuli[0]}",
            todo="check that they belong together",
        )
    _check_volume(name, shape, voxels)
    return Prepared(design, voxels, betas, stimuli, files.found)


def _find_sessions(files: Files, settings: "NSDSettings", sessions: Sequence[int]) -> dict[int, str]:
    """The file of every session: .hdf5 if there is one, unless settings name .nii.gz."""
    names = SubjectFiles(settings.subject)
    betas: dict[int, str] = {}
    others = [STIMULI, DESIGN, *map(names.roi, (GENERAL, *ATLASES)), names.ncsnr]  # what is read next
    for form in FORMATS if settings.betas_format == "auto" else (settings.betas_format,):
        left = [session for session in sessions if session not in betas]
        wanted = [names.betas(session, form) for session in left]
        found = files.find_all([*wanted, *others])
        betas |= {session: name for session, name, now in zip(left, wanted, found, strict=False) if now is not None}
    missing = [session for session in sessions if session not in betas]
    if missing:
        form = FORMATS[0] if settings.betas_format == "auto" else settings.betas_format
        rest = [session for session in sessions if session in betas]
        shown = ", ".join(map(str, missing[:LISTED])) + (" …" if len(missing) > LISTED else "")
        raise InputError(
            f"session {shown} of subject {settings.subject} does not exist, or may not be read "
            f"({files.source.where(names.betas(missing[0], form))})",
            expected=f"sessions {sessions[0]} to {sessions[-1]}",
            todo=f"leave it out by dataset.sessions = {rest}" if rest else "check dataset.root and dataset.subject",
        )
    return betas


def _shape(file: RangeFile) -> tuple[int, ...]:
    """The shape of a session's betas: that of a volume, and trials unless they are known to be all."""
    return betas_layout(file).shape[:0:-1] if file.name.endswith(".hdf5") else nifti_shape(file)


def _check_volume(name: str, shape: tuple[int, ...], voxels: Voxels) -> None:
    """Refuse a first session that the mask or the design doesn't fit; ``shape`` is what it holds."""
    if name.endswith(".hdf5"):
        check_shape("the mask", voxels.shape, shape, name)
        return
    *volume, trials = shape
    check_shape("the mask", voxels.shape, tuple(volume), name)
    check_trials(name, trials)


# What is kept of it


def deciding(settings: "NSDSettings", base_dir: Path | None) -> dict[str, Any]:
    """The settings that decide which files are used and which parts are read."""
    from leanrecon.stores.fingerprint import file_fingerprint

    keys = ("root", "endpoint_url", "subject", "sessions", "roi", "betas_format")
    masks = {name: file_fingerprint(path) for name, path in mask_files(settings.roi, base_dir).items()}
    return settings.model_dump(include=set(keys)) | {"masks": masks}


def trials_table(study: Study) -> Location:
    """The file that describes each row of ``trials.zarr``."""
    return study.root / "betas" / "trials.json"


def keep(prepared: Prepared, study: Study, settings: Mapping[str, Any]) -> None:
    """Write the record of what was found, the file of sources last."""
    from leanrecon.places.files import write_json

    prepared.voxels.write(study.voxels)
    design = prepared.design
    table = {key: getattr(design, key).tolist() for key in ("trial", "session", "stimulus", "tested")}
    write_json(trials_table(study), table)
    record = {
        "settings": settings,
        "betas": {str(session): name for session, name in prepared.betas.items()},
        "stimuli": list(prepared.stimuli),
        "files": {name: [found.size, found.print] for name, found in sorted(prepared.found.items())},
    }
    write_json(sources_path(study), record, indent=1)


def recall(study: Study, settings: Mapping[str, Any] | None = None) -> Prepared | None:
    """The record of an earlier run with the same settings, or with any settings if none are given; None without one."""
    from leanrecon.places.files import read_json

    record, table = read_json(sources_path(study)), read_json(trials_table(study))
    try:
        if settings is not None and record["settings"] != settings:
            return None
        found = {name: Found(int(size), str(print_)) for name, (size, print_) in record["files"].items()}
        betas = {int(session): str(name) for session, name in record["betas"].items()}
        trial, stimulus = (np.array(table[key], np.int64) for key in ("trial", "stimulus"))
        design = Design(list(betas), trial, stimulus, np.array(table["tested"], bool))
        stimuli = tuple(int(n) for n in record["stimuli"])
        return Prepared(design, Voxels.read(study.voxels), betas, stimuli, found)
    except (TypeError, KeyError, ValueError):  # an InputError among them
        return None


def check_unchanged(study: Study, files: Files, settings: Mapping[str, Any]) -> None:
    """Raise InputError for files that differ from those that an earlier run found under the same names."""
    from leanrecon.places.files import read_json

    record = read_json(sources_path(study))
    earlier = record.get("files", {}) if isinstance(record, dict) else {}
    for name, found in files.found.items():
        if name in earlier and list(earlier[name]) != [found.size, found.print]:
            places = [[of.get(key) for key in ("root", "endpoint_url")] for of in (record["settings"], settings)]
            if places[0] != places[1]:
                raise StoreError(
                    f"{study.root} was begun with other files, those of {places[0][0]}",
                    todo="continue with those files, choose another --study, or start again with --overwrite",
                )
            raise changed(files.source.where(name))
