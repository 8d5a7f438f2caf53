"""A mirror holds what a study has finished; with the study lost, the same command goes on from there, to the same bytes."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from leanrecon.errors import SettingsError, StoreError
from leanrecon.places import Location
from leanrecon.progress import Progress
from leanrecon.stages.pipeline import Pipeline
from leanrecon.stores import Store
from leanrecon.study.layout import Study, item_of
from leanrecon.study.mirror import Mirror
from leanrecon.study.recipes import read_settings
from leanrecon.study.record import is_complete

pytestmark = pytest.mark.slow

SETTINGS = """
[dataset]
kind = "simulated"
n_train = 60
n_test = 12
voxels = 40
size = 16
[stores]
chunk = "2KB"
[features.pixels]
[features.pca]
components = 20
[regression]
alpha = 100.0
[evaluate]
permutations = 1
resamples = 100
"""

NOT_MIRRORED = ("run.json", "study.toml", "report.html")
"""What tells the times and the places of a run."""


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def run(folder: Path, study: str = "study", until: str = "evaluate", **how: object) -> Path:
    settings, base_dir = read_settings(folder / "small.toml")
    Pipeline(settings, Study(folder / study), base_dir=base_dir, mirror=folder / "mirror", **how).run(until)
    return folder / study


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def lasting(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if Path(name).name not in NOT_MIRRORED}


def stamps(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that was run to its end, and its mirror; not to be changed."""
    folder = tmp_path_factory.mktemp("mirrored")
    (folder / "small.toml").write_text(SETTINGS)
    run(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.slow
def test_the_mirror_is_the_study_itself(finished: Path) -> None:
    study, mirror = contents(finished / "study"), contents(finished / "mirror")
    assert study == mirror
    assert {"report.html", "betas/rows.json", "features/pca/fitted.npz", "variants/shuffled00/predictions/pixels/test.zarr/zarr.json"} <= set(study)  # fmt: skip
    verified = subprocess.run(
        [sys.executable, "-m", "leanrecon", "verify", str(finished / "mirror")], capture_output=True, text=True
    )
    assert verified.stdout.strip() == "all chunks are sound"


def test_every_file_of_a_finished_study_is_in_the_layout(finished: Path) -> None:
    assert [name for name in contents(finished / "study") if item_of(name) is None] == []
    numbers = [f"{row:05d}.png" for row in range(12)]
    images = finished / "study" / "reconstructions"
    assert all(os.path.samefile(images / "stage1" / name, images / "final" / name) for name in numbers)


def test_what_was_lost_comes_back_and_nothing_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, kept = contents(folder / "study"), stamps(folder / "mirror")
    shutil.rmtree(folder / "study")
    monkeypatch.setattr(Store, "write_rows", None)  # what extraction writes with
    run(folder)
    assert contents(folder / "study") == before
    assert stamps(folder / "mirror") == kept


def test_a_mirror_that_is_up_to_date_is_not_written_to(folder: Path) -> None:
    kept = stamps(folder / "mirror")
    run(folder)
    Mirror(folder / "study", folder / "mirror").keep()
    assert stamps(folder / "mirror") == kept


def test_a_study_that_is_half_way_is_continued_from_its_mirror(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SETTINGS)
    run(tmp_path, until="features")
    shutil.rmtree(tmp_path / "study")
    run(tmp_path)
    assert lasting(tmp_path / "study") == lasting(finished / "study")
    records = json.loads((tmp_path / "mirror" / "run.json").read_text())
    assert set(records["stages"]) == set(json.loads((finished / "study" / "run.json").read_text())["stages"])


def test_only_what_is_finished_is_copied(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "study", tmp_path / "study"))
    store = Store.open(folder / "predictions" / "pca" / "test.zarr")
    store.discard([(0, 0)])
    (folder / "reconstructions" / "final" / "00003.png").unlink()
    record = json.loads((folder / "reconstructions" / "final.json").read_text())
    (folder / "reconstructions" / "final.json").write_text(json.dumps(record | {"complete": False}))
    (folder / "betas" / "train.fetched").mkdir()
    (folder / "betas" / "train.fetched" / "0.npy").write_bytes(b"begun")
    (folder / "weights").mkdir()
    (folder / "weights" / "merged.npz").write_bytes(b"made again")
    Mirror(folder, tmp_path / "mirror").keep()
    names = set(contents(tmp_path / "mirror"))
    assert not {name for name in names if name.startswith(("predictions/pca", "reconstructions/final", "weights"))}
    assert not {name for name in names if "fetched" in name}
    assert set(contents(folder)) - names == {
        name
        for name in contents(folder)
        if name.startswith(("predictions/pca", "reconstructions/final", "weights", "betas/train.fetched"))
    }


@pytest.mark.parametrize("chunk", ["features/pca/train.zarr/c/0/0", "reconstructions/stage1/00002.png"])
def test_damage_in_the_mirror_is_told_and_mended(folder: Path, finished: Path, chunk: str) -> None:
    shutil.rmtree(folder / "study")
    file = folder / "mirror" / chunk
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = Said()
    run(folder, progress=said)
    assert [line for line in said.lines if "is damaged in 1 places" in line]
    assert lasting(folder / "study") == lasting(finished / "study")
    assert lasting(folder / "mirror") == lasting(finished / "study")


def test_damage_in_the_study_does_not_reach_the_mirror(folder: Path) -> None:
    shutil.rmtree(folder / "mirror")
    file = folder / "study" / "betas" / "train.zarr" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-5] + b"wrong")
    with pytest.raises(StoreError, match=r"betas/train.zarr is damaged in 1 places.*--repair"):
        Mirror(folder / "study", folder / "mirror").keep()
    assert not is_complete(folder / "mirror" / "betas" / "train.zarr")


def test_other_settings_are_refused_on_both_ways_and_replaced_with_overwrite(folder: Path, finished: Path) -> None:
    (folder / "small.toml").write_text(SETTINGS.replace("alpha = 100.0", "alpha = 7.0"))
    kept = contents(folder / "mirror")
    settings, base_dir = read_settings(folder / "small.toml")
    Pipeline(settings, Study(folder / "study"), base_dir=base_dir, overwrite=True).run()
    with pytest.raises(StoreError, match=r"regression\.alpha was 7\.0, is 100\.0.*another --mirror"):
        run(folder)
    with pytest.raises(StoreError, match=r"regression\.alpha was 100\.0, is 7\.0.*another --mirror"):
        Mirror(folder / "study", folder / "mirror").keep()
    assert contents(folder / "mirror") == kept
    run(folder, overwrite=True)
    assert contents(folder / "mirror") == contents(folder / "study")
    assert lasting(folder / "mirror") != lasting(finished / "study")


def test_what_another_machine_made_of_the_same_settings_gives_way_to_the_study(folder: Path) -> None:
    store = Store.open(folder / "mirror" / "features" / "pca" / "test.zarr")
    store.discard([(0, 0)])
    memory = np.zeros((len(store.group_rows(0)), len(store.group_columns(0))), np.float32)
    store.write_chunk(0, 0, memory)
    store._record.pop("content")
    store.finish()
    assert store.content != Store.open(folder / "study" / "features" / "pca" / "test.zarr").content
    run(folder)
    assert contents(folder / "mirror") == contents(folder / "study")


def test_what_a_copy_left_half_written_is_removed_either_way(folder: Path) -> None:
    for place in ("study", "mirror"):
        for name in (
            "evaluation/latent_r2/pca.npy",
            "features/pca/fitted.npz",
            "reconstructions/stage1.json",
            "study.toml",
        ):
            (folder / place / f"{name}.abc.partial").touch()
    Mirror(folder / "study", folder / "mirror").restore()
    assert not list(folder.rglob("*.partial"))


def test_folders_that_can_not_be_mirrors_are_refused(folder: Path, tmp_path: Path) -> None:
    study = folder / "study"
    for place in (study, study / "inside", folder):
        with pytest.raises(SettingsError, match="one within the other"):
            Mirror(study, place).keep()
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "holiday.jpg").touch()
    for what in ("keep", "restore"):
        with pytest.raises(SettingsError, match=r"holds holiday\.jpg"):
            getattr(Mirror(study, tmp_path / "photographs"), what)()


def test_a_mirror_that_fails_is_told_and_stops_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(SETTINGS)
    run(tmp_path, until="dataset")
    failing = Store.begin_copy.__func__

    def full(kind: type[Store], source: Store, path: Location) -> Store:
        if path.parent.parent.name == "predictions":
            raise StoreError("the disk is full")
        return failing(kind, source, path)

    monkeypatch.setattr(Store, "begin_copy", classmethod(full))
    with (
        pytest.warns(UserWarning, match="not copied to the mirror: the disk is full"),
        pytest.raises(StoreError, match="disk is full"),
    ):
        run(tmp_path)
    assert lasting(tmp_path / "study") == lasting(finished / "study")
    monkeypatch.undo()
    run(tmp_path)
    assert contents(tmp_path / "mirror") == contents(tmp_path / "study")


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_copies_that_are_killed_either_way_are_continued(folder: Path, finished: Path) -> None:
    """Killed as each of six parts of the copy appears; every kill loses the study, then the mirror in turn."""
    expected = contents(finished / "study")
    code = "import sys, pathlib; from leanrecon.study.mirror import Mirror; p = pathlib.Path; "
    ways = {
        "keep": ("Mirror(p('study'), p('mirror')).keep()", "mirror"),
        "restore": ("Mirror(p('study'), p('mirror')).restore()", "study"),
    }
    watched = [
        "betas/train.zarr/zarr.json",
        "stimuli/train.zarr/c/3/0/0/0",
        "features/pixels/train.zarr/c/0/0",
        "predictions/pca/test.zarr/zarr.json",
        "reconstructions/stage1/00004.png",
        "evaluation/scores.csv",
    ]
    killed = 0
    for (action, made), file in itertools.product(ways.values(), watched):
        shutil.rmtree(folder / made)
        process = subprocess.Popen([sys.executable, "-c", code + action], cwd=folder, stderr=subprocess.PIPE)
        while not (folder / made / file).exists() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        done = subprocess.run([sys.executable, "-c", code + action], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = contents(folder / made)
        left = [name for name in found if name.endswith(".partial")]
        assert left == []
        assert found == expected, [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
    assert killed >= 10


def test_the_command_line_mirrors(folder: Path) -> None:
    def leanrecon(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "leanrecon", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "in elsewhere" in leanrecon("mirror", "study", "elsewhere")
    assert contents(folder / "elsewhere") == contents(folder / "study")
    shutil.rmtree(folder / "study")
    leanrecon("run", "small.toml", "--study", "study", "--mirror", "elsewhere")
    assert contents(folder / "elsewhere") == contents(folder / "study")
    assert "not the folder of a study" in leanrecon("mirror", "nowhere", "other", code=2)
