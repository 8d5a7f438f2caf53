"""Say what a file or folder is, and print the ``[dataset]`` table that would read it."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanrecon.datasets.files.folder import ENDINGS
from leanrecon.datasets.files.open import SUFFIXES, ZARR, array_keys, open_array
from leanrecon.datasets.files.table import read_table
from leanrecon.datasets.inspect.arrays import Look, look_at, square_of
from leanrecon.datasets.inspect.bdata import bdata_in, describe, open_bdata, settings_for
from leanrecon.errors import InputError, LeanreconError
from leanrecon.places.inputs import InputFile, matching_in
from leanrecon.places.location import elsewhere
from leanrecon.places.paths import expanded
from leanrecon.progress import counted

LISTED = 20
"""Most files or keys that are shown."""

TABLES = (".tsv", ".csv")


@dataclass
class Inspection:
    """What was found."""

    layout: str
    """A kind of dataset that reads it, a format, or ``unknown``."""
    lines: list[str] = field(default_factory=list)
    """What is there, in sentences."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The ``[dataset]`` table that would read it; empty where more has to be known."""

    def text(self) -> str:
        """All of it for a terminal."""
        table = []
        if self.settings:
            table = ["", "[dataset]", *(f"{key} = {_toml(value)}" for key, value in self.settings.items())]
        return "\n".join([f"layout: {self.layout}", *self.lines, *table])


def inspect(path: Path) -> Inspection:
    """Look at a file or folder: headers, and samples of arrays. Raises InputError where there is nothing."""
    if (away := elsewhere(path)) is not None:
        from leanrecon.datasets.inspect.away import inspect_away

        return inspect_away(away)
    path = expanded(path)
    if path.suffix.lower() == ZARR and path.is_dir():
        return arrays_of([path])
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return of_file(path)
    raise InputError(f"there is nothing at {path}", todo="check the path")


# Folders


def _mindeye(path: Path) -> Inspection | None:
    betas = sorted(path.glob("betas_all_subj*.hdf5"))
    if not betas and not (path / "COCO_73k_subj_indices.hdf5").is_file():
        return None
    subjects = sorted({int(found[1]) for one in betas if (found := re.search(r"subj0?(\d)", one.name))})
    needed = ("COCO_73k_subj_indices.hdf5", "shared1000.npy", "coco_images_224_float16.hdf5")
    lines = [
        f"MindEye2's files of NSD, betas of subjects {', '.join(map(str, subjects)) or 'none'}",
        *_missing(path, needed),
    ]
    return Inspection(
        "mindeye", lines, {"kind": "mindeye", "root": str(path), "subject": subjects[0] if subjects else 1}
    )


def _algonauts(path: Path) -> Inspection | None:
    subjects = [path] if (path / "training_split").is_dir() else sorted(path.glob("subj*/training_split/.."))
    if not subjects:
        return None
    number = re.search(r"subj0?(\d)", subjects[0].resolve().name)
    settings = {
        "kind": "algonauts",
        "root": str(path),
        "subject": int(number[1]) if number else 1,
        "test_fraction": 0.1,
    }
    lines = [
        f"the Algonauts 2023 challenge, {len(subjects)} subjects",
        "test responses were withheld: a tenth is tested",
    ]
    return Inspection("algonauts", lines, settings)


def _brain_diffuser(path: Path) -> Inspection | None:
    betas = sorted(path.glob("**/nsd_train_fmriavg_nsdgeneral_sub*.npy"))
    if not betas:
        return None
    subject = int(re.findall(r"sub(\d)", betas[0].name)[0])
    lines = [f"Brain-Diffuser's prepared files of subject {subject}"]
    return Inspection(
        "brain-diffuser", lines, {"kind": "brain-diffuser", "root": str(betas[0].parent), "subject": subject}
    )


def _miyawaki(path: Path) -> Inspection | None:
    runs = list(path.glob("func/data_*_run*.nii.gz"))
    if not runs or not (path / "label").is_dir():
        return None
    return Inspection("miyawaki", [f"Miyawaki et al. 2008, {len(runs)} runs"], {"kind": "miyawaki", "root": str(path)})


def _glmsingle(path: Path) -> Inspection | None:
    found = sorted(path.glob("TYPE[A-D]_*.*"))
    if not found:
        return None
    lines = [f"outputs of GLMsingle: {', '.join(file.name for file in found)}"]
    if not any(file.suffix in (".hdf5", ".mat") for file in found if file.name.startswith("TYPED_")):
        lines.append("the betas lie in a pickle, which is never loaded: save betasmd as HDF5")
    return Inspection("glmsingle", lines, {"kind": "glmsingle", "root": str(path), **_trials_and_images(path, lines)})


def _nsd(path: Path) -> Inspection | None:
    if not (path / "nsddata_betas").is_dir() and not (path / "nsddata").is_dir():
        return None
    subjects = sorted({int(one.name[-1]) for one in path.glob("nsddata_betas/ppdata/subj0[1-8]")})
    lines = [f"the Natural Scenes Dataset, betas of subjects {', '.join(map(str, subjects)) or 'none'}"]
    subject = subjects[0] if subjects else 1
    files = path.glob(f"nsddata_betas/ppdata/subj{subject:02}/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session*.*")
    sessions = sorted({int(found[1]) for one in files if (found := re.match(r"betas_session(\d+)\.", one.name))})
    lines.append(f"  {len(sessions)} sessions of subject {subject}")
    settings: dict[str, Any] = {"kind": "nsd", "root": str(path), "subject": subject}
    settings |= {"sessions": len(sessions) if sessions == [*range(1, len(sessions) + 1)] else sessions}
    if (captions := path / "COCO_73k_annots_curated.npy").is_file():
        settings["captions"] = str(captions)
    return Inspection("nsd", lines, settings)


def _bdpy(path: Path) -> Inspection | None:
    found = bdata_in(path)
    if not found:
        return None
    lines = [line for data in found for line in describe(data)]
    return Inspection("bdpy", lines, settings_for(found) | _image_folder(path))


def _nifti(path: Path) -> Inspection | None:
    from leanrecon.datasets.files.nifti import NiftiHeader

    runs: list[tuple[Path, NiftiHeader]] = []
    single: list[tuple[Path, NiftiHeader]] = []
    refused: list[str] = []
    for file in sorted(itertools.islice(path.rglob("*.nii*"), 2000)):
        if file.name.endswith((".nii", ".nii.gz")):
            try:
                header = NiftiHeader.read(file)
            except InputError as error:
                refused.append(f"  not read: {error.found}")
                continue
            (runs if header.volumes > 1 else single).append((file, header))
    if not runs:
        return None
    names = [file.relative_to(path).as_posix() for file, _ in runs]
    grid = "x".join(map(str, runs[0][1].grid))
    lines = [f"{len(runs)} NIfTI files of {sum(header.volumes for _, header in runs)} volumes, {grid} voxels"]
    lines += [*(f"  {name}" for name in names[:LISTED]), *refused[:LISTED]]
    betas = _alike(names)
    if len(betas) < len(names):
        other = next(name for name in names if name not in betas)
        lines.append(f"  below are settings for {counted(len(betas), 'files')} such as {betas[0]}, not for {other}")
    own = [file for file, _ in single if file.is_relative_to((path / betas[0]).parent)] + [file for file, _ in single]
    mask = next((file for file in own if "mask" in file.name.lower()), None)
    areas = next(
        (file.parent for file in own if file.parent.name.lower() in ("areas", "rois", "roi", "roi_masks")), None
    )
    settings: dict[str, Any] = {"kind": "nifti", "betas": str(path / _pattern(betas))}
    settings |= {"mask": str(mask)} if mask else {}
    settings |= _trials_and_images(path, lines, (path / betas[0]).parent)
    settings |= {"areas": str(areas / "*.nii*")} if areas else {}
    return Inspection("nifti", lines, settings)


def _alike(names: list[str]) -> list[str]:
    """Those names that differ in numbers alone: of betas if any are called so, and as many as possible."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return max(groups.values(), key=lambda group: ("beta" in group[0].rpartition("/")[2].lower(), len(group)))


def _images(path: Path) -> Inspection | None:
    images = [file for file in itertools.islice(path.iterdir(), 100_000) if file.suffix.lower() in ENDINGS]
    if not images:
        return None
    from leanrecon.datasets.files.folder import image_size

    height, width, channels = image_size(min(images))
    return Inspection(
        "images", [f"{len(images)} images; {min(images).name} is {height}x{width} with {channels} channels"]
    )


_LAYOUTS: tuple[Callable[[Path], Inspection | None], ...] = (
    *(_nsd, _mindeye, _algonauts, _brain_diffuser, _miyawaki, _glmsingle, _bdpy, _nifti, _images),
)


def _folder(path: Path) -> Inspection:
    from leanrecon.study.record import is_study

    if is_study(path):
        return Inspection("study", ["a study of leanrecon: `leanrecon verify` checks it, `leanrecon run` continues it"])
    for layout in _LAYOUTS:
        if (found := layout(path)) is not None:
            return found
    arrays = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not arrays:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:LISTED]) or "nothing"
        return Inspection("unknown", [f"none of the known layouts; the folder holds {there}"])
    return arrays_of(arrays)


# Files


def arrays_of(files: Sequence[InputFile]) -> Inspection:
    """What the arrays of some files are, and the settings that read them."""
    looks = [look for file in files[:LISTED] for look in _looks(file)]
    return Inspection("arrays", [line for look in looks for line in look.lines()], _arrays(looks))


def of_file(path: InputFile) -> Inspection:
    """What a file is; raises InputError for an unknown kind."""
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _one_nifti(path)
    if suffix in TABLES:
        from leanrecon.datasets.files.table import read_table

        table = read_table(path)
        lines = [f"a table of {len(table)} lines"]
        lines += [
            f"  {column}: {', '.join(values[:4])} …"
            for column, values in itertools.islice(table.columns.items(), LISTED)
        ]
        return Inspection("table", lines)
    if suffix in ENDINGS:
        from leanrecon.datasets.files.folder import image_size

        height, width, channels = image_size(path)
        return Inspection("image", [f"an image of {height}x{width} with {channels} channels"])
    if suffix in SUFFIXES:
        if (data := open_bdata(path)) is not None:
            return Inspection("bdpy", describe(data), settings_for([data]) | _image_folder(path.parent))
        return arrays_of([path])
    raise InputError(
        f"{path} is of an unknown kind", expected=f"{', '.join((*SUFFIXES, *TABLES))}, NIfTI, an image or a folder"
    )


def _one_nifti(path: InputFile) -> Inspection:
    from leanrecon.datasets.files.nifti import NiftiHeader

    header = NiftiHeader.read(path)
    lines = [f"{header.dtype} of shape {header.shape}, scaled by {header.slope:g} and shifted by {header.inter:g}"]
    if header.volumes == 1:
        return Inspection("NIfTI volume", lines)
    settings = {"kind": "nifti", "betas": str(path), **_trials_and_images(path.parent, lines)}
    return Inspection("nifti", lines, settings)


def _looks(path: InputFile) -> Iterator[Look]:
    for key in array_keys(path)[:LISTED]:
        spec = str(path) if key is None else f"{path}:{key}"
        try:
            with open_array(spec) as rows:
                yield look_at(rows, spec)
        except LeanreconError as error:
            yield Look(f"{spec} ({error.found})", (), "unreadable")


def _arrays(looks: list[Look]) -> dict[str, Any]:
    """Settings of kind arrays, where betas and images can be told apart."""
    found = {role: [look.name for look in looks if look.role == role] for role in ("betas", "stimuli")}
    if not found["betas"]:
        return {}
    settings: dict[str, Any] = {"kind": "arrays"}
    shapes = {look.name: look.shape for look in looks}
    for role, names in found.items():
        train, test = (next((name for name in names if _is_of(name, split)), None) for split in SPLITS)
        if train and test:
            settings |= {f"{role}_train": train, f"{role}_test": test}
        elif names:
            settings[role] = names[0]
    betas, images = ([shapes[settings[key]] for key in (role, f"{role}_train") if key in settings] for role in found)
    if betas and images and betas[0][0] != images[0][0] and betas[0][-1] == images[0][-1]:
        settings["rows_last"] = True
    if images and len(images[0]) == 2 and (shape := square_of(images[0][0 if "rows_last" in settings else 1])):
        settings["image_shape"] = shape
        name = str(settings.get("stimuli") or settings["stimuli_train"])
        settings |= {"image_order": "F"} if ".mat:" in name.lower() else {}
    return settings if any(key.endswith("_train") for key in settings) else settings | {"test_fraction": 0.1}


SPLITS = {"train": ("train", "trn", "tr"), "test": ("test", "tst", "te")}
"""How arrays of each split are called; the short forms stand alone, or behind one letter as in ``Xtr``."""


def _is_of(name: str, split: str) -> bool:
    """Whether an array is called train or test: ``fmriTrn``, ``te_betas``; patterns and contrasts are neither."""
    text = re.split(r"[/:]", name)[-1]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]
    long, short = SPLITS[split][:2], SPLITS[split][2]
    return any(word.startswith(long) or word.endswith(long) or re.fullmatch(f".?{short}", word) for word in words)


def _trials_and_images(path: InputFile, lines: list[str], near: InputFile | None = None) -> dict[str, Any]:
    """The table and the folder of images in a folder, or in those between it and ``near``; ``lines`` tell what is missing."""
    folders = [path]
    if isinstance(near, Path) and isinstance(path, Path):
        folders = [folder for folder in (near, *near.parents) if folder.is_relative_to(path)]
    tables = [file for folder in folders for file in matching_in(folder, "*") if file.suffix.lower() in TABLES]
    table = next((file for file in tables if _has(file, "stimulus", "stim_file")), None) or next(iter(tables), None)
    if table is None:
        lines.append(
            "  missing: a table of trials (.tsv or .csv) with a column stimulus; write it, and name it in trials"
        )
    images = next((found for folder in folders if (found := _image_folder(folder))), {})
    if not images:
        lines.append("  missing: the folder of the images; set images to its path")
    settings: dict[str, Any] = {"trials": str(table or path / "trials.tsv")} | images
    return settings | ({"test_fraction": 0.1} if table is not None and not _has(table, "split", unread=True) else {})


def _has(table: InputFile, *columns: str, unread: bool = False) -> bool:
    """Whether a table has one of some columns; ``unread`` where it can't be read, which a run explains."""
    try:
        read = read_table(table)
    except InputError:
        return unread
    return any(column in read for column in columns)


def _image_folder(path: InputFile) -> dict[str, Any]:
    folders = _folders_in(path)
    images = next((f for f in folders if any(name.lower().endswith(ENDINGS) for name in _names_in(f))), None)
    return {"images": str(images)} if images else {}


def _folders_in(path: InputFile) -> Iterator[InputFile]:
    if isinstance(path, Path):
        yield from (folder for folder in sorted(path.glob("*")) if folder.is_dir())
    else:
        yield from (path / name.rstrip("/") for name in path.place.children(path.key) if name.endswith("/"))


def _names_in(folder: InputFile) -> Iterator[str]:
    """Names in a folder, the first of many."""
    names = (file.name for file in folder.iterdir()) if isinstance(folder, Path) else folder.place.children(folder.key)
    return itertools.islice(iter(names), 50)


def _missing(path: Path, names: tuple[str, ...]) -> list[str]:
    return [f"  missing: {name}" for name in names if not (path / name).is_file()]


def _pattern(names: list[str]) -> str:
    """One pattern for names that differ in numbers only."""
    patterns = {re.sub(r"\d+", "*", name) for name in names}
    first = names[0]
    if len(names) == 1 or len(patterns) > 1:
        return first
    parts = [re.findall(r"\d+|\D+", name) for name in names]
    return "".join(first_ if len({of[k] for of in parts}) == 1 else "*" for k, first_ in enumerate(parts[0]))


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and lists are written the same in TOML
