"""Benchmark how large files of the field become studies: memory planned and measured, seconds, bytes read.

    python scripts/bench_layouts.py                    all three at full size
    python scripts/bench_layouts.py nifti --scale 0.1  one of them, with a tenth of the volumes or images

nifti           one session of 143 x 143 x 143 voxels and 1,050 volumes of float32 (12.3 GB) in a .nii.gz of random
                numbers in a slab and zeros elsewhere; 10,000 voxels of the slab are in the mask
brain-diffuser  8,859 train and 982 test images of 425 x 425 x 3 as float64 (42.7 GB) in sparse files; some are noise
mindeye         73,000 images of 3 x 224 x 224 as float16 (22 GB) in a sparse file, of which 10,000 were shown

Each run is a process of its own under a budget of 300 MB. Memory is RssAnon, sampled. Written at full size: 0.5 GB of
inputs, then stores of 40 MB (nifti), 5.4 GB (brain-diffuser) and 1.6 GB (mindeye), removed in the end.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BUDGET = "300MB"
SIDE, VOLUMES, VOXELS = 143, 1050, 10_000
IMAGES = {"train": 8859, "test": 982}
COLLECTION, SHOWN, VOXELS_OF_NSD = 73_000, 10_000, 200

RUN = """
import json, sys
from leanrecon.api import run
settings = json.loads(sys.argv[1])
run({"dataset": settings, "features": {"pca": {}}}, study=sys.argv[2], until="dataset", memory=sys.argv[3])
read = [line for line in open("/proc/self/io") if line.startswith("rchar")]
print(json.dumps({"read": int(read[0].split()[1])}))
"""


def write_nifti(folder, scale):
    """A session whose zeros are packed once: members of a gzip file may follow one another."""
    import nibabel

    volumes = max(int(VOLUMES * scale), 8)
    slab, before = SIDE * SIDE * 4, 60  # planes of x and y
    mask = np.zeros((SIDE, SIDE, SIDE), np.uint8)
    mask[20:120, 20:120, before : before + 1] = 1
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((SIDE, SIDE, SIDE, volumes))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_sform(np.eye(4), 1)
    header.set_qform(np.eye(4), 1)
    ends = [gzip.compress(bytes(planes * slab), 1) for planes in (before, SIDE - before - 1)]
    rng = np.random.default_rng(0)
    with (folder / "betas.nii.gz").open("wb") as file:
        file.write(gzip.compress(header.binaryblock + bytes(4), 1))
        for _ in range(volumes):
            plane = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
            file.write(ends[0] + gzip.compress(plane.tobytes(), 1) + ends[1])
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / "mask.nii.gz")
    lines = [f"image{row}\t{'test' if row % 10 == 0 else 'train'}" for row in range(volumes)]
    (folder / "trials.tsv").write_text("\n".join(["stimulus\tsplit", *lines]))
    names = {"betas": "betas.nii.gz", "mask": "mask.nii.gz", "trials": "trials.tsv"}
    assert int(mask.sum()) == VOXELS
    return {"kind": "nifti"} | {key: str(folder / name) for key, name in names.items()}


def sparse_npy(path, shape):
    """An .npy file of float64 zeros that takes no disk, and a memory map of it."""
    return np.lib.format.open_memmap(path, "w+", np.float64, shape)


def write_brain_diffuser(folder, scale):
    """The prepared folder of subject 1; every 500th image is noise."""
    rng = np.random.default_rng(0)
    for split, all_images in IMAGES.items():
        n = max(int(all_images * scale), 8)
        np.save(folder / f"nsd_{split}_fmriavg_nsdgeneral_sub1.npy", 300 * rng.standard_normal((n, VOXELS_OF_NSD)))
        images = sparse_npy(folder / f"nsd_{split}_stim_sub1.npy", (n, 425, 425, 3))
        for row in range(0, n, 500):
            images[row] = rng.integers(0, 256, (425, 425, 3))
        del images
    return {"kind": "brain-diffuser", "root": str(folder), "subject": 1}


def write_mindeye(folder, scale):
    """40 sessions of 750 trials, each image three times; of the collection every 1,000th image is noise."""
    import h5py

    rng = np.random.default_rng(0)
    shown = np.sort(rng.choice(COLLECTION, max(int(SHOWN * scale), 250), replace=False))
    image_of = rng.permutation(np.repeat(shown, 3))
    shared = np.zeros(COLLECTION, bool)
    shared[shown[::10]] = True
    np.save(folder / "shared1000.npy", shared)
    with h5py.File(folder / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        response = rng.standard_normal((COLLECTION, VOXELS_OF_NSD), dtype=np.float32)
        file["betas"] = response[image_of] + rng.standard_normal((len(image_of), VOXELS_OF_NSD), dtype=np.float32)
    with h5py.File(folder / "COCO_73k_subj_indices.hdf5", "w") as file:
        file["subj01"] = image_of
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(folder / "coco_images_224_float16.hdf5", "w") as file:
        space = h5py.h5s.create_simple((COLLECTION, 3, 224, 224))
        h5py.h5d.create(file.id, b"images", h5py.h5t.IEEE_F16LE, space, plist)
        for row in range(0, COLLECTION, 1000):
            file["images"][row] = rng.random((3, 224, 224))
    return {"kind": "mindeye", "root": str(folder), "subject": 1}


WRITERS = {"nifti": write_nifti, "brain-diffuser": write_brain_diffuser, "mindeye": write_mindeye}


def measure(name, folder, scale):
    """Write the files, run the stage dataset on them, and print and return what it took."""
    folder.mkdir()
    began = time.monotonic()
    settings = WRITERS[name](folder, scale)
    written = time.monotonic() - began
    size = sum(path.stat().st_size for path in folder.iterdir())
    began = time.monotonic()
    command = [sys.executable, "-c", RUN, json.dumps(settings), str(folder / "study"), BUDGET]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - began
    record = json.loads((folder / "study" / "run.json").read_text())["stages"]["dataset"]
    read = json.loads(done.stdout.splitlines()[-1])["read"]
    print(
        f"{name:15} files {size / 1e9:6.2f} GB (written in {written:.0f} s)  read {read / 1e9:6.2f} GB  "
        f"{seconds:6.1f} s  planned {record['planned_bytes'] / 1e6:.0f} MB  measured {record['peak_bytes'] / 1e6:.0f} MB",
        flush=True,
    )
    shutil.rmtree(folder)
    return {"size": size, "read": read, "seconds": seconds} | {
        name: record[f"{name}_bytes"] for name in ("planned", "peak")
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WRITERS)}; absent: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the volumes and images")
    parser.add_argument("--folder", type=Path, help="where to write; absent: the system's folder for temporary files")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(WRITERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.names or WRITERS:
            measure(name, Path(folder) / name, arguments.scale)


if __name__ == "__main__":
    main()
