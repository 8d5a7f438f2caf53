"""What libraries that read files are planned to take, by the formats that settings name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import zarr

from leanrecon.datasets.arrays.dataset import ArraysSettings
from leanrecon.datasets.files.libraries import LEAST, LIBRARIES, loaded_nbytes

MB = 10**6


def nbytes(**settings: Any) -> int:
    return loaded_nbytes(ArraysSettings(**{"betas": "b.npy", "test_fraction": 0.2} | settings))


def test_only_the_libraries_that_read_the_files_are_counted() -> None:
    everything = LEAST + sum(LIBRARIES.values())
    assert nbytes() == nbytes(stimuli="images", captions="c.json") == LEAST
    assert LEAST < nbytes(stimuli="s.h5:images") < nbytes(stimuli="s.h5:images", mask="m.nii.gz") < everything
    assert nbytes(stimuli="S.MAT") == nbytes(stimuli="s.hdf5")
    assert nbytes(betas="s3://bucket/b.zarr") == nbytes(betas="folder.h5/b.zarr:b")
    assert nbytes(stimuli="images.of_mine") == everything, "what it is read with is not known"
    assert nbytes(betas_train="a.h5", betas_test="c.npy", betas=None, test_fraction=None) > LEAST


def write(folder: Path, form: str, arrays: dict[str, Any]) -> dict[str, str]:
    if form == "npy":
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return {name: f"{name}.npy" for name in arrays}
    file = folder / f"all.{form}"
    if form == "npz":
        np.savez_compressed(file, **arrays)
    elif form == "mat":
        scipy.io.savemat(file, arrays, do_compression=True)
    elif form == "h5":
        with h5py.File(file, "w") as opened:
            for name, array in arrays.items():
                opened.create_dataset(
                    name, data=array, chunks=(min(len(array), 50), *array.shape[1:]), compression="gzip"
                )
    else:
        group = zarr.open_group(file, mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)
    return {name: f"{file.name}:{name}" for name in arrays}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npy", "npz", "mat", "h5", "zarr"])
@pytest.mark.parametrize(
    ("rows", "voxels", "chunk"),
    [(40, 50, "8MB"), pytest.param(1500, 6000, "1MB", marks=pytest.mark.long)],
)
def test_arrays_take_what_was_planned(form: str, rows: int, voxels: int, chunk: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "betas": rng.standard_normal((rows, voxels), dtype=np.float32),
        "stimuli": rng.integers(0, 256, (rows, 64, 64, 3), np.uint8),
    }
    lines = [f'{name} = "{of}"' for name, of in write(tmp_path, form, arrays).items()]
    text = "\n".join(['memory = "1GB"', "[dataset]", "test_fraction = 0.2", *lines, "[stores]", f'chunk = "{chunk}"'])
    (tmp_path / "s.toml").write_text(text)
    command = [sys.executable, "-m", "leanrecon", "run", "s.toml", "--study", "study", "--until", "dataset"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "study/run.json").read_text())["stages"]["dataset"]
    peak, planned = record["peak_bytes"], record["planned_bytes"]
    print(f"{form}, {rows} rows: {peak / MB:.0f} MB of {planned / MB:.0f} MB planned")
    assert planned / 2 <= peak <= planned
