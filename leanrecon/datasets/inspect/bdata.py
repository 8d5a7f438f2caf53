"""BData files of Kamitani Lab: what they hold, and the settings that read one, or one for each split."""

import itertools
from pathlib import Path
from typing import Any

from leanrecon.datasets.layouts.bdata import BData
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

ENDINGS = (".h5", ".hdf5", ".mat")
LABELS = ("stimulus_name", "stimulus_id", "Label")
_MOST = 50  # files of a folder that are looked into


def open_bdata(path: InputFile) -> BData | None:
    """The file as BData; None where it is something else, or damaged."""
    try:
        return BData(path)
    except InputError:
        return None


def bdata_in(folder: Path) -> list[BData]:
    """The BData files of a folder, sorted by name."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
    return [data for file in itertools.islice(files, _MOST) if (data := open_bdata(file)) is not None]


def describe(data: BData) -> list[str]:
    """What a file holds, in sentences."""
    voxels = voxels_of(data)
    return [
        f"BData in {data.path.name}: {len(data)} trials, {len(data.columns_of(voxels))} voxels in {voxels}",
        f"  keys: {', '.join(data.keys)}",
    ]


def settings_for(found: list[BData]) -> dict[str, Any]:
    """The settings for one file, or for two of which the names say train and test."""
    train, test = (next((of for of in found if word in of.path.name.lower()), None) for word in ("train", "test"))
    pair = train is not None and test is not None and train is not test
    data = train if pair and train is not None else found[0]
    settings: dict[str, Any] = {"kind": "bdpy"}
    if pair and train is not None and test is not None:
        settings |= {"train": str(train.path), "test": str(test.path)}
    else:
        settings |= {"path": str(data.path)}
    settings |= {"voxels": voxels_of(data), "label": next((key for key in LABELS if key in data.keys), LABELS[1])}
    return settings if pair or "DataType" in data.keys else settings | {"test_fraction": 0.1}


def voxels_of(data: BData) -> str:
    """The key of the voxels to begin with: visual cortex, the first area, or all."""
    areas = [key for key in data.keys if key.startswith("ROI_") and (data.flags[data.keys[key]] == 1).any()]
    return "ROI_VC" if "ROI_VC" in areas else (areas or ["VoxelData"])[0]
