"""One picture under two names: its trials belong together, and it may not be trained on and tested on."""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.lab import Lab, write_lab

from leanrecon.api import open as open_study
from leanrecon.api import run
from leanrecon.datasets.files.folder import find_images
from leanrecon.errors import InputError

pytest.importorskip("nibabel", reason="NIfTI files need nibabel")


def study(lab: Lab, name: str = "study", **settings: Any) -> Any:
    overrides = [f"dataset.{key}={value}" for key, value in settings.items()]
    run(str(lab.folder / "s.toml"), study=lab.folder / name, until="dataset", set=overrides)
    return open_study(lab.folder / name)


def table(lab: Lab) -> list[list[str]]:
    return [line.split("\t") for line in (lab.folder / "trials.tsv").read_text().splitlines()]


def write_table(lab: Lab, lines: list[list[str]]) -> None:
    (lab.folder / "trials.tsv").write_text("\n".join("\t".join(line) for line in lines))


def names_of(lab: Lab, split: str) -> list[str]:
    return list(dict.fromkeys(name for name, of in zip(lab.stimulus, lab.split, strict=True) if of == split))


# Several names of one file


def test_a_name_with_and_without_its_ending_is_one_image(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    whole = study(lab, "whole")
    header, *lines = table(lab)
    write_table(
        lab, [header, *([Path(name).stem if k % 3 == 1 else name, *rest] for k, (name, *rest) in enumerate(lines))]
    )
    made = study(lab)
    for split in ("train", "test"):
        assert made.betas(split).shape == whole.betas(split).shape, "all trials of an image are averaged"
        order = [Path(name).stem for name in ids(made)[split]]
        rows = [order.index(Path(name).stem) for name in ids(whole)[split]]
        np.testing.assert_array_equal(made.betas(split)[rows], whole.betas(split))


def ids(made: Any) -> dict[str, list[str]]:
    return dict(json.loads((made.path / "stimuli" / "ids.json").read_text()))


def test_a_file_named_in_two_ways_may_not_be_in_both_splits(tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab")
    header, *lines = table(lab)
    shown = names_of(lab, "test")[0]
    trials = [k for k, (name, *_) in enumerate(lines) if name == shown]
    lines[trials[0]] = [Path(shown).stem, lines[trials[0]][1], "train"]
    write_table(lab, [header, *lines])
    with pytest.raises(InputError, match="1 images are among the train and the test trials; the first is scene_"):
        study(lab)


@pytest.mark.parametrize("in_table", ["NFC", "NFD"])
def test_umlauts_of_one_and_of_two_characters_are_alike(tmp_path: Path, in_table: Any) -> None:
    on_disk = "NFD" if in_table == "NFC" else "NFC"
    name = "Häuser am Süßen See.png"
    Image.new("RGB", (4, 4)).save(tmp_path / unicodedata.normalize(on_disk, name))
    asked = unicodedata.normalize(in_table, name)
    found = find_images(tmp_path, [asked, asked.removesuffix(".png")])
    assert {path.name for path in found.values()} == {unicodedata.normalize(on_disk, name)}


# Several files of one picture


def copied(lab: Lab, *, recoded: bool) -> tuple[str, str]:
    """Make a test image the same picture as a train image; returns both names."""
    train, test = names_of(lab, "train")[1], names_of(lab, "test")[1]
    images = lab.folder / "images"
    if recoded:
        Image.open(images / train).save(images / test, compress_level=1)
        assert (images / train).read_bytes() != (images / test).read_bytes()
    else:
        shutil.copy(images / train, images / test)
    return train, test


@pytest.mark.parametrize("recoded", [False, True])
def test_a_train_image_under_another_name_is_no_test_image(tmp_path: Path, recoded: bool) -> None:
    lab = write_lab(tmp_path / "lab")
    train, test = copied(lab, recoded=recoded)
    with pytest.raises(InputError, match=rf"1 of the 4 test images .* {test} \(test\), the same as {train} \(train\)"):
        study(lab)
    with pytest.raises(InputError, match="Give both one name in the table of trials"):
        study(lab)
    assert not (lab.folder / "study" / "betas" / "rows.json").exists()
    assert len(study(lab, allow_shared_stimuli="true").betas("test")) == 4


@pytest.mark.parametrize("seed", range(4))
def test_folds_keep_equal_images_together(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    lab = write_lab(tmp_path / "lab")
    pair = copied(lab, recoded=True)
    made = folded(lab, seed)
    names = ids(made)["train"]
    folds = json.loads((made.path / "folds.json").read_text())["folds"]
    assert sorted(row for fold in folds for row in fold) == list(range(len(names)))
    assert any({names.index(name) for name in pair} <= set(fold) for fold in folds)
    assert "folds keep them together" in capsys.readouterr().err
    folded(lab, seed)  # finds what is there
    (made.path / "folds.json").unlink()
    folded(lab, seed)
    assert json.loads((made.path / "folds.json").read_text())["folds"] == folds


def folded(lab: Lab, seed: int) -> Any:
    settings = ["dataset.folds=4", f"seed={seed}"]
    run(str(lab.folder / "s.toml"), study=lab.folder / "folds", until="dataset", set=settings)
    return open_study(lab.folder / "folds")
