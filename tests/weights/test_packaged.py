"""The models that come with the package: sound, or refused by the name of the file."""

import hashlib
import json
from pathlib import Path

import pytest

from leanrecon.app.doctor import packaged as told
from leanrecon.errors import InputError
from leanrecon.weights import packaged
from leanrecon.weights.packaged import MANIFEST, check_packaged, in_recipe, is_packaged, write_manifest

FILES = {
    "clip/model.safetensors": b"numbers",
    "clip/config.json": b"{}",
    "clip/merges.txt": b"a b\n",
    "vdvae/vdvae.safetensors": b"others",
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)
    monkeypatch.setattr(packaged, "FOLDER", folder)
    return folder


def test_the_manifest_holds_the_checksum_of_every_file(models: Path) -> None:
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert json.loads((models / MANIFEST).read_text()) == expected
    write_manifest(models)  # it does not list itself
    assert json.loads((models / MANIFEST).read_text()) == expected
    (models / "README.md").write_text("how they were made")
    (models / "clip" / ".hidden.json").write_text("{}")
    assert check_packaged() == [models / name for name in sorted(FILES)]
    assert told() == ("models of the demo", "19 B, sound")


def refused(words: str) -> None:
    with pytest.raises(InputError) as error:
        check_packaged()
    assert words in str(error.value)
    assert "Install leanrecon again" in str(error.value)
    assert "demo --fast" in str(error.value)
    assert told() == ("models of the demo", str(error.value))


@pytest.mark.parametrize("name", FILES)
def test_each_damaged_file_is_named(models: Path, name: str) -> None:
    (models / name).write_bytes(b"x" + FILES[name][1:])
    refused(f"{models / name} is damaged, or another version: its SHA-256 is ")
    (models / name).unlink()
    refused(f"{models / name} is missing")


def test_a_file_that_came_otherwise_is_named(models: Path) -> None:
    (models / "clip" / "added_tokens.json").write_text("{}")
    refused(f"{models / 'clip' / 'added_tokens.json'} did not come with leanrecon")


def test_models_that_are_not_there_are_told(models: Path) -> None:
    (models / MANIFEST).write_text("[")
    with pytest.raises(InputError, match=rf"{MANIFEST} can't be read"):
        check_packaged()
    (models / MANIFEST).unlink()
    refused(f"{models} has no {MANIFEST}")
    models.rename(models.with_name("elsewhere"))
    refused(f"there is no folder {models}")


def test_only_paths_into_the_folder_are_packaged(models: Path) -> None:
    assert in_recipe("../models/clip") == models / "clip"
    assert in_recipe("../models/vdvae/vdvae.safetensors") == models / "vdvae" / "vdvae.safetensors"
    for name in ("models/clip", "..", "", "../model/clip", "/models/clip", "openai/clip"):
        assert in_recipe(name) is None
    assert is_packaged(str(models / "clip"))
    assert not is_packaged("../models/clip")
    assert not is_packaged(f"{models}2/clip")
