"""Studies whose inputs lie in a bucket: the bytes of studies of the same files on a disk, within plan and requests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support import buckets
from support.lab import write_lab
from support.layouts import (
    IDS,
    write_algonauts,
    write_bdata,
    write_brain_diffuser,
    write_glmsingle,
    write_images,
    write_mindeye,
    write_miyawaki,
)
from support.nsd_server import Proxy

import leanrecon
from leanrecon.errors import InputError
from leanrecon.places import as_location, inputs
from leanrecon.progress import Progress
from leanrecon.stages.repair import mend
from leanrecon.stores import Store
from leanrecon.study.costs import total
from leanrecon.study.verify import find_damage

pytestmark = pytest.mark.slow

REST: dict[str, Any] = {
    "features": {"pca": {"components": 4}},
    "regression": {"alpha": 10.0},
    "evaluate": {"permutations": 0, "resamples": 100},
}


def contents(root: Path) -> dict[str, bytes]:
    """All files but those that name files or times."""
    own = {"sources.json", "study.toml", "run.json", "report.html"}
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in own}


def run(dataset: dict[str, Any], study: Any, until: str | None = "dataset", **rest: Any) -> None:
    leanrecon.run({"dataset": dataset, **REST, **rest}, study=study, until=until, progress=Progress())


def nifti(folder: Path) -> dict[str, Any]:
    write_lab(folder)
    named = {"betas": "sub-01_run-*_betas.nii.gz", "mask": "mask.nii.gz", "trials": "trials.tsv", "images": "images"}
    return {"kind": "nifti"} | {name: f"@/{of}" for name, of in (named | {"areas": "areas/*.nii.gz"}).items()}


def nifti_plain(folder: Path) -> dict[str, Any]:
    write_lab(folder, ending="nii", nifti2=True, scaled=True)
    named = {"betas": "sub-01_run-?_betas.nii", "trials": "trials.tsv", "images": "images"}
    (folder / "ids.txt").write_text("scene_00.png\nscene_03.png\n")
    return {"kind": "nifti", "check": "warn"} | {
        name: f"@/{of}" for name, of in (named | {"test_ids": "ids.txt"}).items()
    }


def bdata(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    write_images(folder / "images")
    write_bdata(folder / "train.h5", np.repeat(IDS[:4], 3))
    write_bdata(folder / "test.h5", np.repeat(IDS[4:], 3))
    return {"kind": "bdpy", "train": "@/train.h5", "test": "@/test.h5", "images": "@/images", "check": "warn"}


def bdata_matlab(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    write_images(folder / "images")
    write_bdata(folder / "all.mat", np.repeat(IDS, 3), np.repeat([1, 1, 1, 1, 2, 2], 3), form="mat 5")
    return {"kind": "bdpy", "path": "@/all.mat", "images": "@/images", "check": "warn"}


def in_root(kind: str, write: Callable[[Path], Any], **settings: Any) -> Callable[[Path], dict[str, Any]]:
    def written(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        write(folder / "root")
        return {"kind": kind, "root": "@/root", **settings}

    return written


def glmsingle(folder: Path) -> dict[str, Any]:
    _, names = write_glmsingle(folder, ending="hdf5")
    (folder / "trials.csv").write_text("stimulus\n" + "".join(f"{name}.png\n" for name in names))
    return {"kind": "glmsingle", "root": "@", "trials": "@/trials.csv", "images": "@/images", "test_fraction": 0.3}


KINDS = {
    "nifti": nifti,
    "nifti plain": nifti_plain,
    "bdpy": bdata,
    "bdpy matlab": bdata_matlab,
    "algonauts": in_root("algonauts", write_algonauts, subject=5, test_fraction=0.2),
    "brain-diffuser": in_root("brain-diffuser", write_brain_diffuser, subject=2),
    "mindeye": in_root("mindeye", write_mindeye, subject=3, check="warn"),
    "miyawaki": in_root("miyawaki", write_miyawaki),
    "glmsingle": glmsingle,
}


def at(dataset: dict[str, Any], folder: object) -> dict[str, Any]:
    """The settings with the folder in place of @."""
    return {name: of.replace("@", str(folder)) if isinstance(of, str) else of for name, of in dataset.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_read_from_a_bucket(kind: str, proxy: Proxy, tmp_path: Path) -> None:
    dataset = KINDS[kind](tmp_path / "in")
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(tmp_path / "in", root)
    run(at(dataset, tmp_path / "in"), tmp_path / "here")
    chosen = np.random.default_rng(2).random(100_000) < 0.1
    proxy.choose = lambda number, *_: "truncate" if chosen[number] else None
    run(at(dataset, root), tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    told = (tmp_path / "there/study.toml").read_text()
    assert str(root) in told
    assert str(tmp_path) not in told.replace(str(root), "")


# Requests and memory


def big_arrays(folder: Path, form: str) -> dict[str, str]:
    rng = np.random.default_rng(0)
    arrays = {
        "betas_train": rng.standard_normal((1500, 8000)).astype(np.float32),
        "betas_test": rng.standard_normal((300, 8000)).astype(np.float32),
        "stimuli_train": rng.integers(0, 256, (1500, 64, 64, 3), np.uint8),
        "stimuli_test": rng.integers(0, 256, (300, 64, 64, 3), np.uint8),
    }
    folder.mkdir()
    for name, array in arrays.items():
        if form == "npy":
            np.save(folder / f"{name}.npy", array)
        else:
            path = str(folder / f"{name}.zarr")
            zarr.create_array(path, shape=array.shape, dtype=array.dtype, chunks=(100, *array.shape[1:]))[:] = array
    return {"kind": "arrays"} | {name: f"@/{name}.{form}" for name in arrays}


@pytest.mark.parametrize("form", ["npy", "zarr"])
@pytest.mark.parametrize("where", ["here", pytest.param("bucket", marks=pytest.mark.long)])
def test_inputs_ask_for_what_was_planned(form: str, where: str, proxy: Proxy, tmp_path: Path) -> None:
    dataset = big_arrays(tmp_path / "in", form)
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(tmp_path / "in", root)
    away = {"dataset": at(dataset, root), **REST}
    study = tmp_path / "study" if where == "here" else buckets.at(f"{tmp_path.name}/study")
    proxy.answers.clear()
    planned = total(stage.cost for stage in leanrecon.plan(away, study=study, until="dataset"))
    headers = sum(answer.nbytes for answer in proxy.answers)
    assert headers <= 4 * inputs.PAGE, "a plan reads headers alone"
    inputs._PAGES._of.clear()
    proxy.answers.clear()
    leanrecon.run(away, study=study, until="dataset", progress=Progress())
    read = [answer for answer in proxy.answers if answer.method in ("GET", "HEAD")]
    if where == "here":
        assert len(read) == len(proxy.answers)
        assert len(read) == pytest.approx(planned.asked, rel=0.05)
        assert proxy.nbytes() == pytest.approx(planned.received, rel=0.05)
    else:
        wrote = [answer for answer in proxy.answers if answer.method in ("PUT", "POST") or "list-type" in answer.path]
        listed = [answer for answer in read if "list-type" in answer.path]
        assert len(read) - len(listed) + len(wrote) == pytest.approx(planned.gets + planned.puts, rel=0.05)


@pytest.mark.parametrize("form", ["npy", "zarr"])
def test_memory_stays_under_the_plan(form: str, s3: str, tmp_path: Path) -> None:
    dataset = big_arrays(tmp_path / "in", form)
    root = buckets.at(f"{tmp_path.name}/in")
    with buckets.environment(s3, cache=tmp_path) as variables:
        buckets.put(tmp_path / "in", root)
        lines = [f'{name} = "{of}"' for name, of in at(dataset, root).items()]
        (tmp_path / "s.toml").write_text('memory = "400MB"\n[dataset]\n' + "\n".join(lines) + "\n")
        told = subprocess.run(
            [sys.executable, "-m", "leanrecon", "run", "s.toml", "--study", "study", "--until", "dataset"],
            cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert told.returncode == 0, told.stderr
    record = json.loads((tmp_path / "study/run.json").read_text())["stages"]["dataset"]
    print(f"{form}: {record['peak_bytes'] / 1e6:.0f} MB of {record['planned_bytes'] / 1e6:.0f} MB planned")
    assert 0.4 * record["planned_bytes"] <= record["peak_bytes"] <= record["planned_bytes"]


# Features


def test_precomputed_features_are_read_from_a_bucket_to_the_last_figure(proxy: Proxy, tmp_path: Path) -> None:
    files = tmp_path / "in"
    files.mkdir()
    dataset = at(write_small(files), files)
    root = buckets.at(f"{tmp_path.name}/in")
    rng = np.random.default_rng(5)
    np.save(files / "train.npy", rng.standard_normal((40, 30)).astype(np.float32))
    np.save(files / "test.npy", rng.standard_normal((8, 30)).astype(np.float32))
    buckets.put(files, root)
    own = {"kind": "precomputed", "train": "@/train.npy", "test": "@/test.npy"}
    spaces = lambda folder: {"features": {"pca": {"components": 4}, "mine": at(own, folder)}}  # noqa: E731
    run(dataset, tmp_path / "here", None, **spaces(files))
    chosen = np.random.default_rng(2).random(100_000) < 0.2
    proxy.choose = lambda number, *_: "503" if chosen[number] else None
    run(at(write_small(files), root), tmp_path / "there", None, **spaces(root))
    ids = {name for name in contents(tmp_path / "here") if "sources" in name}
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert {name: of for name, of in there.items() if name not in ids} == {
        name: of for name, of in here.items() if name not in ids
    }
    page = (tmp_path / "there/report.html").read_text()
    assert "train.npy" in page
    for text in (page, (tmp_path / "there/study.toml").read_text(), (tmp_path / "there/run.json").read_text()):
        assert buckets.KEY not in text
        assert buckets.SECRET not in text


def write_small(folder: Path) -> dict[str, str]:
    rng = np.random.default_rng(1)
    arrays = {
        "betas_train": rng.standard_normal((40, 30)).astype(np.float32),
        "betas_test": rng.standard_normal((8, 30)).astype(np.float32),
        "stimuli_train": rng.integers(0, 256, (40, 16, 16, 3), np.uint8),
        "stimuli_test": rng.integers(0, 256, (8, 16, 16, 3), np.uint8),
        "runs_train": np.arange(40) // 8,
        "runs_test": np.arange(8) // 4,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "captions.json").write_text(json.dumps({"train": [f"a {k}" for k in range(40)]}))
    (folder / "captions_test.txt").write_text("".join(f"b {k}\tc\n" for k in range(8)))
    (folder / "areas.txt").write_text("".join(f"{'V1' if k < 20 else 'V4'}\n" for k in range(30)))
    small = {"captions_train": "captions.json:train", "captions_test": "captions_test.txt", "areas": "areas.txt"}
    return {"kind": "arrays"} | {name: f"@/{name}.npy" for name in arrays} | {n: f"@/{of}" for n, of in small.items()}


def test_features_ask_for_what_was_planned(proxy: Proxy, tmp_path: Path) -> None:
    files, rng = tmp_path / "in", np.random.default_rng(0)
    files.mkdir()
    arrays = {
        "betas_train": (1600, 20),
        "betas_test": (300, 20),
        "stimuli_train": (1600, 8, 8, 3),
        "stimuli_test": (300, 8, 8, 3),
    }
    for name, shape in arrays.items():
        values = rng.integers(0, 256, shape)
        np.save(files / f"{name}.npy", values.astype(np.uint8 if name.startswith("stimuli") else np.float32))
    for split, n in (("train", 1600), ("test", 300)):
        np.save(files / f"{split}.npy", rng.standard_normal((n, 6000)).astype(np.float32))
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(files, root)
    dataset = {"kind": "arrays"} | {name: str(files / f"{name}.npy") for name in arrays}
    features = {"mine": at({"kind": "precomputed", "train": "@/train.npy", "test": "@/test.npy"}, root)}
    run(dataset, tmp_path / "study", features=features)
    settings = {"dataset": dataset, "features": features}
    planned = total(stage.cost for stage in leanrecon.plan(settings, study=tmp_path / "study", until="features"))
    inputs._PAGES._of.clear()
    proxy.answers.clear()
    leanrecon.run(settings, study=tmp_path / "study", until="features", progress=Progress())
    assert len(proxy.answers) == pytest.approx(planned.asked, rel=0.05)
    assert proxy.nbytes() == pytest.approx(planned.received, rel=0.02)


def test_images_that_were_added_later_are_found(proxy: Proxy, tmp_path: Path) -> None:
    dataset = bdata(tmp_path / "in")
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(tmp_path / "in", root)
    file = next(file for file in (root / "images").files())
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(InputError, match="1 images of the table are not in s3://"):
        run(at(dataset, root), tmp_path / "study")
    file.write_bytes(data)
    run(at(dataset, root), tmp_path / "study")


def write_repeats(files: Path, dtype: Any, images: int = 30, voxels: int = 6000, side: int = 16) -> dict[str, Any]:
    """Three rows of each image in random order, as arrays."""
    rng = np.random.default_rng(3)
    files.mkdir()
    order = rng.permutation(np.repeat(np.arange(images), 3))
    betas = rng.standard_normal((3 * images, voxels))
    np.save(files / "betas.npy", (betas * 1000 if np.dtype(dtype).kind == "i" else betas).astype(dtype))
    np.save(files / "images.npy", rng.integers(0, 256, (images, side, side, 3), np.uint8)[order])
    return {"kind": "arrays", "betas": "@/betas.npy", "stimuli": "@/images.npy"}


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<i2"])
@pytest.mark.parametrize(
    "how",
    [
        {"test_fraction": 0.2, "repeats": "average", "test_repeats": "average"},
        {"folds": 3, "repeats": "average", "test_repeats": "average"},
        {"test_fraction": 0.2, "mask": "mask.npy", "min_reliability": -0.99},
    ],
)
def test_rows_of_an_image_that_lie_apart_are_read_once(
    how: dict[str, Any], dtype: str, proxy: Proxy, tmp_path: Path
) -> None:
    files = tmp_path / "in"
    dataset = write_repeats(files, dtype) | how
    if "mask" in how:
        np.save(tmp_path / how["mask"], np.arange(6000) % 2 == 0)
        dataset["mask"] = str(tmp_path / how["mask"])
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(files, root)
    run(at(dataset, files), tmp_path / "here")
    settings = {"dataset": at(dataset, root), **REST}
    planned = total(stage.cost for stage in leanrecon.plan(settings, study=tmp_path / "there", until="dataset"))
    inputs._PAGES._of.clear()
    proxy.answers.clear()
    leanrecon.run(settings, study=tmp_path / "there", until="dataset", progress=Progress())
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(proxy.answers) == pytest.approx(planned.asked, abs=3)
    assert proxy.nbytes() == pytest.approx(planned.received, rel=0.05)
    assert not (tmp_path / "there/betas/nearby").exists()


def test_a_copy_that_was_not_completed_is_continued(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "in"
    dataset = write_repeats(files, "<f4", images=300, voxels=500, side=8) | {"test_fraction": 0.2, "repeats": "average"}
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(files, root)
    settings = {"dataset": at(dataset, root), **REST, "stores": {"chunk": "300kB"}}
    leanrecon.run(
        settings | {"dataset": at(dataset, files)}, study=tmp_path / "here", until="dataset", progress=Progress()
    )
    written: list[int] = []
    write = Store.write_rows

    def stopping(store: Store, i: int, block: Any) -> None:
        if "nearby" in str(store.path):
            written.append(i)
            if len(written) == 3:
                raise KeyboardInterrupt
        write(store, i, block)

    monkeypatch.setattr(Store, "write_rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        leanrecon.run(settings, study=tmp_path / "there", until="dataset", progress=Progress())
    monkeypatch.setattr(Store, "write_rows", write)
    copied = [path for path in (tmp_path / "there/betas/nearby").rglob("c/*/*") if path.is_file()]
    assert copied
    leanrecon.run(settings, study=tmp_path / "there", until="dataset", progress=Progress())
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert not (tmp_path / "there/betas/nearby").exists()


def test_a_damaged_chunk_is_made_again_from_the_bucket(proxy: Proxy, tmp_path: Path) -> None:
    files = tmp_path / "in"
    files.mkdir()
    dataset = write_small(files)
    root = buckets.at(f"{tmp_path.name}/in")
    buckets.put(files, root)
    run(at(dataset, root), tmp_path / "study")
    before = contents(tmp_path / "study")
    study = as_location(tmp_path / "study")
    Store.open(study / "betas/train.zarr").chunk_path(0).write_bytes(b"harm")
    damaged = find_damage(study)
    assert [one.path.relative_to(study) for one in damaged] == ["betas/train.zarr"]
    mend(study, damaged)
    assert contents(tmp_path / "study") == before
