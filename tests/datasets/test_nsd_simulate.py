"""The small NSD is laid out as the large one is, and stays small."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from leanrecon.context import Context
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.layout import DESIGN, SHARED, SIMULATED, STIMULI, SubjectFiles
from leanrecon.datasets.nsd.simulate import draw_design, image_scenes, simulate_nsd
from leanrecon.datasets.simulated.cortex import Cortex
from leanrecon.datasets.simulated.scenes import HELD_OUT, TEST, WORDS, Scene, compose, draw_scene
from leanrecon.errors import InputError, SettingsError
from leanrecon.images import resize
from leanrecon.study.layout import Study

nibabel = pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")

pytestmark = pytest.mark.slow

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


@pytest.mark.slow
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
    everyone = set((design["sharedix"][0].astype(int) - 1).tolist())
    shared = np.isin(shown, list(everyone))
    with h5py.File(small_nsd / STIMULI) as file:
        bricks = file["imgBrick"]
        assert (bricks.shape, bricks.dtype) == ((73_000, 85, 85, 3), np.uint8)
        assert bricks.id.get_num_chunks() == len(shown)
        for number in (some := [*(shown[~shared][[0, 5]]), *(shown[shared][[0, 5]])]):
            assert np.array_equal(bricks[number], draw_scene(0, number + TEST * (number in everyone), 85)[0])
    assert (small_nsd / STIMULI).stat().st_size < 1.05 * len(shown) * 85 * 85 * 3
    captions = np.load(small_nsd / "COCO_73k_annots_curated.npy", mmap_mode="r")
    assert captions.shape == (73_000, 5)
    for number in some:
        assert captions[number][0] == draw_scene(0, number + TEST * (number in everyone), 16)[1]


@pytest.mark.slow
def test_images_to_test_on_alone_show_what_is_held_out() -> None:
    _, images = draw_design(5)
    mine, everyone = images[2, SHARED:] - 1, images[2, :SHARED] - 1

    def held_out(numbers: np.ndarray) -> set[tuple[str, str]]:
        scenes = image_scenes(images, 5, numbers)
        return HELD_OUT & {(thing.kind, thing.colour) for scene in scenes for thing in scene.things}

    assert held_out(everyone) == HELD_OUT
    assert held_out(mine[:2000]) == set()
    both = image_scenes(images, 5, np.sort(np.concatenate([mine[:3], everyone[:3]])))
    assert [both[k] for k in np.argsort(np.argsort([*mine[:3], *everyone[:3]]))] == [
        *(compose(5, int(number)) for number in mine[:3]),
        *(compose(5, 1_000_000_000 + int(number)) for number in everyone[:3]),
    ]


def test_a_voxel_answers_to_the_image_and_the_words_of_its_scene(small_nsd: Path) -> None:
    """The mean over repeats is nearest to what a cortex answers to the image in the file, with the words of its caption."""
    design = loadmat(small_nsd / DESIGN)
    order = design["masterordering"][0, :1500].astype(int)
    shown = design["subjectim"][0, order - 1].astype(int) - 1
    mask = nibabel.load(small_nsd / NAMES.roi("nsdgeneral")).get_fdata() > 0
    volumes = [np.asarray(nibabel.load(small_nsd / NAMES.betas(s, "nii.gz")).dataobj)[mask] for s in (1, 2)]
    trials = np.concatenate(volumes, axis=1).T / 300
    place = np.argsort(np.argwhere(mask)[:, 1], kind="stable")  # area by area, from the back on
    cortex = Cortex(1, 64, int(mask.sum()), 1.0, 30_000)
    ventral = cortex.voxels.area == "ventral"
    captions = np.load(small_nsd / "COCO_73k_annots_curated.npy", mmap_mode="r")
    with h5py.File(small_nsd / STIMULI) as file:
        for numbers in (np.unique(shown[order <= SHARED])[:40], np.unique(shown[order > SHARED])[:40]):
            images = [file["imgBrick"][number] for number in numbers]
            said = [set(captions[number][0].lower().strip(".").replace(",", "").split()) for number in numbers]
            words = np.array([[word in words for word in WORDS] for words in said])
            words[:, WORDS.index("day")] &= ~words[:, WORDS.index("overcast")]
            looked_at = np.stack([resize(image, (64, 64, 3)) for image in images])
            clean = np.concatenate([
                cortex.respond(looked_at[k : k + 8], words[k : k + 8], range(8)) for k in range(0, len(images), 8)
            ])  # fmt: skip
            measured = np.stack([trials[shown == number].mean(axis=0) for number in numbers])[:, place]
            for group in (ventral, ~ventral):
                of_both = [rows[:, group] - rows[:, group].mean(axis=0) for rows in (measured, clean)]
                r = np.corrcoef(*of_both)[: len(numbers), len(numbers) :]
                assert (r.argmax(axis=1) == np.arange(len(numbers))).mean() > 0.8  # with the words of others, 1 in 40


def test_ncsnr_is_what_repeats_of_the_images_say(small_nsd: Path) -> None:
    """As NSD's authors estimate it: noise is the variance over repeats, signal what is left of that over trials."""
    shown = loadmat(small_nsd / DESIGN)["masterordering"][0, :1500].astype(int)
    mask = nibabel.load(small_nsd / NAMES.roi("nsdgeneral")).get_fdata() > 0
    volumes = [np.asarray(nibabel.load(small_nsd / NAMES.betas(s, "nii.gz")).dataobj)[mask] for s in (1, 2)]
    trials = np.concatenate(volumes, axis=1).T / 300
    repeats = [trials[shown == image] for image in np.unique(shown) if (shown == image).sum() > 1]
    degrees = np.array([len(of) - 1 for of in repeats])
    noise = sum(len(of) * of.var(axis=0) for of in repeats) / degrees.sum()
    estimated = np.sqrt(np.maximum(trials.var(axis=0, ddof=1) - noise, 0) / noise)
    ncsnr = nibabel.load(small_nsd / NAMES.ncsnr).get_fdata()[mask]
    assert degrees.sum() > 300
    assert np.median(estimated / ncsnr) == pytest.approx(1, abs=0.1)
    assert np.corrcoef(estimated, ncsnr)[0, 1] > 0.9
    low, middle, high = np.quantile(ncsnr, [0.05, 0.5, 0.95])
    assert 2 < middle / low < 4, "NSD's visual voxels lie between about a third and three times the median"
    assert 2 < high / middle < 4


def test_what_an_earlier_version_simulated_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / SIMULATED).write_text('{"subject": 1, "sessions": 2, "scale": 0.1, "seed": 0}')
    with pytest.raises(
        InputError, match=r"simulated by another version of leanrecon \(format 1\).* format 2, .*simulate-nsd"
    ):
        simulate_nsd(tmp_path, scale=0.1, sessions=1)
    with pytest.raises(InputError, match="simulated by another version"):
        NSD(NSDSettings(root=str(tmp_path))).ingest(Study(tmp_path / "study"), base_dir=None, context=Context.of())
    assert [path.name for path in tmp_path.iterdir()] == [SIMULATED]
    (tmp_path / SIMULATED).write_text("{}")  # a mark that others set
    with pytest.raises(InputError, match="session 1, 2"):
        NSD(NSDSettings(root=str(tmp_path))).ingest(Study(tmp_path / "study"), base_dir=None, context=Context.of())


def test_what_is_simulated_says_by_which_version(small_nsd: Path) -> None:
    about = json.loads((small_nsd / SIMULATED).read_text())
    assert about == {"format": 2, "subject": 1, "sessions": 2, "scale": 0.2, "seed": 0}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nsd.simulate", "simulated.cortex"):  # scenes have tests of their own, and take their time
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


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"scale": 0.01}, "from 0.1 to 1"),
        ({"scale": float("nan")}, "from 0.1 to 1"),
        ({"sessions": 41}, "subject 1 has 40"),
        ({"subject": 0}, "from 1 to 8"),
        ({"subject": 9}, "from 1 to 8"),
        ({"seed": -1}, "0 or more"),
        ({"formats": ["nifti"]}, "nii.gz, hdf5"),
    ],
)
def test_what_cannot_be_simulated_is_refused(tmp_path: Path, how, said) -> None:
    with pytest.raises(SettingsError, match=said):
        simulate_nsd(tmp_path, **how)
    assert list(tmp_path.iterdir()) == []
