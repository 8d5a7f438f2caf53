"""The authors' layout of the Natural Scenes Dataset: names of files, sessions, areas, and the design.

Allen et al. (2022), Nature Neuroscience 25, 116-126; the data manual at https://cvnlab.slite.page/p/CT9Fwl4_hc
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.files.mat5 import read_numbers
from leanrecon.errors import InputError, SettingsError, shown
from leanrecon.net.ranges import RangeFile, read_whole
from leanrecon.validation import nearest

Array = np.ndarray[Any, Any]

BUCKET = "s3://natural-scenes-dataset"

TRIALS = 750
"""Trials of a session."""

RUNS = (63, 62) * 6
"""Trials of each run of a session (Allen et al. 2022, Methods: 63 in odd runs, 62 in even ones)."""

SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
"""Sessions of subjects 1 to 8."""

SHARED = 1000
"""The first images of a subject's 10,000 were shown to every subject: this number are test images."""

SCALE = 300
"""Betas are stored as integers: percent signal change times 300."""

STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
_MOST_DESIGN = 64 * 2**20  # bytes; NSD's has about one megabyte
BETAS_KEY, STIMULI_KEY = "betas", "imgBrick"
FORMATS = ("hdf5", "nii.gz")

GENERAL = "nsdgeneral"
ATLASES: dict[str, tuple[str, ...]] = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": ("early", "midventral", "midlateral", "midparietal", "ventral", "lateral", "parietal"),
}
"""Files of labelled voxels, with the names of labels 1, 2, …; if areas overlap, the first file names a voxel."""

JOINED: dict[str, tuple[str, ...]] = {
    "V1": ("V1v", "V1d"),
    "V2": ("V2v", "V2d"),
    "V3": ("V3v", "V3d"),
    "FFA": ("FFA-1", "FFA-2"),
    "FBA": ("FBA-1", "FBA-2"),
    "VWFA": ("VWFA-1", "VWFA-2"),
}
"""Areas that go by one name in the literature."""

TERMS = (
    "The Natural Scenes Dataset may be used under its Terms and Conditions, which you find, with a form to fill in, at "
    "https://naturalscenesdataset.org. Work with it cites Allen et al. (2022), Nature Neuroscience 25, 116-126."
)


@dataclass(frozen=True)
class SubjectFiles:
    """The names of one subject's files at 1.8 mm."""

    subject: int

    @property
    def _space(self) -> str:
        return f"ppdata/subj{self.subject:02d}/func1pt8mm"

    def betas(self, session: int, form: str) -> str:
        return f"nsddata_betas/{self._space}/betas_fithrf_GLMdenoise_RR/betas_session{session:02d}.{form}"

    @property
    def ncsnr(self) -> str:
        return f"nsddata_betas/{self._space}/betas_fithrf_GLMdenoise_RR/ncsnr.nii.gz"

    def roi(self, atlas: str) -> str:
        return f"nsddata/{self._space}/roi/{atlas}.nii.gz"


SIMULATED = "simulated.json"
"""The file that marks a folder as simulated, so that reports say so."""

SIMULATION = 2
"""Version of the simulation in that file: raised whenever its images or responses change."""


def check_simulation(folder: Path) -> None:
    """Raise InputError for a folder that another version simulated."""
    from leanrecon.places.files import read_json

    found = read_json(folder / SIMULATED)
    if isinstance(found, dict) and "seed" in found and found.get("format", 1) != SIMULATION:
        raise InputError(
            f"{folder} was simulated by another version of leanrecon (format {found.get('format', 1)})",
            expected=f"format {SIMULATION}, whose test images no model has been trained on",
            todo=f"delete it and make it again with `leanrecon simulate-nsd {folder}`, or choose another folder",
        )


def chosen_sessions(subject: int, sessions: int | Sequence[int] | None) -> list[int]:
    """The numbers of the sessions, ascending; a count means the first sessions, None all."""
    there = SESSIONS[subject - 1]
    if sessions is None:
        return list(range(1, there + 1))
    wanted = list(range(1, min(sessions, there + 1) + 1)) if isinstance(sessions, int) else sorted(set(sessions))
    if not wanted or wanted[0] < 1 or wanted[-1] > there:
        raise SettingsError(
            f"dataset.sessions = {shown(sessions)}", expected=f"sessions 1 to {there}: subject {subject} has {there}"
        )
    return wanted


@dataclass(frozen=True)
class Design:
    """The images of the trials of the chosen sessions, one entry for each trial in the order of presentation."""

    sessions: list[int]
    trial: Array
    """Number of the trial in the whole experiment, from 0."""
    stimulus: Array
    """Number of the image among NSD's 73,000, from 0."""
    tested: Array
    """Whether the image is a test image: one of those that were shown to every subject."""

    def shown(self, split: str) -> dict[int, list[int]]:
        """The images of a split in order of their number, each with its trials, counted within these sessions."""
        shown: dict[int, list[int]] = {}
        for k in self.trials(split).tolist():
            shown.setdefault(int(self.stimulus[k]), []).append(k)
        return dict(sorted(shown.items()))

    def trials(self, split: str) -> Array:
        """The trials of a split in order of presentation, counted within these sessions."""
        return np.flatnonzero(self.tested == (split == "test"))

    def digest(self) -> str:
        """SHA-256 of trials and images."""
        parts = (self.trial, self.stimulus, self.tested)
        return hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in parts)).hexdigest()

    @property
    def session(self) -> Array:
        """The session of every trial."""
        return self.trial // TRIALS + 1

    @property
    def run(self) -> Array:
        """The run of every trial within its session, from 1."""
        found: Array = np.searchsorted(np.cumsum(RUNS), self.trial % TRIALS, side="right") + 1
        return found


def read_design(file: RangeFile, subject: int, sessions: Sequence[int], shared_train: int = 0) -> Design:
    """Read ``nsd_expdesign.mat``; raises InputError if it is damaged or lacks these sessions.

    ``shared_train`` of the images that all subjects saw are train images, the same ones for every subject.
    """
    names = ("masterordering", "subjectim")
    if file.size > _MOST_DESIGN:
        raise InputError(f"{file.name} has {file.size} bytes", expected="NSD's design, of about a megabyte")
    (data,) = read_whole([file])
    try:
        order, images = (read_numbers(file.name, data, name) for name in names)
    except InputError as error:
        begins = f"{file.name} can't be read: "
        raise InputError(
            begins + error.found.removeprefix(begins),
            expected="the tables masterordering and subjectim of NSD's design",
            todo="copy it again",
        ) from error
    for name, table in zip(names, (order, images), strict=True):
        if not (
            table.size
            and np.isfinite(table).all()
            and (np.abs(table) < 2**31).all()
            and (table == np.rint(table)).all()
        ):
            raise InputError(f"{file.name}:{name} holds numbers that are not whole", expected="numbers of images")
    order, images = order.astype(np.int64), images.astype(np.int64)
    order = order.ravel()
    trial = np.concatenate([np.arange((s - 1) * TRIALS, s * TRIALS) for s in sessions])
    if images.ndim != 2 or len(images) < subject or trial[-1] >= len(order):
        raise InputError(
            f"{file.name} has {len(order)} trials and {len(np.atleast_2d(images))} subjects",
            expected=f"{trial[-1] + 1} trials or more, up to session {sessions[-1]}, and subject {subject}",
            todo="check that it belongs to these betas, or choose fewer sessions",
        )
    seen = order[trial]
    if seen.min() < 1 or seen.max() > images.shape[1] or images[subject - 1].min() < 1:
        raise InputError(
            f"{file.name} shows images numbered {seen.min()} to {seen.max()}",
            expected=f"1 to {images.shape[1]}, the images of a subject",
        )
    tested = ~np.isin(seen, shared_train_numbers(shared_train) + 1) & (seen <= SHARED)
    return Design(list(sessions), trial, images[subject - 1, seen - 1] - 1, tested)


def shared_train_numbers(count: int) -> Array:
    """The shared images that are train images, counted from 0 in the design's order: evenly spread."""
    return np.arange(count) * SHARED // max(count, 1)


def area_names(atlases: Sequence[str]) -> list[str]:
    """All names of regions, given the existing files."""
    labels = [label for atlas in atlases for label in ATLASES.get(atlas, ())]
    joined = [name for name, parts in JOINED.items() if set(parts) <= set(labels)]
    return [*(atlas for atlas in atlases), *joined, *labels]


def region(name: str, labelled: dict[str, Array]) -> Array:
    """The voxels of an area as a boolean volume; ``labelled`` holds the volumes of labels by the names of their files.

    Raises InputError for an unknown name, and lists the known ones.
    """
    if name in labelled:
        return np.asarray(labelled[name] > 0)
    found: Array | None = None
    for part in JOINED.get(name, (name,)):
        for atlas, volume in labelled.items():
            if part in ATLASES.get(atlas, ()):
                own = volume == ATLASES[atlas].index(part) + 1
                found = own if found is None else np.logical_or(found, own)
    if found is None:
        names = area_names(list(labelled))
        raise InputError(
            f"dataset.roi = {name!r} is not an area of this subject ({nearest(name, names)})",
            expected=f"one of {', '.join(names)}, a list of these, or a file .nii.gz",
        )
    if not found.any():
        raise InputError(f"dataset.roi = {name!r}: this area has no voxels in this subject", todo="choose another")
    return found


def labels_of(labelled: dict[str, Array], index: Array) -> Array:
    """The name of the area of each voxel, "" without one: by the first of ``ATLASES`` that has it."""
    names = np.full(len(index), "", dtype=f"<U{max(len(n) for labels in ATLASES.values() for n in labels)}")
    joined = {
        part: whole
        for whole, parts in JOINED.items()
        for part in parts
        if whole.startswith("V") and whole[1:].isdigit()
    }
    for atlas, labels in ATLASES.items():
        if atlas in labelled:
            own = np.rint(np.nan_to_num(labelled[atlas].reshape(-1)[index])).astype(np.int64)
            for number, label in enumerate(labels, start=1):
                names[(own == number) & (names == "")] = joined.get(label, label)
    return names
