"""Groups with the alignments that are built in: train rows held out, means over subjects, plans, kills and refusals."""

from pathlib import Path

import numpy as np
import pytest
from support.arrays import read
from support.kills import stopping
from support.memory import held

from leanrecon.alignment import linear
from leanrecon.alignment.srm import SRM, SharedResponseModel
from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.group.dataset import Group, GroupSettings
from leanrecon.datasets.images import stimulus_ids
from leanrecon.errors import InputError, SettingsError
from leanrecon.memory import MemoryBudget, PeakMemory
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows
from leanrecon.validation import validate

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (50, 6, 5, 3), np.uint8)
LATENT = RNG.normal(size=(50, 4))
VOXELS = {"anna": 40, "ben": 33, "eve": 25}
TRAIN = {
    "anna": RNG.permutation(36),
    "ben": RNG.permutation(np.arange(4, 40)),
    "eve": RNG.permutation(np.r_[np.arange(6, 40), np.arange(10, 20)]),  # ten of them twice
}
TEST = {"anna": np.arange(40, 50), "ben": np.arange(48, 39, -1), "eve": np.r_[np.arange(42, 50), 44]}
SHARED = [k for k in TRAIN["anna"].tolist() if k in TRAIN["ben"] and k in TRAIN["eve"]]
CHUNK = 1500


def betas_of(name: str, shown: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, name)))
    mixing = rng.normal(size=(4, VOXELS[name]))
    noise = 0.5 * rng.normal(size=(len(shown), VOXELS[name]))
    return (LATENT[shown] @ mixing + 3 + noise).astype(np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("aligned")
    for name in VOXELS:
        files = {}
        for split, shown in (("train", TRAIN[name]), ("test", TEST[name])):
            for role, values in (("betas", betas_of(name, shown)), ("stimuli", PICTURES[shown])):
                files[f"{role}_{split}"] = str(root / f"{name}_{role}_{split}.npy")
                np.save(files[f"{role}_{split}"], values)
        settings = ArraysSettings(**files, repeats="single", test_repeats="single")
        Arrays(settings).ingest(Study(root / name), base_dir=None, context=Context.of(chunk=CHUNK))
    return root


def settings_of(root: Path, alignment: object, **changes: object) -> GroupSettings:
    return GroupSettings(members=[str(root / name) for name in VOXELS], alignment=alignment, **changes)


def run(settings: GroupSettings, folder: Path, budget=None, chunk: int = CHUNK) -> Study:
    Group(settings).ingest(Study(folder), base_dir=None, context=Context.of(budget, chunk=chunk))
    return Study(folder)


def shared_betas(name: str) -> np.ndarray:
    shown, betas = TRAIN[name], betas_of(name, TRAIN[name])
    return np.array([betas[shown == k].mean(axis=0) for k in SHARED])


@pytest.mark.parametrize("kind", ["probabilistic", "deterministic"])
def test_rows_go_through_the_estimators_maps(root: Path, tmp_path: Path, kind: str) -> None:
    study = run(settings_of(root, {"kind": "srm", "k": 5, "model": kind, "n_iter": 8}), tmp_path / "study")
    model = SRM(k=5, kind=kind, n_iter=8, scale=True, standardize=True).fit([shared_betas(name) for name in VOXELS])
    expected = model.transform([betas_of(name, TEST[name]) for name in VOXELS])
    np.testing.assert_allclose(read(study.betas("test")), np.concatenate(expected), atol=2e-4)
    rows, found = Rows.read(study), read(study.betas("train"))
    fitted = model.transform([betas_of(name, TRAIN[name]) for name in VOXELS])
    names = rows.stimulus_ids("train")
    ids = {name: k for k, name in enumerate(stimulus_ids(PICTURES))}
    start = 0
    for k, (_, scores) in enumerate(zip(VOXELS, fitted, strict=True)):
        own = found[start : start + len(scores)]
        pictures = [ids[image] for image in names[start : start + len(scores)]]
        for row, picture in enumerate(pictures):
            if picture not in SHARED:
                np.testing.assert_allclose(own[row], scores[row], atol=2e-4)
        for place, picture in enumerate(SHARED):  # the mean of an image's rows is its held-out score
            mine = [row for row, other in enumerate(pictures) if other == picture]
            np.testing.assert_allclose(own[mine].mean(axis=0), model.held_out_[k][place], atol=2e-4)
        start += len(scores)
        assert {picture in SHARED for picture in pictures} == {True, False}


@pytest.mark.parametrize(
    "alignment", [{"kind": "srm", "k": 4}, {"kind": "pca", "k": 4}, {"kind": "procrustes", "k": 4}]
)
def test_subjects_agree_on_test_images(root: Path, tmp_path: Path, alignment: dict[str, object]) -> None:
    study = run(settings_of(root, alignment), tmp_path / "study")
    rows, betas = Rows.read(study), read(study.betas("test"))
    of = {
        (subject, name): betas[row]
        for row, (subject, name) in enumerate(zip(rows["test"].subject or [], rows.stimulus_ids("test"), strict=True))
    }
    both = [name for subject, name in of if subject == "anna" and ("ben", name) in of]
    r = [np.corrcoef(of["anna", name], of["ben", name])[0, 1] for name in both]
    others = [np.corrcoef(of["anna", a], of["ben", b])[0, 1] for a in both for b in both if a != b]
    assert np.median(r) > 0.9
    assert np.median(others) < 0.3


def test_means_over_subjects_are_tested_beside_them(root: Path, tmp_path: Path) -> None:
    plain = run(settings_of(root, {"kind": "srm", "k": 4}), tmp_path / "plain")
    study = run(settings_of(root, {"kind": "srm", "k": 4}, average=True), tmp_path / "study")
    np.testing.assert_array_equal(read(study.betas("train")), read(plain.betas("train")))
    rows, betas, each = Rows.read(study), read(study.betas("test")), read(plain.betas("test"))
    np.testing.assert_array_equal(betas[: len(each)], each)
    names = Rows.read(plain).stimulus_ids("test")
    subjects = np.array(Rows.read(plain)["test"].subject)
    means = rows.stimulus_ids("test")[len(each) :]
    assert (rows["test"].subject or [])[len(each) :] == ["average"] * 10
    for row, name in enumerate(means):
        of_subjects = []
        for subject in VOXELS:
            own = [k for k, other in enumerate(names) if other == name and subjects[k] == subject]
            if own:
                of_subjects.append(each[own].mean(axis=0))
        np.testing.assert_allclose(betas[len(each) + row], np.mean(of_subjects, axis=0), atol=1e-5)
        assert rows["test"].repeats[len(each) + row] == sum(other == name for other in names)
    plan = Group(settings_of(root, {"kind": "srm", "k": 4}, average=True)).plan(base_dir=None, chunk=CHUNK, free=10**9)
    assert plan.n_test == len(betas)


@pytest.mark.parametrize("writes", [0, 8, 14, 16])
def test_a_killed_run_ends_with_the_same_bytes(root: Path, tmp_path: Path, writes: int) -> None:
    settings = settings_of(root, {"kind": "pca", "k": 4}, average=True)
    whole = run(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), stopping(writes):
        run(settings, tmp_path / "study")
    study = run(settings, tmp_path / "study")
    for path in sorted(Path(whole.root).rglob("*")):
        if path.is_file():
            assert (Path(study.root) / path.relative_to(whole.root)).read_bytes() == path.read_bytes(), path


def test_the_budget_decides_nothing(root: Path, tmp_path: Path) -> None:
    settings = settings_of(root, {"kind": "srm", "k": 4})
    least = Group(settings).plan(base_dir=None, chunk=CHUNK, free=0).work
    one = run(settings, tmp_path / "one", MemoryBudget(held() + least + 20_000_000))
    two = run(settings, tmp_path / "two", "8GB", chunk=400)
    np.testing.assert_array_equal(read(one.betas("train")), read(two.betas("train")))


def test_gram_matrices_on_disk_are_planned(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory does not hold them, their files lie beside the betas of shared images until maps are found."""
    group = Group(settings_of(root, {"kind": "srm", "k": 4}))
    in_memory = group.plan(base_dir=None, chunk=CHUNK, free=10**9).scratch
    on_disk = group.plan(base_dir=None, chunk=CHUNK, free=0).scratch
    fits, solve, files = linear.fit_nbytes, SharedResponseModel.solve, {}

    def looked(self: SharedResponseModel, grams: list, seed: int) -> linear.Solution:
        for path in tmp_path.rglob("*.float64"):
            files[path] = path.stat().st_size
        return solve(self, grams, seed)

    monkeypatch.setattr(linear, "fit_nbytes", lambda *given, **options: (fits(*given, **options)[0], False))
    monkeypatch.setattr(SharedResponseModel, "solve", looked)
    group.ingest(Study(tmp_path / "study"), base_dir=None, context=Context.of(chunk=CHUNK, scratch=tmp_path))
    assert sum(files.values()) == 3 * len(SHARED) ** 2 * 8 == on_disk - in_memory
    assert not list(tmp_path.rglob("*.float64"))


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    few = len(SHARED)
    with pytest.raises(InputError, match=f"needs more than the {few} common images.*Set k = {few - 1} or less"):
        run(settings_of(root, {"kind": "srm", "k": few}), tmp_path / "study")
    with pytest.raises(InputError, match="there is no subject 3 of 3"):
        run(settings_of(root, {"kind": "procrustes", "onto": 3}), tmp_path / "study")
    with pytest.raises(SettingsError, match="no member can be called average"):
        validate(GroupSettings, {"kind": "group", "members": ["x/average", "b"]}, "dataset.")
    with pytest.raises(SettingsError, match=r"dataset\.alignment\.kk is unknown \(did you mean k"):
        validate(
            GroupSettings, {"kind": "group", "members": ["a", "b"], "alignment": {"kind": "srm", "kk": 3}}, "dataset."
        )


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("alignment", [{"kind": "srm", "k": 60}, {"kind": "pca", "k": 60}, {"kind": "procrustes"}])
def test_the_peak_stays_under_the_plan(tmp_path: Path, alignment: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (900, 8, 8, 3), np.uint8)
    for name, voxels in (("anna", 9000), ("ben", 7000)):
        names = {}
        for split, shown in (("train", rng.permutation(800)), ("test", np.arange(800, 900))):
            for role, values in (
                ("betas", rng.normal(size=(len(shown), voxels)).astype(np.float32)),
                ("stimuli", pictures[shown]),
            ):
                names[f"{role}_{split}"] = str(tmp_path / f"{name}_{role}_{split}.npy")
                np.save(names[f"{role}_{split}"], values)
        Arrays(ArraysSettings(**names)).ingest(Study(tmp_path / name), base_dir=None, context=Context.of())
    settings = GroupSettings(members=[str(tmp_path / "anna"), str(tmp_path / "ben")], alignment=alignment)
    context = Context.of("4GB")
    with PeakMemory() as memory:
        Group(settings).ingest(Study(tmp_path / "study"), base_dir=None, context=context)
    assert memory.peak <= context.peaks.largest
