"""Several subjects in one study: aligned on the train images that all of them saw, each image stored once."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.arrays import read
from support.kills import stopping
from support.memory import held

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.group.dataset import Group, GroupSettings
from leanrecon.datasets.images import stimulus_ids
from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError
from leanrecon.memory import MemoryBudget, PeakMemory, give_back
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows
from leanrecon.validation import validate

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (60, 6, 5, 3), np.uint8)
LATENT = RNG.normal(size=(60, 6))
"""What every subject's voxels mix."""
CHUNK = 1500
SUBJECTS = {"anna": 40, "ben": 33, "eve": 25}
"""Voxels of each subject."""
TRAIN = {
    "anna": RNG.permutation(40),
    "ben": RNG.permutation(np.arange(5, 45)),
    "eve": RNG.permutation(np.r_[np.arange(8, 42), np.arange(10, 20)]),  # ten of them twice
}
TEST = {"anna": np.arange(50, 60), "ben": np.arange(58, 48, -1), "eve": np.arange(52, 60)}
SHARED = [k for k in TRAIN["anna"].tolist() if k in TRAIN["ben"] and k in TRAIN["eve"]]


def betas_of(name: str, shown: np.ndarray, noise: float = 0.01) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, name)))
    mixing = rng.normal(size=(6, SUBJECTS[name]))
    return LATENT[shown] @ mixing + 3 + noise * rng.normal(size=(len(shown), SUBJECTS[name]))


def member(root: Path, name: str, *, captions: bool = False, train=None, test=None, **changes: object) -> Path:
    folder = root / "members" / name
    files = root / "files" / name
    files.mkdir(parents=True, exist_ok=True)
    given: dict[str, object] = {}
    for split, shown in (
        ("train", TRAIN[name] if train is None else train),
        ("test", TEST[name] if test is None else test),
    ):
        np.save(files / f"betas_{split}.npy", betas_of(name, shown))
        np.save(files / f"stimuli_{split}.npy", PICTURES[shown])
        given |= {f"{role}_{split}": str(files / f"{role}_{split}.npy") for role in ("betas", "stimuli")}
        if captions:
            (files / f"captions_{split}.txt").write_text("".join(f"picture {k}\n" for k in shown))
            given[f"captions_{split}"] = str(files / f"captions_{split}.txt")
    settings = ArraysSettings(**(given | changes))
    Arrays(settings).ingest(Study(folder), base_dir=None, context=Context.of(chunk=CHUNK))
    return folder


@pytest.fixture(autouse=True)
def alignments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.BUILT_IN["alignments"], "joint-pca", "support.joint_pca:JointPCA")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("group")
    for name in SUBJECTS:
        member(root, name, captions=True)
    return root


def settings_of(root: Path, **changes: object) -> GroupSettings:
    given = {"members": [str(root / "members" / name) for name in SUBJECTS], "alignment": "joint-pca"}
    return GroupSettings(**(given | changes))


def run(settings: GroupSettings, folder: Path, *, chunk: int = CHUNK, budget=None, **options: object) -> Study:
    study = Study(folder)
    Group(settings).ingest(study, base_dir=None, context=Context.of(budget, chunk=chunk, **options))
    return study


def contents(root: "os.PathLike[str]") -> dict[str, bytes]:
    root = Path(root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def study(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(kinds.BUILT_IN["alignments"], "joint-pca", "support.joint_pca:JointPCA")
        return run(settings_of(root), tmp_path_factory.mktemp("study") / "study")


def test_rows_are_those_of_all_subjects_in_the_shared_space(study: Study) -> None:
    """By hand: means of shared images, one SVD, and each subject's rows through its part of the axes."""
    shared = {
        name: np.array([betas_of(name, TRAIN[name]).astype(np.float32)[TRAIN[name] == k].mean(axis=0) for k in SHARED])
        for name in SUBJECTS
    }
    joint = np.concatenate([block - block.mean(axis=0) for block in shared.values()], axis=1)
    axes = np.linalg.svd(joint, full_matrices=False)[2][:6].T
    parts = dict(zip(SUBJECTS, np.split(axes, np.cumsum(list(SUBJECTS.values()))[:-1]), strict=True))
    for split, shown in (("train", TRAIN), ("test", TEST)):
        found = read(study.betas(split))
        expected = [
            (betas_of(name, shown[name]) - shared[name].mean(axis=0)) @ np.linalg.pinv(parts[name]).T
            for name in SUBJECTS
        ]
        stacked = np.concatenate(expected)
        signs = np.sign((found * stacked).sum(axis=0))
        np.testing.assert_allclose(found * signs, stacked, rtol=1e-3, atol=1e-3)
        rows = Rows.read(study)[split]
        assert rows.subject == [name for name in SUBJECTS for _ in shown[name]]


@pytest.mark.parametrize("changes", [{"members": 1}, {"seed": 1}])
def test_another_order_of_members_or_seed_is_refused_and_replaced(root: Path, tmp_path: Path, changes: dict) -> None:
    alignment = {"kind": "srm", "k": 6}
    run(settings_of(root, alignment=alignment), tmp_path / "one")
    turned = [str(root / "members" / name) for name in reversed(SUBJECTS)]
    other = settings_of(root, alignment=alignment, **({"members": turned} if "members" in changes else {}))
    seed = {"seed": 1} if "seed" in changes else {}
    with pytest.raises(StoreError):
        run(other, tmp_path / "one", **seed)
    replaced, fresh = run(other, tmp_path / "one", overwrite=True, **seed), run(other, tmp_path / "new", **seed)
    for split in ("train", "test"):
        np.testing.assert_array_equal(read(replaced.betas(split)), read(fresh.betas(split)))
        np.testing.assert_array_equal(read(replaced.stimuli(split)), read(fresh.stimuli(split)))
        assert Rows.read(replaced)[split].subject == Rows.read(fresh)[split].subject


def test_subjects_agree_on_an_image_that_none_was_aligned_on(study: Study) -> None:
    rows, betas = Rows.read(study), read(study.betas("test"))
    of = {}
    for row, (subject, name) in enumerate(zip(rows["test"].subject or [], rows.stimulus_ids("test"), strict=True)):
        of[subject, name] = betas[row]
    both = [name for subject, name in of if subject == "anna" and ("ben", name) in of]
    assert len(both) == 9
    r = [np.corrcoef(of["anna", name], of["ben", name])[0, 1] for name in both]
    others = [np.corrcoef(of["anna", a], of["ben", b])[0, 1] for a in both for b in both if a != b]
    assert min(r) > 0.95 > max(others)


def test_each_image_is_stored_once_whoever_saw_it(study: Study) -> None:
    rows = Rows.read(study)
    for split, shown in (("train", TRAIN), ("test", TEST)):
        pictures = list(dict.fromkeys(k for name in SUBJECTS for k in shown[name].tolist()))
        np.testing.assert_array_equal(read(study.stimuli(split)), PICTURES[pictures])
        assert rows.ids[split] == stimulus_ids(PICTURES[pictures])
        seen = np.concatenate([shown[name] for name in SUBJECTS])
        np.testing.assert_array_equal(read(study.stimuli(split))[rows[split].stimulus], PICTURES[seen])
        assert json.loads(study.captions(split).read_text()) == [[f"picture {k}"] for k in pictures]
    with np.load(study.voxels) as voxels:
        assert voxels.files == ["index"]
        assert len(voxels["index"]) == 6


def test_nothing_half_done_is_left_and_what_was_learned_is_kept(study: Study) -> None:
    names = sorted(path.name for path in (study.root / "betas").iterdir())
    assert names == ["alignment.npz", "rows.json", "test.zarr", "train.zarr", "voxels.npz"]
    with np.load(study.root / "betas" / "alignment.npz") as state:
        assert {f"weights {name}" for name in SUBJECTS} < set(state.files)


def test_test_rows_never_reach_the_alignment(root: Path, study: Study, tmp_path: Path) -> None:
    for name in SUBJECTS:
        shutil.copytree(root / "members" / name, tmp_path / "members" / name)
    other = tmp_path / "members" / "ben"
    shutil.rmtree(other)
    files = root / "files" / "ben"
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(10, SUBJECTS["ben"])))
    names = {
        f"{role}_{split}": str(files / f"{role}_{split}.npy")
        for role in ("betas", "stimuli")
        for split in ("train", "test")
    }
    settings = ArraysSettings(**(names | {"betas_test": str(tmp_path / "noise.npy")}))
    Arrays(settings).ingest(Study(other), base_dir=None, context=Context.of(chunk=CHUNK))
    changed = run(settings_of(tmp_path), tmp_path / "study")
    np.testing.assert_array_equal(read(changed.betas("train")), read(study.betas("train")))
    before, after = read(study.betas("test")), read(changed.betas("test"))
    bens = np.array(Rows.read(study)["test"].subject) == "ben"
    np.testing.assert_array_equal(after[~bens], before[~bens])
    assert not np.array_equal(after[bens], before[bens])


@pytest.mark.parametrize("chunk", [400, 10**6])
def test_neither_chunks_nor_budget_decide_anything(root: Path, study: Study, tmp_path: Path, chunk: int) -> None:
    settings = settings_of(root)
    least = Group(settings).plan(base_dir=None, chunk=chunk, free=0).work
    for k, budget in enumerate((MemoryBudget(held() + least + 20_000_000), "8GB")):
        other = run(settings, tmp_path / str(k), chunk=chunk, budget=budget)
        for split in ("train", "test"):
            np.testing.assert_array_equal(read(other.betas(split)), read(study.betas(split)))
            np.testing.assert_array_equal(read(other.stimuli(split)), read(study.stimuli(split)))


@pytest.mark.parametrize("writes", [0, 3, 9, 14, 17, 20])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(root: Path, study: Study, tmp_path: Path, writes: int) -> None:
    with pytest.raises(KeyboardInterrupt), stopping(writes):
        run(settings_of(root), tmp_path / "study")
    assert not (tmp_path / "study" / "betas" / "rows.json").exists()
    assert contents(run(settings_of(root), tmp_path / "study").root) == contents(study.root)


def test_lost_chunks_are_made_again_without_a_new_fit(
    root: Path, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.joint_pca import JointPCA

    mine = Study(tmp_path / "study")
    shutil.copytree(study.root, mine.root)
    Store.open(mine.betas("train")).discard([(1, 0)])
    Store.open(mine.stimuli("test")).discard([(0, 0)])
    monkeypatch.setattr(JointPCA, "fit", lambda *_: pytest.fail("it was fitted again"))
    run(settings_of(root), tmp_path / "study")
    assert contents(mine.root) == contents(study.root)


def test_what_is_complete_is_not_done_again(root: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(study.root)
    monkeypatch.setattr(Store, "__getitem__", lambda *_: pytest.fail("a store was read"))
    run(settings_of(root), Path(study.root))
    assert contents(study.root) == before


def test_another_alignment_or_member_is_refused_by_name(root: Path, study: Study, tmp_path: Path) -> None:
    mine = tmp_path / "study"
    shutil.copytree(study.root, mine)
    with pytest.raises(StoreError, match=r"shape was \[124, 6\], is \[124, 4\]|dataset\.alignment\.dims was 6, is 4"):
        run(settings_of(root, alignment={"kind": "joint-pca", "dims": 4}), mine)
    smaller = run(settings_of(root, alignment={"kind": "joint-pca", "dims": 4}), mine, overwrite=True)
    assert read(smaller.betas("train")).shape[1] == 4


def test_without_alignment_voxels_stay_as_they_are(tmp_path: Path) -> None:
    for name, split in (("anna", np.arange(20)), ("ben", np.arange(20, 40))):
        member(tmp_path, name, train=split)
    betas = [read(Study(tmp_path / "members" / name).betas("train")) for name in ("anna", "ben")]
    members = [str(tmp_path / "members" / name) for name in ("anna", "ben")]
    with pytest.raises(InputError, match=r"different numbers of voxels: anna 40, ben 33.*Choose an alignment"):
        run(GroupSettings(members=members), tmp_path / "study")
    twins = [members[0], str(shutil.copytree(members[0], tmp_path / "members" / "twin"))]
    study = run(GroupSettings(members=twins), tmp_path / "study")
    np.testing.assert_array_equal(read(study.betas("train")), np.concatenate([betas[0], betas[0]]))
    assert len(read(study.stimuli("train"))) == 20


# What doesn't fit


def test_members_that_are_no_finished_studies_are_named(root: Path, tmp_path: Path) -> None:
    anna = str(root / "members" / "anna")
    with pytest.raises(InputError, match="there is no folder .*nobody"):
        run(GroupSettings(members=[anna, str(tmp_path / "nobody")]), tmp_path / "study")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is not a study"):
        run(GroupSettings(members=[anna, str(tmp_path / "empty")]), tmp_path / "study")
    (tmp_path / "empty" / "study.toml").write_text("")
    with pytest.raises(InputError, match=r"the dataset of .*empty is not complete.*--until dataset"):
        run(GroupSettings(members=[anna, str(tmp_path / "empty")]), tmp_path / "study")
    shutil.copytree(root / "members" / "ben", tmp_path / "half")
    Store.open(tmp_path / "half" / "betas" / "train.zarr").discard([(0, 0)])
    with pytest.raises(StoreError, match="is not complete: 1 of"):
        run(GroupSettings(members=[anna, str(tmp_path / "half")], alignment="joint-pca"), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_members_without_common_images_are_refused(root: Path, tmp_path: Path) -> None:
    member(tmp_path, "ben", train=np.arange(40, 48))
    members = [str(root / "members" / "anna"), str(tmp_path / "members" / "ben")]
    with pytest.raises(InputError, match="no train image was seen by all members"):
        run(GroupSettings(members=members, alignment="joint-pca"), tmp_path / "study")


def test_an_image_trained_on_by_one_and_tested_on_by_another_is_refused(root: Path, tmp_path: Path) -> None:
    member(tmp_path, "ben", train=np.r_[np.arange(40), 52, 55], test=np.r_[56, 57])
    members = [str(root / "members" / "anna"), str(tmp_path / "members" / "ben")]
    with pytest.raises(
        InputError, match=r"2 images are train images of one subject and test images.*ben trains on it, anna"
    ):
        run(GroupSettings(members=members, alignment="joint-pca"), tmp_path / "study")
    settings = GroupSettings(members=members, alignment="joint-pca", allow_shared_stimuli=True)
    run(settings, tmp_path / "study")
    assert any("may be train images" in note for note in Group.notes(settings))


def test_images_of_other_shapes_folds_and_missing_images_are_refused(root: Path, tmp_path: Path) -> None:
    anna = str(root / "members" / "anna")
    files = tmp_path / "files" / "ben"
    member(tmp_path, "ben")
    for split in ("train", "test"):
        np.save(files / f"stimuli_{split}.npy", np.load(files / f"stimuli_{split}.npy")[:, :4])
    names = {
        f"{role}_{split}": str(files / f"{role}_{split}.npy")
        for role in ("betas", "stimuli")
        for split in ("train", "test")
    }

    def made(folder: str, **changes: object) -> GroupSettings:
        settings = ArraysSettings(**({**names, **changes}))
        Arrays(settings).ingest(Study(tmp_path / folder), base_dir=None, context=Context.of())
        return GroupSettings(members=[anna, str(tmp_path / folder)], alignment="joint-pca")

    with pytest.raises(InputError, match="different shapes: anna 6x5x3, flat 4x5x3"):
        run(made("flat"), tmp_path / "study")
    with pytest.raises(InputError, match="folded has folds"):
        run(made("folded", folds=3), tmp_path / "study")
    with pytest.raises(InputError, match="blind has no images"):
        run(made("blind", stimuli_train=None, stimuli_test=None), tmp_path / "study")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": ["a"]}, r"dataset\.members"),
        ({"alignment": "joint-pc"}, r"'joint-pc' is unknown \(did you mean joint-pca\?\)"),
        ({"alignment": {"kind": "joint-pca", "dims": "many"}}, r"dataset\.alignment\.dims = 'many'"),
        ({"alignment": 3}, "name an alignment, or give a table"),
        ({"folds": 3}, "leave folds out"),
        ({"repeats": "single"}, "a group has the rows of its members"),
        ({"members": ["a/x", "b/x"]}, "two members are called x: name them by subjects"),
        ({"subjects": ["one"]}, "subjects has 1 names for 2 members"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        validate(GroupSettings, {"kind": "group", "members": ["a", "b"]} | changes, "dataset.")


def test_settings_come_back_from_their_own_tables() -> None:
    settings = GroupSettings(members=["x/a", "y/a"], subjects=["s1", "s2"], alignment={"kind": "joint-pca", "dims": 4})
    table = settings.model_dump(exclude_none=True)
    assert table["alignment"] == {"kind": "joint-pca", "dims": 4}
    assert validate(GroupSettings, table, "dataset.") == settings


# Plan and memory


def test_the_plan_says_what_is_made(root: Path, study: Study) -> None:
    plan = Group(settings_of(root)).plan(base_dir=None, chunk=CHUNK, free=10**9)
    rows = Rows.read(study)
    assert (plan.n_train, plan.n_test) == (len(rows["train"]), len(rows["test"]))
    assert (plan.train_images, plan.test_images) == (len(rows.ids["train"]), len(rows.ids["test"]))
    assert (plan.voxels, plan.image_shape, plan.folds, plan.max_repeats) == (6, (6, 5, 3), None, 2)
    chunks = [path for path in Path(study.root).rglob("*.zarr/c/**/*") if path.is_file()]
    assert plan.disk == sum(path.stat().st_size - 4 for path in chunks)


def test_too_small_a_budget_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="aligning the subjects needs at least"):
        run(settings_of(root), tmp_path / "study", budget=MemoryBudget(held() + 1_000_000))
    assert not (tmp_path / "study").exists()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("side", [8, 96])
@pytest.mark.parametrize("alignment", ["joint-pca", {"kind": "srm", "k": 40}, {"kind": "procrustes"}, {"kind": "pca"}])
def test_the_peak_stays_under_the_plan_and_is_near(alignment: Any, side: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (600, side, side, 3), np.uint8)
    for name, voxels in (("anna", 6000), ("ben", 5000)):
        files = tmp_path / name
        files.mkdir()
        names = {}
        for split, shown in (("train", rng.permutation(500)), ("test", np.arange(500, 600))):
            np.save(files / f"betas_{split}.npy", rng.normal(size=(len(shown), voxels)).astype(np.float32))
            np.save(files / f"stimuli_{split}.npy", pictures[shown])
            names |= {f"{role}_{split}": str(files / f"{role}_{split}.npy") for role in ("betas", "stimuli")}
        Arrays(ArraysSettings(**names)).ingest(Study(tmp_path / f"s{name}"), base_dir=None, context=Context.of())
    settings = GroupSettings(members=[str(tmp_path / "sanna"), str(tmp_path / "sben")], alignment=alignment)
    del pictures, shown
    give_back()
    context = Context.of("4GB")
    with PeakMemory() as memory:
        Group(settings).ingest(Study(tmp_path / "study"), base_dir=None, context=context)
    print(f"{memory.peak / 1e6:.0f} of {context.peaks.largest / 1e6:.0f} MB")
    assert memory.peak <= context.peaks.largest
    if alignment != "joint-pca":  # which plans its own fit roughly
        assert memory.peak >= 0.6 * context.peaks.largest


def test_simulated_members_make_a_simulated_group(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    settings = GroupSettings(members=[str(tmp_path / "a"), str(tmp_path / "b")])
    assert not settings.simulated
    (tmp_path / "b" / "study.toml").write_text('[dataset]\nkind = "simulated"\n')
    assert settings.simulated


def test_an_image_that_two_members_know_by_different_ids_is_refused(tmp_path: Path) -> None:
    folders = [member(tmp_path, "anna", train=np.arange(20), test=np.arange(50, 55))]
    folders.append(member(tmp_path, "ben", train=np.r_[np.arange(20), 52], test=np.arange(55, 60)))
    rows = Rows.read(Study(folders[1]))
    ids = {"train": [*rows.ids["train"][:-1], "another name"], "test": rows.ids["test"]}
    Rows({split: rows[split] for split in ("train", "test")}, ids).write(Study(folders[1]))
    settings = GroupSettings(members=[str(folder) for folder in folders], alignment="joint-pca")
    with pytest.raises(InputError, match="the same as image another name"):
        run(settings, tmp_path / "group")
    assert run(settings.model_copy(update={"allow_shared_stimuli": True}), tmp_path / "group").rows.exists()
