"""Verification finds what is damaged, names it and goes on; networks and records are verified like the rest."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.memory_place import MemoryPlace
from support.small_study import Said, contents, damage_of, write_network, write_store, write_study

from leanrecon.context import Context
from leanrecon.errors import InputError, LeanreconWarning, StoreError
from leanrecon.places import Location, as_location
from leanrecon.places.files import read_json, write_json
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.mirror import Mirror
from leanrecon.study.networks import Network, seal, unseal
from leanrecon.study.record import check_format, is_complete, is_study, recorded, study_above
from leanrecon.study.verify import find_damage


def flip(file: Location) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_a_sound_study_has_no_damage(study: Study) -> None:
    said = Said()
    assert find_damage(study.root, progress=said) == {}
    assert said.lines == []


DAMAGE = {
    "betas/train.zarr/c/0/0": ("betas/train.zarr", "does not match its checksum"),
    "reconstructions/stage1/00002.png": ("reconstructions/stage1", "does not match its checksum"),
    "networks/pca/network.safetensors": ("networks/pca", "network.safetensors does not match its checksum"),
    "variants/fold00-V1/networks/pca/ridge.safetensors": ("variants/fold00-V1/networks/pca", "ridge.safetensors"),
    "features/pca/fitted.npz": ("features/pca/fitted.npz", "can't be read"),
}


@pytest.mark.parametrize("file", DAMAGE)
def test_an_altered_byte_is_found_and_named(study: Study, file: str) -> None:
    flip(study.root / file)
    name, what = DAMAGE[file]
    assert list(found := damage_of(study.root)) == [str(study.root / name)]
    assert what in found[str(study.root / name)][0]


@pytest.mark.parametrize(
    "file",
    [
        "betas/rows.json",
        "run.json",
        "evaluation/metrics.json",
        "captions/test.json",
        "betas/test.zarr/zarr.json",
        "reconstructions/final.json",
        "networks/pca.json",
        "study.toml",
    ],
)
def test_a_malformed_record_is_reported_and_the_rest_verified(study: Study, file: str) -> None:
    data = (study.root / file).read_bytes()
    (study.root / file).write_bytes(data[:-3] if file == "study.toml" else data[: len(data) // 2])
    flip(study.root / "features/pca/train.zarr/c/0/0")
    found = damage_of(study.root)
    assert len(found) == 2
    assert str(study.root / "features/pca/train.zarr") in found
    assert str(study.root / file) in found


def test_below_a_location_only_what_lies_there_is_verified(study: Study) -> None:
    flip(study.root / "betas/train.zarr/c/0/0")
    flip(study.root / "variants/fold00-V1/networks/pca/network.safetensors")
    assert list(damage_of(study.root / "variants" / "fold00-V1")) == [
        str(study.root / "variants/fold00-V1/networks/pca")
    ]
    assert list(damage_of(study.betas("train"))) == [str(study.betas("train"))]
    assert damage_of(study.root / "features") == {}


def test_stores_that_belong_to_no_study_are_verified_too(tmp_path: Path) -> None:
    store = write_store(as_location(tmp_path / "a" / "alone.zarr"), np.zeros((4, 3), np.float32))
    flip(store.chunk_path(0, 0))
    assert list(damage_of(tmp_path)) == list(damage_of(tmp_path / "a" / "alone.zarr")) == [str(store.path)]


def test_where_there_is_nothing_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no store in .*Expected a study, or one of its stores"):
        find_damage(tmp_path)


def test_what_is_not_finished_is_said_and_is_no_damage(study: Study) -> None:
    Store.open(study.betas("train")).discard([(0, 0)])
    unseal(study.network("pca"))
    said = Said()
    assert find_damage(study.root, progress=said) == {}
    assert [line.partition(" is not")[0] for line in said.lines] == [
        str(study.betas("train")),
        str(study.network("pca")),
    ]


# Networks


def test_a_discarded_file_of_a_network_has_to_be_trained_again(study: Study) -> None:
    folder = study.network("pca")
    flip(folder / "network.safetensors")
    ((network, parts),) = find_damage(study.root).items()
    assert isinstance(network, Network)
    network.discard([name for name, _ in parts])
    assert [path.name for path in folder.iterdir()] == ["ridge.safetensors"]
    assert not Network.open(folder).complete
    write_network(folder)
    assert Network.open(folder).complete
    assert find_damage(study.root) == {}


def test_other_weights_after_a_second_training_are_told(study: Study) -> None:
    folder = study.network("pca")
    unseal(folder)
    (folder / "network.safetensors").write_bytes(b"rounded otherwise")
    with pytest.warns(LeanreconWarning, match="trained again, but not to the same weights"):
        seal(folder)
    assert find_damage(study.root) == {}


def test_checkpoints_of_a_training_that_goes_on_are_no_damage(study: Study) -> None:
    folder = study.network("pca")
    unseal(folder)
    (folder / "checkpoint.safetensors").write_bytes(b"step 7")
    (folder / "network.safetensors").unlink()
    assert find_damage(study.root) == {}


def test_a_stage_fixes_the_checksums_of_the_networks_it_has_trained(study: Study) -> None:
    predictions, folder = study.predictions("pca"), study.network("pca")
    sealed = (study.root / "networks" / "pca.json").stamp()
    with recorded("regression pca", study, Context.of("8GB"), [predictions], [folder]):
        assert Network.open(folder).complete, "nothing is to be done, so nothing is opened again"
    assert (study.root / "networks" / "pca.json").stamp() == sealed
    Store.open(predictions).discard([(0, 0)])
    with (
        pytest.raises(KeyboardInterrupt),
        recorded("regression pca", study, Context.of("8GB"), [predictions], [folder]),
    ):
        raise KeyboardInterrupt
    assert not Network.open(folder).complete
    with recorded("regression pca", study, Context.of("8GB"), [predictions], [folder]):
        (folder / "network.safetensors").write_bytes(bytes(range(200)))
    assert Network.open(folder).complete
    assert find_damage(study.network("pca")) == {}


# Records


def test_a_stage_is_recorded_with_what_was_planned_unless_nothing_was_done(study: Study) -> None:
    context = Context.of("8GB")
    predictions = study.predictions("pca")
    with recorded("regression pca", study, context, [predictions]):
        pass
    assert read_json(study.record)["stages"] == {}
    with recorded("regression pca", study, context, [predictions]) as record:
        record["alpha"] = 2.0  # of a store that run.json does not tell of, as after a kill
    told = read_json(study.record)["stages"]
    assert told["regression pca"]["alpha"] == 2.0
    with recorded("regression pca", study, context, [predictions]) as record:
        record["alpha"] = 1.0
    assert read_json(study.record)["stages"] == told
    with recorded("regression pca", study, context, [predictions]) as record:
        record["alpha"] = 3.0
        planned = max(context.require("gram", 1000), context.require("solve", 5000))
        Store.open(predictions).discard([(0, 0)])
    kept = read_json(study.record)
    assert kept["format"] == 2
    assert kept["versions"]["numpy"] == np.__version__
    stage = kept["stages"]["regression pca"]
    assert (stage["alpha"], stage["planned_bytes"], stage["budget_bytes"]) == (3.0, planned, 8_000_000_000)
    assert stage["peak_bytes"] > 0


def test_a_study_is_known_by_its_settings(study: Study) -> None:
    assert is_study(study.root)
    assert study_above(study.betas("train") / "c" / "0") == study
    assert study_above(study.variant("fold00-V1").predictions("pca")) == study
    assert not is_study(study.variant("fold00-V1").root)
    study.settings.write_text("[dataset]\n")
    assert not is_study(study.root)
    assert study_above(study.betas("train")) is None


def test_a_location_inside_a_study_is_recognised_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(as_location(tmp_path / "study"))
    monkeypatch.chdir(tmp_path / "study" / "betas")
    above = study_above("train.zarr")
    assert above is not None
    assert above.root.address() == as_location(tmp_path / "study").address()
    assert find_damage("train.zarr") == {}


def test_where_nothing_is_the_stage_to_run_is_named(study: Study) -> None:
    for where, stage in ((study.predictions("clip"), "regression"), (study.features("clip", "train"), "features")):
        with pytest.raises(StoreError, match=rf"there is no store at .*\. Run the stage {stage} first"):
            Store.open(where)


def test_a_study_of_the_first_format_is_refused_by_name(study: Study) -> None:
    check_format(study)
    write_json(study.rows, {"train": {"stimulus": ["a"]}, "test": {"stimulus": ["b"]}})
    with pytest.raises(
        StoreError, match=r"is a study of format 1, written by an earlier leanrecon.*new|another --study"
    ):
        check_format(study)
    study.betas("train").delete_tree()
    check_format(study)  # nothing was made yet


# The mirror, of places without paths


@pytest.fixture
def mirror(study: Study, tmp_path: Path) -> Location:
    return as_location(tmp_path / "mirror") if study.root.place.local_path(".") else MemoryPlace().at("mirror")


def test_a_mirror_is_the_study_itself_networks_and_all(study: Study, mirror: Location) -> None:
    before = contents(study.root)
    Mirror(study.root, mirror).keep()
    assert contents(mirror) == before
    study.root.delete_tree()
    Mirror(study.root, mirror).restore()
    assert contents(study.root) == before
    assert find_damage(study.root) == {}


def test_checkpoints_are_mirrored_and_forgotten_with_the_training(study: Study, mirror: Location) -> None:
    folder = study.network("pca")
    unseal(folder)
    (folder / "checkpoint.safetensors").write_bytes(b"step 7")
    (folder / "network.safetensors").unlink()
    kept = Mirror(study.root, mirror)
    kept.keep()
    assert (mirror / "networks" / "pca" / "checkpoint.safetensors").read_bytes() == b"step 7"
    assert not is_complete(mirror / "networks" / "pca")
    study.root.delete_tree()
    kept.restore()
    assert (folder / "checkpoint.safetensors").read_bytes() == b"step 7"
    (folder / "checkpoint.safetensors").unlink()
    write_network(folder)
    kept.keep()
    assert contents(mirror) == contents(study.root)


def test_checkpoints_are_copied_while_the_training_goes_on(study: Study, mirror: Location) -> None:
    kept = Mirror(study.root, mirror)
    checkpoint = study.network("vdvae") / "checkpoint.safetensors"
    copy = mirror / "networks" / "vdvae" / "checkpoint.safetensors"
    with kept.following(seconds=0.01):
        for step in (b"step 1", b"step 22", b"step 3"):
            checkpoint.write_bytes(step)
            for _ in range(500):
                if copy.is_file() and copy.read_bytes() == step:
                    break
                time.sleep(0.01)
            assert copy.read_bytes() == step
    assert "copy-networks" not in {thread.name for thread in threading.enumerate()}
    assert is_study(mirror), "a machine that dies now is restored from it"


def test_a_mirror_that_can_not_take_checkpoints_is_told_and_stops_nothing(
    study: Study, mirror: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Mirror(study.root, mirror)

    def full() -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(kept.networks, "keep", full)
    with (
        pytest.warns(LeanreconWarning, match="checkpoints are not copied to the mirror: the disk is full"),
        kept.following(seconds=0.001),
    ):
        time.sleep(0.1)


def test_a_network_that_is_damaged_in_the_mirror_is_trained_again(study: Study, mirror: Location) -> None:
    Mirror(study.root, mirror).keep()
    flip(mirror / "networks" / "pca" / "network.safetensors")
    study.root.delete_tree()
    said = Said()
    Mirror(study.root, mirror, progress=said).restore()
    assert [line for line in said.lines if "network.safetensors does not match its checksum" in line]
    assert not (study.network("pca") / "network.safetensors").exists()
    assert not Network.open(study.network("pca")).complete
    assert json.loads((study.root / "networks" / "pca.json").read_text())["files"]
