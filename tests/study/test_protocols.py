"""Presets of published tables: which judges they bring, what of them may be changed, and what a report says."""

from typing import Any

import pytest

from leanrecon.errors import SettingsError
from leanrecon.study.evaluate_settings import EvaluateSettings
from leanrecon.study.protocols import PROTOCOLS, notes
from leanrecon.study.recipes import read_settings
from leanrecon.study.settings import Settings, check_settings

DATASET = {"kind": "simulated"}


def settings(evaluate: dict[str, Any], **tables: Any) -> Settings:
    return check_settings({"dataset": DATASET, "evaluate": evaluate, **tables})


def test_every_preset_is_a_protocol_and_each_protocol_a_preset() -> None:
    choices = EvaluateSettings.model_fields["preset"].annotation
    assert set(PROTOCOLS) == set(choices.__args__)  # type: ignore[union-attr]
    for name, protocol in PROTOCOLS.items():
        found = settings({"preset": name, **({"judges": "preset"} if protocol.judges else {})})
        assert list(found.judges) == list(protocol.judges)


def test_a_preset_alone_brings_no_network() -> None:
    assert settings({"preset": "bd2023"}).judges == {}


@pytest.mark.parametrize(
    ("preset", "sizes", "version"),
    [
        ("bd2023", {"alexnet2": 224, "alexnet5": 224, "inception": 224, "clip": 224, "efficientnet": 224, "swav": 224}, "V1"),
        ("mindeye2", {"alexnet2": 256, "alexnet5": 256, "inception": 342, "clip": 224, "efficientnet": 255, "swav": 224}, "V2"),
    ],
)  # fmt: skip
def test_the_sizes_layers_and_weights_are_those_of_the_papers(preset: str, sizes: dict[str, int], version: str) -> None:
    judges = {
        name: judge.model_dump() for name, judge in settings({"preset": preset, "judges": "preset"}).judges.items()
    }
    assert {name: judge["size"] for name, judge in judges.items()} == sizes
    assert [judges[name]["layer"] for name in ("alexnet2", "alexnet5", "inception", "efficientnet", "swav")] == [
        "features.4", "features.11", "avgpool", "avgpool", "avgpool"]  # fmt: skip
    file = {"V1": "efficientnet_b1_rwightman-bac287d4.pth", "V2": "efficientnet_b1-c27df63c.pth"}[version]
    assert (judges["efficientnet"]["version"], judges["efficientnet"]["weights"]) == (f"IMAGENET1K_{version}", file)
    measures = {name: judge.get("measure", "two_way") for name, judge in judges.items()}
    assert [name for name, measure in measures.items() if measure == "distance"] == ["efficientnet", "swav"]
    through = {judge["through"] for judge in judges.values()}
    assert through == {None if preset == "bd2023" else 256}


def test_a_judge_of_the_preset_is_changed_by_its_table_and_the_report_says_so() -> None:
    found = settings({"preset": "bd2023", "judges": "preset"}, judges={"inception": {"size": 299}})
    assert found.judges["inception"].size == 299  # type: ignore[attr-defined]
    assert found.judges["inception"].layer == "avgpool"  # type: ignore[attr-defined]
    said = list(notes("bd2023", found.judges, 982))
    assert "The judge inception departs from bd2023: size = 299 instead of 224." in said
    assert sum("departs" in note for note in said) == 1


def test_judges_are_chosen_by_name_from_the_preset_and_the_tables() -> None:
    own = {"mine": {"kind": "space", "space": {"kind": "pixels", "size": [8, 8]}}}
    found = settings({"preset": "bd2023", "judges": ["swav", "mine"]}, judges=own)
    assert list(found.judges) == ["swav", "mine"]
    with pytest.raises(SettingsError, match=r"names 'swaw', which is not a judge here \(did you mean swav\?\)"):
        settings({"preset": "bd2023", "judges": ["swaw"]})
    with pytest.raises(SettingsError, match="judges.mine is not among evaluate.judges"):
        settings({"preset": "bd2023", "judges": ["swav"]}, judges=own)
    with pytest.raises(SettingsError, match="the preset native has no networks"):
        settings({"judges": "preset"})


def test_study_toml_reads_back_the_same(tmp_path: Any) -> None:
    import tomli_w

    found = settings({"preset": "mindeye2", "judges": "preset", "blend": 0.25})
    (tmp_path / "study.toml").write_text(tomli_w.dumps(found.tables()))
    again, _ = read_settings(tmp_path / "study.toml")
    assert again == found


def test_a_report_says_which_ssim_how_many_images_and_what_is_missing() -> None:
    said = " ".join(notes("bd2023", {}, 50))
    assert "The SSIM of bd2023 is ssim_1d" in said
    assert "bd2023 has 982 test images, this study 50" in said
    assert "none of alexnet2, alexnet5, inception, clip, efficientnet, swav" in said
    assert "982" not in " ".join(notes("bd2023", {}, 982))
    assert list(notes("native", {}, 50)) == []
