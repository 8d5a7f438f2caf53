"""A lab's own NIfTI files become a study: equal to the truth, in bounded memory, refused where they don't fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lab import AFFINE, SHAPE, Lab, write_lab

from leanrecon.api import open as open_study
from leanrecon.api import run
from leanrecon.errors import InputError

pytest.importorskip("nibabel", reason="NIfTI files need nibabel")


def study(lab: Lab, name: str = "study", **settings: Any) -> Any:
    overrides = [f"dataset.{key}={value}" for key, value in settings.items()]
    run(str(lab.folder / "s.toml"), study=lab.folder / name, until="dataset", set=overrides)
    return open_study(lab.folder / name)


def expected(lab: Lab, split: str, betas: np.ndarray, *, average: bool = True) -> np.ndarray:
    rows = [t for t, of in enumerate(lab.split) if of == split]
    if not average:
        return betas[rows]
    names = list(dict.fromkeys(lab.stimulus[t] for t in rows))
    return np.array([betas[[t for t in rows if lab.stimulus[t] == name]].mean(axis=0) for name in names])


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ({"ending": "nii.gz"}, 1e-6),
        ({"ending": "nii"}, 1e-6),
        ({"ending": "nii.gz", "big_endian": True}, 1e-6),
        ({"ending": "nii", "nifti2": True}, 1e-6),
        ({"ending": "nii.gz", "scaled": True}, 2e-3),  # int16 steps
    ],
)
def test_betas_are_means_over_repeats_whatever_the_form(tmp_path: Path, form: dict[str, Any], tolerance: float) -> None:
    lab = write_lab(tmp_path / "lab", **form)
    made = study(lab)
    for split in ("train", "test"):
        np.testing.assert_allclose(made.betas(split), expected(lab, split, lab.betas), atol=tolerance)


def zscored(betas: np.ndarray, groups: Any, used: np.ndarray) -> np.ndarray:
    out = np.empty_like(betas, dtype="f8")
    for group in np.unique(groups):
        own = groups == group
        out[own] = (betas[own] - betas[own & used].mean(axis=0)) / betas[own & used].std(axis=0)
    return out


@pytest.mark.parametrize("by", ["run", "train"])
def test_z_scores_are_those_of_each_run_or_of_the_train_trials(tmp_path: Path, by: str) -> None:
    lab = write_lab(tmp_path / "lab")
    made = study(lab, zscore=by, repeats="single")
    train = np.array([split == "train" for split in lab.split])
    values = (
        zscored(lab.betas, np.array(lab.run), train | True) if by == "run" else zscored(lab.betas, train * 0, train)
    )
    np.testing.assert_allclose(made.betas("train"), expected(lab, "train", values, average=False), atol=1e-5)
    np.testing.assert_allclose(made.betas("test"), expected(lab, "test", values), atol=1e-5)


def test_each_image_is_stored_once_under_its_file_name(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    made = study(lab)
    ids = json.loads((lab.folder / "study" / "stimuli" / "ids.json").read_text())["test"]
    assert ids == list(
        dict.fromkeys(name for name, split in zip(lab.stimulus, lab.split, strict=True) if split == "test")
    )
    assert all(np.array_equal(image, lab.images[name]) for image, name in zip(made.stimuli("test"), ids, strict=True))


def test_chosen_areas_are_the_voxels_that_are_kept(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    made = study(lab, voxels='["V1"]')
    truth = expected(lab, "train", lab.betas[:, lab.areas["V1"]])
    np.testing.assert_allclose(made.betas("train"), truth, atol=1e-6)


def test_shuffled_tables_are_noticed_by_repeats(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", images=60, runs=4)
    header, *lines = (lab.folder / "trials.tsv").read_text().splitlines()
    fields = [line.split("\t") for line in lines]
    shuffled = np.random.default_rng(1).permutation([line[0] for line in fields]).tolist()
    test = dict(zip(lab.stimulus, lab.split, strict=True))
    table = [header, *("\t".join([name, line[1], test[name]]) for name, line in zip(shuffled, fields, strict=True))]
    (lab.folder / "trials.tsv").write_text("\n".join(table))
    with pytest.raises(InputError, match="trials and images don't match"):
        study(lab)


def test_the_noise_of_voxels_follows_from_repeats(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", images=400, repeats=3, runs=1, noise=0.5)
    made = study(lab, repeats="single", test_repeats="single")
    with np.load(lab.folder / "study" / "betas" / "voxels.npz") as voxels:
        found = voxels["ncsnr"]
    assert made.betas("train").shape[1] == len(found)
    names = sorted(set(lab.stimulus))
    means = np.array([lab.betas[[name == of for of in lab.stimulus]].mean(axis=0) for name in names])
    truth = np.sqrt(np.maximum(means.var(axis=0, ddof=1) - 0.25 / 3, 0)) / 0.5
    np.testing.assert_allclose(found, truth, rtol=0.1)


def other(lab: Lab, **changes: Any) -> None:
    """Write the mask again, with another shape, affine or contents."""
    import nibabel

    shape, affine = changes.get("shape", SHAPE), changes.get("affine", AFFINE)
    values = np.full(shape, changes.get("value", 1), "u1")
    nibabel.save(nibabel.Nifti1Image(values, affine), lab.folder / "mask.nii.gz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (7, 6, 4)}, "7x6x4 voxels"),
        ({"affine": AFFINE @ np.diag([1.0, 1, 1.2, 1])}, "affines"),
        ({"value": 0}, "no voxels"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    lab = write_lab(tmp_path / "lab")
    other(lab, **change)
    with pytest.raises(InputError, match=message):
        study(lab)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines[:-1], "31"),
        (lambda lines: [lines[0].replace("stimulus", "name"), *lines[1:]], "no column 'stimulus'"),
        (lambda lines: [*lines[:-1], lines[-1].replace("scene", "scenery")], "not in"),
        (lambda lines: [*lines[:-1], lines[-1] + "\t1"], "fields"),
        (lambda lines: [line.replace("test", "train") for line in lines], "test split is empty"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, edit: Any, message: str) -> None:
    lab = write_lab(tmp_path / "lab")
    path = lab.folder / "trials.tsv"
    path.write_text("\n".join(edit(path.read_text().splitlines())))
    with pytest.raises(InputError, match=message):
        study(lab)


def test_a_damaged_session_is_refused_by_its_checksum(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    path = lab.folder / "sub-01_run-2_betas.nii.gz"
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum itself
    path.write_bytes(data)
    with pytest.raises(InputError, match="run-2"):
        study(lab)
