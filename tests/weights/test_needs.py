"""The published weights that kinds need: named by their settings, merged by name, and refused where they are missing."""

import pytest

from leanrecon import kinds
from leanrecon.errors import InputError
from leanrecon.weights import needs
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import Piece

VDVAE = "imagenet64-iter-1600000-model-ema.th"
UNET, VAE = Piece("network", ("unet",)), Piece("network", ("vae", "."))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty caches."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("group", "table", "expected"),
    [
        ("features", {"kind": "vdvae", "checkpoint": VDVAE}, {"checkpoint": set()}),
        ("features", {"kind": "clip-text", "form": "sd15", "model": "a/b"}, {"model": {"text_encoder", "tokenizer"}}),
        (
            "features",
            {"kind": "clip-vision", "form": "versatile", "model": "a/b"},
            {"model": {"image_encoder", "image_feature_extractor"}},
        ),
        ("features", {"kind": "autokl", "model": "a/b"}, {"model": {"vae"}}),
        ("features", {"kind": "autokl", "model": "a/b", "tiny": "a/c"}, {"model": {"vae"}, "tiny": {"."}}),
        ("features", {"kind": "pca"}, {}),
        ("features", {"kind": "pixels"}, {}),
        ("judges", {"kind": "clip", "model": "a/b"}, {"model": {"image_encoder", "image_feature_extractor"}}),
    ],
)
def test_a_kind_says_what_it_needs_of_each_setting(group, table, expected):
    settings = kinds.settings_of(group, table, "mine.", default="")
    found = list(kinds.kind_of(group, settings).needs(settings, "mine."))
    assert {need.setting: {piece.folders[0] for piece in need.pieces} for need in found} == {
        f"mine.{key}": folders for key, folders in expected.items()
    }
    assert [need.name for need in found] == [table[key] for key in expected]


def test_needs_of_one_name_are_merged(cache):
    merged = needs.merge(
        [Need("features.a.model", "some/base", (VAE,)), Need("refine.base", "some/base", (UNET, VAE)),
         Need("refine.base", "some/base", (UNET,)), Need("features.b.checkpoint", VDVAE)]
    )  # fmt: skip
    assert merged == [
        Need("features.a.model, refine.base", "some/base", (VAE, UNET)),
        Need("features.b.checkpoint", VDVAE),
    ]


def test_a_path_into_the_cache_is_known_by_its_published_name(cache):
    (cache / VDVAE).write_bytes(b"fetched")
    assert needs.merge([Need("features.a.checkpoint", str(cache / VDVAE))])[0].name == VDVAE
    assert needs.missing([Need("features.a.checkpoint", VDVAE)]) == []


def test_all_missing_weights_are_named_at_once(cache):
    every = [Need("features.a.checkpoint", VDVAE), Need("refine.base", "some/base", (UNET,))]
    with pytest.raises(InputError) as error:
        needs.require(every)
    assert str(error.value).startswith(
        f"missing weights: {VDVAE} (features.a.checkpoint), some/base (refine.base). Download them with "
        "`leanrecon fetch-weights RECIPE_OR_FILE`"
    )
    with pytest.raises(InputError) as error:
        needs.require(every, planned=True)  # sizes of the network in a single file stand in the settings
    assert str(error.value).startswith("missing weights: some/base (refine.base).")
    needs.require(every[:1], planned=True)


def test_a_path_that_is_not_there_is_told_from_a_name(cache):
    every = [Need("features.a.checkpoint", "mine.th"), Need("features.b.model", str(cache / "no"), (VAE,))]
    with pytest.raises(InputError) as error:
        needs.require([*every, Need("refine.base", "some/base", (UNET,))])
    assert str(error.value) == (
        f"there is no file or folder mine.th (features.a.checkpoint), {cache / 'no'} (features.b.model). "
        "Set each to where it is."
    )
