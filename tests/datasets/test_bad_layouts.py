"""What people's files do to readers: each is read rightly, or refused with what is wrong and what to do."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image
from support.lab import AFFINE, SHAPE, Lab, write_lab
from support.layouts import write_algonauts, write_bdata, write_brain_diffuser, write_glmsingle, write_mindeye

from leanrecon.api import open as open_study
from leanrecon.api import run
from leanrecon.datasets.files.folder import FolderRows, image_size
from leanrecon.datasets.files.open import array_keys, open_array
from leanrecon.datasets.inspect.inspect import inspect
from leanrecon.errors import InputError


def study(lab: Lab, **settings: Any) -> Any:
    overrides = [f"dataset.{key}={value}" for key, value in settings.items()]
    run(str(lab.folder / "s.toml"), study=lab.folder / "study", until="dataset", set=overrides)
    return open_study(lab.folder / "study")


def build(folder: Path, **dataset: Any) -> None:
    run({"dataset": dataset, "features": {"pca": {"components": 2}}}, study=folder / "study", until="dataset")


def refused(spec: Path | str, words: str) -> str:
    with pytest.raises(InputError, match=words) as error, open_array(str(spec)) as rows:
        rows[0:1]
    return str(error.value)


# Volumes


def save(path: Path, shape: tuple[int, ...], affine: Any = AFFINE) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")
    nibabel.save(nibabel.Nifti1Image(np.ones(shape, "f4"), affine), path)


MOVED = AFFINE + np.eye(4, k=3)


@pytest.mark.parametrize("name", ["sub-01_run-2_betas.nii.gz", "mask.nii.gz", "areas/V1.nii.gz"])
@pytest.mark.parametrize(
    ("shape", "affine", "words"), [((7, 6, 4), AFFINE, "7x6x4 voxels and"), (SHAPE, MOVED, "affines of")]
)
def test_volumes_of_another_grid_are_refused_by_name(
    tmp_path: Path, name: str, shape: tuple[int, ...], affine: Any, words: str
) -> None:
    lab = write_lab(tmp_path / "lab")
    save(lab.folder / name, (*shape, 11) if "betas" in name else shape, affine)
    with pytest.raises(InputError, match=words) as error:
        study(lab)
    assert Path(name).name in str(error.value)
    assert "esample" in str(error.value)


def test_a_mask_of_another_grid_than_glmsingles_betas_is_refused(tmp_path: Path) -> None:
    write_glmsingle(tmp_path / "glm", ending="hdf5")
    save(tmp_path / "mask.nii.gz", (4, 3, 3))
    settings = {"root": str(tmp_path / "glm"), "trials": str(tmp_path / "glm" / "trials.csv")}
    with pytest.raises(InputError, match=r"mask.nii.gz has shape \(4, 3, 3\) .* \(4, 3, 2\)"):
        build(tmp_path, kind="glmsingle", mask=str(tmp_path / "mask.nii.gz"), **settings)


@pytest.mark.parametrize(("rows", "count"), [(slice(0, -1), 31), (slice(0, None), 33)])
def test_a_table_with_more_or_fewer_trials_than_volumes_is_refused(tmp_path: Path, rows: slice, count: int) -> None:
    lab = write_lab(tmp_path / "lab")
    lines = (lab.folder / "trials.tsv").read_text().splitlines()
    lines = lines[rows] if count == 31 else [*lines, lines[-1]]
    (lab.folder / "trials.tsv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"holds 32 trials and the table {count}"):
        study(lab)


def test_a_table_of_mixed_runs_is_refused_with_the_file(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    header, *lines = (lab.folder / "trials.tsv").read_text().splitlines()
    lines[0], lines[-1] = lines[-1], lines[0]
    (lab.folder / "trials.tsv").write_text("\n".join([header, *lines]))
    with pytest.raises(InputError, match=r"run-1_betas.nii.gz to several runs"):
        study(lab)


def test_files_that_hold_several_runs_each_are_no_mixture(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    header, *lines = (lab.folder / "trials.tsv").read_text().splitlines()
    fields = [line.split("\t") for line in lines]
    finer = [f"{name}\t{2 * int(run) + k % 2}\t{split}" for k, (name, run, split) in enumerate(fields)]
    (lab.folder / "trials.tsv").write_text("\n".join([header, *finer]))
    assert study(lab).betas("train").shape[0] == 12


# Images


def test_images_of_other_modes_and_sizes_are_brought_to_one_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 12, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.convert("CMYK").save(tmp_path / "cmyk.tiff")
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([pixels, np.zeros((10, 12), np.uint8)])).save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "turned.png", exif=exif)
    names = ["cmyk.tiff", "grey.png", "palette.png", "clear.png", "turned.png"]
    rows = FolderRows([tmp_path / name for name in names], (10, 12, 3))[0:5]
    np.testing.assert_allclose(rows[0].astype(int), pixels, atol=1)
    np.testing.assert_array_equal(rows[1], np.asarray(image.convert("L").convert("RGB")))
    np.testing.assert_array_equal(rows[2], np.asarray(image.convert("P").convert("RGB")))
    assert (rows[3] == 255).all(), "what is transparent is white"
    np.testing.assert_array_equal(rows[4], pixels)
    assert image_size(tmp_path / "turned.png") == (10, 12, 3)


@pytest.mark.parametrize("last", [False, True], ids=["in the first", "in the last"])
def test_one_grey_image_leaves_the_others_in_colour(tmp_path: Path, last: bool) -> None:
    lab = write_lab(tmp_path / "lab")
    name = lab.stimulus[-1 if last else 0]
    path = lab.folder / "images" / name
    grey = Image.open(path).convert("L")
    grey.save(path)
    made = study(lab)
    for split in ("train", "test"):
        ids = json.loads((lab.folder / "study" / "stimuli" / "ids.json").read_text())[split]
        truth = {**lab.images, name: np.asarray(grey.convert("RGB"))}
        assert all(np.array_equal(image, truth[shown]) for image, shown in zip(made.stimuli(split), ids, strict=True))


def test_images_that_are_all_grey_are_stored_in_grey(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    for path in (lab.folder / "images").iterdir():
        Image.open(path).convert("L").save(path)
    assert study(lab).stimuli("train").shape[3] == 1


def deep_png(path: Path) -> None:
    """A PNG of 16 bits a channel in three channels, which Pillow can read and not write."""
    rows = b"".join(b"\0" + bytes(12 * 3 * 2) for _ in range(10))
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", struct.pack(">IIBBBBB", 12, 10, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND")))


def grey16(path: Path) -> None:
    Image.fromarray(np.full((10, 12), 40_000, np.uint16)).save(path)


def animated(path: Path) -> None:
    frames = [Image.fromarray(np.full((10, 12, 3), value, np.uint8)) for value in (0, 99)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (deep_png, "16 bits a channel"),
        (grey16, "more than 8 bits a channel"),
        (animated, r"is animated \(2 frames\)"),
        (truncated, "can't be read as an image"),
        (lambda path: path.write_text("<html>404</html>"), "can't be read as an image"),
        (lambda path: path.unlink(), "1 images of the table are not in"),
    ],
)
def test_images_that_can_not_be_used_are_refused_by_name(tmp_path: Path, spoil: Any, words: str) -> None:
    lab = write_lab(tmp_path / "lab")
    spoil(lab.folder / "images" / "scene_05.png")
    with pytest.raises(InputError, match=words) as error:
        study(lab)
    assert "scene_05.png" in str(error.value)


# Ids of one file that another lacks


def test_ids_that_another_file_lacks_are_named(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    (tmp_path / "ids.txt").write_text("scene_01.png\nscene_99.png\n")
    with pytest.raises(InputError, match=r"names 1 stimuli that no trial shows; the first is 'scene_99.png'"):
        study(lab, test_ids=tmp_path / "ids.txt")


def test_mindeyes_table_may_not_name_images_that_the_collection_lacks(tmp_path: Path) -> None:
    write_mindeye(tmp_path / "me")
    with h5py.File(tmp_path / "me" / "COCO_73k_subj_indices.hdf5", "a") as file:
        file["subj03"][7] = 900
    with pytest.raises(InputError, match="names images .* to 900"):
        build(tmp_path, kind="mindeye", root=str(tmp_path / "me"), subject=3)


def test_mindeyes_images_have_to_reach_to_those_that_were_shown(tmp_path: Path) -> None:
    write_mindeye(tmp_path / "me")
    with h5py.File(tmp_path / "me" / "coco_images_224_float16.hdf5", "w") as file:
        file["images"] = np.zeros((300, 3, 6, 6), "f2")
    with pytest.raises(InputError, match="has 300 images. Expected image"):
        build(tmp_path, kind="mindeye", root=str(tmp_path / "me"), subject=3)


def test_algonauts_has_an_image_for_each_row(tmp_path: Path) -> None:
    write_algonauts(tmp_path / "algo")
    next((tmp_path / "algo" / "subj05" / "training_split" / "training_images").glob("*.png")).unlink()
    with pytest.raises(InputError, match=r"holds 24 images and .*lh_training_fmri.npy 25 rows"):
        build(tmp_path, kind="algonauts", root=str(tmp_path / "algo"), subject=5, folds=5)


@pytest.mark.parametrize("name", ["stim", "cap"])
def test_brain_diffusers_arrays_are_as_long_as_its_betas(tmp_path: Path, name: str) -> None:
    write_brain_diffuser(tmp_path / "bd")
    path = tmp_path / "bd" / "subj02" / f"nsd_test_{name}_sub2.npy"
    np.save(path, np.load(path)[:-1])
    with pytest.raises(InputError, match=r"nsd_test_.*7.*8|\(8, any"):
        build(tmp_path, kind="brain-diffuser", root=str(tmp_path / "bd"), subject=2)


def test_bdata_without_an_image_for_a_stimulus_says_which(tmp_path: Path) -> None:
    write_bdata(tmp_path / "a.h5", np.array([1518878.005958, 1639765.052902]))
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "images" / "n01518878_5958.JPEG", format="PNG")
    with pytest.raises(InputError, match="'n01639765_52902'"):
        build(
            tmp_path,
            kind="bdpy",
            path=str(tmp_path / "a.h5"),
            images=str(tmp_path / "images"),
            test_fraction=0.5,
        )


# Variables beside wanted arrays

NUMBERS = np.arange(12.0).reshape(4, 3)


def opaque(name: bytes, kind: bytes) -> bytes:
    """A variable of MATLAB 5 of a class that has no numbers of its own, such as a table or a string."""

    def element(code: int, data: bytes) -> bytes:
        return struct.pack("<II", code, len(data)) + data + bytes(-len(data) % 8)

    inner = element(6, struct.pack("<II", 17, 0)) + element(1, name) + element(1, b"MCOS") + element(1, kind)
    return element(14, inner + element(14, element(6, struct.pack("<II", 13, 0))))


def mat5(path: Path) -> dict[str, str]:
    scipy.io.savemat(
        path,
        {
            "betas": NUMBERS,
            "cell": np.array([[1, "a"]], object),
            "record": {"inner": NUMBERS, "text": "x"},
            "chars": "text",
            "sparse": scipy.sparse.csc_array(np.eye(3)),
            "complex": NUMBERS * 1j,
        },
    )
    kinds = {"table": "table", "text": "string", "object": "containers.Map", "time": "datetime"}
    path.write_bytes(path.read_bytes() + b"".join(opaque(name.encode(), kind.encode()) for name, kind in kinds.items()))
    words = {"cell": "cell", "record": "struct", "chars": "char", "sparse": "sparse", "complex": "complex double"}
    return words | kinds


def mat73(path: Path) -> dict[str, str]:
    """The same as MATLAB's save -v7.3 lays it out."""
    with h5py.File(path, "w") as file:
        file["betas"] = NUMBERS.T
        file["betas"].attrs["MATLAB_class"] = np.bytes_("double")
        cell = file.create_dataset("cell", (2, 1), h5py.ref_dtype)
        cell.attrs["MATLAB_class"] = np.bytes_("cell")
        for k in range(2):
            file[f"#refs#/{k}"] = np.ones((1, 1))
            cell[k, 0] = file[f"#refs#/{k}"].ref
        file["record/inner"] = NUMBERS.T
        file["record"].attrs["MATLAB_class"] = np.bytes_("struct")
        file["record/inner"].attrs["MATLAB_class"] = np.bytes_("double")
        file["chars"] = np.array([[ord(c)] for c in "text"], "u2")
        file["chars"].attrs["MATLAB_class"] = np.bytes_("char")
        for name, data in (("data", np.ones(3)), ("ir", np.arange(3)), ("jc", np.arange(4))):
            file[f"sparse/{name}"] = data
        file["sparse"].attrs["MATLAB_class"] = np.bytes_("double")
        file["sparse"].attrs["MATLAB_sparse"] = np.uint64(3)
        file["complex"] = np.zeros((3, 4), [("real", "f8"), ("imag", "f8")])
        file["complex"].attrs["MATLAB_class"] = np.bytes_("double")
        kinds = {"table": "table", "text": "string", "object": "containers.Map", "time": "datetime"}
        for name, kind in kinds.items():
            file[name] = np.array([[0xDD000000, 2, 1, 1, 1, 1]], "u4")
            file[name].attrs["MATLAB_class"] = np.bytes_(kind)
            file[name].attrs["MATLAB_object_decode"] = np.int32(3)
    return {
        "cell": "cell",
        "record": "struct",
        "chars": "char",
        "sparse": "sparse",
        "complex": "complex numbers",
    } | kinds


@pytest.mark.parametrize("write", [mat5, mat73])
def test_other_variables_beside_wanted_arrays_are_passed_over_and_named_when_asked_for(
    tmp_path: Path, write: Any
) -> None:
    path = tmp_path / "x.mat"
    words = write(path)
    for key in ("betas", "record/inner"):
        with open_array(f"{path}:{key}") as rows:
            np.testing.assert_array_equal(rows[0:4], NUMBERS)
    for key, word in words.items():
        said = refused(f"{path}:{key}", f"holds (MATLAB )?{word}")
        assert "copied whole" not in said
    assert {"betas", *words} - set(array_keys(path)) <= {"record", "sparse"}, "groups are listed by their arrays"
    assert f"{path}:betas: " in inspect(path).text()
    assert refused(f"{path}:betsa", '"betas" is meant')


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\0"])
def test_a_struct_whose_fields_are_damaged_is_refused(tmp_path: Path, damage: bytes) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"s": {"f": NUMBERS}})
    data = (tmp_path / "x.mat").read_bytes()
    at = data.index(b"\x05\0\x04\0") + 4  # the length of the fields' names
    (tmp_path / "x.mat").write_bytes(data[:at] + (damage or b"\xff\xff\xff\x7f") + data[at + 4 :])
    refused(f"{tmp_path / 'x.mat'}:s/f", "s has names of fields")


# HDF5


def test_groups_that_hold_themselves_are_walked_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["g/betas"] = NUMBERS
        file["g/self"] = file["g"]
        file["g/top"] = file["/"]
        file["g/loop"] = h5py.SoftLink("/g/loop")
        file["g/soft"] = h5py.SoftLink("/g")
    assert array_keys(tmp_path / "x.h5") == ["g/betas"]
    for key in ("g/betas", "g/self/self/betas", "g/top/g/soft/betas"):
        with open_array(f"{tmp_path / 'x.h5'}:{key}") as rows:
            np.testing.assert_array_equal(rows[0:4], NUMBERS)
    assert inspect(tmp_path / "x.h5").layout == "arrays"
    refused(f"{tmp_path / 'x.h5'}:g/loop", "a link to /g/loop")


def test_half_precision_betas_are_read_as_they_are(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["betas"] = NUMBERS.astype("f2")
    with open_array(f"{tmp_path / 'x.h5'}:betas") as rows:
        assert rows.dtype == np.float16
        np.testing.assert_array_equal(rows[0:4], NUMBERS)


def test_a_key_among_5000_data_sets_is_opened_without_walking_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,))
        for k in range(5000):
            dataset = h5py.h5d.create(file.id, f"a{k}".encode(), kind, space)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.full(4, k, "f4"))
    for walk in ("visititems", "visit", "items", "values", "__iter__"):
        monkeypatch.setattr(h5py.Group, walk, None)
    with open_array(f"{tmp_path / 'x.h5'}:a4321") as rows:
        assert rows[0:4].tolist() == [4321.0] * 4
