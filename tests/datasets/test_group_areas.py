"""Groups over some areas of their members, and members that don't fit: an area that one lacks, other pictures."""

from pathlib import Path

import numpy as np
import pytest
from support.arrays import read

import leanrecon
from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.group.dataset import Group, GroupSettings
from leanrecon.datasets.group.joined import Joined, JoinedSettings
from leanrecon.errors import InputError, SettingsError
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows

RNG = np.random.default_rng(3)
PICTURES = RNG.integers(0, 256, (60, 6, 6, 3), np.uint8)
LATENT = RNG.normal(size=(60, 4))
AREAS = {
    "anna": ["V1"] * 5 + ["V2"] * 4 + ["V4"] * 3,
    "ben": ["V4"] * 4 + ["V1"] * 6 + [""] * 2,
    "eve": ["V2", "V1"] * 6,
}
BETAS = {
    name: (LATENT @ RNG.normal(size=(4, 12)) + 0.3 * RNG.normal(size=(60, 12))).astype(np.float32) for name in AREAS
}


def member(folder: Path, name: str, *, areas: bool = True, **settings: object) -> str:
    """A member's study."""
    folder.mkdir(exist_ok=True)
    for split, shown in (("train", np.arange(50)), ("test", np.arange(50, 60))):
        for role, values in (("betas", BETAS[name][shown]), ("stimuli", PICTURES[shown])):
            settings[f"{role}_{split}"] = str(folder / f"{name}_{role}_{split}.npy")
            np.save(str(settings[f"{role}_{split}"]), values)
    if areas:
        settings["areas"] = str(folder / f"{name}_areas.npy")
        np.save(str(settings["areas"]), np.array(AREAS[name]))
    given = ArraysSettings(**settings)
    Arrays(given).ingest(Study(folder / name), base_dir=None, context=Context.of(chunk=1500))
    return str(folder / name)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("areas")
    for name in AREAS:
        member(root, name)
    return root


def group(members: list[str], folder: Path, **changes: object) -> Study:
    settings = GroupSettings(**({"members": members, "alignment": {"kind": "pca", "k": 3}} | changes))
    Group(settings).ingest(Study(folder), base_dir=None, context=Context.of(chunk=1500))
    return Study(folder)


@pytest.mark.parametrize("voxels", ["V1", ["V4", "V1"]])
def test_a_group_of_some_areas_is_that_of_members_with_these_alone(
    root: Path, tmp_path: Path, voxels: str | list[str]
) -> None:
    whole = [str(root / name) for name in ("anna", "ben")]
    alone = [member(tmp_path, name, voxels=voxels) for name in ("anna", "ben")]
    found = group(whole, tmp_path / "group", voxels=voxels)
    expected = group(alone, tmp_path / "expected")
    for split in ("train", "test"):
        np.testing.assert_array_equal(read(found.betas(split)), read(expected.betas(split)))
    settings = GroupSettings(members=whole, alignment="srm", voxels=voxels)
    assert any("alone" in note and "V1" in note for note in Group.notes(settings))


def test_an_area_that_a_member_lacks_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    members = [str(root / name) for name in AREAS]
    with pytest.raises(InputError, match=r"eve has no area V4.*those of eve are V1, V2.*leave eve out of the group"):
        group(members, tmp_path / "study", voxels=["V1", "V4"])
    with pytest.raises(InputError, match=r"ben has no area V2"):
        Group(GroupSettings(members=members, voxels="V2")).plan(base_dir=None, chunk=1500, free=10**9)
    bare = member(tmp_path / "bare", "ben", areas=False)
    with pytest.raises(InputError, match=r"dataset\.voxels: the study of ben does not say which area"):
        group([members[0], bare], tmp_path / "study", voxels="V1")
    assert not (tmp_path / "study").exists()


def test_areas_of_a_shared_space_are_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    dataset = {"kind": "group", "members": [str(root / name) for name in AREAS]}
    with pytest.raises(SettingsError, match=r"\[areas\]: dimensions of .* have no area.*dataset\.voxels of a group"):
        leanrecon.run({"dataset": dataset, "areas": {"early": ["V1"]}}, study=tmp_path / "study", until="dataset")
    with pytest.raises(SettingsError, match=r"\[areas\]: dimensions of .* have no area"):
        leanrecon.plan({"dataset": dataset, "areas": {"early": ["V1"]}})
    assert not (tmp_path / "study" / "betas").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_another_picture_under_the_same_id_is_refused(
    root: Path, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows.read(Study(root / "ben"))
    changed = PICTURES.copy()
    changed[{"train": 17, "test": 52}[split], 3, 2, 1] ^= 1
    monkeypatch.setitem(globals(), "PICTURES", changed)
    other = member(tmp_path, "ben")
    number = {"train": 17, "test": 2}[split]
    rows.write(Study(other))  # the ids of the unchanged pictures
    members = [str(root / "anna"), other]
    words = f"image {rows.ids[split][number]} of anna and of ben are different pictures"
    with pytest.raises(InputError, match=words):
        group(members, tmp_path / "study")
    assert not (tmp_path / "study" / "betas" / "alignment.npz").exists()
    of = group([str(root / "anna"), str(root / "eve")], tmp_path / "group")
    if split == "train":
        settings = JoinedSettings(joins=str(of.root), member=other, route="group")
        with pytest.raises(InputError, match=f"image {rows.ids[split][number]} of the group and of ben"):
            Joined(settings).ingest(Study(tmp_path / "joined"), base_dir=None, context=Context.of(chunk=1500))
