"""Members whose voxels lie partly outside of a mask, NaN in all their rows: groups and joins leave these out."""

from pathlib import Path

import numpy as np
import pytest
from support.arrays import read

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.group.dataset import Group, GroupSettings
from leanrecon.datasets.group.joined import Joined, JoinedSettings
from leanrecon.errors import InputError
from leanrecon.study.layout import Study

RNG = np.random.default_rng(2)
SMALL = RNG.integers(0, 256, (60, 3, 3, 3), np.uint8)
PICTURES = SMALL.repeat(2, axis=1).repeat(2, axis=2)
LATENT = (SMALL.reshape(60, -1) / 128.0 - 1) @ RNG.normal(size=(27, 4))
OUTSIDE = {"anna": [], "ben": [3, 8], "eve": [0, 8, 11]}
"""Voxels that are NaN in every row of a subject."""
VOXELS = 12


def betas_of(name: str, shown: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, name)))
    mixing = rng.normal(size=(4, VOXELS))
    betas = (LATENT[shown] @ mixing + 2 + 0.3 * rng.normal(size=(len(shown), VOXELS))).astype(np.float32)
    betas[:, OUTSIDE[name]] = np.nan
    return betas


def member(root: Path, name: str, *, dropped: bool = False) -> str:
    """A member's study; ``dropped``: without its voxels outside of the mask."""
    files = {}
    for split, shown in (("train", np.arange(50)), ("test", np.arange(50, 60))):
        betas = betas_of(name, shown)
        betas = np.delete(betas, OUTSIDE[name], axis=1) if dropped else betas
        for role, values in (("betas", betas), ("stimuli", PICTURES[shown])):
            files[f"{role}_{split}"] = str(root / f"{name}{dropped}_{role}_{split}.npy")
            np.save(files[f"{role}_{split}"], values)
    folder = root / str(dropped) / name
    Arrays(ArraysSettings(**files)).ingest(Study(folder), base_dir=None, context=Context.of())
    return str(folder)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, str]]:
    root = tmp_path_factory.mktemp("masked")
    return {dropped: {name: member(root, name, dropped=dropped) for name in OUTSIDE} for dropped in (True, False)}


def group(members: dict[str, str], folder: Path, alignment: object, names: tuple[str, ...] = tuple(OUTSIDE)) -> Study:
    settings = GroupSettings(members=[members[name] for name in names], alignment=alignment, average=True)
    Group(settings).ingest(Study(folder), base_dir=None, context=Context.of())
    return Study(folder)


@pytest.mark.parametrize("kind", ["srm", "pca", "procrustes"])
def test_a_group_is_aligned_as_without_them(members: dict, tmp_path: Path, kind: str) -> None:
    found, expected = (
        group(members[dropped], tmp_path / str(dropped), {"kind": kind, "k": 4}) for dropped in (False, True)
    )
    for split in ("train", "test"):
        np.testing.assert_allclose(read(found.betas(split)), read(expected.betas(split)), atol=1e-5)


def test_without_alignment_all_subjects_lack_what_one_lacks(members: dict, tmp_path: Path) -> None:
    study = group(members[False], tmp_path / "study", "none")
    outside = sorted(set().union(*OUTSIDE.values()))
    for split, shown in (("train", np.arange(50)), ("test", np.arange(50, 60))):
        each = [betas_of(name, shown) for name in OUTSIDE]
        expected = np.concatenate([*each, np.mean(each, axis=0)] if split == "test" else each)
        expected[:, outside] = np.nan
        np.testing.assert_allclose(read(study.betas(split)), expected, rtol=1e-6)


def test_masks_that_do_not_overlap_are_refused(members: dict, tmp_path: Path) -> None:
    halves = {}
    for name, outside in (("ben", np.arange(6)), ("eve", np.arange(6, 12))):
        files = {}
        for split, shown in (("train", np.arange(50)), ("test", np.arange(50, 60))):
            betas = RNG.normal(size=(len(shown), VOXELS)).astype(np.float32)
            betas[:, outside] = np.nan
            for role, values in (("betas", betas), ("stimuli", PICTURES[shown])):
                files[f"{role}_{split}"] = str(tmp_path / f"{name}_{role}_{split}.npy")
                np.save(files[f"{role}_{split}"], values)
        halves[name] = str(tmp_path / name)
        Arrays(ArraysSettings(**files)).ingest(Study(halves[name]), base_dir=None, context=Context.of())
    with pytest.raises(InputError, match="no voxel has betas in every subject"):
        group(halves, tmp_path / "study", "none", ("ben", "eve"))


@pytest.mark.parametrize("route", ["group", "own", "auto"])
def test_a_subject_joins_as_without_them(members: dict, tmp_path: Path, route: str) -> None:
    stores = {}
    for dropped in (False, True):
        of = group(members[dropped], tmp_path / f"group{dropped}", {"kind": "pca", "k": 4}, ("anna", "ben"))
        settings = JoinedSettings(joins=str(of.root), member=members[dropped]["eve"], route=route)
        study = Study(tmp_path / f"joined{dropped}")
        Joined(settings).ingest(study, base_dir=None, context=Context.of())
        stores[dropped] = {split: read(study.betas(split)) for split in ("train", "test")}
    for split, found in stores[False].items():
        kept = ~np.isnan(found[0])
        assert kept.sum() == (9 if kept.size == VOXELS else 4)
        np.testing.assert_allclose(found[:, kept], stores[True][split], atol=1e-4)


def test_a_subject_joins_a_group_that_lacks_voxels(members: dict, tmp_path: Path) -> None:
    """Its rows lack the group's voxels too; the others are those of a ridge to each voxel."""
    of = group(members[False], tmp_path / "group", "none", ("anna", "ben"))
    settings = JoinedSettings(joins=str(of.root), member=members[False]["eve"], route="group")
    study = Study(tmp_path / "joined")
    Joined(settings).ingest(study, base_dir=None, context=Context.of())
    train, test = read(study.betas("train")), read(study.betas("test"))
    for rows in (train, test):
        assert np.flatnonzero(np.isnan(rows).all(axis=0)).tolist() == OUTSIDE["ben"]
        assert np.isfinite(np.delete(rows, OUTSIDE["ben"], axis=1)).all()
    truth = np.delete(np.mean([betas_of(name, np.arange(50, 60)) for name in ("anna", "ben")], axis=0), [3, 8], axis=1)
    found = np.delete(test, OUTSIDE["ben"], axis=1)
    assert np.corrcoef(found.ravel() - truth.mean(), truth.ravel() - truth.mean())[0, 1] > 0.9
    auto = JoinedSettings(joins=str(of.root), member=members[False]["eve"], route="auto")
    Joined(auto).ingest(Study(tmp_path / "auto"), base_dir=None, context=Context.of())
    with np.load(tmp_path / "auto" / "betas" / "alignment.npz") as kept:
        assert np.isfinite([kept["group predicts"], kept["own predicts"]]).all()
