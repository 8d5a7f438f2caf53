"""The small NSD is laid out as the large one is, and stays small."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from leanrecon.datasets.nsd_layout import DESIGN, STIMULI, SubjectFiles
from leanrecon.datasets.nsd_simulate import draw_design, simulate_nsd
from leanrecon.datasets.scenes import Scene, draw_scene
from leanrecon.errors import SettingsError

nibabel = pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")

NAMES = SubjectFiles(1)


def test_every_image_is_shown_three_times_and_a_thousand_to_everyone() -> None:
    order, images = draw_design(3)
    assert order.shape == (30_000,)
    assert np.array_equal(np.bincount(order)[1:], np.full(10_000, 3))
    assert images.shape == (8, 10_000)
    assert (images[:, :1000] == images[0, :1000]).all()
    assert np.array_equal(np.unique(images), np.arange(1, 73_001))
    assert not np.array_equal(order, draw_design(4)[0])


def test_repeats_come_within_and_across_sessions() -> None:
    order, _ = draw_design(0)
    shown = [np.bincount(np.bincount(order[: 750 * sessions])[1:], minlength=4)[1:] for sessions in (1, 2, 37)]
    assert all((counts > 0).all() for counts in shown[:2]), "images shown once, twice and three times from the start"
    assert shown[0].sum() > 300


def test_betas_are_laid_out_as_matlab_does(small_nsd: Path) -> None:
    volume = nibabel.load(small_nsd / NAMES.betas(1, "nii.gz"))
    assert volume.shape == (16, 21, 17, 750)
    assert volume.get_data_dtype() == np.int16
    with h5py.File(small_nsd / NAMES.betas(1, "hdf5")) as file:
        betas = file["betas"]
        assert (betas.shape, betas.chunks, betas.dtype) == ((750, 17, 21, 16), (750, 1, 1, 1), np.int16)
        assert betas.compression is None
        assert np.array_equal(betas[:].transpose(3, 2, 1, 0), np.asarray(volume.dataobj))
    mask = nibabel.load(small_nsd / NAMES.roi("nsdgeneral"))
    assert mask.shape == volume.shape[:3]
    assert not np.array_equal(mask.affine, volume.affine), "as in NSD, where some betas carry none"
    inside = np.asarray(volume.dataobj)[mask.get_fdata() > 0] / 300
    assert 0.5 < inside.std() < 5, "percent signal change"
    assert not np.asarray(volume.dataobj)[0, 0, 0].any(), "nothing at the edge"


def test_all_images_have_a_place_and_only_those_shown_take_room(small_nsd: Path) -> None:
    design = loadmat(small_nsd / DESIGN)
    shown = np.unique(design["subjectim"][0, design["masterordering"][0, :1500].astype(int) - 1]).astype(int) - 1
    with h5py.File(small_nsd / STIMULI) as file:
        bricks = file["imgBrick"]
        assert (bricks.shape, bricks.dtype) == ((73_000, 85, 85, 3), np.uint8)
        assert bricks.id.get_num_chunks() == len(shown)
        assert np.array_equal(bricks[shown[5]], draw_scene(0, int(shown[5]), 85)[0])
    assert (small_nsd / STIMULI).stat().st_size < 1.05 * len(shown) * 85 * 85 * 3
    captions = np.load(small_nsd / "COCO_73k_annots_curated.npy", mmap_mode="r")
    assert captions.shape == (73_000, 5)
    assert captions[shown[5]][0] == draw_scene(0, int(shown[5]), 16)[1]


def test_the_same_seed_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nsd_simulate", "cortex"):  # scenes have tests of their own, and take their time
        monkeypatch.setattr(f"leanrecon.datasets.{module}.paint", flat)

    def digests(folder: Path, **how: object) -> dict[str, str]:
        simulate_nsd(folder, scale=0.1, sessions=[2], formats=["nii.gz"], **how)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    one, same = digests(tmp_path / "1", subject=3), digests(tmp_path / "2", subject=3)
    assert one == same
    assert [name for name in one if "session" in name] == [SubjectFiles(3).betas(2, "nii.gz")]


def flat(scene: Scene, size: int) -> np.ndarray:
    return np.full((size, size, 3), int(255 * scene.horizon), np.uint8)


@pytest.mark.parametrize(("how", "said"), [({"scale": 0.01}, "from 0.1 to 1"), ({"sessions": 41}, "subject 1 has 40")])
def test_what_cannot_be_simulated_is_refused(tmp_path: Path, how, said) -> None:
    with pytest.raises(SettingsError, match=said):
        simulate_nsd(tmp_path, **how)
    assert list(tmp_path.iterdir()) == []
