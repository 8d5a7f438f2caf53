"""A small NSD becomes the same study through .hdf5, through .nii.gz, and through plain NumPy; what is wrong is named."""

import gzip
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.io import loadmat, savemat
from support.arrays import open_array
from support.damage import flipped

from leanrecon.context import Context
from leanrecon.datasets.ceiling import area_ceilings
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.layout import DESIGN, STIMULI, TRIALS, SubjectFiles
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.datasets.space import export_nifti
from leanrecon.errors import BudgetError, InputError, LeanreconWarning, SettingsError, StoreError
from leanrecon.images import resize
from leanrecon.memory import parse_bytes
from leanrecon.progress import Progress
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows

nibabel = pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")

pytestmark = pytest.mark.slow

NAMES = SubjectFiles(1)
GENERAL = NAMES.roi("nsdgeneral")


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def ingest_nsd(
    settings: NSDSettings, study: Study, *, chunk: str | int = 8_000_000, budget: str | None = None, **options: object
) -> None:
    NSD(settings).ingest(study, base_dir=None, context=Context.of(budget, chunk=parse_bytes(chunk), **options))


def plan_nsd(settings: NSDSettings, *, chunk: str | int = 8_000_000, free: int) -> DatasetPlan:
    return NSD(settings).plan(base_dir=None, chunk=parse_bytes(chunk), free=free)


def settings_for(root: Path, **changes: object) -> NSDSettings:
    return NSDSettings(**({"root": str(root), "sessions": 2} | changes))


def run(root: Path, folder: Path, *, overwrite: bool = False, chunk: str = "100KB", **changes: object) -> Study:
    progress = Said()
    ingest_nsd(settings_for(root, **changes), Study(folder), chunk=chunk, overwrite=overwrite, progress=progress)
    return Study(folder)


def read(path: Path) -> np.ndarray:
    return open_array(path)[:]


def contents(study: Study) -> dict[str, bytes]:
    root = Path(study.root)
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "sources.json"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture
def copied(small_nsd: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; unchanged files are linked."""
    root = tmp_path / "nsd"
    shutil.copytree(small_nsd, root, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return root


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # the link, not what it links to
    path.write_bytes(data)


def save_volume(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.unlink(missing_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)


@pytest.fixture(scope="module")
def study(small_nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    captions = str(small_nsd / "COCO_73k_annots_curated.npy")
    return run(small_nsd, tmp_path_factory.mktemp("study"), betas_format="hdf5", captions=captions)


# The recipe that is published with Brain-Diffuser, on arrays that nibabel and h5py read whole


def by_recipe(root: Path) -> dict[str, dict[int, list[int]]]:
    design = loadmat(root / DESIGN)
    order, images = design["masterordering"][0].astype(int), design["subjectim"][0].astype(int)
    rows: dict[str, dict[int, list[int]]] = {"train": {}, "test": {}}
    for trial in range(2 * TRIALS):
        image = images[order[trial] - 1] - 1
        rows["train" if order[trial] > 1000 else "test"].setdefault(image, []).append(trial)
    return {split: dict(sorted(shown.items())) for split, shown in rows.items()}


def by_nibabel(root: Path, mask: np.ndarray) -> np.ndarray:
    sessions = [nibabel.load(root / NAMES.betas(s, "nii.gz")).get_fdata() for s in (1, 2)]
    return np.concatenate([session[mask].T for session in sessions])


def by_h5py(root: Path, mask: np.ndarray) -> np.ndarray:
    sessions = []
    for s in (1, 2):
        with h5py.File(root / NAMES.betas(s, "hdf5")) as file:
            sessions.append(file["betas"][:].transpose(3, 2, 1, 0)[mask].T)
    return np.concatenate(sessions)


def mask_of(root: Path) -> np.ndarray:
    return nibabel.load(root / GENERAL).get_fdata() > 0


@pytest.mark.parametrize("plainly", [by_nibabel, by_h5py])
def test_trials_and_betas_are_those_of_a_plain_reading(small_nsd: Path, study: Study, plainly) -> None:
    trials = plainly(small_nsd, mask_of(small_nsd))
    assert np.array_equal(read(study.root / "betas" / "trials.zarr"), trials)
    for split, rows in by_recipe(small_nsd).items():
        sums = np.array([trials[shown].astype(np.int64).sum(axis=0) for shown in rows.values()])
        counts = np.array([len(shown) for shown in rows.values()])[:, None]
        betas = read(study.betas(split))
        assert betas.dtype == np.float32
        assert np.array_equal(betas, (sums / (counts * 300)).astype(np.float32))
        published = np.array([trials[shown].astype(np.float32).mean(axis=0) for shown in rows.values()]) / 300
        np.testing.assert_allclose(betas, published, rtol=1e-5, atol=1e-6)


def test_both_formats_give_the_same_bytes(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    other = run(small_nsd, tmp_path, betas_format="nii.gz", captions=str(small_nsd / "COCO_73k_annots_curated.npy"))
    assert contents(other) == contents(study)


def test_averages_are_in_order_of_image_number_and_split_by_the_shared_images(small_nsd: Path, study: Study) -> None:
    records = json.loads(study.rows.read_text())
    ids = json.loads((study.root / "stimuli" / "ids.json").read_text())
    for split, rows in by_recipe(small_nsd).items():
        assert ids[split] == [str(image) for image in sorted(rows)]
        assert records[split]["stimulus"] == list(range(len(rows)))
        assert records[split]["trials"] == list(rows.values())
        assert records[split]["repeats"] == [len(trials) for trials in rows.values()]
    assert {1, 2, 3} <= set(records["train"]["repeats"])


def test_the_images_are_those_of_the_rows(small_nsd: Path, study: Study) -> None:
    with h5py.File(small_nsd / STIMULI) as file:
        for split, rows in by_recipe(small_nsd).items():
            assert np.array_equal(read(study.stimuli(split)), np.array([file["imgBrick"][image] for image in rows]))


def test_the_captions_are_those_of_the_rows(small_nsd: Path, study: Study) -> None:
    every = np.load(small_nsd / "COCO_73k_annots_curated.npy", mmap_mode="r")
    for split, rows in by_recipe(small_nsd).items():
        assert json.loads(study.captions(split).read_text()) == [every[image].tolist() for image in rows]


def test_nothing_half_done_is_left(study: Study) -> None:
    assert sorted(path.name for path in (study.root / "betas").iterdir()) == [
        "reliability.json", "rows.json", "sources.json", "test.zarr", "train.zarr", "trials.json", "trials.zarr",
        "voxels.npz",
    ]  # fmt: skip
    assert sorted(path.name for path in (study.root / "stimuli").iterdir()) == ["ids.json", "test.zarr", "train.zarr"]


def test_voxels_know_their_places_areas_and_noise(small_nsd: Path, study: Study) -> None:
    image = nibabel.load(small_nsd / GENERAL)
    mask = mask_of(small_nsd)
    corners = np.argwhere(mask)
    with np.load(study.voxels) as voxels:
        assert np.array_equal(voxels["index"], np.flatnonzero(mask))
        mm = np.array([nibabel.affines.apply_affine(image.affine, corner) for corner in corners])
        np.testing.assert_allclose(voxels["coordinates"], mm, rtol=1e-6)
        assert np.array_equal(voxels["ncsnr"], nibabel.load(small_nsd / NAMES.ncsnr).get_fdata()[mask].astype("f4"))
        labels = nibabel.load(small_nsd / NAMES.roi("prf-visualrois")).get_fdata()[mask]
        for number, name in ((1, "V1"), (2, "V1"), (3, "V2"), (6, "V3"), (7, "hV4")):
            assert set(voxels["areas"][labels == number]) == {name}
        assert np.array_equal(voxels["prf-visualrois"], labels)


def test_noise_ceilings_are_those_of_the_volume_and_of_the_test_rows(small_nsd: Path, study: Study) -> None:
    ncsnr = nibabel.load(small_nsd / NAMES.ncsnr).get_fdata()
    areas, streams = (nibabel.load(small_nsd / NAMES.roi(name)).get_fdata() for name in ("prf-visualrois", "streams"))
    masks = {"V1": (areas == 1) | (areas == 2), "hV4": areas == 7, "ventral": streams == 5, "": mask_of(small_nsd)}
    shown = np.bincount([len(trials) for trials in by_recipe(small_nsd)["test"].values()])
    noise = (shown[1] + shown[2] / 2 + shown[3] / 3) / shown.sum()
    found = area_ceilings(study)
    assert found is not None
    assert found["repeats"] == [1, 3]
    told = {row["area"]: row for row in found["areas"]}
    assert list(told) == ["V1", "V2", "V3", "hV4", "ventral", ""]
    for area, mask in masks.items():
        own = np.median(100 * ncsnr[mask] ** 2 / (ncsnr[mask] ** 2 + noise))
        assert told[area]["percent"] == pytest.approx(own, rel=1e-5)
        assert told[area]["voxels"] == mask.sum()
        assert told[area]["ncsnr"] == pytest.approx(np.median(ncsnr[mask]), rel=1e-6)


def test_the_table_of_trials_tells_of_every_row(small_nsd: Path, study: Study) -> None:
    table = json.loads((study.root / "betas" / "trials.json").read_text())
    assert table["trial"] == list(range(2 * TRIALS))
    assert table["session"] == [1] * TRIALS + [2] * TRIALS
    rows = by_recipe(small_nsd)
    assert [k for k, shared in enumerate(table["tested"]) if shared] == sorted(
        k for shown in rows["test"].values() for k in shown
    )
    assert table["stimulus"][rows["train"][int(next(iter(rows["train"])))][0]] == next(iter(rows["train"]))


def test_some_sessions_are_those_rows_of_all(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    second = run(small_nsd, tmp_path, sessions=[2])
    trials = read(study.root / "betas" / "trials.zarr")
    assert np.array_equal(read(second.root / "betas" / "trials.zarr"), trials[TRIALS:])
    records = json.loads(second.rows.read_text())
    assert min(min(trials) for trials in records["train"]["trials"]) == TRIALS
    train = read(second.betas("train"))
    first = records["train"]["trials"][0]
    expected = trials[first].astype(np.int64).sum(axis=0) / (300 * len(first))
    assert np.array_equal(train[0], expected.astype(np.float32))


def test_sessions_are_z_scored_before_they_are_averaged(small_nsd: Path, tmp_path: Path) -> None:
    from scipy.stats import zscore

    found = run(small_nsd, tmp_path, zscore_sessions=True)
    trials = by_h5py(small_nsd, mask_of(small_nsd)).astype(float)
    scored = np.concatenate([zscore(trials[:TRIALS]), zscore(trials[TRIALS:])])
    for split, rows in by_recipe(small_nsd).items():
        expected = np.array([scored[shown].mean(axis=0) for shown in rows.values()])
        np.testing.assert_allclose(read(found.betas(split)), expected, rtol=2e-5, atol=1e-6)


def test_the_size_of_chunks_changes_nothing(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    for k, (chunk, scored) in enumerate((("3KB", False), ("50KB", True), ("2MB", True))):
        other = run(small_nsd, tmp_path / str(k), chunk=chunk, zscore_sessions=scored)
        if not scored:
            assert np.array_equal(read(other.betas("train")), read(study.betas("train")))
    one, two = (read(Study(tmp_path / k).betas("train")) for k in "12")
    assert np.array_equal(one, two)


def test_images_are_resized_on_the_way(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    small = run(small_nsd, tmp_path, image_size=32)
    images = read(study.stimuli("test"))
    assert np.array_equal(read(small.stimuli("test")), [resize(image, (32, 32, 3)) for image in images])


@pytest.mark.parametrize("chunks", [None, (64, 85, 85, 3)])
def test_images_are_found_in_any_layout(copied: Path, study: Study, tmp_path: Path, chunks) -> None:
    with h5py.File(copied / STIMULI) as file:
        shown = sorted({int(image) for rows in by_recipe(copied).values() for image in rows})
        images = np.stack([file["imgBrick"][image] for image in shown])
        shape = file["imgBrick"].shape
    (copied / STIMULI).unlink()
    with h5py.File(copied / STIMULI, "w", libver="earliest") as file:
        bricks = file.create_dataset("imgBrick", shape, np.uint8, chunks=chunks)
        for image, values in zip(shown, images, strict=True):
            bricks[image] = values
    other = run(copied, tmp_path / "study")
    for split in ("train", "test"):
        assert np.array_equal(read(other.stimuli(split)), read(study.stimuli(split)))


# Single trials


@pytest.fixture(scope="module")
def singles(small_nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(small_nsd, tmp_path_factory.mktemp("singles"), repeats="single")


def test_single_trials_are_in_order_of_presentation_and_test_rows_averaged(
    small_nsd: Path, study: Study, singles: Study
) -> None:
    trials, rows = by_h5py(small_nsd, mask_of(small_nsd)), Rows.read(singles)
    order = sorted(trial for shown in by_recipe(small_nsd)["train"].values() for trial in shown)
    assert np.array_equal(read(singles.betas("train")), (trials[order] / 300).astype(np.float32))
    assert np.array_equal(read(singles.betas("test")), read(study.betas("test")))
    image_of = {trial: image for image, shown in by_recipe(small_nsd)["train"].items() for trial in shown}
    assert rows.stimulus_ids("train") == [str(image_of[trial]) for trial in order]
    assert rows["train"].trials == [[trial] for trial in order]
    assert rows["train"].session == [1 + trial // TRIALS for trial in order]
    for split in ("train", "test"):
        assert np.array_equal(read(singles.stimuli(split)), read(study.stimuli(split)))
    assert rows.ids == Rows.read(study).ids
    assert rows["test"].as_record() == Rows.read(study)["test"].as_record()


def test_runs_have_63_and_62_trials_in_turns(singles: Study) -> None:
    table = json.loads((singles.root / "betas" / "trials.json").read_text())
    rows = Rows.read(singles)["train"]
    assert rows.run is not None
    ends = np.cumsum([63, 62] * 6)
    assert ends[-1] == TRIALS
    for [trial], run_ in zip(rows.trials, rows.run, strict=True):
        assert run_ == 1 + sum(trial % TRIALS >= end for end in ends)
    assert len(table["trial"]) == 2 * TRIALS


def test_single_trials_are_z_scored_within_their_session(small_nsd: Path, tmp_path: Path) -> None:
    from scipy.stats import zscore

    found = run(small_nsd, tmp_path, zscore_sessions=True, repeats="single", test_repeats="single")
    trials = by_h5py(small_nsd, mask_of(small_nsd)).astype(float)
    scored = np.concatenate([zscore(trials[:TRIALS]), zscore(trials[TRIALS:])])
    for split, rows in by_recipe(small_nsd).items():
        order = sorted(trial for shown in rows.values() for trial in shown)
        np.testing.assert_allclose(read(found.betas(split)), scored[order], rtol=2e-5, atol=1e-6)


def test_averaged_test_rows_are_rescaled_by_the_root_of_their_trials(
    small_nsd: Path, study: Study, tmp_path: Path
) -> None:
    scaled = run(small_nsd, tmp_path, repeats="single", rescale_average=True)
    repeats = np.array(Rows.read(scaled)["test"].repeats)
    np.testing.assert_allclose(
        read(scaled.betas("test")), read(study.betas("test")) * np.sqrt(repeats)[:, None], rtol=2e-7
    )


@pytest.mark.parametrize("zscore", [False, True])
def test_single_trials_do_not_depend_on_chunks(small_nsd: Path, singles: Study, tmp_path: Path, zscore: bool) -> None:
    found = [
        run(small_nsd, tmp_path / chunk, chunk=chunk, repeats="single", zscore_sessions=zscore)
        for chunk in ("3KB", "2MB")
    ]
    one, two = (read(made.betas("train")) for made in found)
    assert np.array_equal(one, two)
    assert zscore or np.array_equal(one, read(singles.betas("train")))


def test_lost_chunks_of_single_trials_are_made_again_alone(small_nsd: Path, singles: Study, tmp_path: Path) -> None:
    from leanrecon.stores import Store

    mine = Study(tmp_path / "study")
    shutil.copytree(singles.root, mine.root)
    before = contents(mine)
    Store.open(mine.betas("train")).discard([(1, 0), (3, 0)])
    Store.open(mine.stimuli("train")).discard([(2, 0)])
    run(small_nsd, mine.root, repeats="single")
    assert contents(mine) == before


@pytest.mark.alone
def test_the_plan_of_single_trials_holds(small_nsd: Path, tmp_path: Path) -> None:
    from leanrecon.memory import PeakMemory

    settings = settings_for(small_nsd, repeats="single", zscore_sessions=True)
    context = Context.of("4GB", chunk=100_000)
    with PeakMemory() as memory:
        NSD(settings).ingest(Study(tmp_path), base_dir=None, context=context)
    assert memory.peak <= context.peaks.largest
    plan = plan_nsd(settings, chunk=100_000, free=0)
    assert (plan.n_train, plan.n_test) == (len(Rows.read(Study(tmp_path))["train"]), plan.test_images)
    assert plan.n_train > plan.train_images
    assert plan.max_repeats == 3


# Regions


@pytest.mark.parametrize("roi", ["V1", "V1v + V1d", ["V1v", "V1d"]])
def test_a_region_is_an_area_or_a_union(small_nsd: Path, study: Study, tmp_path: Path, roi) -> None:
    found = run(small_nsd, tmp_path, roi=roi)
    with np.load(study.voxels) as voxels:
        areas = voxels["areas"]
    assert (areas == "V1").sum() > 10
    assert np.array_equal(read(found.betas("train")), read(study.betas("train"))[:, areas == "V1"])


def test_a_region_is_any_mask_of_the_same_shape_whatever_its_affine(small_nsd: Path, study: Study, tmp_path: Path):
    mask = mask_of(small_nsd)
    mask[:, 5:] = False
    save_volume(tmp_path / "mine.nii.gz", mask.astype(np.uint8), np.diag([3, 3, 3, 1]))
    found = run(small_nsd, tmp_path / "study", roi=str(tmp_path / "mine.nii.gz"))
    kept = mask[mask_of(small_nsd)]
    assert np.array_equal(read(found.betas("test")), read(study.betas("test"))[:, kept])
    with np.load(found.voxels) as voxels:
        assert np.array_equal(voxels["affine"], np.diag([3, 3, 3, 1]))


def test_voxels_that_are_zero_are_kept(small_nsd: Path, tmp_path: Path) -> None:
    mask = np.zeros(mask_of(small_nsd).shape, np.uint8)
    mask[0, 0, :4] = 1  # the outermost voxels hold nothing
    mask |= mask_of(small_nsd)
    save_volume(tmp_path / "edge.nii.gz", mask)
    found = run(small_nsd, tmp_path / "study", roi=str(tmp_path / "edge.nii.gz"))
    betas = read(found.betas("train"))
    assert betas.shape[1] == mask.sum()
    assert (betas[:, :4] == 0).all()


# Putting numbers back into the volume


def test_numbers_a_voxel_go_back_to_where_they_came_from(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    mask = mask_of(small_nsd)
    values = np.arange(mask.sum(), dtype=np.float32) + 0.5
    np.save(tmp_path / "values.npy", values)
    export_nifti(study, tmp_path / "values.npy", tmp_path / "out.nii.gz")
    image = nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(image.affine, nibabel.load(small_nsd / GENERAL).affine)
    volume = image.get_fdata()
    assert np.array_equal(volume[mask], values)
    assert np.isnan(volume[~mask]).all()
    export_nifti(study, tmp_path / "values.npy", tmp_path / "again.nii.gz")
    assert (tmp_path / "out.nii.gz").read_bytes() == (tmp_path / "again.nii.gz").read_bytes()


def test_what_is_no_number_a_voxel_is_not_exported(study: Study, tmp_path: Path) -> None:
    np.save(tmp_path / "values.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"shape \(3,\). Expected one number for each of \d+ voxels"):
        export_nifti(study, tmp_path / "values.npy", tmp_path / "out.nii.gz")
    with pytest.raises(InputError, match=r"can't be read.*\.npy file"):
        export_nifti(study, tmp_path / "none.npy", tmp_path / "out.nii.gz")
    with pytest.raises(InputError, match="to say where the voxels lie"):
        export_nifti(Study(tmp_path), tmp_path / "values.npy", tmp_path / "out.nii.gz")


# Plan, budget and settings


def test_the_plan_is_what_is_made(small_nsd: Path, study: Study) -> None:
    plan = plan_nsd(settings_for(small_nsd), chunk="100KB", free=10**9)
    shapes = {split: open_array(study.betas(split)).shape for split in ("train", "test")}
    assert (plan.n_train, plan.n_test) == (shapes["train"][0], shapes["test"][0])
    assert plan.voxels == shapes["train"][1]
    assert plan.image_shape == open_array(study.stimuli("train")).shape[1:]
    chunks = [path for path in Path(study.root).rglob("*.zarr/c/**/*") if path.is_file()]
    assert plan.disk == sum(path.stat().st_size - 4 for path in chunks)
    assert plan.download == 0


def test_too_small_a_budget_is_refused_before_any_work(small_nsd: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="fetching the dataset needs at least"):
        ingest_nsd(settings_for(small_nsd), Study(tmp_path), budget="1MB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folds": 5}, "test images of its own"),
        ({"subject": 9}, "less than or equal to 8"),
        ({"sessions": 0}, "at least one session"),
        ({"sessions": []}, "at least one session"),
        ({"roi": []}, "name an area"),
        ({"betas_format": "mat"}, "hdf5"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_settings_are_checked(small_nsd: Path, changes, said) -> None:
    with pytest.raises(ValidationError, match=said):
        settings_for(small_nsd, **changes)


@pytest.mark.parametrize("sessions", [2**62, [2**62], 41, [1, 41], [-1], -3])
def test_sessions_that_the_subject_does_not_have_are_named(small_nsd: Path, tmp_path: Path, sessions) -> None:
    with pytest.raises(SettingsError, match="sessions 1 to 40: subject 1 has 40"):
        run(small_nsd, tmp_path, sessions=sessions)


# What can be wrong with the files


def test_missing_sessions_are_named_with_how_to_go_on_without(small_nsd: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"session 3, 4 of subject 1 does not exist.*sessions = \[1, 2\]"):
        run(small_nsd, tmp_path, sessions=[1, 2, 3, 4])
    assert list(tmp_path.iterdir()) == []


def test_nifti_files_stand_in_for_missing_hdf5_ones(copied: Path, study: Study, tmp_path: Path) -> None:
    (copied / NAMES.betas(1, "hdf5")).unlink()
    mixed = run(copied, tmp_path / "study")
    assert np.array_equal(read(mixed.betas("train")), read(study.betas("train")))
    with pytest.raises(InputError, match=r"session 1 of subject 1 does not exist.*session01\.hdf5.*sessions = \[2\]"):
        run(copied, tmp_path / "other", betas_format="hdf5")


@pytest.mark.parametrize("form", ["hdf5", "nii.gz"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_a_truncated_session_is_named_and_nothing_done_is_lost(
    copied: Path, small_nsd: Path, study: Study, tmp_path: Path, form: str, kept: float
) -> None:
    path = copied / NAMES.betas(2, form)
    data = path.read_bytes()
    replace(path, data[: int(kept * len(data))])
    with pytest.raises(InputError, match=rf"session02\.{form} is damaged or cut short.*(do|its session|without)"):
        run(copied, tmp_path / "study", betas_format=form)
    replace(path, data)
    with pytest.raises(InputError, match=r"session02.* has changed since.*--overwrite"):
        run(copied, tmp_path / "study", betas_format=form)
    found = run(copied, tmp_path / "study", betas_format=form, overwrite=True)
    assert np.array_equal(read(found.betas("train")), read(study.betas("train")))


def test_a_mask_of_another_shape_is_refused(small_nsd: Path, tmp_path: Path) -> None:
    save_volume(tmp_path / "mask.nii.gz", np.ones((4, 5, 6), np.uint8))
    with pytest.raises(
        InputError, match=r"mask\.nii\.gz is a volume of 4x5x6 voxels and .*nsdgeneral.* of 16x21x17.*Resample"
    ):
        run(small_nsd, tmp_path / "study", roi=str(tmp_path / "mask.nii.gz"))


def test_masks_that_do_not_fit_the_betas_are_refused(copied: Path, tmp_path: Path) -> None:
    for path in [*(copied / GENERAL).parent.iterdir(), copied / NAMES.ncsnr]:
        save_volume(path, np.ones((16, 21, 16), np.int16))
    for form in ("hdf5", "nii.gz"):
        with pytest.raises(InputError, match=r"the mask is a volume of 16x21x16 voxels and .*session01.* of 16x21x17"):
            run(copied, tmp_path / "study", betas_format=form)


def test_damaged_masks_are_named(copied: Path, tmp_path: Path) -> None:
    data = (copied / GENERAL).read_bytes()
    for broken in (data[: len(data) // 2], b"no mask at all", gzip.compress(b"short")):
        replace(copied / GENERAL, broken)
        with pytest.raises(InputError, match=r"nsdgeneral\.nii\.gz is damaged or cut short"):
            run(copied, tmp_path / "study")


def test_unknown_areas_are_refused_with_those_there(small_nsd: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'V9' is not an area of this subject.*nsdgeneral.*V1.*FFA-1.*ventral"):
        run(small_nsd, tmp_path, roi="V9")
    with pytest.raises(InputError, match=r"'hv4' is not an area of this subject \(did you mean hV4"):
        run(small_nsd, tmp_path, roi=["V1", "hv4"])
    with pytest.raises(InputError, match="'midlateral': this area has no voxels in this subject"):
        run(small_nsd, tmp_path, roi="midlateral")
    with pytest.raises(InputError, match=r"there is no file nothing\.nii"):
        run(small_nsd, tmp_path, roi="nothing.nii")


def test_a_design_that_does_not_fit_is_refused(copied: Path, tmp_path: Path) -> None:
    design = loadmat(copied / DESIGN)
    order, images = design["masterordering"], design["subjectim"]

    def refused(said: str, **tables: np.ndarray) -> None:
        (copied / DESIGN).unlink()
        savemat(copied / DESIGN, tables)
        with pytest.raises(InputError, match=said):
            run(copied, tmp_path / "study")

    refused("has 900 trials.*1500 trials or more, up to session 2", masterordering=order[:, :900], subjectim=images)
    refused("shows images numbered [0-9]+ to 1[89][0-9]{3}", masterordering=order + 9000, subjectim=images)
    refused("shows image 1[0-9]{5}, and .* has 73000", masterordering=order, subjectim=images + 99_000)
    refused("can't be read.*masterordering and subjectim", masterordering=order)
    replace(copied / DESIGN, b"junk")
    with pytest.raises(InputError, match=r"nsd_expdesign\.mat can't be read"):
        run(copied, tmp_path / "study")


def test_sessions_of_another_length_are_refused(copied: Path, tmp_path: Path) -> None:
    path = copied / NAMES.betas(1, "hdf5")
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", (700, 17, 21, 16), "i2", chunks=(700, 1, 1, 1))
    with pytest.raises(InputError, match="has 700 trials. Expected 750, as the design"):
        run(copied, tmp_path / "study")
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", (750, 17, 21, 16), "i2", chunks=(75, 17, 1, 1))
    with pytest.raises(InputError, match=r"in chunks of .*one voxel's 750 trials.*nii\.gz"):
        run(copied, tmp_path / "study")


def test_images_that_were_never_written_are_named(copied: Path, tmp_path: Path) -> None:
    (copied / STIMULI).unlink()
    with h5py.File(copied / STIMULI, "w", libver="earliest") as file:
        file.create_dataset("imgBrick", (73_000, 32, 32, 3), np.uint8, chunks=(1, 32, 32, 3))
    with pytest.raises(InputError, match="lacks images that were shown"):
        run(copied, tmp_path / "study")


def test_captions_that_are_not_there_are_refused_before_anything_is_fetched(small_nsd: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file none\.npy"):
        run(small_nsd, tmp_path / "study", captions="none.npy")
    assert not list((tmp_path / "study").glob("**/*.zarr"))


def test_captions_that_can_be_downloaded_are_planned_before_they_are_here(
    small_nsd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path))
    published = "COCO_73k_annots_curated.npy"

    def plan(captions: str) -> object:
        return NSD(settings_for(small_nsd, captions=captions)).plan(base_dir=None, chunk=100_000, free=10**9)

    assert plan(published) == plan(str(small_nsd / published))
    for captions in ("none.npy", str(tmp_path / published)):
        with pytest.raises(InputError, match=f"there is no file {captions}"):
            plan(captions)
    with pytest.raises(InputError, match=f"there is no file {published}"):
        run(small_nsd, tmp_path / "study", captions=published)
    assert list(tmp_path.iterdir()) == []


def test_captions_of_other_images_are_refused(small_nsd: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.array([["a", "b"]] * 10))
    with pytest.raises(InputError, match=r"few\.npy has 10 rows. Expected one for each of 73000 images"):
        run(small_nsd, tmp_path / "study", captions=str(tmp_path / "few.npy"))
    assert not Study(tmp_path / "study").rows.exists()


def test_a_root_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        run(tmp_path / "nowhere", tmp_path / "study")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="session 1, 2 of subject 1 does not exist.*Check dataset.root"):
        run(tmp_path / "empty", tmp_path / "study")


# Trials that don't match the images


@pytest.fixture
def mismatched(copied: Path) -> Path:
    """The design of another experiment."""
    design = loadmat(copied / DESIGN)
    order = design["masterordering"].copy()
    order[0, : 2 * TRIALS] = np.random.default_rng(0).permutation(order[0, : 2 * TRIALS])
    (copied / DESIGN).unlink()
    savemat(copied / DESIGN, {"masterordering": order, "subjectim": design["subjectim"]})
    return copied


def test_trials_that_do_not_match_their_images_stop_the_run(mismatched: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'trials and images don\'t match.*dataset\.check = "warn"'):
        run(mismatched, tmp_path)
    assert not (tmp_path / "stimuli" / "train.zarr" / "c").exists(), "nothing is fetched that would be of no use"
    with pytest.warns(LeanreconWarning, match="trials and images don't match"):
        found = run(mismatched, tmp_path, check="warn")
    assert found.rows.exists()


def test_reliability_is_shown_and_kept(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    progress = Said()
    ingest_nsd(settings_for(small_nsd), Study(tmp_path), progress=progress)
    assert any("repeat reliability: responses to the same image correlate by 0." in line for line in progress.lines)
    kept = json.loads((study.root / "betas" / "reliability.json").read_text())
    assert kept["matched"] > 0.2 > abs(kept["mismatched"]) + 0.1


# Running again


def test_a_study_with_other_settings_is_refused_or_replaced(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    mine = tmp_path / "study"
    shutil.copytree(study.root, mine)
    before = contents(Study(mine))
    for changes, said in (
        ({"roi": "V1"}, "dataset.roi was"),
        ({"sessions": 1}, "dataset.sessions was"),
        ({"image_size": 40}, "dataset.image_size was not set, is 40"),
        ({"zscore_sessions": True}, "dataset.zscore_sessions was false, is true"),
        ({"repeats": "single"}, 'dataset.repeats was not set, is "single"'),
    ):
        with pytest.raises(StoreError, match=said):
            run(small_nsd, mine, betas_format="hdf5", **changes)
        assert contents(Study(mine)) == before
    assert read(run(small_nsd, mine, overwrite=True, roi="V1").betas("train")).shape[1] < 100
    again = run(small_nsd, mine, overwrite=True, captions=str(small_nsd / "COCO_73k_annots_curated.npy"))
    assert contents(again) == before


def test_damaged_chunks_alone_are_fetched_again(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    from leanrecon.stores import Store

    mine = Study(tmp_path / "study")
    shutil.copytree(study.root, mine.root)
    before = contents(mine)
    for path in (mine.root / "betas" / "trials.zarr", mine.stimuli("train"), mine.betas("test")):
        Store.open(path).discard([(0, 0)])
    run(small_nsd, mine.root, betas_format="hdf5")
    assert contents(mine) == before


def test_a_study_is_not_continued_from_other_files(small_nsd: Path, study: Study, copied: Path, tmp_path: Path) -> None:
    mine = Study(tmp_path / "study")
    shutil.copytree(study.root, mine.root)
    run(copied, mine.root, betas_format="hdf5")  # the same files elsewhere
    path = copied / NAMES.betas(1, "hdf5")
    replace(path, flipped(path.read_bytes()))
    shutil.rmtree(mine.root)
    shutil.copytree(study.root, mine.root)
    with pytest.raises(StoreError, match=r"was begun with other files, those of .*--overwrite"):
        run(copied, mine.root, betas_format="hdf5")


def test_a_train_image_with_the_bytes_of_a_test_image_is_refused(copied: Path, study: Study, tmp_path: Path) -> None:
    train, test = (int(rows[0]) for rows in (Rows.read(study).ids[split] for split in ("train", "test")))
    path = copied / STIMULI
    data = path.read_bytes()
    replace(path, data)
    with h5py.File(path, "r+") as file:
        file["imgBrick"][train] = file["imgBrick"][test]
    with pytest.raises(InputError, match=f"image {test} .test., the same as image {train} .train."):
        run(copied, tmp_path / "study")
    assert not Study(tmp_path / "study").rows.exists()
    with pytest.raises(InputError, match="allow_shared_stimuli"):  # a later run does not let it pass
        run(copied, tmp_path / "study")
    assert run(copied, tmp_path / "study", allow_shared_stimuli=True).rows.exists()


@pytest.mark.parametrize("zscored", [False, True])
def test_the_report_says_that_z_scores_within_sessions_use_tested_trials(tmp_path, zscored):
    notes = list(NSD.notes(NSDSettings(root=str(tmp_path), zscore_sessions=zscored)))
    assert ["all trials of a session, tested ones among them" in note for note in notes] == [True] * zscored
