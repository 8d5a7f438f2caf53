"""Network figures of every preset, against scripts written from the papers over torchvision and transformers.

Fifty images, each preset's own sizes, layers and measures. Weights are random, as the published ones
can't be fetched in a test.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision", reason="the extra judges (torchvision) is not installed")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from support import published_models  # noqa: E402
from support.images import Images  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.models import get_model  # noqa: E402
from torchvision.models.feature_extraction import create_feature_extractor  # noqa: E402

from leanrecon import kinds  # noqa: E402
from leanrecon.context import Context  # noqa: E402
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores  # noqa: E402
from leanrecon.study.protocols import PROTOCOLS  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.networks]

Array = np.ndarray[Any, Any]

M, SIDE = 50, 425

NORMALISED = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def smooth(seed: int) -> Array:
    coarse = np.random.default_rng([seed, M]).integers(0, 256, (M, 9, 9, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(i).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for i in coarse])


@pytest.fixture(scope="module")
def images() -> tuple[Array, Array]:
    """Seen and drawn ones, which have a little in common."""
    seen = smooth(0)
    return seen, (seen * 0.1 + smooth(1) * 0.9).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in files that are named as the networks are, and a small CLIP."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for model in ("alexnet", "inception_v3", "efficientnet_b1", "resnet50"):
        options = {"transform_input": True, "init_weights": False} if model == "inception_v3" else {}
        built = get_model(model, weights=None, **options)
        for module in built.modules():
            if isinstance(module, torch.nn.Conv2d):  # else Inception's numbers fade to denormal ones, which are slow
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        torch.save(built.state_dict(), folder / f"{model}.pth")
    kept = torch.load(folder / "resnet50.pth")
    torch.save({f"module.{n}": v for n, v in kept.items() if not n.startswith("fc.")}, folder / "swav.pth")
    published_models.write_clip(folder / "clip")
    return folder


# Each paper's own preprocessing


def bd2023(size: int) -> Any:
    """Brain-Diffuser: the picture straight to 224 pixels by Pillow, bilinear."""
    return transforms.Compose([Image.fromarray, transforms.Resize((size, size)), transforms.ToTensor(), NORMALISED])


def mindeye2(size: int) -> Any:
    """MindEye2: tensors at 256 pixels, then at the network's size, bilinear without antialiasing."""

    def seen(image: Array) -> Any:
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None] / 255
        for side in (256, size):
            tensor = torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)
        return NORMALISED(tensor[0])

    return seen


def takagi(size: int) -> Any:
    """Takagi & Nishimoto: the shorter side to 299 by Pillow, the centre cropped."""
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor(), NORMALISED]
    return transforms.Compose([Image.fromarray, *steps])


COLUMNS = [
    ("bd2023", "alexnet2", "alexnet", "features.4", bd2023(224), "two_way"),
    ("bd2023", "alexnet5", "alexnet", "features.11", bd2023(224), "two_way"),
    ("bd2023", "inception", "inception_v3", "avgpool", bd2023(224), "two_way"),
    ("bd2023", "efficientnet", "efficientnet_b1", "avgpool", bd2023(224), "distance"),
    ("bd2023", "swav", "resnet50", "avgpool", bd2023(224), "distance"),
    ("mindeye2", "alexnet2", "alexnet", "features.4", mindeye2(256), "two_way"),
    ("mindeye2", "alexnet5", "alexnet", "features.11", mindeye2(256), "two_way"),
    ("mindeye2", "inception", "inception_v3", "avgpool", mindeye2(342), "two_way"),
    ("mindeye2", "efficientnet", "efficientnet_b1", "avgpool", mindeye2(255), "distance"),
    ("mindeye2", "swav", "resnet50", "avgpool", mindeye2(224), "distance"),
    ("takagi", "alexnet-5", "alexnet", "features.5", takagi(299), "two_way"),
    ("takagi", "alexnet-12", "alexnet", "features.12", takagi(299), "two_way"),
    ("takagi", "alexnet-18", "alexnet", "classifier.5", takagi(299), "two_way"),
    ("takagi", "inception", "inception_v3", "avgpool", takagi(299), "two_way"),
]


def scores(preset: str, name: str, tmp_path: Path, images: tuple[Array, Array], **changed: Any) -> dict[str, Array]:
    """The judge's figures of every row, by the preset's own table with other weights."""
    table = {key: value for key, value in PROTOCOLS[preset].judges[name].items() if key != "version"} | changed
    settings = kinds.settings_of("judges", table, f"judges.{name}.", default="")
    one = kinds.kind_of("judges", settings)(settings, name=name)
    one.check()
    sources: Any = {STIMULI: Images(images[0]), "final": Images(images[1])}
    found = embed(one, sources, M, (SIDE, SIDE, 3), tmp_path / "embeddings", Context.of())
    rows: dict[str, Array] = judge_scores(one, found, [str(k) for k in range(M)])["final"].rows
    return rows


TIE = 1e-5
"""Correlations that differ by less are ties: embeddings of float32 networks agree to this."""


def check(found: dict[str, Array], name: str, measure: str, seen: Array, drawn: Array) -> None:
    """Figures are those of the correlations of two tables of features, [images, numbers] each."""
    r = np.corrcoef(seen, drawn)[:M, M:]
    own = np.diag(r)
    if measure == "distance":
        np.testing.assert_allclose(found[f"distance_{name}"], 1 - own, atol=1e-5)
        return
    for key, others in ((f"two_way_{name}", r.T), (f"two_way_{name}_reverse", r)):
        least = (others < own[:, None] - TIE).sum(axis=1) / (M - 1)
        most = ((others < own[:, None] + TIE).sum(axis=1) - 1) / (M - 1)  # less the image itself
        assert np.all(found[key] >= least - 1e-12)
        assert np.all(found[key] <= most + 1e-12)
        assert np.mean(most - least) < 0.02, "hardly any pair is a tie"
    assert 0.4 < np.mean(found[f"two_way_{name}"]) <= 1


@pytest.mark.parametrize(("preset", "name", "model", "layer", "seen_as", "measure"), COLUMNS)
def test_a_network_s_column_is_that_of_the_paper_s_script(
    folder: Path,
    tmp_path: Path,
    images: Any,
    preset: str,
    name: str,
    model: str,
    layer: str,
    seen_as: Any,
    measure: str,
) -> None:
    options = {"transform_input": True, "init_weights": False} if model == "inception_v3" else {}
    built = get_model(model, weights=None, **options)
    built.load_state_dict(torch.load(folder / f"{model}.pth"))
    built = create_feature_extractor(built.eval(), {layer: "layer"})
    with torch.no_grad():
        seen, drawn = (
            np.stack([built(seen_as(image)[None])["layer"].flatten().numpy() for image in half]) for half in images
        )
    weights = folder / ("swav.pth" if name == "swav" else f"{model}.pth")
    check(scores(preset, name, tmp_path, images, weights=str(weights)), name, measure, seen, drawn)


@pytest.mark.parametrize(("preset", "sides"), [("bd2023", (224,)), ("mindeye2", (256, 224)), ("takagi", ())])
def test_clip_s_column_is_that_of_transformers(
    folder: Path, tmp_path: Path, images: Any, preset: str, sides: tuple[int, ...]
) -> None:
    model = transformers.CLIPModel.from_pretrained(folder / "clip").eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder / "clip")

    def brought(image: Array) -> Any:
        if preset == "bd2023":
            return Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None]
        for side in sides:
            tensor = torch.nn.functional.interpolate(tensor, (side, side), mode="bilinear", align_corners=False)
        return Image.fromarray(tensor[0].round().to(torch.uint8).numpy().transpose(1, 2, 0))

    def features(half: Array) -> Array:
        pixels = processor([brought(image) for image in half], return_tensors="pt")
        with torch.no_grad():
            found = model.get_image_features(**pixels)
        rows: Array = getattr(found, "pooler_output", found).numpy()
        return rows

    check(
        scores(preset, "clip", tmp_path, images, model=str(folder / "clip")), "clip", "two_way", *map(features, images)
    )


def test_kamitani_s_column_is_by_all_pixels(tmp_path: Path, images: Any) -> None:
    seen, drawn = (
        np.stack([np.asarray(Image.fromarray(i).resize((224, 224), Image.Resampling.BILINEAR)).ravel() for i in half])
        for half in images
    )
    check(scores("kamitani", "rgb", tmp_path, images), "rgb", "two_way", seen, drawn)


def test_every_judge_of_every_preset_is_tried_here() -> None:
    tried = {(preset, name) for preset, name, *_ in COLUMNS} | {(p, "clip") for p in ("bd2023", "mindeye2", "takagi")}
    every = {(preset, name) for preset, protocol in PROTOCOLS.items() for name in protocol.judges}
    assert PROTOCOLS["brainit"].judges == PROTOCOLS["mindeye2"].judges
    assert every == tried | {("kamitani", "rgb")} | {("brainit", name) for name in PROTOCOLS["mindeye2"].judges}
