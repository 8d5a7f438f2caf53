"""A study keeps the checksums of its records: each is fixed before its file is written, and damage is told as damage."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.memory_place import MemoryPlace
from support.small_study import Said, contents, damage_of, write_store, write_study

from leanrecon.errors import LeanreconWarning, StoreError
from leanrecon.places import Location, as_location, seals
from leanrecon.places.files import read_json, read_record, write_json, write_text, write_whole
from leanrecon.stores import Store
from leanrecon.stores.pictures import Pictures, png_problem
from leanrecon.study.heal import heal
from leanrecon.study.layout import Study
from leanrecon.study.mirror import Mirror
from leanrecon.study.record import is_study
from leanrecon.study.settings import check_settings
from leanrecon.study.verify import find_damage


@pytest.fixture
def local(tmp_path: Path) -> Study:
    return write_study(as_location(tmp_path / "study"))


def change(file: Location, before: bytes, after: bytes) -> None:
    data = file.read_bytes()
    assert before in data
    file.write_bytes(data.replace(before, after, 1))


LIES = {
    "betas/rows.json": (b"0", b"1"),
    "stimuli/ids.json": (b'"a"', b'"z"'),
    "captions/test.json": (b"a caption", b"a captian"),
    "evaluation/metrics.json": (b"2", b"3"),
    "evaluation/scores.csv": (b"0.5", b"0.6"),
    "report.html": (b"<html>", b"<htnl>"),
    "betas/train.zarr/zarr.json": (b'"shape": [\n    6', b'"shape": [\n    5'),
    "variants/fold00-V1/features/pca/train.zarr/zarr.json": (b'"alpha": 1.0', b'"alpha": 2.0'),
    "reconstructions/final.json": (b'"pixels": ["', b'"pixels": ["0'),
    "networks/pca.json": (b"true", b"null"),
    "variants/fold00-V1/evaluation/metrics.json": (b"2", b"3"),
    "run.json": (b'"format": 2', b'"format": 3'),
}


@pytest.mark.parametrize("name", LIES)
def test_a_record_that_can_be_read_and_lies_is_damage(study: Study, name: str) -> None:
    change(study.root / name, *LIES[name])
    found = damage_of(study.root)
    assert list(found) == [str(study.root / name)]
    assert re.search("does not match its checksum|no record of", found[str(study.root / name)][0])


@pytest.mark.parametrize("name", ["betas/rows.json", "evaluation/metrics.json", "run.json", "captions/test.json"])
def test_reading_a_damaged_record_names_it_and_the_repair(study: Study, name: str) -> None:
    change(study.root / name, *LIES[name])
    with pytest.raises(StoreError, match=rf"{re.escape(name)} .*checksum.*leanrecon verify .*study --repair"):
        read_json(study.root / name)


@pytest.mark.parametrize("content", [3, None, [], "text"])
def test_a_record_of_another_type_is_refused_where_no_checksum_is_kept(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "metrics.json", content)
    with pytest.raises(StoreError, match=r"metrics\.json is damaged: it does not hold a table.*--repair"):
        read_record(tmp_path / "metrics.json")
    assert read_record(tmp_path / "other.json") is None


ZARR_JSON: dict[str, Callable[[dict[str, Any]], Any]] = {
    "null": lambda document: None,
    "a list": lambda document: [],
    "an empty table": lambda document: {},
    "a shape of text": lambda document: document | {"shape": "6"},
    "no shape": lambda document: document | {"shape": []},
    "a negative shape": lambda document: document | {"shape": [-6, 10]},
    "codecs of a number": lambda document: document | {"codecs": 3},
    "attributes of a list": lambda document: document | {"attributes": [1]},
    "a record of a number": lambda document: document | {"attributes": {"leanrecon": 3}},
    "made_of of a list": lambda document: document | {"attributes": {"leanrecon": {"made_of": [], "complete": True}}},
}


@pytest.mark.parametrize("what", ZARR_JSON)
def test_a_zarr_json_of_wrong_types_is_refused_by_name(local: Study, what: str) -> None:
    file = local.betas("train") / "zarr.json"
    document = json.dumps(ZARR_JSON[what](json.loads(file.read_bytes())))
    write_text(file, document)  # with its checksum, as another program of ours might
    with pytest.raises(StoreError, match=r"train\.zarr"):
        Store.open(local.betas("train"))


# What a kill leaves


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_between_a_file_and_its_checksum_leaves_nothing_that_looks_damaged(
    local: Study, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    replace = Path.replace

    def dying(self: Path, target: Any) -> Any:
        if Path(target).name == "rows.json":
            if moment == "after":
                replace(self, target)
            raise Killed
        return replace(self, target)

    before = local.rows.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "replace", dying)
        write_json(local.rows, {"format": 2, "train": {"stimulus": [0]}})
    assert (local.rows.read_bytes() == before) == (moment == "before")
    assert find_damage(local.root) == {}
    local.rows.write_bytes(b"{}")
    assert list(damage_of(local.root)) == [str(local.rows)]


def test_a_large_array_is_hashed_as_it_is_written(study: Study) -> None:
    array = np.random.default_rng(0).standard_normal(300_000)
    write_whole(study.fitted("other"), lambda file: np.savez(file, array=array, text=np.array("a")))
    with study.fitted("other").open() as file, np.load(file) as found:
        assert np.array_equal(found["array"], array)
        assert str(found["text"]) == "a"
    assert seals.state(study.fitted("other")) is seals.State.SOUND


def test_a_study_of_an_earlier_version_verifies_with_a_note_and_keeps_checksums_from_the_next_run_on(
    study: Study,
) -> None:
    study.record.write_text(json.dumps({"stages": {}, "format": 2}))
    said = Said()
    assert find_damage(study.root, progress=said) == {}
    assert [line for line in said.lines if "keeps no checksums of its records" in line]
    heal(study)
    assert find_damage(study.root, progress=(said := Said())) == {}
    assert said.lines == []
    change(study.metrics, b"2", b"3")
    assert list(damage_of(study.root)) == [str(study.metrics)]


def test_a_run_discards_what_is_damaged_and_warns_of_it(study: Study) -> None:
    change(study.metrics, b"2", b"3")
    study.fitted("pca").write_bytes(b"")
    with pytest.warns(LeanreconWarning) as said:
        heal(study)
    assert {str(one.message).partition(" ")[0] for one in said} == {str(study.metrics), str(study.fitted("pca"))}
    assert not study.metrics.exists()
    assert not study.fitted("pca").exists()
    assert find_damage(study.root) == {}


def test_a_damaged_run_json_costs_measurements_and_nothing_else(study: Study) -> None:
    before = contents(study.root)
    study.record.write_bytes(bytes(len(study.record.read_bytes())))
    assert list(damage_of(study.root)) == [str(study.record)]
    Store.open(study.betas("train"))
    with pytest.warns(LeanreconWarning) as said:
        heal(study)
    assert [one for one in said if "run.json is damaged" in str(one.message) and "measured is lost" in str(one.message)]
    assert find_damage(study.root) == {}
    left = contents(study.root)
    lost = {name for name in before if name not in left}
    assert all(name.endswith((".csv", ".html", ".npy")) for name in lost), "these are made again by evaluate"
    assert {name for name in left if left[name] != before[name]} == {"run.json"}


@pytest.mark.parametrize(
    "data", [b"", bytes(300), b"# The settings of this study as they were rum, with all defaults. Wri"]
)
def test_a_study_is_known_though_its_settings_are_damaged(study: Study, data: bytes) -> None:
    study.settings.write_bytes(data)
    assert is_study(study.root)
    assert str(study.settings) in damage_of(study.root)


def test_settings_that_were_edited_by_hand_are_told_so(study: Study) -> None:
    study.settings.write_bytes(study.settings.read_bytes() + b"seed = 3\n")
    assert "it was edited by hand, or is damaged" in damage_of(study.root)[str(study.settings)][0]


# Unfinished stores and images


def unfinished(study: Study) -> Store:
    store = Store.open(study.betas("train"))
    store.discard([(store.row_groups - 1, 0)])
    return store


@pytest.mark.parametrize("data", [lambda d: bytes(len(d)), lambda d: bytes([d[0] ^ 1]) + d[1:], lambda d: d[:-9]])
def test_a_damaged_chunk_of_an_unfinished_store_is_found_and_made_again(study: Study, data: Any) -> None:
    store = unfinished(study)
    chunk = store.chunk_path(0, 0)
    sound = chunk.read_bytes()
    chunk.write_bytes(data(sound))
    found = damage_of(study.root)
    assert list(found) == ([] if len(data(sound)) < len(sound) else [str(store.path)])  # a short one counts as missing
    made_of = {"alpha": store.made_of["alpha"]}
    if found:
        with pytest.warns(LeanreconWarning, match=r"chunk c/0/0 of .*train\.zarr does not match.*it is made again"):
            again = Store.create(store.path, store.shape, store.dtype, made_of=made_of, chunk=200)
    else:
        again = Store.create(store.path, store.shape, store.dtype, made_of=made_of, chunk=200)
    assert (0, 0) in again.missing()
    assert find_damage(study.root) == {}


def test_a_damaged_image_of_an_unfinished_folder_is_found_and_drawn_again(study: Study) -> None:
    pictures = Pictures.open(study.reconstructions("stage1"))
    pictures.discard([5])
    file = pictures.file(2)
    sound = file.read_bytes()
    assert png_problem(sound) == ""
    for k in range(len(sound)):  # every byte of a PNG is covered
        assert png_problem(sound[:k] + bytes([sound[k] ^ 1]) + sound[k + 1 :]), f"byte {k}"
        assert png_problem(sound[:k]), f"{k} bytes"
    file.write_bytes(sound[:40] + bytes([sound[40] ^ 1]) + sound[41:])
    assert list(damage_of(study.root)) == [str(pictures.path)]
    file.write_bytes(bytes(file.size() or 0))
    with pytest.warns(LeanreconWarning, match=r"image 00002\.png .*it is made again"):
        again = Pictures.create(pictures.path, 6, pictures.shape, made_of={"alpha": 1.0})
    assert again.missing() == [2, 5]


@pytest.mark.parametrize("name", ["betas/train.zarr", "reconstructions/stage1"])
def test_a_damaged_record_is_proven_by_the_next_run_and_the_parts_are_kept(study: Study, name: str) -> None:
    store = name.endswith(".zarr")
    record = study.root / (f"{name}/zarr.json" if store else f"{name}.json")
    sound, before = record.read_bytes(), contents(study.root)
    change(
        record, *((b'"shape": [\n    6', b'"shape": [\n    5') if store else (b'"checksums": ["', b'"checksums": ["0'))
    )
    with pytest.warns(LeanreconWarning, match="does not match its checksum: it is made again"):
        heal(study)
    path = study.root / name
    if store:
        again: Store | Pictures = Store.create(path, (6, 10), np.float32, made_of={"alpha": 1.0}, chunk=200)
    else:
        again = Pictures.create(path, 6, (4, 5, 3), made_of={"alpha": 1.0})
    assert again.missing() == []
    again.finish()
    assert record.read_bytes() == sound
    assert {n for n, data in contents(study.root).items() if data != before[n]} <= {"run.json"}


def test_a_damaged_record_of_other_settings_is_made_anew_without_overwrite(study: Study) -> None:
    change(study.betas("train") / "zarr.json", b'"alpha": 1.0', b'"alpha": 2.0')
    with pytest.warns(LeanreconWarning):
        heal(study)
    again = Store.create(study.betas("train"), (6, 10), np.float32, made_of={"alpha": 1.0}, chunk=200)
    assert len(again.missing()) == again.row_groups * again.column_groups


def test_stores_that_are_made_again_when_missed_are_verified_too(study: Study) -> None:
    store = write_store(study.root / "predictions/pca/out_of_fold/0.zarr", np.zeros((6, 10), np.float32))
    change(store.chunk_path(0, 0), bytes(8), bytes(7) + b"1")
    assert list(damage_of(study.root)) == list(damage_of(store.path)) == [str(store.path)]
    (store.path / "zarr.json").write_bytes(b"")
    with pytest.warns(LeanreconWarning, match=r"out_of_fold/0\.zarr/zarr\.json does not match its checksum"):
        heal(study)
    assert find_damage(study.root) == {}


# Mirrors, links, folders


def test_a_mirror_keeps_checksums_of_its_own_files(study: Study, tmp_path: Path) -> None:
    mirror = as_location(tmp_path / "mirror") if study.root.place.local_path(".") else MemoryPlace().at("mirror")
    kept = Mirror(study.root, mirror)
    kept.keep()
    write_json(study.metrics, {"format": 2, "n": 3})
    kept.keep()
    assert find_damage(mirror) == {}
    change(mirror / "evaluation" / "metrics.json", b"3", b"4")
    assert list(damage_of(mirror)) == [str(mirror / "evaluation" / "metrics.json")]
    study.root.delete_tree()
    said = Said()
    Mirror(study.root, mirror, progress=said).restore()
    assert [line for line in said.lines if "metrics.json does not match its checksum" in line]
    assert not study.metrics.exists()
    assert find_damage(study.root) == {}


def test_a_damaged_file_is_not_copied_to_a_mirror(study: Study, tmp_path: Path) -> None:
    mirror = as_location(tmp_path / "mirror") if study.root.place.local_path(".") else MemoryPlace().at("mirror")
    Mirror(study.root, mirror).keep()
    before = contents(mirror)
    change(study.metrics, b"2", b"3")
    change(study.reconstructions("stage1").with_name("stage1.json"), b"true", b"null")
    said = Said()
    Mirror(study.root, mirror, progress=said).keep()
    assert contents(mirror) == before
    assert len([line for line in said.lines if "so it is not copied" in line]) == 2


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_out_of_a_study_are_told_and_not_followed(local: Study, tmp_path: Path) -> None:
    root, outside = Path(local.root), tmp_path / "outside"
    outside.mkdir()
    for name in ("features/pca", "captions/test.json", "betas/test.zarr/c", "evaluation/secret.json"):
        target = outside / name.replace("/", "-")
        if (root / name).exists():
            (root / name).rename(target)
        else:
            target.write_text("{}")
        (root / name).symlink_to(target)
    (outside / "features-pca" / "x.partial").write_text("not ours")
    before = contents(as_location(outside))
    found = find_damage(local.root)
    assert {one.path.relative_to(local.root) for one in found} == {
        "features/pca",
        "captions/test.json",
        "betas/test.zarr/c",
        "evaluation/secret.json",
    }
    said = Said()
    Mirror(local.root, tmp_path / "mirror", progress=said).keep()
    copied = contents(as_location(tmp_path / "mirror"))
    assert not [name for name in copied if name.startswith(("features/pca", "betas/test.zarr")) or "secret" in name]
    assert len([line for line in said.lines if "is a link that leads out of the study" in line]) == 4
    for one, parts in found.items():
        one.discard([part for part, _ in parts])
    assert not [path for path in root.rglob("*") if path.is_symlink()]
    assert contents(as_location(outside)) == before
    assert (outside / "features-pca" / "x.partial").is_file(), "swept outside of the study"


def test_a_link_to_another_disk_may_be_the_study_itself(local: Study, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(Path(local.root))
    assert find_damage(tmp_path / "linked") == {}


@pytest.mark.parametrize("name", ["betas/rows.json", "run.json", "predictions/pca/test.zarr/zarr.json"])
def test_a_folder_where_a_file_belongs_is_damage(local: Study, name: str) -> None:
    path = Path(local.root / name)
    path.unlink()
    path.mkdir()
    ((one, parts),) = find_damage(local.root).items()
    assert str(one.path) == str(path)
    assert "is a folder where a file belongs" in parts[0][1]
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"is a folder where a file belongs. Move it elsewhere"):
        one.discard([path.name])
    (path / "thesis.txt").unlink()
    one.discard([path.name])
    assert not path.exists()


@pytest.mark.parametrize("name", ["pca.zarr", "pca.json", "PCA.NPZ", "a.partial", "a.", "x" * 120])
def test_a_name_that_breaks_the_layout_is_refused(name: str) -> None:
    for section in ("features", "judges"):
        with pytest.raises(Exception, match="can't be a folder's name"):
            check_settings({"dataset": {"kind": "simulated"}, section: {name: {"kind": "pca"}}})


# A folder that moves


def test_a_folder_that_is_renamed_while_it_is_held_is_not_begun_again(local: Study, tmp_path: Path) -> None:
    with local.root.hold("another run", "wait"):
        write_json(local.metrics, {"format": 2})
        Path(local.root).rename(tmp_path / "renamed")
        with pytest.raises(StoreError, match=r"was renamed, moved or removed while it was being written to.*--study"):
            write_json(local.metrics, {"format": 2, "n": 1})
        with pytest.raises(StoreError, match="was renamed"):
            (local.root / "x.png").write_bytes(b"x")
        assert not Path(local.root).exists()
        Path(local.root).mkdir()
        with pytest.raises(StoreError, match="was renamed"):
            write_json(local.metrics, {"format": 2, "n": 1})
    write_json(tmp_path / "renamed" / "x.json", {})
