"""Networks as judges: what they see, which layer they give, and which weights they refuse; without torchvision."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from support.tiny_networks import Tiny  # noqa: E402

from leanrecon.errors import InputError, SettingsError  # noqa: E402
from leanrecon.evaluation.judges import building, torchvision  # noqa: E402
from leanrecon.evaluation.judges.feeding import Rule, convolved, feed  # noqa: E402
from leanrecon.evaluation.judges.module import ModuleJudge, ModuleSettings  # noqa: E402
from leanrecon.evaluation.judges.space import SpaceJudge, SpaceSettings  # noqa: E402
from leanrecon.evaluation.judges.swav import SwAVSettings  # noqa: E402
from leanrecon.evaluation.judges.torchvision import TorchvisionJudge, TorchvisionSettings  # noqa: E402
from leanrecon.images import resize_tensor  # noqa: E402
from leanrecon.stores.fingerprint import file_fingerprint  # noqa: E402

pytestmark = pytest.mark.networks

Array = np.ndarray[Any, Any]

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(m: int, height: int = 40, width: int = 40) -> Array:
    rng = np.random.default_rng([m, height])
    return rng.integers(0, 256, (m, height, width, 3), np.uint8)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def judge(weights: Path, **table: Any) -> ModuleJudge:
    settings = {"builder": "support.tiny_networks:Tiny", "weights": str(weights), "size": 33, **table}
    return ModuleJudge(ModuleSettings(**settings), name="tiny")


# What a network sees


@pytest.mark.parametrize(("size", "through"), [(24, None), (60, None), (33, 50), (17, 16)])
def test_tensors_are_resized_as_pytorch_does(size: int, through: int | None) -> None:
    image = images(1, 41, 29)[0]
    seen = feed(image, Rule(size, through, "tensor", False, MEAN, SD))
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None]
    for side in filter(None, (through, size)):
        tensor = torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)
    expected = (tensor[0].numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(SD, (3, 1, 1))
    np.testing.assert_allclose(seen, expected, atol=2e-5)
    assert resize_tensor(image, image.shape) is image


def test_pillow_s_resizing_and_the_centre_crop() -> None:
    image = images(1, 30, 50)[0]
    seen = feed(image, Rule(20, None, "pillow", True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    resized = np.asarray(Image.fromarray(image).resize((33, 20), Image.Resampling.BILINEAR))  # int(20 · 50 / 30)
    np.testing.assert_allclose(seen, resized[:, 6:26].transpose(2, 0, 1) / np.float32(255), atol=1e-7)


def test_grey_is_repeated_in_three_colours() -> None:
    seen = feed(images(1)[0][:, :, :1], Rule(16, None, "pillow", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert (seen[0] == seen[1]).all()
    assert (seen[0] == seen[2]).all()


@pytest.mark.parametrize(("side", "steps"), [(224, ((11, 4, 2), (3, 2, 0))), (9, ((11, 4, 2),)), (6, ((11, 4, 2),))])
def test_sides_after_convolutions(side: int, steps: Any) -> None:
    x = torch.zeros(1, 1, side, side)
    try:
        for kernel, stride, padding in steps:
            x = torch.nn.functional.max_pool2d(torch.nn.functional.pad(x, (padding,) * 4), kernel, stride)
        expected = x.shape[-1]
    except RuntimeError:
        expected = 0
    assert convolved(side, *steps) == expected


# What a network gives


@pytest.mark.parametrize("layer", ["first", "pool", "head", ""])
def test_a_layer_s_output_describes_an_image(weights: Path, layer: str) -> None:
    network = Tiny().eval()
    network.load_state_dict(torch.load(weights))
    kept: list[Any] = []
    dict(network.named_modules())[layer].register_forward_hook(lambda module, inputs, output: kept.append(output))
    pixels = images(7)
    seen = np.stack([feed(image, Rule(33, None, "pillow", False, MEAN, SD)) for image in pixels])
    with torch.no_grad():
        network(torch.from_numpy(seen))
    one = judge(weights, layer=layer)
    np.testing.assert_allclose(one.encode(pixels), kept[0].flatten(1).numpy(), atol=1e-6)
    one.release()


def test_shapes_are_told_by_a_process_of_its_own(weights: Path) -> None:
    one = judge(weights, layer="second")
    assert one.dims == 16 * 7 * 7
    found = one._description
    assert found.weights == 4 * (8 * 3 * 9 + 8 + 16 * 8 * 9 + 16)
    assert found.largest == 8 * 16 * 16 + 3 * 33 * 33
    assert one.work_nbytes((40, 40, 3)) > 2 * found.weights
    one.check()


# What is refused


def test_a_layer_that_is_not_there_is_refused_with_the_nearest(weights: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"judges.tiny: the layer 'secund' is not in Tiny \(did you mean second\?\)"
    ):
        judge(weights, layer="secund").check()


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("support.tiny_networks:Tiny.sizes", "can't be built"),
        ("support.tiny_networks:pair", "neither a network nor a method of one"),
        ("os:system", "neither a network nor a method of one"),
    ],
)
def test_what_is_no_network_is_refused(weights: Path, builder: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        judge(weights, builder=builder).check()


def test_images_smaller_than_a_network_takes_are_refused() -> None:
    arguments = json.dumps({"in_channels": 3, "out_channels": 1, "kernel_size": 9})
    with pytest.raises(SettingsError, match="images of 8 pixels are too small for this network"):
        building.description(building.Blueprint("torch.nn:Conv2d", arguments), "", 8, "judges.x")


def test_weights_of_another_network_are_refused_by_their_names_and_shapes(weights: Path) -> None:
    with pytest.raises(InputError, match="of another shape.*first.weight is .8, 3, 3, 3., not .4, 3, 3, 3."):
        judge(weights, arguments={"width": 4}).check()
    with pytest.raises(InputError, match="of another shape"):
        judge(weights, arguments={"width": 4}).encode(images(1))


def test_a_truncated_file_and_one_that_runs_code_are_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "short.pth").write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"short.pth"):
        judge(tmp_path / "short.pth").encode(images(1))
    torch.save({"first.weight": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="runs no code from weight files"):
        judge(tmp_path / "code.pth").encode(images(1))


def test_a_missing_library_is_named_with_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.importlib.util, "find_spec", lambda name: None)
    one = TorchvisionJudge(TorchvisionSettings(model="alexnet", layer="features.4", weights="x.pth"), name="alexnet2")
    with pytest.raises(SettingsError, match=r"\[judges.alexnet2\] needs .*torchvision.*") as caught:
        one.check()
    assert "'.[judges]'" in str(caught.value)


def published(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two versions of a network's weights, whose names hold the first digits of their SHA-256."""
    files = {}
    for version in ("V1", "V2"):
        path = folder / f"{version}.pth"
        path.write_bytes(version.encode() * 50)
        files[version] = path.rename(folder / f"{name}_{version}-{file_fingerprint(path)[:8]}.pth")
        monkeypatch.setitem(torchvision.VERSIONS, (name, version), files[version].name)
    return files


def test_weights_of_another_version_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = published(tmp_path, "efficientnet_b9", monkeypatch)

    def prove(file: Path, version: str | None) -> bool:
        settings = TorchvisionSettings(model="efficientnet_b9", layer="avgpool", version=version, weights=str(file))
        return TorchvisionJudge(settings, name="efficientnet").prove(file)

    assert prove(files["V1"], "V1")
    assert not prove(files["V1"], None)
    with pytest.raises(InputError, match="is efficientnet_b9 V2") as caught:
        prove(files["V2"], "V1")
    assert f"efficientnet_b9 V1, {files['V1'].name}" in str(caught.value)
    files["V1"].write_bytes(b"shorter")
    with pytest.raises(InputError, match="another file, or damaged"):
        prove(files["V1"], "V1")
    with pytest.raises(InputError, match="is damaged, or another file"):
        prove(files["V1"], None)


def test_a_version_without_a_file_or_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="weights are not given"):
        TorchvisionSettings(model="resnet18", layer="avgpool")
    with pytest.raises(ValueError, match="is not known here"):
        TorchvisionSettings(model="alexnet", version="V7", weights="some.pth")
    with pytest.raises(ValueError, match="has no classifier"):
        SwAVSettings(layer="")


# Feature spaces


def test_a_feature_space_judges_by_its_rows() -> None:
    one = SpaceJudge(SpaceSettings(space={"kind": "pixels", "size": [6, 5]}), name="small")
    one.check()
    expected = [np.asarray(Image.fromarray(i).resize((5, 6), Image.Resampling.BILINEAR)) / 255 for i in images(3)]
    np.testing.assert_allclose(one.encode(images(3)), np.reshape(expected, (3, -1)), atol=1e-6)
    assert one.dims == 90


@pytest.mark.parametrize(
    ("space", "said"),
    [({"kind": "pca"}, "learns from a study's train images"), ({"kind": "clip-text", "model": "m", "form": "versatile"}, "takes captions")],
)  # fmt: skip
def test_spaces_that_can_not_judge_are_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        SpaceJudge(SpaceSettings(space=space), name="x")


def test_rows_whose_length_follows_from_the_images_are_refused() -> None:
    with pytest.raises(SettingsError, match="whose length follows from the images"):
        SpaceJudge(SpaceSettings(space={"kind": "pixels"}), name="x").check()


PLANNED = """
import sys
from leanrecon.evaluation.judges.module import ModuleJudge, ModuleSettings
settings = ModuleSettings(builder="support.tiny_networks:Tiny", weights="x.pth", size=33, layer="second")
print(ModuleJudge(settings, name="tiny").work_nbytes((40, 40, 3)), "torch" in sys.modules)
"""


@pytest.mark.slow
def test_a_plan_imports_no_pytorch(weights: Path) -> None:
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", PLANNED],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    nbytes, imported = done.stdout.split()
    assert imported == "False"
    assert int(nbytes) == judge(weights, layer="second").work_nbytes((40, 40, 3))
