"""LPIPS and DISTS: their formulas, what is kept of them, and the packages of their authors on the same pixels.

Networks have random weights, as the published ones can't be fetched in a test; the fitted weights are the published ones.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from support.images import Images  # noqa: E402

from leanrecon import kinds  # noqa: E402
from leanrecon.context import Context  # noqa: E402
from leanrecon.errors import InputError, SettingsError  # noqa: E402
from leanrecon.evaluation.image_sources import ConstantImage  # noqa: E402
from leanrecon.evaluation.judges import network, perceptual  # noqa: E402
from leanrecon.evaluation.judges.embeddings import STIMULI, embed, judge_scores  # noqa: E402
from leanrecon.evaluation.judges.pairs import NO_OTHER, wrong_pairs  # noqa: E402
from leanrecon.evaluation.judges.perceptual import DISTSJudge, DISTSSettings, LPIPSJudge, LPIPSSettings  # noqa: E402
from leanrecon.evaluation.plan import embed_nbytes  # noqa: E402

pytestmark = pytest.mark.networks

Array = np.ndarray[Any, Any]


def smooth(m: int, side: int = 40, seed: int = 0) -> Array:
    coarse = np.random.default_rng([seed, m]).integers(0, 256, (m, 7, 7, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in coarse])


# Formulas


def features(seed: int, *shapes: tuple[int, int]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(np.maximum(rng.standard_normal(shape), 0).astype(np.float32)) for shape in shapes]


SHAPES = ((3, 20), (8, 9), (5, 4))


def test_lpips_is_the_weighted_distance_of_unit_features() -> None:
    one, other = features(0, *SHAPES), features(1, *SHAPES)
    one[0][:, 3] = 0  # a pixel without any feature
    weights = [torch.rand(c, generator=torch.Generator().manual_seed(c)) for c, _ in SHAPES]
    expected = 0.0
    for a, b, w in zip(one, other, weights, strict=True):
        for p in range(a.shape[1]):
            x, y = (v[:, p].double().numpy() for v in (a, b))
            x, y = (v / np.linalg.norm(v) if v.any() else v for v in (x, y))
            expected += float(np.sum(w.double().numpy() * (x - y) ** 2)) / a.shape[1]
    assert perceptual.lpips(one, other, weights) == pytest.approx(expected, rel=1e-5)
    assert perceptual.lpips(one, one, weights) == 0


def test_dists_compares_means_and_structures_of_channels() -> None:
    one, other = features(2, *SHAPES), features(3, *SHAPES)
    one[1][2] = other[1][2] = 0  # a channel that sees nothing is alike
    channels = sum(c for c, _ in SHAPES)
    alpha, beta = np.random.default_rng(4).uniform(0, 1, (2, channels))
    similar = []
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True):
            covariance = np.cov(x, y, bias=True)
            similar.append([
                (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6),
                (2 * covariance[0, 1] + 1e-6) / (covariance[0, 0] + covariance[1, 1] + 1e-6),
            ])  # fmt: skip
    means, structures = np.transpose(similar)
    expected = 1 - (alpha @ means + beta @ structures) / (alpha.sum() + beta.sum())
    found = perceptual.dists(one, other, torch.tensor(alpha).float(), torch.tensor(beta).float())
    assert found == pytest.approx(expected, abs=1e-6)
    assert perceptual.dists(one, one, torch.ones(channels), torch.ones(channels)) == pytest.approx(0, abs=1e-6)


def test_dists_pools_by_the_root_of_weighted_squares() -> None:
    image = features(5, (2, 63))[0].reshape(1, 2, 7, 9)
    window = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]) / 4
    padded = np.pad(image[0].double().numpy(), ((0, 0), (1, 1), (1, 1)))
    expected = [
        [
            [np.sqrt(np.sum(window * c[y : y + 3, x : x + 3] ** 2) + 1e-12) for x in range(0, 9, 2)]
            for y in range(0, 7, 2)
        ]
        for c in padded
    ]
    np.testing.assert_allclose(perceptual.l2_pooling(2)(image)[0].numpy(), expected, rtol=1e-5)


# What is kept


class Apart:
    """The mean difference of the levels of two images."""

    name, model, measure, batch, dims, staying_nbytes = "apart", "apart", "perceptual", 3, 2, 0

    def __init__(self) -> None:
        self.seen = 0

    def work_nbytes(self, shape: Any) -> int:
        return 10**6

    def made_of(self) -> dict[str, Any]:
        return {}

    def compare(self, drawn: Array, seen: Array, pairs: Array) -> Array:
        self.seen += len(seen)
        assert len(drawn) == len(pairs) <= self.batch
        return np.array([[apart(d, seen[k]) for k in row] for d, row in zip(drawn, pairs, strict=True)], np.float32)

    def release(self) -> None:
        pass


def apart(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(float) - other).mean())


class Shown(Images):
    """Images of which several rows may show the same one."""

    def __init__(self, images: Array, index: Any) -> None:
        super().__init__(images)
        self.index = np.asarray(index)

    def read(self, row: int) -> Array:
        image: Array = self.images[self.index[row]]
        return image

    def numbers(self, m: int) -> Array:
        return self.index[:m]


def test_every_row_has_its_own_distance_and_one_to_another_stimulus(tmp_path: Path) -> None:
    seen, drawn = smooth(9, 12), smooth(70, 12, seed=1)
    index = np.random.default_rng(0).integers(0, 9, 70)
    sources: Any = {STIMULI: Shown(seen, index), "final": Images(drawn), "mean": ConstantImage(seen[0])}
    one: Any = Apart()
    names = [f"s{k}" for k in index]
    found = embed(one, sources, 70, (12, 12, 3), tmp_path / "kept", Context.of())
    assert STIMULI not in found
    scores = judge_scores(one, found, names)
    own = [apart(drawn[k], seen[index[k]]) for k in range(70)]
    np.testing.assert_allclose(scores["final"].rows["perceptual_apart"], own, rtol=1e-6)
    every = sorted(set(index))
    other = {a: every[(k + 1) % len(every)] for k, a in enumerate(every)}
    wrong = np.mean([apart(drawn[k], seen[other[index[k]]]) for k in range(70)])
    assert scores["final"].chance["perceptual_apart"] == pytest.approx(wrong, rel=1e-6)
    constant = [apart(seen[0], seen[k]) for k in index]
    np.testing.assert_allclose(scores["mean"].rows["perceptual_apart"], constant, rtol=1e-6)
    assert found["mean"].store.rows == len(every)  # one image and nine stimuli: each pair once
    looked = one.seen
    embed(one, sources, 70, (12, 12, 3), tmp_path / "kept", Context.of())
    assert one.seen == looked
    others = smooth(70, 12, seed=2)
    sources["final"] = Images(others)
    rows = embed(one, sources, 70, (12, 12, 3), tmp_path / "kept", Context.of())["final"].rows()
    np.testing.assert_allclose(rows[:, 0], [apart(others[k], seen[index[k]]) for k in range(70)], rtol=1e-6)


def test_other_stimuli_replace_what_was_kept(tmp_path: Path) -> None:
    one: Any = Apart()
    drawn = smooth(4, 12, seed=1)
    for seed in (0, 2):
        seen = smooth(4, 12, seed=seed)
        sources: Any = {STIMULI: Images(seen), "final": Images(drawn)}
        rows = embed(one, sources, 4, (12, 12, 3), tmp_path / "kept", Context.of())["final"].rows()
        np.testing.assert_allclose(rows[:, 0], [apart(*pair) for pair in zip(drawn, seen, strict=True)], rtol=1e-6)


def test_a_single_stimulus_leaves_the_distance_without_a_chance_level(tmp_path: Path) -> None:
    one: Any = Apart()
    sources: Any = {STIMULI: Shown(smooth(2, 12), [1, 1, 1]), "final": Images(smooth(3, 12, seed=1))}
    found = embed(one, sources, 3, (12, 12, 3), tmp_path / "kept", Context.of())
    assert (found["final"].rows()[:, 1] == NO_OTHER).all()
    scores = judge_scores(one, found, ["a"] * 3)["final"]
    assert (scores.rows["perceptual_apart"] > 0).all()
    assert not scores.chance


def test_the_other_stimulus_is_the_next_one() -> None:
    assert wrong_pairs(np.array([4, 9, 4, 2])).tolist() == [9, 2, 9, 4]


# Settings and files


def test_published_files_are_the_defaults_of_each_network() -> None:
    of: Any = kinds.settings_of("judges", {"kind": "lpips", "network": "vgg16"}, "judges.x.", default="")
    assert (of.weights, of.fitted, of.size) == ("vgg16-397923af.pth", "lpips_vgg_v0.1.pth", 256)
    assert LPIPSSettings().fitted == "lpips_alex_v0.1.pth"
    assert DISTSSettings(fitted="mine.pt").fitted == "mine.pt"
    assert [need.name for need in DISTSJudge.needs(DISTSSettings(), "")] == ["vgg16-397923af.pth", "dists_weights.pt"]
    with pytest.raises(SettingsError, match=r"judges\.x\.network"):
        kinds.settings_of("judges", {"kind": "lpips", "network": "resnet50"}, "judges.x.", default="")
    with pytest.raises(SettingsError, match=r"judges\.x\.size"):
        kinds.settings_of("judges", {"kind": "dists", "size": 31}, "judges.x.", default="")


def fitted_to(path: Path, channels: tuple[int, ...]) -> Path:
    torch.save({f"lin{k}.model.1.weight": torch.ones(1, c, 1, 1) for k, c in enumerate(channels)}, path)
    return path


def test_fitted_weights_of_another_network_damaged_ones_and_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "require_library", lambda *given: None)  # files are compared without torchvision
    monkeypatch.setattr(LPIPSJudge, "_check_names", lambda self: None)
    (tmp_path / "alexnet.pth").write_bytes(b"x")

    def check(path: Path) -> None:
        settings = LPIPSSettings(weights=str(tmp_path / "alexnet.pth"), fitted=str(path))
        LPIPSJudge(settings, name="lpips").check()

    right = fitted_to(tmp_path / "right.pth", (64, 192, 384, 256, 256))
    check(right)
    with pytest.raises(InputError, match=r"does not hold the weights of LPIPS by alexnet: .*of another shape"):
        check(fitted_to(tmp_path / "vgg.pth", (64, 128, 256, 512, 512)))
    (tmp_path / "short.pth").write_bytes(right.read_bytes()[:900])
    with pytest.raises(InputError, match=r"short.pth"):
        check(tmp_path / "short.pth")
    torch.save({"lin0.model.1.weight": print}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="runs no code from weight files"):
        check(tmp_path / "code.pth")
    with pytest.raises(InputError, match=r"there is no file .*none.pth"):
        check(tmp_path / "none.pth")


# The packages of their authors


def random_weights(folder: Path, model: str) -> tuple[Any, Path]:
    models = pytest.importorskip("torchvision.models", reason="the extra judges (torchvision) is not installed")
    torch.manual_seed(0)
    built = models.get_model(model, weights=None).eval()
    torch.save(built.state_dict(), folder / f"{model}.pth")
    return built, folder / f"{model}.pth"


def levels(images: Array, side: int) -> Any:
    """What both packages take: pixels from 0 to 1, resized as the judge says."""
    resized = [np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BILINEAR)) for i in images]
    return torch.from_numpy(np.stack(resized).transpose(0, 3, 1, 2) / 255).double()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "short"),
    [("alexnet", "alex"), pytest.param("vgg16", "vgg", marks=pytest.mark.long), ("squeezenet1_1", "squeeze")],
)
@pytest.mark.filterwarnings("ignore")  # of the package
def test_lpips_equals_its_authors_package(tmp_path: Path, model: str, short: str) -> None:
    package = pytest.importorskip("lpips", reason="lpips is not installed")
    built, path = random_weights(tmp_path, model)
    fitted = Path(package.__file__).parent / "weights" / "v0.1" / f"{short}.pth"
    reference = package.LPIPS(net=short, pnet_rand=True, verbose=False, model_path=str(fitted)).double()
    ours = {f"{k}": v for k, v in built.features.state_dict().items()}
    theirs = {name: ours[name.split(".", 1)[1]] for name in reference.net.state_dict()}
    reference.net.load_state_dict(theirs)
    one = LPIPSJudge(LPIPSSettings(network=model, weights=str(path), fitted=str(fitted), size=96), name="lpips")
    one.check()
    seen, drawn = smooth(3), smooth(2, seed=1)
    found = one.compare(drawn, seen, np.array([[0, 1], [1, 2]]))
    a, b = levels(drawn, 96), levels(seen, 96)
    with torch.no_grad():
        expected = reference(a[[0, 0, 1, 1]], b[[0, 1, 1, 2]], normalize=True).reshape(2, 2)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)
    assert one.compare(seen[:1], seen, np.array([[0]]))[0, 0] == 0
    of_channels = one.encode(seen)
    assert of_channels.shape == (3, sum(one.backbone(one.compared).channels))
    held = sum(layer.numel() for layer in one._described(seen[0]))
    assert 0.5 < held / (one.backbone(one.compared).numbers * 96**2) <= 1
    one.release()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the package
def test_dists_equals_its_authors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("DISTS_pytorch.DISTS_pt", reason="DISTS-pytorch is not installed")
    built, path = random_weights(tmp_path, "vgg16")
    monkeypatch.setattr(package.models, "vgg16", lambda **options: built)
    fitted = Path(package.__file__).parent / "weights.pt"
    reference = package.DISTS(load_weights=False)
    kept = torch.load(fitted, weights_only=True)
    reference.alpha.data, reference.beta.data = kept["alpha"], kept["beta"]
    one = DISTSJudge(DISTSSettings(weights=str(path), fitted=str(fitted), size=96), name="dists")
    one.check()
    seen, drawn = smooth(3), smooth(2, seed=1)
    found = one.compare(drawn, seen, np.array([[0, 1], [1, 2]]))
    a, b = levels(drawn, 96), levels(seen, 96)
    expected = reference.double()(a[[0, 0, 1, 1]], b[[0, 1, 1, 2]]).reshape(2, 2)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-4)
    assert found.min() > 0.01
    assert one.compare(seen[:1], seen, np.array([[0]]))[0, 0] == pytest.approx(0, abs=1e-5)
    assert embed_nbytes(one, [(40, 40, 3)], 3, 0) > 5 * 125 * 96**2 * 4


MEASURED = """
import json, sys
from pathlib import Path
import numpy as np, torch, torchvision
from leanrecon.context import Context
from leanrecon.evaluation.judges.embeddings import STIMULI, embed
from leanrecon.evaluation.judges.perceptual import LPIPSJudge, LPIPSSettings
from leanrecon.evaluation.plan import embed_nbytes
from leanrecon.memory import PeakMemory, process_memory
from leanrecon.weights.libraries import LIBRARY_NBYTES

SHAPE, M = (425, 425, 3), 6
folder = Path(sys.argv[1])
of = {"weights": str(folder / "squeezenet1_1.pth"), "fitted": str(folder / "fitted.pth")}
one = LPIPSJudge(LPIPSSettings(network="squeezenet1_1", size=425, **of), name="lpips")

class Images:
    def __init__(self, seed):
        self.content = str(seed)
    def read(self, row):
        return np.random.default_rng([int(self.content), row]).integers(0, 256, SHAPE, np.uint8)
    def numbers(self, m):
        return np.arange(m)

before = process_memory()
with PeakMemory() as peak:
    embed(one, {STIMULI: Images(0), "final": Images(1)}, M, SHAPE, folder / "kept", Context.of())
print(json.dumps({"taken": peak.peak - before, "planned": embed_nbytes(one, [SHAPE], M, 0) + LIBRARY_NBYTES}))
"""


@pytest.mark.slow
@pytest.mark.long
def test_layers_of_large_images_take_no_more_memory_than_planned(tmp_path: Path) -> None:
    random_weights(tmp_path, "squeezenet1_1")
    fitted_to(tmp_path / "fitted.pth", (64, 128, 256, 384, 384, 512, 512))
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout)
    print(found)
    assert 0.6 * found["planned"] <= found["taken"] <= found["planned"], found
