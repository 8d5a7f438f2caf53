"""A new subject joins a finished group: its rows in the group's space, the choice of a route, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from support.arrays import read
from support.kills import stopping
from support.memory import held

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.group.dataset import Group, GroupSettings
from leanrecon.datasets.group.join import open_pair
from leanrecon.datasets.group.joined import Joined, JoinedSettings
from leanrecon.errors import BudgetError, InputError, SettingsError, StoreError
from leanrecon.memory import MemoryBudget
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows
from leanrecon.validation import validate

RNG = np.random.default_rng(6)
SMALL = RNG.integers(0, 256, (130, 3, 3, 3), np.uint8)
PICTURES = SMALL.repeat(4, axis=1).repeat(4, axis=2)
LATENT = (SMALL.reshape(130, -1) / 128.0 - 1) @ RNG.normal(size=(27, 6))
TRAIN = {"anna": np.arange(100), "ben": np.arange(20, 110), "eve": RNG.permutation(np.arange(40, 120))}
TEST = np.arange(120, 130)
CHUNK = 4000


def betas_of(name: str, shown: np.ndarray, noise: float) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, name)))
    mixing = rng.normal(size=(6, 30))
    return (LATENT[shown] @ mixing + 3 + noise * rng.normal(size=(len(shown), 30))).astype(np.float32)


def member(root: Path, name: str, noise: float = 0.5, **changes: object) -> Path:
    files = {}
    for split, shown in (("train", TRAIN[name]), ("test", TEST)):
        for role, values in (("betas", betas_of(name, shown, noise)), ("stimuli", PICTURES[shown])):
            files[f"{role}_{split}"] = str(root / f"{name}_{role}_{split}.npy")
            np.save(files[f"{role}_{split}"], values)
    settings = ArraysSettings(**files, **changes)
    Arrays(settings).ingest(Study(root / name), base_dir=None, context=Context.of(chunk=CHUNK))
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("joined")
    for name, noise in (("anna", 0.5), ("ben", 0.5), ("eve", 4.0)):
        member(root, name, noise)
    settings = GroupSettings(members=[str(root / "anna"), str(root / "ben")], alignment={"kind": "pca", "k": 6})
    Group(settings).ingest(Study(root / "group"), base_dir=None, context=Context.of(chunk=CHUNK))
    return root


def settings_of(root: Path, **changes: object) -> JoinedSettings:
    return JoinedSettings(**({"joins": str(root / "group"), "member": str(root / "eve")} | changes))


def run(settings: JoinedSettings, folder: Path, budget=None, chunk: int = CHUNK) -> Study:
    Joined(settings).ingest(Study(folder), base_dir=None, context=Context.of(budget, chunk=chunk))
    return Study(folder)


def test_the_group_is_learned_from_and_the_subject_is_mapped_by_a_ridge(root: Path, tmp_path: Path) -> None:
    study = run(settings_of(root, route="group"), tmp_path / "study")
    group = Study(root / "group")
    of_group, rows = read(group.betas("train")), Rows.read(group)
    names = rows.stimulus_ids("train")
    ids = rows.ids["train"]
    means = np.array([of_group[[k for k, other in enumerate(names) if other == name]].mean(axis=0) for name in ids])
    np.testing.assert_allclose(read(study.betas("train")), means, atol=1e-5)
    assert Rows.read(study).ids["train"] == ids
    assert Rows.read(study)["train"].subject is None
    own = Rows.read(Study(root / "eve")).ids["train"]
    common = [name for name in own if name in ids]
    assert len(common) == 70
    betas = betas_of("eve", TRAIN["eve"], 4.0)[[own.index(name) for name in common]]
    scores = means[[ids.index(name) for name in common]]
    with np.load(study.root / "betas" / "alignment.npz") as kept:
        alpha = float(kept["alpha"])
    deviation = betas.std(axis=0)
    ridge = Ridge(alpha=alpha).fit((betas - betas.mean(axis=0)) / deviation, scores)
    expected = ridge.predict((betas_of_test() - betas.mean(axis=0)) / deviation)
    np.testing.assert_allclose(read(study.betas("test")), expected, atol=2e-3)
    np.testing.assert_array_equal(read(study.stimuli("test")), PICTURES[TEST])


def betas_of_test() -> np.ndarray:
    return betas_of("eve", TEST, 4.0)


def test_own_voxels_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    study = run(settings_of(root, route="own"), tmp_path / "study")
    for split in ("train", "test"):
        np.testing.assert_array_equal(read(study.betas(split)), read(Study(root / "eve").betas(split)))
        np.testing.assert_array_equal(read(study.stimuli(split)), read(Study(root / "eve").stimuli(split)))
    assert Rows.read(study) == Rows.read(Study(root / "eve"))


def test_fewer_rows_are_among_more(root: Path, tmp_path: Path) -> None:
    used = {rows: open_pair(settings_of(root, rows=rows), None, 0).used for rows in (0.25, 0.5, 40, 1)}
    assert [len(names) for names in used.values()] == [20, 40, 40, 80]
    assert set(used[0.25]) < set(used[0.5])
    assert used[0.5] == used[40]
    study = run(settings_of(root, route="own", rows=0.25), tmp_path / "study")
    rows, whole = Rows.read(study), Rows.read(Study(root / "eve"))
    betas = read(Study(root / "eve").betas("train"))
    wanted = [whole.ids["train"].index(name) for name in rows.stimulus_ids("train")]
    np.testing.assert_array_equal(read(study.betas("train")), betas[wanted])
    assert sorted(rows.ids["train"]) == sorted(used[0.25])


def test_train_images_choose_the_route(root: Path, tmp_path: Path) -> None:
    """A noisy subject with few rows gains from a group; one with little noise and all rows loses its own detail."""
    noisy = run(settings_of(root, rows=12), tmp_path / "noisy")
    with np.load(noisy.root / "betas" / "alignment.npz") as kept:
        assert str(kept["route"]) == "group"
        assert kept["group predicts"] > kept["own predicts"]
    assert read(noisy.betas("train")).shape == (110, 6)
    poor = GroupSettings(members=[str(root / "anna"), str(root / "ben")], alignment={"kind": "pca", "k": 1})
    Group(poor).ingest(Study(tmp_path / "poor"), base_dir=None, context=Context.of(chunk=CHUNK))
    member(tmp_path, "eve", 0.05)
    clear = run(settings_of(tmp_path, joins=str(tmp_path / "poor")), tmp_path / "clear")
    with np.load(clear.root / "betas" / "alignment.npz") as kept:
        assert str(kept["route"]) == "own"
    assert read(clear.betas("train")).shape == (80, 30)


def test_test_rows_decide_nothing(root: Path, tmp_path: Path) -> None:
    study = run(settings_of(root), tmp_path / "study")
    files = {}
    for split, shown, betas in (
        ("train", TRAIN["eve"], betas_of("eve", TRAIN["eve"], 4.0)),
        ("test", TEST, RNG.normal(size=(10, 30)).astype(np.float32)),
    ):
        for role, values in (("betas", betas), ("stimuli", PICTURES[shown])):
            files[f"{role}_{split}"] = str(tmp_path / f"{role}_{split}.npy")
            np.save(files[f"{role}_{split}"], values)
    Arrays(ArraysSettings(**files)).ingest(Study(tmp_path / "eve"), base_dir=None, context=Context.of(chunk=CHUNK))
    other = run(settings_of(root, member=str(tmp_path / "eve")), tmp_path / "other")
    one, two = (np.load(found.root / "betas" / "alignment.npz") for found in (study, other))
    for name in one.files:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("writes", [0, 1, 3, 5])
@pytest.mark.parametrize("route", ["auto", "group"])
def test_a_killed_run_ends_with_the_same_bytes(root: Path, tmp_path: Path, writes: int, route: str) -> None:
    whole = run(settings_of(root, route=route), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), stopping(writes):
        run(settings_of(root, route=route), tmp_path / "study")
    study = run(settings_of(root, route=route), tmp_path / "study")
    files = {path.relative_to(whole.root) for path in Path(whole.root).rglob("*") if path.is_file()}
    assert files == {path.relative_to(study.root) for path in Path(study.root).rglob("*") if path.is_file()}
    for path in files:
        assert (Path(study.root) / path).read_bytes() == (Path(whole.root) / path).read_bytes(), path


def test_neither_budget_nor_chunks_decide(root: Path, tmp_path: Path) -> None:
    least = Joined(settings_of(root)).plan(base_dir=None, chunk=CHUNK, free=0).work
    one = run(settings_of(root), tmp_path / "one", MemoryBudget(held() + least + 20_000_000))
    two = run(settings_of(root), tmp_path / "two", "8GB", chunk=400)
    for split in ("train", "test"):
        np.testing.assert_array_equal(read(one.betas(split)), read(two.betas(split)))


# What doesn't fit


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="anna has one subject"):
        run(settings_of(root, joins=str(root / "anna")), tmp_path / "study")
    with pytest.raises(InputError, match="the group has a subject ben already"):
        run(settings_of(root, subject="ben"), tmp_path / "study")
    with pytest.raises(InputError, match="there is no folder .*nobody"):
        run(settings_of(root, member=str(root / "nobody")), tmp_path / "study")
    with pytest.raises(InputError, match=r"dataset\.rows = 500 is more than the 80 train images of eve"):
        run(settings_of(root, rows=500), tmp_path / "study")
    with pytest.raises(InputError, match="shares 1 of its 2 train images|shares [02] of its 2 train images"):
        run(settings_of(root, rows=2), tmp_path / "study")
    with pytest.raises(BudgetError, match="joining the group needs at least"):
        run(settings_of(root), tmp_path / "study", MemoryBudget(held() + 1_000_000))
    assert not (tmp_path / "study").exists()


def test_test_images_that_the_group_was_trained_on_are_refused(root: Path, tmp_path: Path) -> None:
    files = {}
    for split, shown in (("train", np.arange(50)), ("test", np.arange(90, 130))):
        for role, values in (("betas", betas_of("eve", shown, 1.0)), ("stimuli", PICTURES[shown])):
            files[f"{role}_{split}"] = str(tmp_path / f"{role}_{split}.npy")
            np.save(files[f"{role}_{split}"], values)
    Arrays(ArraysSettings(**files)).ingest(Study(tmp_path / "eve"), base_dir=None, context=Context.of(chunk=CHUNK))
    settings = settings_of(root, member=str(tmp_path / "eve"))
    with pytest.raises(InputError, match="the group was trained on 20 of the test images of eve"):
        run(settings, tmp_path / "study")
    allowed = settings.model_copy(update={"allow_shared_stimuli": True, "route": "group"})
    assert run(allowed, tmp_path / "study").rows.exists()
    assert any("may have been trained on test images" in note for note in Joined.notes(allowed))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 12.5}, "neither a share up to 1 nor a whole number"),
        ({"rows": -1}, r"dataset\.rows"),
        ({"route": "both"}, r"dataset\.route"),
        ({"folds": 3}, "leave folds out"),
        ({"repeats": "single"}, "has the rows of its own study"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        validate(JoinedSettings, {"kind": "joined", "joins": "g", "member": "s"} | changes, "dataset.")


def test_another_route_or_share_is_refused_by_name(root: Path, tmp_path: Path) -> None:
    run(settings_of(root, route="group"), tmp_path / "study")
    with pytest.raises(StoreError, match="joined with other rows, another route or other members"):
        run(settings_of(root, route="group", rows=0.5), tmp_path / "study")


JOIN = """
import sys
from pathlib import Path
from leanrecon.context import Context
from leanrecon.datasets.group.joined import Joined, JoinedSettings
from leanrecon.memory import PeakMemory
from leanrecon.study.layout import Study
root, context = Path(sys.argv[1]), Context.of("4GB")
with PeakMemory() as memory:
    joined = Joined(JoinedSettings(joins=str(root / "group"), member=str(root / "c")))
    joined.ingest(Study(root / "study"), base_dir=None, context=context)
print(context.peaks.largest, memory.peak)
"""
"""Memory of its own: another test's heap would be used again."""


@pytest.mark.slow
def test_the_peak_stays_under_the_plan(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (1100, 16, 16, 3), np.uint8)
    for name, voxels in (("a", 500), ("b", 400), ("c", 8000)):
        files = {}
        for split, shown in (("train", np.arange(1000)), ("test", np.arange(1000, 1100))):
            for role, values in (
                ("betas", rng.normal(size=(len(shown), voxels)).astype(np.float32)),
                ("stimuli", pictures[shown]),
            ):
                files[f"{role}_{split}"] = str(tmp_path / f"{role}_{split}.npy")
                np.save(files[f"{role}_{split}"], values)
        Arrays(ArraysSettings(**files)).ingest(Study(tmp_path / name), base_dir=None, context=Context.of())
    group = GroupSettings(members=[str(tmp_path / "a"), str(tmp_path / "b")], alignment={"kind": "pca", "k": 100})
    Group(group).ingest(Study(tmp_path / "group"), base_dir=None, context=Context.of())
    done = subprocess.run([sys.executable, "-c", JOIN, str(tmp_path)], check=True, capture_output=True, text=True)
    planned, peak = map(int, done.stdout.split())
    assert 0.5 * planned <= peak <= planned
