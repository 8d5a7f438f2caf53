"""Two simulated subjects of NSD in a group: some of the images that both saw are train images."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat

from leanrecon.context import Context
from leanrecon.datasets.group.dataset import Group, GroupSettings
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.layout import DESIGN
from leanrecon.datasets.nsd.simulate import simulate_nsd
from leanrecon.errors import InputError
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows

pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nsd-group")
    for subject in (1, 2):
        simulate_nsd(root / f"files{subject}", subject=subject, sessions=2, scale=0.1, formats=["hdf5"])
        settings = NSDSettings(root=str(root / f"files{subject}"), subject=subject, sessions=2, shared_train=500)
        NSD(settings).ingest(Study(root / f"subj{subject}"), base_dir=None, context=Context.of(chunk=100_000))
    return root


def seen(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the shared images of two sessions, from 0, and which of the 1,000 they are."""
    design = loadmat(root / "files1" / DESIGN)
    shown = np.unique(design["masterordering"][0, : 2 * 750].astype(int))
    shown = shown[shown <= 1000]
    return design["subjectim"][0, shown - 1].astype(int) - 1, shown - 1


def test_every_second_shared_image_is_a_train_image(root: Path) -> None:
    numbers, places = seen(root)
    for subject in (1, 2):
        rows = Rows.read(Study(root / f"subj{subject}"))
        train, test = ({int(name) for name in rows.ids[split]} for split in ("train", "test"))
        assert test == set(numbers[places % 2 == 1].tolist())
        assert train & set(numbers.tolist()) == set(numbers[places % 2 == 0].tolist())


def test_a_group_learns_from_them_and_tests_the_others(root: Path, tmp_path: Path) -> None:
    numbers, places = seen(root)
    settings = GroupSettings(members=[str(root / "subj1"), str(root / "subj2")], alignment={"kind": "pca", "k": 8})
    Group(settings).ingest(Study(tmp_path / "group"), base_dir=None, context=Context.of(chunk=100_000))
    with np.load(tmp_path / "group" / "betas" / "alignment.npz") as kept:
        assert len(kept["left out subj1"]) == len(kept["left out subj2"]) == (places % 2 == 0).sum() >= 20
    rows = Rows.read(Study(tmp_path / "group"))
    assert {int(name) for name in rows.ids["test"]} == set(numbers[places % 2 == 1].tolist())


def test_without_them_subjects_have_no_train_image_in_common(root: Path, tmp_path: Path) -> None:
    members = []
    for subject in (1, 2):
        settings = NSDSettings(root=str(root / f"files{subject}"), subject=subject, sessions=2)
        study = Study(tmp_path / f"subj{subject}")
        NSD(settings).ingest(study, base_dir=None, context=Context.of(chunk=100_000))
        members.append(str(study.root))
    with pytest.raises(InputError, match="shared_train"):
        Group(GroupSettings(members=members, alignment={"kind": "pca", "k": 8})).ingest(
            Study(tmp_path / "group"), base_dir=None, context=Context.of(chunk=100_000)
        )
