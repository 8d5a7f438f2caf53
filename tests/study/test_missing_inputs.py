"""All files, folders and weights that settings name and that are not there are told at once, before any work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanrecon
from leanrecon.app.commands import study as commands
from leanrecon.errors import InputError
from leanrecon.progress import Progress
from leanrecon.study.needs import require_inputs
from leanrecon.study.recipes import read_tables

CAPTIONS = "COCO_73k_annots_curated.npy"

MISSING: list[tuple[dict[str, Any], list[str]]] = [
    (
        {
            "kind": "arrays", "path": "all.mat", "betas_train": ":X", "betas_test": "b.npy", "stimuli_train": "c.h5:images",
            "stimuli_test": "d.npy", "captions_train": "e.json", "captions_test": "f.txt", "runs_train": "g.npy",
            "runs_test": "h.npy", "mask": "i.npy", "areas": "j.npz",
        },
        ["path", "betas_train", "betas_test", "stimuli_train", "stimuli_test", "captions_train", "captions_test",
         "runs_train", "runs_test", "mask", "areas"],
    ),
    ({"kind": "arrays", "betas": "a.npy", "test_index": "b.npy"}, ["betas", "test_index"]),
    (
        {
            "kind": "nifti", "betas": "run-*.nii.gz", "trials": "t.tsv", "images": "pictures", "mask": "m.nii.gz",
            "areas": "areas/*.nii.gz", "area_names": "names.tsv", "test_ids": "ids.txt",
        },
        ["betas", "trials", "images", "mask", "areas", "area_names", "test_ids"],
    ),
    ({"kind": "glmsingle", "root": "none", "trials": "t.tsv", "mask": "m.nii"}, ["root", "trials", "mask"]),
    (
        {"kind": "bdpy", "train": "a.h5", "tests": {"one": "b.h5", "two": {"path": "c.h5"}}, "images": "pictures"},
        ["train", "tests.one", "tests.two", "images"],
    ),
    ({"kind": "bdpy", "path": "a.h5", "test_ids": "ids.txt"}, ["path", "test_ids"]),
    ({"kind": "miyawaki", "root": "none", "test_ids": "ids.txt"}, ["root", "test_ids"]),
    *(({"kind": kind, "root": "none", "subject": 1}, ["root"]) for kind in ("mindeye", "algonauts", "brain-diffuser")),
    ({"kind": "nsd", "root": "none", "roi": "V1+m.nii.gz", "captions": "c.npy"}, ["root", "roi", "captions"]),
    ({"kind": "nsd", "roi": ["a.nii", "b.nii"], "captions": CAPTIONS}, ["roi: there is no file a.nii",
     "roi: there is no file b.nii", "captions"]),
    ({"kind": "group", "members": ["one", "two"]}, ["members: there is no folder one", "members: there is no folder two"]),
    ({"kind": "joined", "joins": "group", "member": "one"}, ["joins", "member"]),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and caches in which nothing lies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))


def refused(tables: dict[str, Any]) -> InputError:
    settings, base_dir = read_tables(tables, Path.cwd())
    with pytest.raises(InputError) as error:
        require_inputs(settings, base_dir)
    return error.value


@pytest.mark.parametrize(("dataset", "names"), MISSING, ids=lambda of: of["kind"] if isinstance(of, dict) else "")
def test_every_missing_file_is_told_with_its_setting(dataset: dict[str, Any], names: list[str]) -> None:
    told = refused({"dataset": dataset}).found.removeprefix("dataset.").split("; dataset.")
    assert len(told) == len(names)
    for name in names:
        (line,) = [line for line in told if line.startswith(name)]
        assert "there is no" in line or "no file matches" in line or "nothing at" in line


def test_what_is_there_or_behind_a_url_is_not_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((20, 5)))
    arrays = {"kind": "arrays", "betas": "a.npy", "stimuli": "s3://bucket/b.npy", "test_fraction": 0.2}
    bucket = {"kind": "nifti", "betas": "s3://b/*.nii", "trials": "s3://b/t.tsv", "areas": "gs://b/*.nii"}
    for dataset in (arrays, bucket, {"kind": "glmsingle", "root": "s3://b/out", "trials": "s3://b/t.tsv"}):
        require_inputs(*read_tables({"dataset": dataset}, tmp_path))


def test_weights_features_and_data_that_are_missing_are_told_in_one_message(tmp_path: Path) -> None:
    tables = {
        "dataset": {"kind": "nsd", "captions": CAPTIONS, "roi": "mine.nii.gz"},
        "features": {
            "vdvae": {"checkpoint": "imagenet64-iter-1600000-model-ema.th"},
            "own": {"kind": "precomputed", "train": "train.npy", "test": "test.npy"},
        },
    }
    with pytest.raises(InputError) as error:
        leanrecon.run(tables, study="study", progress=Progress())
    for name in ("imagenet64-iter-1600000-model-ema.th (features.vdvae.checkpoint)", "mine.nii.gz", CAPTIONS,
                 "features.own.train: there is no file train.npy", "features.own.test: there is no file test.npy"):  # fmt: skip
        assert str(error.value).count(name) == 1
    assert "fetch-weights" in str(error.value)
    assert "terms" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_to_do_stands_behind_each_or_at_the_end(tmp_path: Path) -> None:
    np.save(tmp_path / "betas_train.npy", np.ones((20, 5)))
    arrays = {"kind": "arrays", "betas_train": "beta_train.npy", "betas_test": "other", "mask": "inside"}
    assert str(refused({"dataset": arrays})) == (
        'Dataset.betas_train: there is no file beta_train.npy (perhaps "betas_train.npy" is meant); '
        "dataset.betas_test: there is no file other; dataset.mask: there is no file inside. "
        "Check the path; relative paths start at the current folder."
    ).replace("Dataset", "dataset")


def test_a_lone_file_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    error = refused({"dataset": {"kind": "arrays", "betas": "none.npy", "test_fraction": 0.2}})
    assert error.found == "dataset.betas: there is no file none.npy"
    assert error.expected == str(tmp_path / "none.npy")


def test_terms_are_shown_only_once_all_inputs_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(commands, "accepts_terms", lambda settings: asked.append(settings))
    (tmp_path / "s.toml").write_text('[dataset]\nkind = "nsd"\ncaptions = "none.npy"\n')
    with pytest.raises(InputError, match=r"dataset\.captions: there is no file none\.npy"):
        commands.run("s.toml")
    assert asked == []
    np.save(tmp_path / "none.npy", np.array(["a"]))
    with pytest.raises(InputError, match="terms of use"):
        commands.run("s.toml")
    assert len(asked) == 1
    assert not (tmp_path / "s").exists()


def test_a_study_that_has_its_dataset_may_have_lost_what_it_is_made_of(tmp_path: Path) -> None:
    settings, base_dir = read_tables({"dataset": {"kind": "nsd", "root": "gone"}}, tmp_path)
    require_inputs(settings, base_dir, begun=True)
    with pytest.raises(InputError, match=r"dataset\.root: there is no folder gone"):
        require_inputs(settings, base_dir)


def test_a_recipe_without_its_data_says_where_these_come_from() -> None:
    with pytest.raises(InputError, match=r"See `leanrecon recipes miyawaki`, which tells where its data come from"):
        commands.run("miyawaki")
