"""Images that arrays show several times are stored once; betas are single rows or averages, in bounded memory."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from support.arrays import open_array

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.files.rows import NpyRows
from leanrecon.datasets.images import stimulus_ids
from leanrecon.errors import InputError, StoreError
from leanrecon.memory import MemoryBudget, PeakMemory, process_memory
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows

RNG = np.random.default_rng(11)
PICTURES = RNG.integers(0, 256, (30, 6, 5, 3), np.uint8)
SHOWN = {"train": RNG.integers(0, 20, 75), "test": RNG.integers(20, 30, 24)}
"""Which picture each row shows."""
BETAS = {split: RNG.normal(size=(len(shown), 33)) for split, shown in SHOWN.items()}
CHUNK = 1500  # bytes: 16 images of 90 bytes, or 8 rows of 33 float32, a group


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        np.save(f"betas_{split}.npy", BETAS[split])
        np.save(f"stimuli_{split}.npy", PICTURES[SHOWN[split]])
    np.save("betas.npy", np.concatenate([BETAS["train"], BETAS["test"]]))
    np.save("stimuli.npy", PICTURES[np.concatenate([SHOWN["train"], SHOWN["test"]])])
    return tmp_path


def pair(**changes: object) -> ArraysSettings:
    names = {f"{role}_{split}": f"{role}_{split}.npy" for role in ("betas", "stimuli") for split in ("train", "test")}
    return ArraysSettings(**(names | changes))


def lone(**changes: object) -> ArraysSettings:
    return ArraysSettings(**({"betas": "betas.npy", "stimuli": "stimuli.npy"} | changes))


def run(settings: ArraysSettings, folder: str = "study", *, budget: MemoryBudget | None = None, **options) -> Study:
    study = Study(Path(folder))
    context = Context(budget or MemoryBudget.of(None), **({"chunk": CHUNK} | options))
    Arrays(settings).ingest(study, base_dir=None, context=context)
    return study


def read(path: Path) -> np.ndarray:
    return open_array(path)[:]


def contents(root: "os.PathLike[str]") -> dict[str, bytes]:
    root = Path(root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def first_shown(shown: np.ndarray) -> list[int]:
    return list(dict.fromkeys(shown.tolist()))


AVERAGE = {"repeats": "average", "test_repeats": "average"}


def test_each_image_is_stored_once_in_order_of_first_appearance(here):
    study = run(pair())
    rows = Rows.read(study)
    for split, shown in SHOWN.items():
        pictures = first_shown(shown)
        np.testing.assert_array_equal(read(study.stimuli(split)), PICTURES[pictures])
        np.testing.assert_array_equal(read(study.stimuli(split))[rows[split].stimulus], PICTURES[shown])
        np.testing.assert_array_equal(read(study.betas(split)), BETAS[split].astype(np.float32))
        assert rows.ids[split] == stimulus_ids(PICTURES[pictures])
        assert rows.stimulus_ids(split) == stimulus_ids(PICTURES[shown])
        assert rows[split].repeats == [1] * len(shown)
        assert not rows.is_plain(split)


@pytest.mark.parametrize("order", ["C", "F"])
def test_averages_are_means_over_the_rows_of_each_image(here, order):
    np.save("betas_train.npy", np.asarray(BETAS["train"], order=order))
    study = run(pair(**AVERAGE))
    rows = Rows.read(study)
    for split, shown in SHOWN.items():
        pictures = first_shown(shown)
        expected = np.array([BETAS[split][shown == k].mean(axis=0) for k in pictures])
        np.testing.assert_allclose(read(study.betas(split)), expected, rtol=3e-7, atol=1e-8)
        assert rows.is_plain(split)
        assert rows[split].trials == [np.flatnonzero(shown == k).tolist() for k in pictures]
        assert rows[split].repeats == [int((shown == k).sum()) for k in pictures]
        np.testing.assert_array_equal(read(study.stimuli(split)), PICTURES[pictures])


def test_averaged_test_rows_are_rescaled_by_the_root_of_their_trials(here):
    plain = run(pair(test_repeats="average"), "plain")
    scaled = run(pair(test_repeats="average", rescale_average=True), "scaled")
    counts = np.array(Rows.read(plain)["test"].repeats)
    np.testing.assert_allclose(
        read(scaled.betas("test")), read(plain.betas("test")) * np.sqrt(counts)[:, None], rtol=2e-7
    )
    np.testing.assert_array_equal(read(scaled.betas("train")), read(plain.betas("train")))
    assert {2, 3} <= set(counts.tolist())


def test_without_repeats_averages_are_the_rows_as_they_are(here):
    for split, start in (("train", 0), ("test", 15)):
        np.save(f"betas_{split}.npy", BETAS["train"][start : start + 15])
        np.save(f"stimuli_{split}.npy", PICTURES[start : start + 15])
    single, average = run(pair(), "single"), run(pair(**AVERAGE), "average")
    for split in ("train", "test"):
        assert Store.open(average.betas(split)).content == Store.open(single.betas(split)).content
        assert Store.open(average.stimuli(split)).content == Store.open(single.stimuli(split)).content
    assert Rows.read(average) == Rows.read(single)


def test_averages_are_another_study_and_refused_by_name(here):
    run(pair(), "study")
    with pytest.raises(StoreError, match=r'dataset\.repeats was not set, is "average"'):
        run(pair(**AVERAGE), "study")
    run(pair(**AVERAGE), "study", overwrite=True)


@pytest.mark.parametrize(
    "settings",
    [pair(), pair(**AVERAGE), lone(test_fraction=0.3, **AVERAGE), lone(folds=3), lone(folds=3, **AVERAGE)],
    ids=["single", "average", "fraction", "folds", "averaged folds"],
)
def test_a_run_killed_anywhere_ends_with_the_same_bytes(here, monkeypatch, settings):
    expected = contents(run(settings, "whole").root)
    write = Store.write_chunk
    for survive in (0, 1, 3, 5):
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


def test_a_killed_run_looks_for_repeats_once(here, monkeypatch):
    write = Store.write_chunk
    monkeypatch.setattr(Store, "write_chunk", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        run(pair())
    monkeypatch.setattr(Store, "write_chunk", write)
    seen: list[str] = []
    blocks = NpyRows.blocks

    def noted(self, index):
        seen.extend([self.path.name] * len(index))
        yield from blocks(self, index)

    monkeypatch.setattr(NpyRows, "blocks", noted)
    run(pair())
    assert seen.count("stimuli_train.npy") == len(first_shown(SHOWN["train"]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_budget_never_changes_a_byte_of_averages(here, order):
    for split in ("train", "test"):
        np.save(f"betas_{split}.npy", np.asarray(BETAS[split], order=order))
    least = Arrays(pair(**AVERAGE)).plan(base_dir=None, chunk=CHUNK, free=0).work
    tight = run(pair(**AVERAGE), "tight", budget=MemoryBudget(least, reserved=0))
    loose = run(pair(**AVERAGE), "loose", budget=MemoryBudget(10**9, reserved=0))
    assert contents(tight.root) == contents(loose.root)


def test_captions_of_an_image_are_those_of_all_its_rows(here):
    for split, shown in SHOWN.items():
        texts = [f"picture {k}\trow {row}" for row, k in enumerate(shown)]
        Path(f"captions_{split}.txt").write_text("\n".join(texts) + "\n")
    study = run(pair(captions_train="captions_train.txt", captions_test="captions_test.txt"))
    for split, shown in SHOWN.items():
        assert json.loads(study.captions(split).read_text()) == [
            [f"picture {k}", *(f"row {row}" for row in np.flatnonzero(shown == k))] for k in first_shown(shown)
        ]


@pytest.mark.parametrize("settings", [lone(folds=4), lone(folds=4, **AVERAGE)], ids=["single", "average"])
def test_folds_keep_the_rows_of_an_image_together(here, settings):
    study = run(settings)
    folds = json.loads(study.folds.read_text())["folds"]
    rows = Rows.read(study)["train"]
    assert sorted(row for fold in folds for row in fold) == list(range(len(rows)))
    assert len(read(study.betas("train"))) == len(rows)
    images = [set(rows.stimulus[fold].tolist()) for fold in folds]
    assert sum(map(len, images)) == len(set.union(*images))


def test_folds_keep_runs_together_if_they_are_told_to(here):
    n = 60
    np.save("betas.npy", RNG.normal(size=(n, 12)))
    shown = np.arange(n) % 30  # in rows k and k + 30: runs of ten rows are joined in pairs
    np.save("stimuli.npy", PICTURES[shown])
    np.save("runs.npy", np.arange(n) // 10)
    study = run(lone(folds=3, runs="runs.npy", group="run"))
    folds = json.loads(study.folds.read_text())["folds"]
    assert sorted(map(sorted, folds)) == [
        [*range(10 * k, 10 * k + 10), *range(30 + 10 * k, 40 + 10 * k)] for k in (0, 1, 2)
    ]
    assert Rows.read(study)["train"].run == (np.arange(n) // 10).tolist()
    with pytest.raises(InputError, match="3 different stimuli can't be shared out into 4 folds"):
        run(lone(folds=4, runs="runs.npy", group="run"), "four")
    apart = json.loads(run(lone(folds=3, runs="runs.npy"), "apart").folds.read_text())["folds"]
    assert sorted(map(sorted, apart)) != sorted(map(sorted, folds))


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (np.arange(5), "runs has 5 rows and betas.npy has 99"),
        (np.arange(99) / 2, "not whole"),
        (np.full(99, "a"), "<U1"),
    ],
)
def test_bad_runs_are_refused(here, runs, words):
    np.save("runs.npy", runs)
    with pytest.raises(InputError, match=words):
        run(lone(folds=3, runs="runs.npy", group="run"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group": "run"}, "needs the run of each row"),
        ({"group": "session"}, "group"),
        ({"repeats": "both"}, "repeats"),
        ({"rescale_average": True}, "rescale_average is for averaged test rows"),
        ({"rescale_average": True, "repeats": "average", "test_repeats": "average"}, "rescale_average is for"),
        ({"folds": 3, "test_repeats": "average"}, "repeats and test_repeats must be the same"),
        ({"runs_train": "a"}, "runs_train is given without runs_test"),
    ],
)
def test_settings_that_contradict_are_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        pair(**changes)


def test_a_bad_row_among_the_averaged_ones_is_named(here):
    betas = BETAS["train"].copy()
    picture = int(SHOWN["train"][4])
    rows = np.flatnonzero(SHOWN["train"] == picture).tolist()
    betas[rows[-1], 7] = np.inf
    np.save("betas_train.npy", betas)
    named = f"the mean of rows {', '.join(map(str, rows[:-1]))} and {rows[-1]} of betas_train.npy"
    with pytest.raises(InputError, match=f"voxel 7 in {named} is infinite"):
        run(pair(**AVERAGE))


def test_studies_of_format_1_are_refused_until_they_are_overwritten(here):
    study = run(pair())
    whole = contents(study.root)
    study.rows.write_text(json.dumps({"train": {"stimulus": ["a"]}, "test": {"stimulus": ["b"]}}))
    before = contents(study.root)
    with pytest.raises(StoreError, match=r"rows\.json is of format 1.*new --study.*--overwrite"):
        run(pair())
    assert contents(study.root) == before
    assert contents(run(pair(), overwrite=True).root) == whole


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_peak_of_averaging_stays_under_the_plan(tmp_path, monkeypatch, order):
    monkeypatch.chdir(tmp_path)
    shown = {"train": np.random.default_rng(0).permutation(np.repeat(np.arange(400), 3)), "test": np.arange(400, 500)}
    pictures = np.random.default_rng(1).integers(0, 256, (500, 64, 64, 3), np.uint8)
    for split, of in shown.items():
        np.save(f"betas_{split}.npy", np.asarray(np.random.default_rng(2).normal(size=(len(of), 6000)), order=order))
        np.save(f"stimuli_{split}.npy", np.asarray(pictures[of], order=order))
    base = process_memory()
    budget = MemoryBudget(base + 110_000_000, base)
    plan = Arrays(pair(**AVERAGE)).plan(base_dir=None, chunk=8_000_000, free=budget.free)
    with PeakMemory() as memory:
        study = run(pair(**AVERAGE), budget=budget, chunk=8_000_000)
    assert memory.peak - base <= plan.work <= budget.free
    assert read(study.betas("train")).shape == (400, 6000)
