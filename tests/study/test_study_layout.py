"""The layout of a study is written down once: names, roles, and what is there."""

from pathlib import Path

import pytest
from support.memory_place import MemoryPlace
from support.small_study import contents, write_study

from leanrecon.places import Location, as_location
from leanrecon.study.layout import LAYOUT, Role, Study, describe, item_of

STUDY = Study("study")

NAMES = {
    "study.toml": (STUDY.settings, Role.RECORD),
    "run.json": (STUDY.record, Role.RECORD),
    "report.html": (STUDY.report, Role.RECORD),
    "folds.json": (STUDY.folds, Role.RECORD),
    "betas/train.zarr": (STUDY.betas("train"), Role.STORE),
    "betas/rows.json": (STUDY.rows, Role.RECORD),
    "betas/voxels.npz": (STUDY.voxels, Role.RECORD),
    "betas/reliability.json": (STUDY.reliability, Role.RECORD),
    "stimuli/test.zarr": (STUDY.stimuli("test"), Role.STORE),
    "stimuli/ids.json": (STUDY.stimulus_ids, Role.RECORD),
    "captions/test.json": (STUDY.captions("test"), Role.RECORD),
    "features/pca/train.zarr": (STUDY.features("pca", "train"), Role.STORE),
    "features/clip/unconditional.zarr": (STUDY.unconditional("clip"), Role.STORE),
    "features/pca/fitted.npz": (STUDY.fitted("pca"), Role.FITTED),
    "predictions/pca/test.zarr": (STUDY.predictions("pca"), Role.STORE),
    "predictions/pca/train.zarr": (STUDY.predictions("pca", "train"), Role.STORE),
    "networks/pca": (STUDY.network("pca"), Role.NETWORK),
    "reconstructions/stage1": (STUDY.reconstructions("stage1"), Role.PICTURES),
    "reconstructions/final": (STUDY.reconstructions("final"), Role.PICTURES),
    "evaluation/metrics.json": (STUDY.metrics, Role.RECORD),
    "evaluation/scores.csv": (STUDY.scores, Role.RECORD),
    "evaluation/latent_r2/pca.npy": (STUDY.latent_r2("pca"), Role.RECORD),
}
"""The names that users and other tools rely on."""


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_contract(name: str) -> None:
    where, role = NAMES[name]
    assert str(where) == str(Path("study") / name)
    below = {Role.STORE: "/c/0/0", Role.PICTURES: "/00000.png", Role.NETWORK: "/network.safetensors"}.get(role, "")
    for prefix in ("", "variants/fold00-V1V2-shuffled00/"):
        item = item_of(prefix + name + below)
        assert item is not None
        assert item.role is role
        assert role is Role.RECORD or where.written_by == " or ".join(item.stages)


def test_names_of_others_belong_to_no_item() -> None:
    for name in ("thesis.txt", "holiday/photo.jpg", "betas.npy", "variants/a/variants/b/run.json"):
        assert item_of(name) is None


def test_scratch_is_what_has_no_other_role() -> None:
    for name in ("weights/merged.safetensors", "betas/train.fetched/0.npy", "stimuli/train.fetched/c/0.npy"):
        item = item_of(name)
        assert item is not None
        assert item.role is Role.SCRATCH


@pytest.mark.parametrize("place", ["local", "memory"])
def test_every_file_of_a_study_is_found_once(place: str, tmp_path: Path) -> None:
    root = as_location(tmp_path / "study") if place == "local" else MemoryPlace().at("study")
    study = write_study(root)
    (study.root / "weights" / "merged.npz").write_bytes(b"made again")
    (study.root / "betas" / "train.fetched" / "0.npy").write_bytes(b"begun")
    found = list(study.found(*(role for role in Role if role is not Role.SCRATCH)))
    assert len({entry.path for entry in found}) == len(found)
    left = set(contents(root))
    for entry in found:
        assert item_of(entry.name) is entry.item
        inside = {
            name for name in left if name == entry.name or name.startswith((f"{entry.name}/", f"{entry.name}.json"))
        }
        assert inside, entry.name
        left -= inside
    assert left == {"weights/merged.npz", "betas/train.fetched/0.npy"}
    assert {entry.name for entry in study.found(Role.NETWORK)} == {"networks/pca", "variants/fold00-V1/networks/pca"}
    assert [variant.root.name for variant in study.variants()] == ["fold00-V1"]


def test_nothing_is_found_where_there_is_nothing() -> None:
    study = Study(MemoryPlace().at("nowhere"))
    assert list(study.found(*Role)) == []
    assert study.variants() == []


def test_a_study_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(as_location(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = [found.name for found in Study(".").found(Role.STORE)]
    assert "betas/train.zarr" in names
    assert "variants/fold00-V1/features/pca/train.zarr" in names


def test_only_names_as_many_as_the_pattern_asks_for_are_taken() -> None:
    with pytest.raises(ValueError, match="zip"):
        STUDY.at("features/*/*.zarr", "pca")
    with pytest.raises(KeyError):
        STUDY.at("features/pca/train.zarr")


def test_the_layout_is_described_as_a_table() -> None:
    lines = describe().splitlines()
    assert len(lines) == 3 + len(LAYOUT)
    assert all(line.count("|") == 5 for line in lines)
    assert "| `betas/*.zarr/` | store | dataset | train, test: float32 [rows, voxels]" in describe()


def test_a_study_is_named_by_text_path_or_location() -> None:
    assert Study("study") == Study(Path("study")) == Study(Location(as_location("x").place, "study"))
