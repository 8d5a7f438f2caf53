"""Damaged files of every kind: each is read, or refused by a LeanreconError; nothing else, and no signal.

Run as a program, this file mutates one kind of file in a process of its own, whose death is a failure:
``python tests/fuzz/test_mutated_files.py FOLDER KIND SEED COUNT``.
"""

import faulthandler
import gzip
import json
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

COUNT = 120
"""Mutations of each kind of file."""

MEMORY = 4 * 10**9
"""Bytes of address space that a reader of files of a few kilobytes may take."""

TEXTS = [["a cat", "a grey cat"], ["zwei Öfen 😀", "two"], ["three", "drei"]] * 3


def make(folder: Path, kind: str) -> Path:
    """A small valid file of a kind."""
    import h5py
    import nibabel
    import scipy.io

    numbers = np.random.default_rng(1).normal(size=(9, 7))
    path = folder / f"x.{kind.split('-')[-1]}"
    if kind == "npy":
        np.save(path, np.asfortranarray(numbers))
    elif kind == "captions-npy":
        np.save(path, np.array(TEXTS))
    elif kind == "npz":
        np.savez_compressed(path, x=numbers)
    elif kind == "plain-npz":
        np.savez(path, x=numbers)
    elif kind in ("mat", "packed-mat"):
        values = {"x": numbers, "other": np.arange(5, dtype=np.uint8)}
        scipy.io.savemat(path, values, do_compression=kind != "mat")
    elif kind == "captions-mat":
        scipy.io.savemat(path, {"x": np.array(TEXTS, object)})
    elif kind == "four-mat":
        scipy.io.savemat(path, {"x": numbers}, format="4")
    elif kind in ("h5", "seven-mat"):
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=numbers, chunks=(4, 4), compression="gzip", shuffle=True)
    elif kind == "captions-h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=TEXTS, dtype=h5py.string_dtype())
    elif kind == "captions-json":
        path.write_text(json.dumps({"y": [1, {"z": None}], "x": TEXTS}))
    elif kind == "captions-txt":
        path.write_text("\n".join("\t".join(row) for row in TEXTS), encoding="utf-8")
    elif kind in ("csv", "txt"):
        path.write_text("0,1;2\n3.000e+00 # three\n7")
    elif kind in ("nii", "nii.gz"):
        nibabel.save(nibabel.Nifti1Image((numbers[:, :, None] > 0).astype(np.int16), np.eye(4)), path)
    elif kind == "betas-nii.gz":
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 750), np.int16), np.eye(4)), path)
    else:
        assert kind == "design-mat"
        tables = {"masterordering": np.arange(1, 1501)[None], "subjectim": np.arange(16_000).reshape(8, -1) + 1}
        scipy.io.savemat(path, tables, do_compression=True)
    return path


def read_array(path: Path) -> None:
    from leanrecon.datasets.files.open import open_array

    key = "" if path.suffix == ".npy" else ":x"
    with open_array(f"{path}{key}") as rows:
        rows[:]


def read_captions(path: Path) -> None:
    from leanrecon.datasets.files import captions

    spec = str(path) if path.suffix in (".npy", ".txt") else f"{path}:x"
    captions.captions_nbytes(spec)
    captions.read_captions(spec)


def read_index(path: Path) -> None:
    from leanrecon.datasets.splits import read_test_rows

    read_test_rows(str(path), 40)


def read_volume(path: Path) -> None:
    from leanrecon.datasets.nsd.voxels import parse_nifti

    parse_nifti(str(path), path.read_bytes())


def read_session(path: Path) -> None:
    from leanrecon.datasets.nsd.betas import read_nifti
    from leanrecon.datasets.nsd.voxels import Voxels

    voxels = Voxels((3, 3, 3), np.eye(4), np.arange(5), np.full(5, ""), np.zeros(5, np.float32), {})
    read_nifti(str(path), path, voxels, np.empty((750, 5), np.int16))


def read_nsd_design(path: Path) -> None:
    from leanrecon.datasets.nsd.layout import read_design
    from leanrecon.net.ranges import Folder

    source = Folder(path.parent)
    found = source.find(path.name)
    assert found is not None
    with source.open(path.name, found) as file:
        read_design(file, 1, [1, 2])


READERS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("npy", "npz", "plain-npz", "mat", "packed-mat", "four-mat", "h5", "seven-mat"), read_array),
    **dict.fromkeys((f"captions-{form}" for form in ("npy", "mat", "h5", "json", "txt")), read_captions),
    **dict.fromkeys(("csv", "txt"), read_index),
    **dict.fromkeys(("nii", "nii.gz"), read_volume),
    "betas-nii.gz": read_session,
    "design-mat": read_nsd_design,
}


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with one or two damages: bits flipped, an end cut off, a range zeroed, a number replaced, bytes moved."""
    out = bytearray(data)
    for _ in range(int(random.integers(1, 3))):
        n = len(out)
        if n < 8:
            break
        # Headers are short and matter most: half of the damages lie near an end.
        at = int(random.integers(n)) if random.random() < 0.5 else int(min(random.exponential(60), n - 1))
        kind = random.integers(6)
        if kind == 0:
            out[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            stop = min(at + int(random.integers(1, 48)), n)
            out[at:stop] = bytes(stop - at)
        elif kind == 3:
            width = int(random.choice([1, 2, 4, 8]))
            value = int(random.choice([0, 1, 2**7, 2**15, 2**31, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
            out[at : at + width] = (value % 256**width).to_bytes(width, str(random.choice(["little", "big"])))
            del out[n:]
        elif kind == 4:
            out[at : at + 8] = out[at : at + 8][::-1]
        else:
            out[at:at] = out[at : at + int(random.integers(1, 64))]
    return bytes(out)


def main(folder: Path, kind: str, seed: int, count: int) -> int:
    """Mutate, read, and print what isn't a LeanreconError; returns how many failed."""
    import warnings

    from leanrecon.errors import LeanreconError

    warnings.simplefilter("ignore")
    faulthandler.enable()
    path = make(folder, kind)
    whole = path.read_bytes()
    packed = kind.endswith(".gz")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    READERS[kind](path)
    random = np.random.default_rng(seed)
    read = refused = failed = 0
    for k in range(count):
        inside = packed and random.random() < 0.5
        data = gzip.compress(mutated(gzip.decompress(whole), random)) if inside else mutated(whole, random)
        path.write_bytes(data)
        try:
            READERS[kind](path)
            read += 1
        except LeanreconError:
            refused += 1
        except Exception:
            failed += 1
            print(f"{kind}, seed {seed}, mutation {k}", traceback.format_exc(), file=sys.stderr)
    print(json.dumps({"kind": kind, "read": read, "refused": refused, "failed": failed}))
    return failed


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused_and_never_ends_the_process(tmp_path, kind):
    command = [sys.executable, __file__, str(tmp_path), kind, "0", str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["read"] + counts["refused"] == COUNT
    assert counts["refused"]


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])) else 0)
