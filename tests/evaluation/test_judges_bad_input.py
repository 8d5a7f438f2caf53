"""What judges refuse, each with a LeanreconError, and what a single test image leaves of their figures."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from support.images import Images  # noqa: E402
from support.tiny_networks import Tiny  # noqa: E402

import leanrecon  # noqa: E402
from leanrecon import kinds  # noqa: E402
from leanrecon.context import Context  # noqa: E402
from leanrecon.errors import InputError, SettingsError  # noqa: E402
from leanrecon.evaluation.judges import building, network  # noqa: E402
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores  # noqa: E402
from leanrecon.evaluation.judges.module import ModuleJudge, ModuleSettings  # noqa: E402
from leanrecon.evaluation.judges.swav import SwAVJudge, SwAVSettings  # noqa: E402
from leanrecon.evaluation.judges.torchvision import TorchvisionJudge, TorchvisionSettings  # noqa: E402

pytestmark = pytest.mark.networks

Array = np.ndarray[Any, Any]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def tiny(weights: Path, **table: Any) -> ModuleJudge:
    settings = {"builder": "support.tiny_networks:Tiny", "weights": str(weights), "size": 33, **table}
    return ModuleJudge(ModuleSettings(**settings), name="tiny")


# Files


@pytest.mark.parametrize("kept", [0, 3, 500, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused_before_work_begins(
    weights: Path, tmp_path: Path, suffix: str, kept: float
) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_file(Tiny().state_dict(), whole)
    else:
        whole.write_bytes(weights.read_bytes())
    tiny(whole).check()
    short = tmp_path / f"short{suffix}"
    data = whole.read_bytes()
    short.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=f"short{suffix}"):
        tiny(short).check()


def test_a_file_of_another_network_or_none_is_refused(weights: Path, tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"does not hold the weights .*missing .*unknown \(conv.weight\)"):
        tiny(tmp_path / "other.pth").check()
    with pytest.raises(InputError, match=r"there is no file .*none.pth"):
        tiny(tmp_path / "none.pth").check()


def test_another_version_of_the_weights_is_refused_by_the_whole_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "require_library", lambda *given: None)  # the checksum decides without torchvision
    path = tmp_path / "efficientnet_b1-c27df63c.pth"  # the name of V2, with other content
    path.write_bytes(b"weights of some other version")
    for version, file in (("IMAGENET1K_V1", "rwightman-bac287d4"), ("IMAGENET1K_V2", "c27df63c")):
        settings = TorchvisionSettings(model="efficientnet_b1", layer="avgpool", version=version, weights=str(path))
        with pytest.raises(InputError, match="is another file, or damaged") as caught:
            TorchvisionJudge(settings, name="efficientnet").check()
        assert file in str(caught.value)


def test_our_own_builder_of_torchvision_s_networks_is_no_foreign_code(monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = ModuleType("torchvision.models")  # in its place, as it may not be installed
    models.get_model, models.list_models = lambda name, **options: Tiny(), lambda: ["tiny"]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    for blueprint in (
        TorchvisionJudge.blueprint(TorchvisionSettings(model="tiny", layer="pool", weights="x.pth")),
        building.Blueprint(building.OWN, '{"model": "tiny"}'),
    ):
        assert building.description(blueprint, "pool", 33, "judges.x").dims == 16
    with pytest.raises(SettingsError, match="neither a network nor a method of one"):
        building.build(building.Blueprint("leanrecon.evaluation.judges.building:require_library"), "")


# Layers and sizes


@pytest.mark.parametrize(("layer", "near"), [("secnd", "second"), ("Pool", "pool"), ("heads", "head")])
def test_an_unknown_layer_names_the_nearest(weights: Path, layer: str, near: str) -> None:
    with pytest.raises(SettingsError, match=rf"the layer '{layer}' is not in Tiny \(did you mean {near}\?\)"):
        tiny(weights, layer=layer).check()


@pytest.mark.parametrize(
    ("model", "layer", "size"),
    [
        ("alexnet", "features.4", 8),
        ("alexnet", "features.12", 50),
        ("inception_v3", "avgpool", 74),
        ("efficientnet_b1", "avgpool", 31),
        ("resnet50", "avgpool", 31),
    ],
)
def test_a_size_below_a_network_s_least_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: str, layer: str, size: int
) -> None:
    monkeypatch.setattr(
        network, "require_library", lambda *given: None
    )  # arithmetic decides, before any network is built
    settings: Any = TorchvisionSettings(model=model, layer=layer, weights="x.pth", size=size)
    with pytest.raises(SettingsError, match=rf"judges.small.size = {size} is too small for"):
        TorchvisionJudge(settings, name="small").check()
    if model == "resnet50":
        with pytest.raises(SettingsError, match="too small for SwAV's ResNet-50"):
            SwAVJudge(SwAVSettings(size=size), name="small").check()


def test_sides_below_eight_pixels_are_no_settings() -> None:
    with pytest.raises(SettingsError, match=r"judges\.x\.size"):
        kinds.settings_of("judges", {"kind": "swav", "size": 7}, "judges.x.", default="")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40, 1), (3, 2, 3)])
@pytest.mark.parametrize("crop", [False, True])
def test_images_of_few_pixels_are_enlarged(weights: Path, shape: tuple[int, int, int], crop: bool) -> None:
    found = tiny(weights, layer="pool", crop=crop).encode(np.full((2, *shape), 90, np.uint8))
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


# A single test image


@pytest.mark.parametrize(
    ("measure", "keys"), [("two_way", None), ("distance", {"distance_tiny"}), ("classes", {"way50_tiny"})]
)
def test_one_test_image_has_no_identification_and_its_own_distance(
    weights: Path, tmp_path: Path, measure: str, keys: set[str] | None
) -> None:
    rng = np.random.default_rng(0)
    one = tiny(weights, measure=measure)
    sources: Any = {name: Images(rng.integers(0, 256, (1, 40, 40, 3), np.uint8)) for name in (STIMULI, "final")}
    found = embed(one, sources, 1, (40, 40, 3), tmp_path / "embeddings", Context.of())
    scores = judge_scores(one, found, ["only"])
    if keys is None:
        assert scores == {}
        return
    assert set(scores["final"].rows) == keys
    if measure == "distance":
        rows = [images.rows()[0] for images in (found[STIMULI], found["final"])]
        assert scores["final"].rows["distance_tiny"][0] == pytest.approx(1 - np.corrcoef(rows)[0, 1], abs=1e-5)
        assert not scores["final"].chance


@pytest.mark.slow
def test_a_study_of_one_test_image_is_judged_and_says_what_it_lacks(weights: Path, tmp_path: Path) -> None:
    table = {"kind": "module", "builder": "support.tiny_networks:Tiny", "weights": str(weights), "size": 33}
    tables = {
        "dataset": {"kind": "simulated", "n_train": 20, "n_test": 1, "voxels": 30, "size": 24},
        "features": {"pca": {"components": 4}},
        "regression": {"alpha": 10.0},
        "evaluate": {"permutations": 1, "resamples": 100},
        "judges": {"near": table, "far": {**table, "measure": "distance"}},
    }
    leanrecon.run(tables, study=tmp_path / "study")
    metrics = json.loads((tmp_path / "study/evaluation/metrics.json").read_text())
    assert "distance_far" in metrics["final"]
    assert "two_way_near" not in metrics["final"]
    assert "single test image" in " ".join(metrics["notes"])
