"""Every damaged byte of a study is found and mended, and whatever a power cut leaves is continued to the same bytes.

``LEANRECON_FLIPS=all`` flips a byte in each file of each study, the default is a few; ``LEANRECON_CUTS=50`` imitates
50 power cuts. ``LEANRECON_SEED`` chooses others; the seed is printed.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from support import published_models as models
from support.diffusion_models import write_base

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.stages.pipeline import Pipeline
from leanrecon.stages.repair import mend
from leanrecon.study.layout import Role, Study, item_of
from leanrecon.study.recipes import read_settings
from leanrecon.study.verify import find_damage

pytestmark = [pytest.mark.slow, pytest.mark.kills, pytest.mark.networks]

SEED = int(os.environ.get("LEANRECON_SEED", "15"))
FLIPS = os.environ.get("LEANRECON_FLIPS", "4")
CUTS = int(os.environ.get("LEANRECON_CUTS", "2"))

COMMON = """
memory = "3GB"
[stores]
chunk = "2KB"
[evaluate]
permutations = 1
resamples = 100
"""

ARRAYS = """
[dataset]
betas = "betas.npy"
stimuli = "stimuli.npy"
captions = "captions.json"
"""

KINDS = {
    "folds": ARRAYS + 'folds = 2\n[features.pca]\ncomponents = 4\n[features.pixels]\n[stage1]\nspace = "pca"\n',
    "mlp": ARRAYS
    + "test_fraction = 0.3\n[features.pca]\ncomponents = 4\n[regression]\n"
    + 'kind = "mlp"\nhidden = 8\nblocks = 1\nepochs = 4\nbatch_size = 8\nalpha = 10.0\ncheckpoint_minutes = 0.0\n',
    "refined": ARRAYS
    + "test_fraction = 0.3\n[features.pca]\ncomponents = 4\nsize = 16\n"
    + '[features.clip]\nkind = "clip-text"\nmodel = "base"\nform = "sd15"\n'
    + '[refine]\nkind = "lcm"\nbase = "base"\ntext = "clip"\nsize = 64\nsteps = 2\nprecision = "float32"\n'
    + 'baselines = ["prior"]\n',
}

KILLED = """
import os, sys
from pathlib import Path
from leanrecon.places.local import LocalPlace
from leanrecon.stages.pipeline import Pipeline
from leanrecon.study.layout import Study
from leanrecon.study.recipes import read_settings
left = int(sys.argv[2])
replace = Path.replace
def dying(self, target):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return replace(self, target)
Path.replace = dying
settings, base_dir = read_settings("study.toml")
Pipeline(settings, Study(sys.argv[1]), base_dir=base_dir).run()
print(int(sys.argv[2]) - left)
"""


def write_inputs(folder: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    seen = rng.normal(size=(24, 4))
    pixels = np.clip(128 + 40 * (seen @ rng.normal(size=(4, 768))).reshape(24, 16, 16, 3), 0, 255)
    np.save(folder / "stimuli.npy", pixels.astype(np.uint8))
    np.save(folder / "betas.npy", (seen @ rng.normal(size=(4, 30)) + 0.3 * rng.normal(size=(24, 30))).astype("f4"))
    (folder / "captions.json").write_text(json.dumps([f"a picture of {k}" for k in range(24)]))
    (folder / "study.toml").write_text(COMMON.replace("[stores]", KINDS[kind] + "[stores]"))
    if kind == "refined":
        write_base(folder / "base", width=models.WIDTH)
        models.write_text_encoder(folder / "base", projection=False)


def run(folder: Path, study: Path) -> list[str]:
    """Run a study to its end; returns the warnings."""
    settings, base_dir = read_settings(folder / "study.toml")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Pipeline(settings, Study(study), base_dir=base_dir).run()
    return [str(one.message) for one in said if issubclass(one.category, LeanreconWarning)]


def run_or_repair(folder: Path, study: Path) -> bool:
    """Run a study to its end, repairing it first where the run asks for that; returns whether it did."""
    refused = ""
    try:
        run(folder, study)
    except StoreError as error:
        refused = str(error)
    if not refused:
        return False
    assert "--repair" in refused
    repair(study)
    run(folder, study)
    return True


def repair(study: Path) -> None:
    damaged = find_damage(study)
    assert damaged, "verify finds nothing to repair"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeanreconWarning)
        mend(study, damaged)


def killed(folder: Path, study: Path, writes: int) -> int:
    """Run a study in a process that ends without a word after so many files; returns how many it wrote."""
    command = [sys.executable, "-c", KILLED, str(study), str(writes)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 9), done.stderr
    return writes if done.returncode else int(done.stdout.split()[-1])


def files(study: Path) -> list[Path]:
    return sorted(path for path in study.rglob("*") if path.is_file())


def contents(study: Path) -> dict[str, bytes]:
    """All that does not tell the time that was taken."""
    names = {path.relative_to(study).as_posix(): path for path in files(study)}
    return {name: p.read_bytes() for name, p in names.items() if p.name not in ("run.json", "report.html")}


class Finished:
    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        write_inputs(folder, kind)
        self.study = folder / "finished"
        self.writes = killed(folder, self.study, 10**6)
        self.contents = contents(self.study)

    def copy(self, to: Path) -> Path:
        return shutil.copytree(self.study, to)

    def same(self, study: Path) -> list[str]:
        """The files that differ from those of the undisturbed study."""
        found = contents(study)
        return sorted(
            name for name in {*found, *self.contents} if found.get(name) != self.contents.get(name) and name != TOML
        )


TOML = "study.toml"


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(request.param, tmp_path_factory.mktemp(request.param))


def flip(path: Path, rng: np.random.Generator) -> str:
    data = bytearray(path.read_bytes())
    place, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {path.name}"


def chosen(paths: list[Path], rng: np.random.Generator) -> list[Path]:
    if FLIPS == "all":
        return paths
    return [paths[k] for k in sorted(rng.permutation(len(paths))[: int(FLIPS)])]


def verified(study: Path, path: Path) -> bool:
    """Whether a file is one that ``verify`` answers for: of what is made again when it is missed, it does not."""
    item = item_of(path.relative_to(study).as_posix())
    return item is not None and item.role is not Role.SCRATCH


def test_a_flipped_byte_of_a_finished_study_is_found_and_mended(finished: Finished, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    study = finished.copy(tmp_path / "study")
    print(f"seed {SEED}: {finished.kind}, {len(files(study))} files")
    for path in chosen([p for p in files(study) if verified(study, p)], rng):
        name = path.relative_to(study).as_posix()
        what = f"seed {SEED}, {name}: {flip(path, rng)}"
        damaged = find_damage(study)
        assert damaged, f"{what} was not found"
        if name == TOML:
            with pytest.raises(StoreError, match=r"edited by hand, or is damaged.*leanrecon run SETTINGS --study"):
                mend(study, damaged)
            run(finished.folder, study)
        else:
            repair(study)
        assert find_damage(study) == {}, f"{what} stays damaged"
        assert finished.same(study) == [], what


def test_a_flipped_byte_of_a_finished_study_is_survived_by_the_next_run(finished: Finished, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED + 1)
    for k, path in enumerate(chosen([p for p in files(finished.study) if verified(finished.study, p)], rng)):
        study = finished.copy(tmp_path / str(k))
        path = study / path.relative_to(finished.study)
        what = f"seed {SEED}, {path.relative_to(study)}: {flip(path, rng)}"
        run_or_repair(finished.folder, study)
        if find_damage(study):  # of what the run did not have to read
            repair(study)
        assert find_damage(study) == {}, what
        assert finished.same(study) == [], what
        shutil.rmtree(study)


def test_a_flipped_byte_of_a_killed_study_is_found_and_mended(finished: Finished, tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED + 2)
    moments = sorted(int(finished.writes * share) for share in rng.random(1 if FLIPS != "all" else 4))
    for moment in moments:
        begun = tmp_path / f"begun{moment}"
        killed(finished.folder, begun, moment)
        print(
            f"seed {SEED}: {finished.kind}, killed after {moment} of {finished.writes} writes: {len(files(begun))} files"
        )
        sound = [p for p in files(begun) if not p.name.endswith(".partial") and verified(begun, p)]
        assert find_damage(begun) == {}, "a kill left what looks damaged"
        for k, original in enumerate(chosen(sound, rng)):
            study = tmp_path / f"{moment} {k}"
            shutil.copytree(begun, study)
            path = study / original.relative_to(begun)
            what = f"seed {SEED}, killed after {moment} writes, {path.relative_to(study)}: {flip(path, rng)}"
            assert find_damage(study), f"{what} was not found"
            if k % 2 and path.name != TOML:
                repair(study)
            run_or_repair(finished.folder, study)
            if find_damage(study):
                repair(study)
            assert find_damage(study) == {}, what
            assert finished.same(study) == [], what
            shutil.rmtree(study)
        shutil.rmtree(begun)


DAMAGE: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "emptied": lambda data, rng: b"",
    "zeroed": lambda data, rng: bytes(len(data)),
    "truncated": lambda data, rng: data[: int(rng.integers(len(data)))] if data else data,
}


def test_what_a_power_cut_leaves_is_continued(finished: Finished, tmp_path: Path) -> None:
    for k in range(CUTS):
        rng = np.random.default_rng((SEED, k))
        study, moment = tmp_path / str(k), int(finished.writes * (k + rng.random()) / CUTS)
        killed(finished.folder, study, moment)
        last = sorted(files(study), key=lambda path: path.stat().st_mtime_ns)[-int(rng.integers(1, 7)) :]
        harmed = []
        for path in last:
            how = list(DAMAGE)[int(rng.integers(3))]
            path.write_bytes(DAMAGE[how](path.read_bytes(), rng))
            harmed.append(f"{path.relative_to(study).as_posix()} {how}")
        what = f"seed {SEED}, round {k} of {CUTS}, {finished.kind}, killed after {moment} writes: {', '.join(harmed)}"
        print(what)
        if run_or_repair(finished.folder, study):
            print("  needed --repair")
        if find_damage(study):
            repair(study)
            print("  --repair found more")
        assert find_damage(study) == {}, what
        assert finished.same(study) == [], what
        shutil.rmtree(study)
