"""Studies that are built from parts: continued after an interruption, refused with other settings, within their plan."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lab import Lab, write_lab

from leanrecon.api import open as open_study
from leanrecon.api import plan, run
from leanrecon.datasets.nifti.dataset import Nifti, NiftiSettings
from leanrecon.errors import StoreError
from leanrecon.places import as_location
from leanrecon.progress import PlainProgress
from leanrecon.study.settings import check_settings

pytest.importorskip("nibabel", reason="NIfTI files need nibabel")


class Interrupted(PlainProgress):
    """Stops the run at its n-th message."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def say(self, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, bytes]:
    names = ("betas", "stimuli", "folds.json")
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    kept = {str(name): file for name, file in files.items() if name.parts[0] in names and name.name != "sources.json"}
    return {name: file.read_bytes() for name, file in kept.items() if not name.endswith(".sum")}


def build(lab: Lab, name: str, **options: Any) -> Path:
    settings = [f"dataset.{key}={value}" for key, value in options.pop("dataset", {}).items()]
    run(str(lab.folder / "s.toml"), study=lab.folder / name, until="dataset", set=settings, **options)
    return lab.folder / name


def test_an_interrupted_study_ends_with_the_same_bytes(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    whole = contents(build(lab, "whole"))
    stopped = 0
    for after in range(1, 40):
        try:
            build(lab, f"part{after}", progress=Interrupted(after))
        except KeyboardInterrupt:
            stopped += 1
            assert contents(build(lab, f"part{after}")) == whole, after
        else:
            break
    assert stopped >= 3


def test_other_settings_are_refused_and_replaced_on_request(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    build(lab, "study")
    other = {"zscore": "run"}
    with pytest.raises(StoreError, match="zscore"):
        build(lab, "study", dataset=other)
    replaced = build(lab, "study", dataset=other, overwrite=True)
    assert contents(replaced) == contents(build(lab, "fresh", dataset=other))


def test_a_study_of_folds_keeps_repeats_and_runs_together(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    made = build(lab, "study", dataset={"folds": 4})
    folds = json.loads((made / "folds.json").read_text())["folds"]
    names = json.loads((made / "stimuli" / "ids.json").read_text())["train"]
    assert sorted(row for fold in folds for row in fold) == list(range(len(names)))


def test_a_finished_study_has_figures_by_area(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", images=40)
    path = lab.folder / "s.toml"
    path.write_text(
        path.read_text()
        + '[areas]\nearly = ["V1"]\nhigh = ["ventral"]\n[evaluate]\npermutations = 2\nresamples = 100\n'
    )
    made = run(str(path), study=lab.folder / "study")
    assert set(made.figures["areas"]) == {"early", "high"}
    assert {row["stimulus"] for row in made.scores} <= set(lab.images), "scores go by the names of image files"
    assert made.figures["final"]["pixcorr"]["value"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("zscore", ["none", "run"])
def test_the_peak_stays_under_the_plan(tmp_path: Path, zscore: str) -> None:
    import nibabel

    lab = write_lab(tmp_path / "lab", images=60, repeats=3)
    shape = (60, 60, 40)
    rng = np.random.default_rng(0)
    for path in sorted(lab.folder.glob("sub-01_run-*")):
        volumes = nibabel.load(path).shape[3]
        values = rng.standard_normal((*shape, volumes), dtype=np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    mask = np.zeros(shape, "u1")
    mask[10:50, 10:50, 5:35] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), lab.folder / "mask.nii.gz")
    code = (
        "from leanrecon.api import run; import sys;"
        f"run(sys.argv[1], study=sys.argv[2], until='dataset', memory='500MB',"
        f"set=['dataset.zscore={zscore}', 'dataset.areas=false', 'dataset.check=warn'])"
    )
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", code, str(lab.folder / "s.toml"), str(lab.folder / "study")], check=True)
    record = json.loads((lab.folder / "study" / "run.json").read_text())["stages"]["dataset"]
    assert 50e6 < record["peak_bytes"] <= record["planned_bytes"] <= 500e6


def test_the_plan_counts_rows_images_and_voxels(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    stage = plan(str(lab.folder / "s.toml"), until="dataset")[0]
    assert stage.disk > 0
    made = open_study(build(lab, "study"))
    assert made.betas("train").shape == (12, int(lab.mask.sum()))
    assert as_location(lab.folder / "study" / "betas" / "rows.json").is_file()


@pytest.mark.parametrize("kind", ["nifti", "glmsingle"])
def test_every_path_is_found_from_the_folder_of_the_settings(tmp_path: Path, kind: str) -> None:
    for name in ("a.nii", "mask.nii", "t.csv", "areas/V1.nii", "images/x.png", "labels.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = {
        "trials": "t.csv",
        "mask": "mask.nii",
        "areas": "areas/*.nii",
        "images": "images",
        "area_names": "labels.tsv",
    }
    given |= {"betas": "*.nii"} if kind == "nifti" else {"root": "."}
    settings = check_settings({"dataset": {"kind": kind, **given}, "features": {"pixels": {}}}).dataset.located(
        tmp_path
    )
    for name in set(given) - {"root"}:
        assert Path(getattr(settings, name)).is_absolute(), name


@pytest.mark.parametrize("name", ["trials.tsv", "mask.nii.gz"])
def test_a_file_that_changed_since_the_study_was_begun_is_named(tmp_path: Path, name: str) -> None:
    lab = write_lab(tmp_path / "lab")
    build(lab, "study")
    if name == "trials.tsv":
        text = (lab.folder / name).read_text()
        (lab.folder / name).write_text(text.replace("\t1\t", "\t9\t"))
    else:
        data = (lab.folder / name).read_bytes()  # of gzip: a time in its header
        (lab.folder / name).write_bytes(data[:4] + b"abcd" + data[8:])
    with pytest.raises(
        StoreError, match=rf"lab/{name} changed since the study was begun: .*Put the earlier version back"
    ):
        build(lab, "study")
    build(lab, "study", overwrite=True)


def test_trials_of_neither_split_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = write_lab(tmp_path / "lab")
    text = (lab.folder / "trials.tsv").read_text()
    (lab.folder / "trials.tsv").write_text(text.replace("\ttrain", "\ttrian", 3))
    build(lab, "study", dataset={"check": "warn"})
    assert "3 of 32 trials are left out: their split is 'trian', and neither train nor test" in capsys.readouterr().err
    build(write_lab(tmp_path / "whole"), "study")
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"zscore": "train"}, ""),
        ({"zscore": "run"}, "all trials of a run, tested ones among them"),
        ({"zscore": "session"}, "all trials of a session, tested ones among them"),
        ({"zscore": "train", "folds": 3}, "trials of all folds, tested ones among them"),
    ],
)
def test_the_report_says_where_z_scores_use_tested_trials(settings: dict[str, Any], words: str) -> None:
    notes = list(Nifti.notes(NiftiSettings(betas="b.nii", trials="t.tsv", **settings)))
    assert [words in note for note in notes] == ([True] if words else [])
