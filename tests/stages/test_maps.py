"""Maps of a study go back to where its voxels lie, and hold what dense linear algebra gives."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from support.lab import AFFINE, SHAPE, Lab, write_lab
from support.layouts import write_algonauts, write_glmsingle, write_miyawaki
from support.memory import held

import leanrecon
from leanrecon.app import cli
from leanrecon.datasets.space import read_space
from leanrecon.errors import BudgetError, InputError, StoreError

pytestmark = pytest.mark.slow  # each needs a study

nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")

SETTINGS = ["regression.pixels.alpha=20.0", "features.pixels.size=4", "evaluate.permutations=0"]
DIRECTIONS = ["pca:0", "pca:2", "pixels:5", "luminance:3,7"]
MAPS = [f"{what}:{direction}" for direction in DIRECTIONS for what in ("weights", "pattern")]


def made(folder: Path, *settings: str, until: str = "regression", **lab: Any) -> tuple[Lab, Any]:
    written = write_lab(folder / "lab", **lab)
    study = leanrecon.run(
        str(folder / "lab" / "s.toml"), study=folder / "study", set=[*SETTINGS, *settings], until=until
    )
    return written, study


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Any]:
    """12 train rows, each the mean of two trials, of some 84 voxels."""
    return made(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Any]:
    """180 single trials of 60 train images, more than there are voxels."""
    return made(tmp_path_factory.mktemp("tall"), "dataset.repeats=single", images=80, repeats=3, seed=4)


# What they hold


def dense(study: Any, direction: str, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a ridge on z-scored betas, for betas as measured, and cov(X, ŷ)."""
    x, index = study.betas("train").astype("f8"), study.stimulus("train")
    space, _, place = direction.partition(":")
    if space == "luminance":
        row, column = map(int, place.split(","))
        y = study.stimuli("train")[:, row, column] @ (0.2125, 0.7154, 0.0721) / 255
    else:
        y = study.features(space, "train")[:, int(place)].astype("f8")
    y = y[index]
    spread = x.std(axis=0, ddof=1)
    z = (x - x.mean(axis=0)) / spread
    w = np.linalg.solve(z.T @ z + alpha * np.eye(z.shape[1]), z.T @ (y - y.mean())) / spread
    return w, np.cov(x.T) @ w


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_weights_and_patterns_are_those_of_dense_algebra(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, study = request.getfixturevalue(shape)
    found = study.maps(*MAPS)
    study.export_maps(tmp_path / "maps", *MAPS)
    record = json.loads((tmp_path / "maps" / "maps.json").read_text())["maps"]
    alphas = {entry["direction"]: entry["alpha"] for entry in record.values()}
    assert alphas["pixels:5"] == 20.0
    stages = json.loads((study.path / "run.json").read_text())["stages"]
    assert alphas["pca:0"] == stages["regression pca"]["alpha"]
    for direction in DIRECTIONS:
        weights, pattern = dense(study, direction, alphas[direction])
        for what, truth in (("weights", weights), ("pattern", pattern)):
            np.testing.assert_allclose(found[f"{what}:{direction}"], truth, atol=1e-4 * np.abs(truth).max())


def test_an_alpha_for_every_target_is_chosen_as_the_regression_does(tmp_path: Path) -> None:
    _, study = made(tmp_path, "regression.pca.per_target=true")
    pattern = study.maps("pattern:pca:1", "weights:pca:1", "weights:pca:3")
    betas, y = study.betas("train"), study.features("pca", "train")
    from leanrecon.regression.ridge import StreamingRidge

    alphas = StreamingRidge(per_target=True).fit(betas, y).alpha_
    for number in (1, 3):
        truth, _ = dense(study, f"pca:{number}", alphas[number])
        np.testing.assert_allclose(pattern[f"weights:pca:{number}"], truth, atol=1e-4 * np.abs(truth).max())


def test_weighed_voxels_keep_their_weights(tmp_path: Path) -> None:
    _, study = made(tmp_path, "regression.pca.voxel_weights=accuracy", "regression.pca.alpha=3.0", images=60)
    with np.load(study.path / "predictions" / "pca" / "voxel_weights.npz") as kept:
        voxel = kept["weight"].astype("f8")
    assert voxel.std() > 0.05
    x, y = study.betas("train").astype("f8"), study.features("pca", "train")[:, 1].astype("f8")
    factor = voxel / x.std(axis=0, ddof=1)
    z = (x - x.mean(axis=0)) * factor
    truth = np.linalg.solve(z.T @ z + 3.0 * np.eye(z.shape[1]), z.T @ (y - y.mean())) * factor
    found = study.maps("weights:pca:1", "pattern:pca:1")
    for what, values in (("weights", truth), ("pattern", np.cov(x.T) @ truth)):
        np.testing.assert_allclose(found[f"{what}:pca:1"], values, atol=1e-4 * np.abs(values).max())


def test_a_kernel_has_no_weights_but_luminance_has(tmp_path: Path) -> None:
    _, study = made(tmp_path, "regression.pca.kernel=rbf", "regression.pca.alpha=1.0", images=40)
    with pytest.raises(InputError, match="rbf kernel has no weights"):
        study.maps("weights:pca:0")
    assert np.isfinite(study.maps("weights:luminance:3,3")["weights:luminance:3,3"]).all()


def test_a_direction_does_not_depend_on_which_others_are_asked_for(tall: tuple[Lab, Any]) -> None:
    _, study = tall
    names = ["pattern:luminance:3,7", "pattern:luminance:8,2", "pattern:luminance:5,5"]
    together = study.maps(*names)
    for name in names:
        np.testing.assert_allclose(study.maps(name)[name], together[name], atol=1e-6 * np.abs(together[name]).max())


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_accuracy_is_r2_of_ridges_that_never_saw_the_image(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, study = request.getfixturevalue(shape)
    (path,) = study.export_maps(tmp_path / "maps", "accuracy:pca")
    alpha = json.loads((tmp_path / "maps" / "maps.json").read_text())["maps"][path.name]["alpha"]
    x, index = study.betas("train").astype("f8"), study.stimulus("train")
    z, y = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1), study.features("pca", "train").astype("f8")[index]
    errors = np.zeros(x.shape[1])
    for image in np.unique(index):
        rest, own = index != image, index == image
        errors += ((z[own] - Ridge(alpha).fit(y[rest], z[rest]).predict(y[own])) ** 2).sum(axis=0)
    truth = 1 - errors / (z**2).sum(axis=0)
    np.testing.assert_allclose(study.maps("accuracy")["accuracy"], truth, atol=1e-4)


def test_what_is_known_of_voxels_is_exported_by_default(wide: tuple[Lab, Any], tmp_path: Path) -> None:
    _, study = wide
    with np.load(study.path / "betas" / "voxels.npz") as voxels:
        ncsnr = voxels["ncsnr"]
    maps = study.maps()
    assert set(maps) == {"area/V1", "area/ventral", "ncsnr", "noise-ceiling", "left-out", "accuracy"}
    np.testing.assert_array_equal(maps["ncsnr"], ncsnr)
    percent = 100 * ncsnr.astype("f8") ** 2 / (ncsnr.astype("f8") ** 2 + 1 / 2)  # each row is the mean of two trials
    np.testing.assert_allclose(maps["noise-ceiling"], percent, rtol=1e-6)
    assert not maps["left-out"].any()


def test_before_features_accuracy_is_predicted_from_pixels(tmp_path: Path) -> None:
    _, study = made(tmp_path, until="dataset")
    study.export_maps(tmp_path / "maps")
    record = json.loads((tmp_path / "maps" / "maps.json").read_text())["maps"]
    assert "from images" in record["accuracy.nii.gz"]["shows"]
    assert study.maps("accuracy")["accuracy"].shape == (study.betas("train").shape[1],)


# Where they lie


def test_volumes_lie_where_the_mask_does(wide: tuple[Lab, Any], tmp_path: Path) -> None:
    lab, study = wide
    names = ["accuracy", "left-out", "ncsnr", "pattern:luminance:3,7"]
    study.export_maps(tmp_path / "maps", *names)
    for name, values in study.maps(*names).items():
        file = tmp_path / "maps" / f"{name.replace(':', '-').replace(',', '-')}.nii.gz"
        image = nibabel.load(file)
        assert image.shape == SHAPE
        for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
            np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
            assert code > 0
        assert image.header.get_xyzt_units()[0] == "mm"
        volume = np.asarray(image.dataobj)
        np.testing.assert_array_equal(volume[lab.mask], values)
        if name == "left-out":
            assert image.get_data_dtype() == np.uint8
            assert not volume[~lab.mask].any()
        else:
            assert image.get_data_dtype() == np.float32
            assert np.isnan(volume[~lab.mask]).all()


def test_areas_are_a_label_image_that_a_study_reads_back(wide: tuple[Lab, Any], tmp_path: Path) -> None:
    lab, study = wide
    paths = study.export_maps(tmp_path / "maps", "areas")
    assert [path.name for path in paths] == ["areas.nii.gz", "areas.tsv"]
    assert not np.asarray(nibabel.load(paths[0]).dataobj)[~lab.mask].any()
    again = leanrecon.run(
        str(lab.folder / "s.toml"), study=tmp_path / "again", until="dataset",
        set=[f"dataset.areas={paths[0]}", f"dataset.area_names={paths[1]}"],
    )  # fmt: skip
    found = again.maps("areas")
    for name, mask in lab.areas.items():
        np.testing.assert_array_equal(found[f"area/{name}"], mask)


def test_overlapping_areas_are_masks_that_a_study_reads_back(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    nibabel.save(nibabel.Nifti1Image(lab.mask.astype("u1"), AFFINE), lab.folder / "areas" / "visual.nii.gz")
    study = leanrecon.run(str(lab.folder / "s.toml"), study=tmp_path / "study", until="dataset")
    paths = study.export_maps(tmp_path / "maps", "areas")
    assert {path.name for path in paths} == {"V1.nii.gz", "ventral.nii.gz", "visual.nii.gz"}
    settings = [f"dataset.areas={tmp_path}/maps/areas/*.nii.gz"]
    again = leanrecon.run(str(lab.folder / "s.toml"), study=tmp_path / "again", until="dataset", set=settings)
    found = again.maps("areas")
    for name, mask in (lab.areas | {"visual": np.ones(lab.mask.sum(), bool)}).items():
        np.testing.assert_array_equal(found[f"area/{name}"], mask)


def test_chosen_voxels_alone_have_values(tmp_path: Path) -> None:
    lab, study = made(tmp_path, "dataset.voxels=V1", until="dataset")
    (path,) = study.export_maps(tmp_path / "maps", "accuracy")
    volume = np.asarray(nibabel.load(path).dataobj)
    known = np.zeros(SHAPE, bool)
    known[lab.mask] = lab.areas["V1"]
    np.testing.assert_array_equal(np.isfinite(volume), known)


def test_voxels_that_never_vary_are_left_out_of_all_statistics(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", ending="nii")
    first = tuple(np.argwhere(lab.mask)[2])
    for path in lab.folder.glob("*_betas.nii"):
        image = nibabel.load(path)
        volume = np.asarray(image.dataobj).copy()
        volume[first] = 0.5
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), path)
    study = leanrecon.run(str(lab.folder / "s.toml"), study=tmp_path / "study", until="regression")
    maps = study.maps("left-out", "accuracy", "weights:pca:0", "pattern:pca:0")
    np.testing.assert_array_equal(np.flatnonzero(maps["left-out"]), [2])
    for name in ("accuracy", "weights:pca:0", "pattern:pca:0"):
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(maps[name])), [2])


def test_folds_and_areas_have_maps_of_their_own(tmp_path: Path) -> None:
    lab, study = made(tmp_path, "dataset.folds=2", "areas.early=['V1']", "regression.pca.alpha=10.0")
    with pytest.raises(StoreError, match="Name a fold, as in --variant fold00"):
        study.maps("weights:pca:0")
    assert np.isfinite(study.maps("accuracy:pixels")["accuracy:pixels"]).all()
    fold, early = (study.of(name).maps("weights:pixels:5")["weights:pixels:5"] for name in ("fold00", "fold00-early"))
    test = json.loads((study.path / "folds.json").read_text())["folds"][0]
    rows = np.setdiff1d(np.arange(len(study.betas())), test)
    x, y = study.betas()[rows].astype("f8"), study.features("pixels")[rows, 5]
    for found, voxels in ((fold, np.ones(lab.mask.sum(), bool)), (early, lab.areas["V1"])):
        own = x[:, voxels]
        spread = own.std(axis=0, ddof=1)
        truth = Ridge(20.0).fit((own - own.mean(axis=0)) / spread, y).coef_ / spread
        np.testing.assert_allclose(found[voxels], truth, atol=1e-4 * np.abs(truth).max())
        assert np.isnan(found[~voxels]).all()


def test_hemispheres_get_vectors_of_all_their_vertices(tmp_path: Path) -> None:
    truth = write_algonauts(tmp_path / "algo")
    table = {"kind": "algonauts", "root": str(tmp_path / "algo"), "subject": 5, "test_fraction": 0.2, "voxels": "V1"}
    study = leanrecon.run({"dataset": table, "memory": "4GB"}, study=tmp_path / "study", until="dataset")
    paths = study.export_maps(tmp_path / "maps", "accuracy", "areas")
    names = {path.name for path in paths if path.parent.name == "maps"}
    assert {"lh.accuracy_challenge_space.npy", "rh.accuracy_challenge_space.npy"} <= names
    sides = [np.load(tmp_path / "maps" / f"{side}.accuracy_challenge_space.npy") for side in ("lh", "rh")]
    assert [len(side) for side in sides] == [9, 11]
    both = np.concatenate(sides)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(both), np.isin(truth["labels"], (1, 2)))  # V1v and V1d
    np.testing.assert_array_equal(both[np.isfinite(both)], study.maps("accuracy")["accuracy"])


def test_the_right_hemisphere_alone_is_named_so(tmp_path: Path) -> None:
    write_algonauts(tmp_path / "algo")
    table = {"kind": "algonauts", "root": str(tmp_path / "algo"), "subject": 5, "folds": 5, "hemispheres": ["rh"]}
    study = leanrecon.run({"dataset": table, "memory": "4GB"}, study=tmp_path / "study", until="dataset")
    (path,) = study.export_maps(tmp_path / "maps", "left-out")
    assert path.name == "rh.left-out_challenge_space.npy"
    assert np.load(path).shape == (11,)


def test_glmsingles_volumes_come_from_their_mask(tmp_path: Path) -> None:
    write_glmsingle(tmp_path / "glm", ending="hdf5", flat=True)
    folder = tmp_path / "glm"
    mask = np.ones((4, 3, 2), "u1")
    mask[0, 0, 0] = 0
    nibabel.save(nibabel.Nifti1Image(mask, AFFINE), folder / "mask.nii.gz")
    table = {"kind": "glmsingle", "root": str(folder), "trials": str(folder / "trials.csv")}
    table |= {"images": str(folder / "images"), "check": "warn"}
    study = leanrecon.run(
        {"dataset": table | {"mask": str(folder / "mask.nii.gz")}}, study=tmp_path / "study", until="dataset"
    )
    (path,) = study.export_maps(tmp_path / "maps", "accuracy:images")
    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(np.isfinite(np.asarray(image.dataobj)), mask == 1)
    study = leanrecon.run({"dataset": table}, study=tmp_path / "flat", until="dataset")
    with pytest.raises(InputError, match=r"no affine.*dataset\.mask"):
        study.export_maps(tmp_path / "none")


def test_miyawakis_volumes_lie_where_their_mask_does(tmp_path: Path) -> None:
    write_miyawaki(tmp_path / "miyawaki2008")
    table = {"kind": "miyawaki", "root": str(tmp_path / "miyawaki2008"), "check": "warn"}
    study = leanrecon.run({"dataset": table}, study=tmp_path / "study", until="dataset")
    (path,) = study.export_maps(tmp_path / "maps", "accuracy:images")
    image, mask = nibabel.load(path), nibabel.load(tmp_path / "miyawaki2008" / "mask" / "mask.nii.gz")
    np.testing.assert_array_equal(image.affine, mask.affine)
    np.testing.assert_array_equal(np.isfinite(np.asarray(image.dataobj)), np.asarray(mask.dataobj) > 0)


# The same result, within the budget


def test_maps_are_the_same_bytes_whatever_the_budget_and_however_often(wide: tuple[Lab, Any], tmp_path: Path) -> None:
    _, study = wide
    little = f"{held() + 100_000_000}B"
    for folder, memory in (("a", little), ("b", "3GB"), ("a", "2GB")):
        study.export_maps(tmp_path / folder, memory=memory)
        study.export_maps(tmp_path / folder, *MAPS, memory=memory)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert len(files) == 5 + 1 + len(MAPS) + 1  # known maps, the table of areas, directions, the record
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_killed_export_ends_with_the_same_files(
    wide: tuple[Lab, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, study = wide
    study.export_maps(tmp_path / "whole")
    space, written = type(read_space(study.study)), []
    write = space.write

    def stopping(self: Any, folder: Any, name: str, values: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        write(self, folder, name, values)

    with monkeypatch.context() as patch:
        patch.setattr(space, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            study.export_maps(tmp_path / "killed")
    study.export_maps(tmp_path / "killed")
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_too_small_a_budget_is_refused_before_anything_is_written(wide: tuple[Lab, Any], tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="needs at least"):
        wide[1].export_maps(tmp_path / "maps", "pattern:pca:0", memory="20MB")
    assert not (tmp_path / "maps").exists()


# What can't be


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", "'acuracy' is not a map.*accuracy"),
        ("reliability", "reliability of these voxels is not known"),
        ("accuracy:vdvae", "there is no feature space vdvae"),
        ("weights:pca", "'pca' is not a direction.*SPACE:NUMBER"),
        ("weights:pca:-1", "is not a direction"),
        ("weights:pca:1,2", "is not a direction"),
        ("weights:pca:4", "rows of pca have 4 numbers.*0 to 3"),
        ("pattern:pac:0", "names no feature space.*pca"),
        ("pattern:luminance:10,0", "lies outside of the images.*10x12"),
        ("pattern:luminance:3", "names no feature space"),
        ("weights:pca:١", "is not a direction"),
    ],
)
def test_maps_that_a_study_does_not_have_are_refused(
    wide: tuple[Lab, Any], tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        wide[1].export_maps(tmp_path / "maps", name)
    assert not (tmp_path / "maps").exists()


def test_a_network_has_no_weights_of_directions(tmp_path: Path) -> None:
    _, study = made(tmp_path, "regression.pca.kind=mlp", until="dataset")
    with pytest.raises(InputError, match="pca is not predicted by a ridge"):
        study.maps("weights:pca:0")


def test_directions_wait_for_the_regression(tmp_path: Path) -> None:
    _, study = made(tmp_path, until="features")
    with pytest.raises(StoreError, match="has no alpha of the regression of pca"):
        study.maps("weights:pca:0")


def test_arrays_have_no_space_but_their_maps_are_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, rows in (("train", 30), ("test", 6)):
        np.save(tmp_path / f"betas_{split}.npy", rng.standard_normal((rows, 20), dtype=np.float32))
        np.save(tmp_path / f"stimuli_{split}.npy", rng.integers(0, 256, (rows, 8, 8), np.uint8))
    table = {f"{what}_{split}": str(tmp_path / f"{what}_{split}.npy") for what in ("betas", "stimuli") for split in ("train", "test")}  # fmt: skip
    study = leanrecon.run({"dataset": table}, study=tmp_path / "study", until="dataset")
    with pytest.raises(InputError, match="where the voxels lie.*nifti"):
        study.export_maps(tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
    assert set(study.maps()) == {"left-out", "accuracy"}
    pattern = study.maps("pattern:luminance:2,2")["pattern:luminance:2,2"]
    assert pattern.shape == (20,)


def test_files_of_others_are_not_written_among(wide: tuple[Lab, Any], tmp_path: Path) -> None:
    _, study = wide
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "ncsnr.nii.gz").write_bytes(b"mine")
    with pytest.raises(InputError, match="holds other files"):
        study.export_maps(tmp_path / "maps", "ncsnr")
    assert (tmp_path / "maps" / "ncsnr.nii.gz").read_bytes() == b"mine"
    study.export_maps(tmp_path / "maps", "ncsnr", overwrite=True)
    assert nibabel.load(tmp_path / "maps" / "ncsnr.nii.gz").shape == SHAPE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": np.array([0, 10**6])}, "do not lie among"),
        ({"affine": np.eye(3)}, "can't be read"),
        ({"index": np.arange(3)}, "has 3 voxels"),
        ({"index": None}, "does not say where.*leanrecon export figures"),
        ({"shape": None, "affine": None, "hemisphere": np.zeros(3, np.int8)}, "an earlier leanrecon wrote it"),
    ],
)
def test_damaged_places_are_refused(
    wide: tuple[Lab, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    shutil.copytree(wide[1].path, tmp_path / "study")
    path = tmp_path / "study" / "betas" / "voxels.npz"
    with np.load(path) as voxels:
        arrays = dict(voxels) | change
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    with pytest.raises(InputError, match=message):
        leanrecon.open(tmp_path / "study").export_maps(tmp_path / "maps", "left-out")


# The command line


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["leanrecon", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_maps_lie_in_the_study_unless_a_folder_is_named(
    wide: tuple[Lab, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(wide[1].path, tmp_path / "study")
    assert command(monkeypatch, "export", tmp_path / "study", "--maps", "ncsnr") == 0
    assert (tmp_path / "study" / "maps" / "ncsnr.nii.gz").is_file()
    assert "ncsnr.nii.gz" in capsys.readouterr().out
    assert command(monkeypatch, "export", tmp_path / "study", "--out", tmp_path / "new", "--maps", "weights:pca:0") == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"maps.json", "weights-pca-0.nii.gz"}
    assert command(monkeypatch, "verify", tmp_path / "study") == 0


def test_a_study_is_no_store_and_a_folder_no_study(
    wide: tuple[Lab, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "export", wide[1].path, tmp_path / "x.npy") == 2
    assert "is a study, not a store" in capsys.readouterr().err
    assert command(monkeypatch, "export", tmp_path) == 2
    assert "not the folder of a study" in capsys.readouterr().err
