"""Judges of published tables, with torchvision: equal to its own forward, and to scripts written from the papers.

Weights are random, as the published ones can't be fetched in a test. Without torchvision these tests are skipped.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tv = pytest.importorskip("torchvision", reason="the extra judges (torchvision) is not installed")

from PIL import Image  # noqa: E402
from support.images import Images  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.models import get_model  # noqa: E402
from torchvision.models.feature_extraction import create_feature_extractor  # noqa: E402

from leanrecon.context import Context  # noqa: E402
from leanrecon.errors import SettingsError  # noqa: E402
from leanrecon.evaluation.image_sources import ConstantImage  # noqa: E402
from leanrecon.evaluation.judges.building import description  # noqa: E402
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores  # noqa: E402
from leanrecon.evaluation.judges.network import NetworkJudge  # noqa: E402
from leanrecon.evaluation.judges.swav import SwAVJudge, SwAVSettings  # noqa: E402
from leanrecon.evaluation.judges.torchvision import TorchvisionJudge, TorchvisionSettings  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

Array = np.ndarray[Any, Any]

NORMALISED = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
LAYERS = [
    ("alexnet", "features.4", 224),
    ("alexnet", "features.11", 256),
    ("alexnet", "features.5", 299),
    ("alexnet", "features.12", 299),
    ("inception_v3", "avgpool", 342),
    ("efficientnet_b1", "avgpool", 255),
    ("resnet50", "avgpool", 224),
    ("squeezenet1_1", "", 224),
]


def images(m: int, side: int = 64, seed: int = 0) -> Array:
    coarse = np.random.default_rng([seed, m]).integers(0, 256, (m, 9, 9, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in coarse])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def network(folder: Path, model: str) -> tuple[Any, Path]:
    """A network with random weights, and their file."""
    path, options = folder / f"{model}.pth", {}
    if model == "inception_v3":
        options = {"transform_input": True, "init_weights": False}
    torch.manual_seed(0)
    built = get_model(model, weights=None, **options).eval()
    if path.exists():
        built.load_state_dict(torch.load(path))
    torch.save(built.state_dict(), path)
    return built, path


def judge(path: Path, model: str, layer: str, **table: Any) -> TorchvisionJudge:
    return TorchvisionJudge(TorchvisionSettings(model=model, layer=layer, weights=str(path), **table), name=model)


@pytest.mark.parametrize(("model", "layer", "size"), LAYERS)
def test_embeddings_equal_torchvision_s_own_forward(folder: Path, model: str, layer: str, size: int) -> None:
    built, path = network(folder, model)
    if layer:
        built = create_feature_extractor(built, {layer: "layer"})
    seen = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor(), NORMALISED])
    pixels = images(3)
    with torch.no_grad():
        output = built(torch.stack([seen(Image.fromarray(image)) for image in pixels]))
    expected = (output["layer"] if layer else output).flatten(1).numpy()
    one = judge(path, model, layer, size=size)
    found = one.encode(pixels)
    assert found.shape == (3, one.dims)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("model", "layer", "size"), LAYERS)
def test_shapes_by_arithmetic_are_those_of_the_network(folder: Path, model: str, layer: str, size: int) -> None:
    one = judge(folder / "none.pth", model, layer, size=size)
    known = one.known()
    if known is None:
        return
    built = description(one.blueprint(one.settings), layer, size, "judges.x")
    assert known.dims == built.dims
    assert known.weights >= built.weights
    assert built.largest <= known.largest <= 2 * built.largest


def test_swav_s_file_is_read_without_its_heads(folder: Path) -> None:
    built, _ = network(folder, "resnet50")
    weights = {f"module.{name}": value for name, value in built.state_dict().items() if not name.startswith("fc.")}
    weights |= {"module.projection_head.0.weight": torch.ones(4, 4), "module.prototypes.weight": torch.ones(3, 4)}
    torch.save(weights, folder / "swav.pth.tar")
    one = SwAVJudge(SwAVSettings(weights=str(folder / "swav.pth.tar")), name="swav")
    one.check()
    assert one.measure == "distance"
    other = judge(folder / "resnet50.pth", "resnet50", "avgpool")
    np.testing.assert_array_equal(one.encode(images(2)), other.encode(images(2)))


def test_an_unknown_model_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"model = 'alexnett' is not one of torchvision's \(did you mean alexnet\?\)"
    ):
        judge(folder / "x.pth", "alexnett", "").check()


def by_hand(one: NetworkJudge, built: Any, pixels: Array) -> Array:
    """What the papers' scripts feed and take: each image resized by Pillow to 224, AlexNet up to the layer."""
    seen = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), NORMALISED])
    with torch.no_grad():
        outputs = [built.features[:5](seen(Image.fromarray(image))[None]).numpy().ravel() for image in pixels]
    return np.stack(outputs)


@pytest.mark.parametrize("measure", ["two_way", "distance"])
def test_a_table_s_column_is_that_of_an_independent_script_on_fifty_images(
    folder: Path, tmp_path: Path, measure: str
) -> None:
    built, path = network(folder, "alexnet")
    seen = images(50, 100)
    drawn = (seen * 0.06 + images(50, 100, seed=1) * 0.94).astype(np.uint8)
    one = judge(path, "alexnet", "features.4", measure=measure)
    sources = {STIMULI: Images(seen), "final": Images(drawn), "mean": ConstantImage(seen[0])}
    found = embed(one, sources, 50, (100, 100, 3), tmp_path / "embeddings", Context.of())
    scores = judge_scores(one, found, [str(k) for k in range(50)])["final"].rows
    r = np.corrcoef(by_hand(one, built, seen), by_hand(one, built, drawn))[:50, 50:]
    if measure == "distance":
        np.testing.assert_allclose(scores["distance_alexnet"], 1 - np.diag(r), atol=1e-5)
    else:
        forward = [np.sum(r[:, j] < r[j, j]) / 49 for j in range(50)]
        backward = [np.sum(r[i] < r[i, i]) / 49 for i in range(50)]
        np.testing.assert_allclose(scores["two_way_alexnet"], forward, atol=1e-12)
        np.testing.assert_allclose(scores["two_way_alexnet_reverse"], backward, atol=1e-12)
        assert 0.5 < np.mean(forward) < 1
