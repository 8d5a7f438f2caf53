"""What is mutated: small valid inputs, settings, studies and weights, each with the commands that read them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROWS, VOXELS, SIDE = 24, 30, 8

SETTINGS = """
memory = "1GB"
[dataset]
kind = "arrays"
betas = "betas.npy"
stimuli = "images.npy"
test_fraction = 0.3
[features.pca]
components = 4
size = 8
[evaluate]
permutations = 1
resamples = 100
"""


@dataclass(frozen=True)
class Seed:
    """A folder of valid files, the one that is mutated, and the commands that are run in a copy of the folder."""

    group: str
    name: str
    folder: Path
    file: str
    commands: tuple[tuple[str, ...], ...]
    call: Callable[[Path], None] | None = None
    """A function of the mutated file, in place of commands."""


def seeds(root: Path) -> list[Seed]:
    """Write the valid files below ``root``; returns every file that is to be mutated."""
    base = root / "base"
    write_base(base)
    return [*_inputs(root, base), *_settings(base), *_studies(root, base), *_weights(root)]


def write_base(folder: Path) -> None:
    """Betas, images and settings of a tiny study whose images follow from its betas."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    code = random.standard_normal((ROWS, 4))
    betas = code @ random.standard_normal((4, VOXELS)) + 0.3 * random.standard_normal((ROWS, VOXELS))
    images = 128 + 40 * (code @ random.standard_normal((4, SIDE * SIDE * 3)))
    np.save(folder / "betas.npy", betas.astype("f4"))
    np.save(folder / "images.npy", np.clip(images, 0, 255).astype("u1").reshape(ROWS, SIDE, SIDE, 3))
    (folder / "s.toml").write_text(SETTINGS)


def _inputs(root: Path, base: Path) -> Iterator[Seed]:
    import h5py
    import scipy.io

    betas, images = np.load(base / "betas.npy"), np.load(base / "images.npy")
    captions = [[f"caption {i} of a row", "another one"] for i in range(ROWS)]
    words = np.array([one[0] for one in captions])
    test = np.arange(0, ROWS, 3)
    folder = root / "inputs"
    write_base(folder / "x")
    folder = folder / "x"
    for setting, array in (("betas", betas), ("stimuli", images), ("test_index", test)):
        np.save(folder / f"{setting}.npy", array)
        np.savez(folder / f"{setting}.npz", array)
        np.savez_compressed(folder / f"{setting}_deflated.npz", array)
        scipy.io.savemat(folder / f"{setting}.mat", {"data": array})
        scipy.io.savemat(folder / f"{setting}_deflated.mat", {"data": array}, do_compression=True)
        with h5py.File(folder / f"{setting}.h5", "w") as file:
            file.create_dataset("data", data=array, chunks=array.shape, compression="gzip")
        with h5py.File(folder / f"{setting}_plain.h5", "w") as file:
            file["group/data"] = array
    np.save(folder / "captions.npy", words)
    scipy.io.savemat(folder / "captions.mat", {"captions": np.array([one[0] for one in captions], dtype=object)})
    (folder / "captions.json").write_text(json.dumps(captions))
    np.savetxt(folder / "test_index.txt", test)
    (folder / "test_index.json").write_text(json.dumps(test.tolist()))
    (folder / "test_index.csv").write_text("\n".join(map(str, test)))
    for path in sorted(folder.iterdir()):
        setting = path.name.partition(".")[0].partition("_deflated")[0].partition("_plain")[0]
        if setting in ("betas", "stimuli", "test_index", "captions"):
            option = ("--set", f"dataset.{setting}={path.name}")
            if setting == "test_index":
                option = (*option, "--set", "dataset.test_fraction=false")
            yield Seed(
                "inputs",
                path.name,
                folder,
                path.name,
                (("run", "s.toml", "--study", "st", "--until", "dataset", *option),),
            )


def _settings(base: Path) -> Iterator[Seed]:
    yield Seed("settings", "plan", base, "s.toml", (("plan", "s.toml"),))
    yield Seed("settings", "run", base, "s.toml", (("run", "s.toml", "--study", "st", "--until", "dataset"),))


def _studies(root: Path, base: Path) -> Iterator[Seed]:
    from fuzz.harness import leanrecon

    folder = root / "study"
    write_base(folder)
    assert leanrecon(folder, "run", "s.toml", "--study", "st") == 0
    again = ("run", "s.toml", "--study", "st", "--set", "evaluate.resamples=150")
    ways = (("verify", "st"),), (("report", "st"),), (again,), (("verify", "st", "--repair"), again[:4])
    for path in sorted((folder / "st").rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            yield from (Seed("study", name, folder, name, commands) for commands in ways)
    half = root / "half"
    write_base(half)
    assert leanrecon(half, "run", "s.toml", "--study", "st", "--until", "features") == 0
    for name in ("st/study.toml", "st/run.json", "st/betas/rows.json", "st/features/pca/fitted.npz"):
        yield Seed("study", f"half {name}", half, name, (("run", "s.toml", "--study", "st", "--until", "stage1"),))


def _weights(root: Path) -> Iterator[Seed]:
    import torch
    from support.published_models import write_clip

    folder = root / "weights"
    write_base(folder)
    write_clip(folder / "clip")
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(4, dtype=torch.float16)}
    torch.save(tensors, folder / "x.th")
    torch.save(tensors, folder / "old.th", _use_new_zipfile_serialization=False)
    for name in sorted(path.relative_to(folder).as_posix() for path in (folder / "clip").iterdir()):
        vision = ("--set", "features.v.kind=clip-vision", "--set", "features.v.model=clip")
        yield Seed("weights", f"plan {name}", folder, name, (("plan", "s.toml", *vision),))
        yield Seed("weights", f"read {name}", folder, name, (), _read_model)
    for name in ("x.th", "old.th"):
        yield Seed("weights", name, folder, name, (), _convert)


def _read_model(file: Path) -> None:
    from leanrecon.weights.folders import Weights, read_config

    read_config(file.parent / "config.json")
    weights: Any = Weights.of(file.parent)
    assert weights


def _convert(file: Path) -> None:
    from leanrecon.weights.pickles import convert

    convert(file, file.with_suffix(".safetensors"))
