import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.arrays import open_array

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.captions import caption_size
from leanrecon.datasets.files.libraries import LEAST
from leanrecon.datasets.files.rows import NpyRows, Rows
from leanrecon.datasets.images import Values, image_shape_of, scale_of
from leanrecon.datasets.ingest import bands, plan_store
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.datasets.splits import fold_rows, fraction_rows, read_test_rows
from leanrecon.errors import BudgetError, InputError, LeanreconError, StoreError
from leanrecon.memory import MemoryBudget, PeakMemory, process_memory
from leanrecon.places.local import LocalPlace
from leanrecon.progress import Progress
from leanrecon.stores import Store
from leanrecon.study.layout import Study

RNG = np.random.default_rng(7)
N_TRAIN, N_TEST, N_VOXELS = 70, 9, 33
BETAS = {"train": RNG.normal(size=(N_TRAIN, N_VOXELS)), "test": RNG.normal(size=(N_TEST, N_VOXELS))}
IMAGES = {
    "train": RNG.integers(0, 256, (N_TRAIN, 6, 5, 3), np.uint8),
    "test": RNG.integers(0, 256, (N_TEST, 6, 5, 3), np.uint8),
}
CHUNK = 1500  # bytes: 16 images of 90 bytes, or 8 rows of 33 float32, a group


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        np.save(f"betas_{split}.npy", BETAS[split])
        np.save(f"stimuli_{split}.npy", IMAGES[split])
    np.save("betas.npy", np.concatenate([BETAS["train"], BETAS["test"]]))
    np.save("stimuli.npy", np.concatenate([IMAGES["train"], IMAGES["test"]]))
    return tmp_path


def of_files(**changes: object) -> ArraysSettings:
    names = {f"{role}_{split}": f"{role}_{split}.npy" for role in ("betas", "stimuli") for split in ("train", "test")}
    return ArraysSettings(**(names | changes))


def lone(**changes: object) -> ArraysSettings:
    return ArraysSettings(**({"betas": "betas.npy", "stimuli": "stimuli.npy"} | changes))


def run(
    settings: ArraysSettings, folder: str = "study", *, base_dir: Path | None = None, budget=None, **options
) -> Study:
    study = Study(Path(folder))
    context = Context(MemoryBudget.of(None) if budget is None else budget, **({"chunk": CHUNK} | options))
    Arrays(settings).ingest(study, base_dir=base_dir, context=context)
    return study


def plan_arrays(settings: ArraysSettings, *, chunk: int = 8_000_000, free: int) -> DatasetPlan:
    return Arrays(settings).plan(base_dir=None, chunk=chunk, free=free)


def contents(root: "os.PathLike[str]") -> dict[str, bytes]:
    root = Path(root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def records(study: Study) -> dict:
    return json.loads(study.rows.read_text())


def ids_of(study: Study) -> dict:
    return json.loads((study.root / "stimuli" / "ids.json").read_text())


# What is written


def test_arrays_reach_the_stores_as_they_are(here):
    study = run(of_files())
    for split in ("train", "test"):
        betas, images = open_array(study.betas(split)), open_array(study.stimuli(split))
        np.testing.assert_array_equal(betas[:], BETAS[split].astype(np.float32), strict=True)
        np.testing.assert_array_equal(images[:], IMAGES[split], strict=True)
        rows = records(study)[split]
        assert rows["stimulus"] == list(range(len(IMAGES[split])))
        assert ids_of(study)[split] == [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in IMAGES[split]]
        assert rows["trials"] == [[i] for i in range(len(IMAGES[split]))]
        assert rows["repeats"] == [1] * len(IMAGES[split])
    assert list(np.load(study.voxels)["index"]) == list(range(N_VOXELS))
    assert not list(Path(study.root).rglob("*.partial"))
    assert not (study.root / "folds.json").exists()


def test_without_images_the_rows_are_their_own_stimuli(here):
    study = run(ArraysSettings(betas_train="betas_train.npy", betas_test="betas_test.npy"))
    assert not study.stimuli("train").exists()
    ids = ids_of(study)
    assert ids["train"] == [str(i) for i in range(N_TRAIN)]
    assert ids["test"] == [str(N_TRAIN + i) for i in range(N_TEST)]  # so that none is in both


@pytest.mark.parametrize("kind", ["mat 5", "mat 7.3", "npz", "h5", "fortran"])
def test_every_format_gives_the_same_stores(here, kind):
    arrays = {f"{role}_{s}": data[s] for role, data in (("betas", BETAS), ("stimuli", IMAGES)) for s in BETAS}
    path = {"mat 5": "x.mat", "mat 7.3": "x.mat", "npz": "x.npz", "h5": "x.h5"}.get(kind)
    if kind == "mat 5":
        scipy.io.savemat(path, arrays)
    elif kind == "npz":
        np.savez_compressed(path, **arrays)
    elif kind in ("h5", "mat 7.3"):
        with h5py.File(path, "w", userblock_size=512) as file:
            for key, array in arrays.items():
                file[key] = array.T if kind == "mat 7.3" else array
    else:
        for key, array in arrays.items():
            np.save(f"f_{key}.npy", np.asfortranarray(array))
    specs = {key: f":{key}" if path else f"f_{key}.npy" for key in arrays}
    plain, other = run(of_files(), "plain"), run(ArraysSettings(path=path, **specs), "other")
    for split in ("train", "test"):
        assert Store.open(other.betas(split)).content == Store.open(plain.betas(split)).content
        assert Store.open(other.stimuli(split)).content == Store.open(plain.stimuli(split)).content
    assert contents(other.root)["betas/rows.json"] == contents(plain.root)["betas/rows.json"]


def test_paths_may_be_relative_to_the_settings_file(here, monkeypatch):
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    study = run(of_files(), base_dir=here)
    assert Store.open(study.betas("train")).complete


def test_captions_follow_their_rows(here):
    Path("captions_train.txt").write_text("".join(f"train {i}\tagain {i}\n" for i in range(N_TRAIN)))
    Path("captions_test.json").write_text(json.dumps([f"test {i}" for i in range(N_TEST)]))
    captions = {"captions_train": "captions_train.txt", "captions_test": "captions_test.json"}
    study = run(of_files(**captions))
    assert json.loads(study.captions("train").read_text()) == [[f"train {i}", f"again {i}"] for i in range(N_TRAIN)]
    assert json.loads(study.captions("test").read_text()) == [[f"test {i}"] for i in range(N_TEST)]
    Path("captions_test.json").write_text(json.dumps([f"other {i}" for i in range(N_TEST)]))
    with pytest.raises(StoreError, match=r"test.json was made with other captions"):
        run(of_files(**captions))
    run(of_files(**captions), overwrite=True)
    assert json.loads(study.captions("test").read_text())[0] == ["other 0"]
    with pytest.raises(InputError, match="captions_test has 70 rows"):
        run(of_files(captions_train="captions_train.txt", captions_test="captions_train.txt"), "another")


# Images


@pytest.mark.parametrize(
    ("shape", "image_shape", "expected"),
    [
        ((9, 784), [28, 28], (28, 28, 1)),
        ((9, 90), [6, 5, 3], (6, 5, 3)),
        ((9, 28, 30), None, (28, 30, 1)),
        ((9, 28, 30), [28, 30], (28, 30, 1)),
        ((9, 6, 5, 3), None, (6, 5, 3)),
        ((9, 3, 5, 3), None, (3, 5, 3)),  # could be channels first, but the last axis decides
        ((9, 6, 5, 1), [6, 5], (6, 5, 1)),
    ],
)
def test_image_shapes_that_are_understood(shape, image_shape, expected):
    assert image_shape_of("x", shape, image_shape, "C") == expected


@pytest.mark.parametrize(
    ("shape", "image_shape", "order", "words"),
    [
        ((9, 784), None, "C", r"image_shape is not set.*\[28, 28\]"),
        ((9, 784), [28, 27], "C", "784 numbers a row.*28·27·1 = 756"),
        ((9, 3, 64, 64), None, "C", "channels come first.*moveaxis"),
        ((9, 64, 64, 4), None, "C", "1 or 3 channels"),
        ((9, 64, 64), [32, 128], "C", "image_shape is"),
        ((9, 64, 64), None, "F", "flat rows"),
        ((9,), None, "C", "shape"),
        ((9, 2, 3, 4, 3), None, "C", "shape"),
    ],
)
def test_image_shapes_that_are_refused(shape, image_shape, order, words):
    with pytest.raises(InputError, match=words):
        image_shape_of("x", shape, image_shape, order)


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_rows_in_matlab_order_stand_upright(here, channels):
    shape = (6, 5, channels)
    for split in ("train", "test"):
        images = IMAGES[split][..., :channels]
        np.save(f"flat_{split}.npy", np.array([image.ravel(order="F") for image in images]))
    study = run(
        of_files(stimuli_train="flat_train.npy", stimuli_test="flat_test.npy", image_shape=list(shape), image_order="F")
    )
    np.testing.assert_array_equal(open_array(study.stimuli("train"))[:], IMAGES["train"][..., :channels])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_of_0_to_1_are_scaled_and_rounded(here, dtype, order):
    for split in ("train", "test"):
        np.save(f"stimuli_{split}.npy", np.asarray(IMAGES[split] / 255, dtype, order=order))
    study = run(of_files())
    np.testing.assert_array_equal(open_array(study.stimuli("train"))[:], IMAGES["train"])
    np.testing.assert_array_equal(open_array(study.stimuli("test"))[:], IMAGES["test"])


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint16])
def test_whole_numbers_of_0_to_255_are_kept_in_any_type(here, dtype):
    np.save("stimuli_train.npy", IMAGES["train"].astype(dtype))
    study = run(of_files())
    np.testing.assert_array_equal(open_array(study.stimuli("train"))[:], IMAGES["train"])


def test_the_scale_is_one_for_train_and_test(here):
    np.save("stimuli_train.npy", IMAGES["train"].astype(float))
    dark = np.zeros(IMAGES["test"].shape)
    dark[:, 0, 0, 0] = np.arange(N_TEST) % 2  # alone it would pass for 0..1
    dark[:, 1, 1, 1] = np.arange(N_TEST) // 2 % 2
    np.save("stimuli_test.npy", dark)
    study = run(of_files())
    assert open_array(study.stimuli("test"))[:].max() == 1


def test_bool_images_are_black_and_white(here):
    for split in ("train", "test"):
        np.save(f"stimuli_{split}.npy", IMAGES[split][..., 0] > 127)
    study = run(of_files())
    expected = np.where(IMAGES["test"][..., :1] > 127, 255, 0)
    np.testing.assert_array_equal(open_array(study.stimuli("test"))[:], expected)


@pytest.mark.parametrize(
    ("found", "beside", "expected"),
    [
        ([Values(0, 1, False)], False, 255),
        ([Values(0, 1, True)], False, 255),  # binary patterns
        ([Values(0, 255, True)], True, 1),
        ([Values(0, 1, True), Values(0, 200, True)], False, 1),
        ([Values(0, 0.5, False)], True, 255),
        ([Values(0, 1, True)], True, "integers"),
        ([Values(0, 254.5, False)], False, "not whole"),
        ([Values(0, 1, False), Values(0, 200, True)], False, "not whole"),
        ([Values(-1, 1, False)], False, "-1 to 1"),
        ([Values(0, 256, True)], False, "0 to 256"),
    ],
)
def test_scale_of_floating_point_images(found, beside, expected):
    if isinstance(expected, int):
        assert scale_of("x", found, beside_whole_types=beside) == expected
    else:
        with pytest.raises(InputError, match=expected):
            scale_of("x", found, beside_whole_types=beside)


def test_train_images_alone_decide_the_scale_of_floating_point_images(here):
    patterns = (IMAGES["train"] > 127).astype(float)
    np.save("stimuli_train.npy", patterns)
    np.save("stimuli_test.npy", IMAGES["test"].astype(float))
    with pytest.raises(InputError, match=r"stimuli_test.npy holds .* 0 to 255, and the train images .* go to 1"):
        run(of_files())
    np.save("stimuli_test.npy", (IMAGES["test"] > 127).astype(float))
    study = run(of_files())
    np.testing.assert_array_equal(open_array(study.stimuli("train"))[:], patterns * 255)


def test_test_images_of_0_to_1_beside_train_images_to_255_are_refused(here):
    np.save("stimuli_train.npy", IMAGES["train"].astype(float))
    np.save("stimuli_test.npy", IMAGES["test"] / 255)
    with pytest.raises(InputError, match="train and test images of one range"):
        run(of_files())


def test_test_rows_of_one_array_do_not_decide_its_scale(here):
    images = (np.load("stimuli.npy") > 127).astype(float)
    images[5] = IMAGES["train"][5]
    np.save("stimuli.npy", images)
    np.savetxt("index.txt", [5, 9], fmt="%d")
    with pytest.raises(InputError, match="the train images .* go to 1"):
        run(lone(test_index="index.txt"))


def test_the_range_of_images_may_be_stated(here):
    np.save("stimuli_train.npy", IMAGES["train"].astype(float))
    np.save("stimuli_test.npy", IMAGES["test"].astype(float))
    study = run(of_files(image_range=255))
    np.testing.assert_array_equal(open_array(study.stimuli("test"))[:], IMAGES["test"])
    with pytest.raises(InputError, match="0 to 255"):
        run(of_files(image_range=1), "other")


def test_images_that_interpolation_left_a_rounding_beyond_1_are_clipped(here):
    images = IMAGES["train"] / 255
    images[3, 2, 2, 1], images[4, 0, 0, 0] = 1.0000001, -0.0019
    np.save("stimuli_train.npy", images)
    np.save("stimuli_test.npy", IMAGES["test"] / 255)
    stored = open_array(run(of_files()).stimuli("train"))
    assert (stored[3, 2, 2, 1], stored[4, 0, 0, 0]) == (255, 0)
    images[3, 2, 2, 1] = 1.003
    np.save("stimuli_train.npy", images)
    with pytest.raises(InputError, match=r"to 1.003. .*Clip"):
        run(of_files(), "other")


def test_images_of_int8_are_refused(here):
    np.save("stimuli_train.npy", (IMAGES["train"] // 2).astype(np.int8))
    with pytest.raises(InputError, match="int8"):
        run(of_files())


@pytest.mark.parametrize(
    ("texts", "count", "width"),
    [
        ([["a cat"], ["a dog", "two dogs"]], 3, 1),
        ([["ein Bär"], ["a"]], 2, 2),
        ([["a \N{GRINNING FACE}"], ["a"]], 2, 4),
    ],
)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_size_of_captions_is_told_without_reading_them(here, texts, count, width, ascii_only):
    Path("c.json").write_text(json.dumps(texts, ensure_ascii=ascii_only), encoding="utf-8")
    found = caption_size("c.json", None, None)
    assert (found.count, found.text) == (count, width * Path("c.json").stat().st_size)
    every = [text for row in texts for text in row]
    assert found.text >= sum(len(text) * width for text in every)


def test_the_size_of_captions_in_arrays_is_that_of_their_numbers(here):
    np.save("c.npy", np.array([["a cat", "b"], ["a dog", "c"]]))
    assert (caption_size("c.npy", None, None).count, caption_size("c.npy", None, None).text) == (4, 4 * 5 * 4)
    Path("c.txt").write_text("a cat\ta tom\na dog\n")
    assert caption_size("c.txt", None, None).count >= 3


def test_captions_are_in_the_plan(here):
    Path("c.json").write_text(json.dumps(["word " * 50_000] * (N_TRAIN + N_TEST)))
    with_captions = plan_arrays(lone(test_fraction=0.2, captions="c.json"), free=0)
    alone = plan_arrays(lone(test_fraction=0.2), free=0)
    assert with_captions.work - alone.work == with_captions.captions >= 2 * (N_TRAIN + N_TEST) * 250_000


def test_an_index_of_more_entries_than_rows_is_refused_before_all_of_it_is_read(here):
    with open("index.txt", "w") as file:
        file.writelines(f"{k % 9}\n" for k in range(2_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 79"):
        read_test_rows("index.txt", 79)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    np.save("index.npy", np.zeros(10_000, int))
    with pytest.raises(InputError, match="10000 entries"):
        read_test_rows("index.npy", 79)


def test_an_index_of_savetxt_is_read(here):
    np.savetxt("index.txt", [3, 5, 8])
    assert read_test_rows("index.txt", 10).tolist() == [3, 5, 8]


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_columns_of_labels_among_the_betas_are_named(here):
    labelled = {split: np.c_[BETAS[split], np.arange(len(BETAS[split])) % 5] for split in BETAS}
    for split, betas in labelled.items():
        np.save(f"betas_{split}.npy", betas)
    said = Said()
    run(of_files(), progress=said)
    (line,) = [line for line in said.lines if "column" in line]
    assert "1 of 34 columns" in line
    assert "column 33 first, from 0 to 4" in line


@pytest.mark.parametrize("make", [np.rint, lambda betas: betas, lambda betas: np.c_[betas, np.zeros(len(betas))]])
def test_betas_without_labels_pass_without_a_word(here, make):
    for split in BETAS:
        np.save(f"betas_{split}.npy", make(10 * BETAS[split]))
    said = Said()
    run(of_files(), progress=said)
    assert said.lines == []


# Splits

IDS = st.lists(st.integers(0, 12).map(str), min_size=6, max_size=60)


@given(IDS, st.integers(2, 6), st.integers(0, 5))
def test_folds_hold_every_row_once_and_never_part_repeats(ids, k, seed):
    largest = Counter(ids).most_common(1)[0][1]
    if len(set(ids)) < k or len(ids) - largest - len(ids) / k < 2:
        return
    folds = fold_rows(ids, k, seed)
    assert len(folds) == k
    assert sorted(row for fold in folds for row in fold) == list(range(len(ids)))
    assert all(fold and fold == sorted(fold) for fold in folds)
    for fold in folds:
        assert not {ids[row] for row in fold} & {ids[row] for row in set(range(len(ids))) - set(fold)}
    assert max(map(len, folds)) - min(map(len, folds)) <= largest
    assert folds == fold_rows(list(ids), k, seed)


def test_folds_of_distinct_rows_are_of_equal_size_and_change_with_the_seed():
    ids = [str(i) for i in range(100)]
    assert [len(fold) for fold in fold_rows(ids, 10, 0)] == [10] * 10
    assert fold_rows(ids, 10, 0) != fold_rows(ids, 10, 1)


@given(IDS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_fraction_takes_whole_stimuli_until_it_is_reached(ids, fraction, seed):
    test = list(fraction_rows(ids, fraction, seed))
    assert test == sorted(set(test))
    assert not {ids[row] for row in test} & {ids[row] for row in set(range(len(ids))) - set(test)}
    wanted = max(round(fraction * len(ids)), 1)
    assert wanted <= len(test) < wanted + Counter(ids).most_common(1)[0][1]
    assert test == list(fraction_rows(ids, fraction, seed))


def test_folds_pool_train_and_test_in_that_order(here):
    Path("c1.txt").write_text("\n".join(f"train {i}" for i in range(N_TRAIN)))
    Path("c2.txt").write_text("\n".join(f"test {i}" for i in range(N_TEST)))
    study = run(of_files(folds=4, captions_train="c1.txt", captions_test="c2.txt"), seed=3)
    n = N_TRAIN + N_TEST
    np.testing.assert_array_equal(
        open_array(study.betas("train"))[:], np.concatenate([BETAS["train"], BETAS["test"]]).astype(np.float32)
    )
    np.testing.assert_array_equal(
        open_array(study.stimuli("train"))[:], np.concatenate([IMAGES["train"], IMAGES["test"]])
    )
    assert not study.betas("test").exists()
    assert list(records(study)) == ["format", "train"]
    assert json.loads(study.captions("train").read_text())[N_TRAIN] == ["test 0"]
    folds = json.loads((study.root / "folds.json").read_text())["folds"]
    assert sorted(row for fold in folds for row in fold) == list(range(n))
    lone_study = run(lone(folds=4), "lone", seed=3)
    assert json.loads((lone_study.root / "folds.json").read_text())["folds"] == folds
    with pytest.raises(StoreError, match="other folds"):
        run(lone(folds=5), "lone", seed=3)


def test_repeats_share_a_fold(here):
    images = np.concatenate([IMAGES["train"], IMAGES["train"][:N_TEST]])
    np.save("stimuli.npy", images)
    study = run(lone(folds=5))
    folds = json.loads((study.root / "folds.json").read_text())["folds"]
    fold_of = {row: k for k, fold in enumerate(folds) for row in fold}
    assert all(fold_of[i] == fold_of[N_TRAIN + i] for i in range(N_TEST))


def test_a_fraction_keeps_order_and_repeats(here):
    images = np.concatenate([IMAGES["train"], IMAGES["train"][:N_TEST]])
    np.save("stimuli.npy", images)
    study = run(lone(test_fraction=0.2), seed=1)
    rows = {split: [trials[0] for trials in records(study)[split]["trials"]] for split in ("train", "test")}
    assert sorted(rows["train"] + rows["test"]) == list(range(len(images)))
    for split, index in rows.items():
        assert index == sorted(index)
        shown = open_array(study.stimuli(split))[:]
        np.testing.assert_array_equal(shown[records(study)[split]["stimulus"]], images[index])
        assert len(shown) == len({image.tobytes() for image in images[index]})
        np.testing.assert_array_equal(open_array(study.betas(split))[:], np.load("betas.npy")[index].astype(np.float32))
    assert len(rows["test"]) in (16, 17)
    before = contents(study.root)
    run(lone(test_fraction=0.2), seed=1)
    assert contents(study.root) == before
    with pytest.raises(StoreError, match=r"dataset.seed was 1, is 2"):
        run(lone(test_fraction=0.2), seed=2)


@pytest.mark.parametrize("form", ["npy", "mask", "txt", "csv mask", "mat"])
def test_test_index_takes_numbers_or_a_mask(here, form):
    n, wanted = N_TRAIN + N_TEST, [3, 8, 77]
    mask = np.isin(np.arange(n), wanted)
    if form == "npy":
        np.save("index.npy", wanted[::-1])
    elif form == "mask":
        np.save("index.npy", mask)
    elif form == "txt":
        Path("index.txt").write_text("3 8\n77\n")
    elif form == "csv mask":
        Path("index.csv").write_text(",".join(str(int(x)) for x in mask))
    else:
        scipy.io.savemat("index.mat", {"other": 1.0, "test": np.array(wanted, float)})
    suffix = {"npy": "npy", "mask": "npy", "txt": "txt", "csv mask": "csv", "mat": "mat:test"}[form]
    study = run(lone(test_index=f"index.{suffix}"))
    assert records(study)["test"]["trials"] == [[3], [8], [77]]
    assert records(study)["train"]["trials"] == [[i] for i in range(n) if i not in wanted]
    np.testing.assert_array_equal(open_array(study.stimuli("test"))[:], np.load("stimuli.npy")[wanted])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 10", "rows 1 to 10.*from 0 to 9.*subtract 1"),
        ("-1", "rows -1"),
        ("1 1", "twice"),
        ("1.5", "holds '1.5'"),
        ("true false", "mask of 2 entries"),
        ("1 two", "holds 'two'"),
    ],
)
def test_bad_row_numbers_are_refused(here, text, words):
    Path("index.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read_test_rows("index.txt", 10)


@pytest.mark.parametrize(("rows", "words"), [("", "test split is empty"), (" ".join(map(str, range(78))), "1 rows")])
def test_splits_too_small_are_refused(here, rows, words):
    Path("index.txt").write_text(rows)
    with pytest.raises(InputError, match=words):
        run(lone(test_index="index.txt"))


# Settings


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({}, "no betas"),
        ({"betas_train": "a", "betas_test": "b", "betas": "c"}, "both given"),
        ({"betas_train": "a"}, "betas_train is given without betas_test"),
        ({"betas_test": "a"}, "betas_test is given without betas_train"),
        ({"betas_train": "a", "betas_test": "b", "stimuli_train": "c"}, "without stimuli_test"),
        ({"betas_train": "a", "betas_test": "b", "test_fraction": 0.1}, "only folds"),
        ({"betas": "a"}, "none is given"),
        ({"betas": "a", "folds": 3, "test_fraction": 0.1}, "test_fraction and folds are given"),
        ({"betas": ":a", "folds": 3}, "key of `path`"),
        ({"betas": "a", "folds": 1}, "folds"),
        ({"betas": "a", "test_fraction": 1.0}, "test_fraction"),
        ({"betas": "a", "folds": 3, "image_shape": [28, 28, 2]}, "1 or 3 channels"),
        ({"betas": "a", "folds": 3, "image_shape": [28]}, "image_shape"),
        ({"betas": "a", "folds": 3, "fold": 3}, "fold"),
    ],
)
def test_settings_that_contradict_are_refused(given_settings, words):
    with pytest.raises(ValidationError, match=words):
        ArraysSettings(**given_settings)


def test_checking_settings_loads_neither_zarr_nor_h5py_nor_scipy():
    code = (
        "import sys, leanrecon.datasets.arrays.dataset as a; a.ArraysSettings(betas='x', folds=2); "
        "print([m for m in ('zarr', 'h5py', 'scipy', 'PIL', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# Resuming


def watch_reads(monkeypatch) -> list[tuple[str, int]]:
    """Note each row that is read from an .npy file."""
    seen: list[tuple[str, int]] = []
    blocks = NpyRows.blocks

    def noted(self, index):
        seen.extend((self.path.name, int(row)) for row in index)
        yield from blocks(self, index)

    monkeypatch.setattr(NpyRows, "blocks", noted)
    return seen


def test_a_second_run_reads_no_data(here, monkeypatch):
    study = run(of_files())
    before = contents(study.root)
    seen = watch_reads(monkeypatch)
    monkeypatch.setattr(Store, "__getitem__", lambda *_: pytest.fail("a store was read"))
    run(of_files())
    assert not seen
    assert contents(study.root) == before


@pytest.mark.parametrize(
    "settings", [of_files(), lone(test_fraction=0.2), of_files(folds=4)], ids=["pair", "fraction", "folds"]
)
def test_only_what_is_missing_is_read_again_and_the_bytes_are_the_same(here, monkeypatch, settings):
    study = run(settings)
    before = contents(study.root)
    for store in (Store.open(study.betas("train")), Store.open(study.stimuli("train"))):
        store.discard([(1, 0), (2, 0)])
    betas, images = (
        Store.open(study.betas("train"), incomplete=True),
        Store.open(study.stimuli("train"), incomplete=True),
    )
    missing = {"betas": 2 * betas.chunk_rows, "stimuli": 2 * images.chunk_rows}
    seen = watch_reads(monkeypatch)
    run(settings)
    assert contents(study.root) == before
    counts = Counter(name.split("_")[0].split(".")[0] for name, _ in seen)
    assert counts["betas"] == missing["betas"]
    assert counts["stimuli"] == missing["stimuli"]


@pytest.mark.parametrize(
    "settings", [of_files(), lone(test_fraction=0.2), lone(folds=3)], ids=["pair", "fraction", "folds"]
)
def test_a_run_killed_anywhere_ends_with_the_same_bytes(here, monkeypatch, settings):
    expected = contents(run(settings, "whole").root)
    write = Store.write_chunk
    for survive in (0, 1, 7, 12, 14):
        left = survive

        def dying(self, i, j, block):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            write(self, i, j, block)

        shutil.rmtree("study", ignore_errors=True)
        monkeypatch.setattr(Store, "write_chunk", dying)
        with pytest.raises(KeyboardInterrupt):
            run(settings)
        monkeypatch.setattr(Store, "write_chunk", write)
        assert contents(run(settings).root) == expected


def test_a_run_killed_between_the_small_files_ends_with_the_same_bytes(here, monkeypatch):
    settings = lone(folds=3)
    expected = contents(run(settings, "whole").root)
    writing = LocalPlace._replacing
    for survive in range(5):
        left = survive

        @contextlib.contextmanager
        def dying(self, key):
            nonlocal left
            with writing(self, key) as partial:
                yield partial
                if key.endswith((".json", ".npz")) and ".zarr" not in key:
                    if left == 0:
                        raise KeyboardInterrupt
                    left -= 1

        shutil.rmtree("study", ignore_errors=True)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(LocalPlace, "_replacing", dying)
            run(settings)
        assert contents(run(settings).root) == expected


def test_the_budget_never_changes_a_byte(here):
    rng = np.random.default_rng(0)
    for split, n in (("train", 300), ("test", 40)):  # Fortran order, where more memory means more rows at once
        np.save(f"betas_{split}.npy", np.asfortranarray(rng.standard_normal((n, 2))))
        np.save(f"stimuli_{split}.npy", np.asfortranarray(rng.integers(0, 256, (n, 6, 5, 3), np.uint8)))
    least = plan_arrays(of_files(), chunk=CHUNK, free=0).work
    ample = plan_arrays(of_files(), chunk=CHUNK, free=10**9).work
    assert least < ample
    tight = run(of_files(), "tight", budget=MemoryBudget(least, reserved=0))
    loose = run(of_files(), "loose", budget=MemoryBudget(10**9, reserved=0))
    assert contents(tight.root) == contents(loose.root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"betas_train": "betas_train2.npy"}, r"dataset\.betas_train\.file was"),
        ({"image_shape": [5, 6, 3]}, r"dataset\.image_shape was \[6, 5, 3\], is \[5, 6, 3\]"),
        ({"image_order": "F"}, r'dataset\.image_order was "C", is "F"'),
    ],
)
def test_a_changed_setting_is_refused_by_name(here, change, words):
    for split in ("train", "test"):
        np.save(f"stimuli_{split}.npy", IMAGES[split].reshape(-1, 90))
    np.save("betas_train2.npy", BETAS["train"] + 1)
    study = run(of_files(image_shape=[6, 5, 3]))
    before = contents(study.root)
    changed = of_files(**({"image_shape": [6, 5, 3]} | change))
    with pytest.raises(StoreError, match=words):
        run(changed)
    assert contents(study.root) == before
    run(changed, overwrite=True)
    assert Store.open(study.betas("train")).complete


def test_a_changed_key_is_refused_by_name(here):
    np.savez("x.npz", a=BETAS["train"], b=BETAS["train"][::-1])
    run(of_files(betas_train="x.npz:a"))
    with pytest.raises(StoreError, match=r'dataset\.betas_train\.key was "a", is "b"'):
        run(of_files(betas_train="x.npz:b"))


def test_a_moved_file_is_no_change(here):
    run(of_files())
    shutil.move("betas_train.npy", "moved.npy")
    run(of_files(betas_train="moved.npy"))


def test_overwriting_with_folds_leaves_no_test_stores(here):
    study = run(of_files())
    run(of_files(folds=3), overwrite=True)
    assert not study.betas("test").exists()
    assert not study.stimuli("test").exists()
    run(of_files(), overwrite=True)
    assert not (study.root / "folds.json").exists()


def test_what_others_add_to_the_voxels_is_kept(here):
    study = run(of_files())
    np.savez(study.voxels, index=np.arange(N_VOXELS), ncsnr=np.ones(N_VOXELS))
    study.rows.unlink()
    run(of_files())
    assert "ncsnr" in np.load(study.voxels)
    assert study.rows.exists()


# Bad betas


def test_voxels_that_are_nan_everywhere_lie_outside_the_mask(here):
    for split in ("train", "test"):
        betas = BETAS[split].copy()
        betas[:, [4, 30]] = np.nan
        np.save(f"betas_{split}.npy", betas)
    study = run(of_files())
    assert np.isnan(open_array(study.betas("train"))[:]).all(axis=0).nonzero()[0].tolist() == [4, 30]


def test_nan_in_some_rows_names_the_first_and_their_number(here):
    betas = BETAS["train"].copy()
    betas[[20, 21, 60], 5] = np.nan
    betas[25, 2] = np.nan
    np.save("betas_train.npy", betas)
    for _ in range(2):  # a second run finds the same from what is stored
        with pytest.raises(InputError, match=r"4 betas of 2 voxels are NaN.*voxel 5 in row 20 of betas_train.npy"):
            run(of_files())
    np.save("betas_train.npy", BETAS["train"])
    run(of_files(), overwrite=True)


def test_a_voxel_that_is_nan_in_one_split_only_is_refused(here):
    betas = BETAS["test"].copy()
    betas[:, 5] = np.nan
    np.save("betas_test.npy", betas)
    with pytest.raises(InputError, match=r"9 betas of 1 voxels.*voxel 5 in row 0 of betas_test.npy"):
        run(of_files())


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39])
def test_infinite_betas_are_named_by_row_and_voxel_and_lose_nothing(here, value, monkeypatch):
    betas = BETAS["train"].copy()
    betas[50, 7] = value
    np.save("betas_train.npy", betas)
    with pytest.raises(InputError, match=r"voxel 7 in row 50 of betas_train.npy is infinite"):
        run(of_files())
    store = Store.open(Path("study/betas/train.zarr"), incomplete=True)
    assert store.missing_row_groups() == list(range(50 // store.chunk_rows, store.row_groups))


def test_rows_are_named_as_in_the_users_file(here):
    betas = np.load("betas.npy")
    betas[77, 3] = np.inf
    np.save("betas.npy", betas)
    Path("index.txt").write_text("3 8 77")
    with pytest.raises(InputError, match=r"voxel 3 in row 77 of betas.npy"):
        run(lone(test_index="index.txt"))
    betas = BETAS["test"].copy()
    betas[2, 3] = np.inf
    np.save("betas_test.npy", betas)
    with pytest.raises(InputError, match=r"voxel 3 in row 2 of betas_test.npy"):
        run(of_files(folds=3), "folds")


def test_betas_of_nothing_but_nan_are_refused(here):
    for split in ("train", "test"):
        np.save(f"betas_{split}.npy", np.full(BETAS[split].shape, np.nan))
    with pytest.raises(InputError, match="every beta is NaN"):
        run(of_files())


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("betas_train", BETAS["train"][:-1], "69 rows and stimuli_train.npy has 70 images"),
        ("betas_train", BETAS["train"].T, r"33 rows .* seems to be \[voxels, rows\]"),
        ("betas_test", BETAS["test"][:, 1:], "33 voxels and betas_test.npy has 32"),
        ("betas_train", BETAS["train"].reshape(70, 3, 11), r"\(70, 3, 11\).*betas as \[rows, voxels\]"),
        ("betas_train", BETAS["train"][0], r"\(33,\)"),
        ("betas_train", BETAS["train"] + 0j, "complex128"),
        ("betas_train", BETAS["train"].astype(str), "<U"),
        ("betas_train", BETAS["train"] > 0, "bool"),
        ("betas_train", np.zeros((0, 33)), "is empty"),
        ("stimuli_train", np.moveaxis(IMAGES["train"], 0, -1), "images on the last axis"),
        ("stimuli_train", np.moveaxis(IMAGES["train"][..., 0], 0, -1), "images on the last axis"),
        ("stimuli_train", np.moveaxis(IMAGES["train"], -1, 1), "channels come first"),
        ("stimuli_train", IMAGES["train"][..., 0], r"\(6, 5, 1\) and stimuli_test.npy of \(6, 5, 3\)"),
        ("stimuli_train", IMAGES["train"].astype(int) - 1, "values from -1 to"),
        ("stimuli_train", IMAGES["train"] * 257.0, "0 to 65535"),
        ("stimuli_train", IMAGES["train"] * np.uint16(257), "65535"),
        ("stimuli_train", IMAGES["train"] / 100, "not whole"),
        ("stimuli_train", np.where(IMAGES["train"] == 7, np.nan, 0.5), "row . of stimuli_train.npy holds NaN"),
        ("stimuli_train", IMAGES["train"].astype(complex), "complex128"),
        ("stimuli_train", IMAGES["train"].astype("S3"), "S3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(here, name, array, words):
    np.save(f"{name}.npy", array)
    with pytest.raises(InputError, match=words):
        run(of_files())


def test_images_of_integers_0_and_1_are_refused_as_black(here):
    for split in ("train", "test"):
        np.save(f"stimuli_{split}.npy", (IMAGES[split] > 127).astype(np.uint8))
    with pytest.raises(InputError, match=r"all images are black.*bool"):
        run(of_files())


def test_stimuli_shared_by_train_and_test_are_refused_unless_allowed(here):
    images = IMAGES["test"].copy()
    images[4], images[6] = IMAGES["train"][11], IMAGES["train"][3]
    np.save("stimuli_test.npy", images)
    for _ in range(2):
        words = r"2 of the 9 test images .* row 4 of stimuli_test.npy \(test\), the same as row 11 of stimuli_train.npy"
        with pytest.raises(InputError, match=words):
            run(of_files())
    study = run(of_files(allow_shared_stimuli=True))
    assert ids_of(study)["test"][4] == ids_of(study)["train"][11]
    with pytest.raises(InputError, match="2 of the 9"):
        run(of_files())
    run(of_files(folds=3), "folds")  # where repeats share a fold


def test_a_missing_file_names_the_nearest(here):
    with pytest.raises(InputError, match=r'(?s)there is no file beta_train.npy.*"betas_train.npy"'):
        run(of_files(betas_train="beta_train.npy"))
    assert not Path("study").exists()


def test_more_folds_than_rows_are_refused_before_anything_is_written(here):
    with pytest.raises(InputError, match="into 80 folds"):
        run(of_files(folds=80))
    assert not Path("study").exists()


# Memory


@pytest.mark.parametrize(
    ("shape", "dtype", "about", "at_once", "work", "disk"),
    [
        # 256 rows of 1000 float32 in one chunk of 1.024 MB: band, group and two chunks
        ((1000, 1000), np.float32, {}, 1, 4 * 1_024_000, 4 * (1_024_000 + 4)),
        ((1000, 1000), np.float32, {"together": 1000}, 4, 7 * 1_024_000, 4 * (1_024_000 + 4)),
        ((1000, 1000), np.float32, {"together": 1000, "free": 5_200_000}, 2, 5 * 1_024_000, 4 * (1_024_000 + 4)),
        ((1000, 1000), np.float32, {"together": 1000, "free": 0}, 1, 4 * 1_024_000, 4 * (1_024_000 + 4)),
        ((1000, 1000), np.float32, {"held": 7, "scratch": 5}, 1, 4 * 1_024_000 + 12, 4 * (1_024_000 + 4)),
        # 8 images (a power of two) of 541,875 bytes in 8 MB
        ((20, 425, 425, 3), np.uint8, {}, 1, 4 * 4_335_000, 3 * (4_335_000 + 4)),
        # 15,724 voxels: three blocks of 5,248 columns, the next multiple of 16 above a third
        ((256, 15_724), np.float32, {}, 1, 2 * 256 * 15_724 * 4 + 2 * 5_373_952, 3 * (5_373_952 + 4)),
    ],
)
def test_plan_of_a_store(shape, dtype, about, at_once, work, disk):
    plan = plan_store(shape, dtype, 8_000_000, **({"free": 10**9} | about))
    assert (plan.at_once, plan.work, plan.disk) == (at_once, work, disk)


@given(st.sets(st.integers(0, 30)).map(sorted), st.integers(1, 8))
def test_bands_are_neighbours_and_cover_all(groups, at_once):
    found = list(bands(groups, at_once))
    assert [i for band in found for i in band] == groups
    assert all(1 <= len(band) <= at_once for band in found)


def test_the_plan_says_what_ingesting_then_makes(here):
    plan = plan_arrays(of_files(), chunk=CHUNK, free=10**9)
    assert (plan.n_train, plan.n_test, plan.voxels, plan.image_shape) == (N_TRAIN, N_TEST, N_VOXELS, (6, 5, 3))
    study = run(of_files())
    chunks = sum(len(data) for path, data in contents(study.root).items() if "/c/" in path)
    assert plan.disk == chunks
    assert plan_arrays(lone(test_fraction=0.1), free=0).n_test == 8  # 7.9
    folded = plan_arrays(lone(folds=3), free=0)
    assert (folded.n_train, folded.n_test, folded.folds) == (79, 0, 3)


def test_the_plan_reads_headers_only(here, monkeypatch):
    monkeypatch.setattr(Rows, "read", lambda *_: pytest.fail("data was read"))
    plan_arrays(of_files(), free=0)


def test_too_small_a_budget_is_refused_before_anything_is_written(here):
    with pytest.raises(BudgetError, match="reading the arrays needs at least"):
        run(of_files(), budget=MemoryBudget(LEAST, reserved=0))
    assert not Path("study").exists()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_peak_stays_under_the_plan(tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, n in (("train", 1200), ("test", 100)):
        np.save(f"betas_{split}.npy", np.asarray(rng.normal(size=(n, 6000)), order=order))
        np.save(f"stimuli_{split}.npy", np.asarray(rng.integers(0, 256, (n, 64, 64, 3), np.uint8), order=order))
    base = process_memory()
    budget = MemoryBudget(base + 100_000_000, base)
    plan = plan_arrays(of_files(), free=budget.free)
    with PeakMemory() as memory:
        run(of_files(), budget=budget, chunk=8_000_000)
    assert memory.peak - base <= plan.work <= budget.free
    np.testing.assert_array_equal(
        open_array("study/betas/train.zarr")[1000:1010], np.load("betas_train.npy")[1000:1010].astype(np.float32)
    )


# Real data

DIGITS = Path(os.environ.get("LEANRECON_SHARED", "../shared")).resolve() / "data/digit69/digit69_28x28.mat"


@pytest.mark.skipif(not DIGITS.exists(), reason=f"the digit-69 data is not at {DIGITS} (set LEANRECON_SHARED)")
def test_real_digits_come_out_upright_and_fold_over_all_trials(tmp_path):
    names = {
        "betas_train": ":fmriTrn",
        "betas_test": ":fmriTest",
        "stimuli_train": ":stimTrn",
        "stimuli_test": ":stimTest",
    }
    settings = ArraysSettings(path=str(DIGITS), **names, image_shape=[28, 28], image_order="F")
    study = Study(tmp_path)
    Arrays(settings).ingest(study, base_dir=None, context=Context.of())
    data = scipy.io.loadmat(DIGITS)
    betas, images = open_array(study.betas("train")), open_array(study.stimuli("test"))
    np.testing.assert_array_equal(betas[:], data["fmriTrn"].astype(np.float32))
    upright = data["stimTest"].reshape(-1, 28, 28).transpose(0, 2, 1)  # the README's own words
    np.testing.assert_array_equal(images[:, :, :, 0], upright)
    folded = Study(tmp_path / "folded")
    Arrays(settings.model_copy(update={"folds": 10})).ingest(folded, base_dir=None, context=Context.of())
    folds = json.loads((folded.root / "folds.json").read_text())["folds"]
    assert sorted(row for fold in folds for row in fold) == list(range(100))


def test_every_error_is_one_for_the_command_line(here):
    np.save("betas_train.npy", BETAS["train"][:-1])
    with pytest.raises(LeanreconError):
        run(of_files())
