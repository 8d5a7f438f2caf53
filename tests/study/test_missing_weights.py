"""What settings name of weights and captions, what of it is missing, and where a bare name is found."""

import json
import re

import pytest

from leanrecon.app import doctor
from leanrecon.app.plan import show
from leanrecon.errors import InputError
from leanrecon.regression.mlp.regressor import MLPRegressor
from leanrecon.stages.pipeline import STAGES, plan_study
from leanrecon.study.needs import missing, needed, require_weights
from leanrecon.study.recipes import read_settings, recipes
from leanrecon.weights.needs import Need
from leanrecon.weights.packaged import is_packaged
from leanrecon.weights.published import address_of

VDVAE = "imagenet64-iter-1600000-model-ema.th"
CAPTIONS = "COCO_73k_annots_curated.npy"

EVERY = """
[dataset]
kind = "simulated"
[features.vdvae]
checkpoint = "imagenet64-iter-1600000-model-ema.th"
[features.text]
kind = "clip-text"
form = "versatile"
model = "some/versatile"
[features.vision]
kind = "clip-vision"
form = "versatile"
model = "some/versatile"
[features.autokl]
model = "some/base"
tiny = "some/tiny"
[refine]
kind = "ddim"
base = "some/base"
text = "text"
[judges.clip]
model = "some/clip"
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty caches."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LEANRECON_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def until(stage):
    """The stages up to and including one."""
    return STAGES[: STAGES.index(stage) + 1]


def settings(text, tmp_path):
    (tmp_path / "study.toml").write_text(text)
    return read_settings(tmp_path / "study.toml")[0]


def test_every_setting_that_names_weights_is_known(cache, tmp_path):
    found = {need.name: (need.setting, {piece.folders[0] for piece in need.pieces})
             for need in needed(settings(EVERY, tmp_path))}  # fmt: skip
    assert found == {
        VDVAE: ("features.vdvae.checkpoint", set()),
        "some/versatile": (
            "features.text.model, features.vision.model",
            {"text_encoder", "tokenizer", "image_encoder", "image_feature_extractor"},
        ),
        "some/base": ("features.autokl.model, refine.base", {"vae", "unet", "scheduler"}),
        "some/tiny": ("features.autokl.tiny", {"."}),
        "some/clip": ("judges.clip.model", {"image_encoder", "image_feature_extractor"}),
    }


def test_each_generator_needs_networks_of_its_own(cache, tmp_path):
    def folders(*overrides):
        (tmp_path / "study.toml").write_text(EVERY)
        chosen, _ = read_settings(tmp_path / "study.toml", [*overrides, "refine.base=other/base"])
        return next({p.folders[0] for p in need.pieces} for need in needed(chosen) if need.setting == "refine.base")

    assert folders() == {"unet", "vae", "scheduler"}
    assert folders("refine.tiny_autoencoder=some/tiny") == {"unet", "scheduler"}
    versatile = folders("refine.kind=versatile", "refine.vision=vision", "refine.guidance=7.5")
    assert versatile == {"image_unet", "text_unet", "vae", "scheduler"}


def test_all_that_is_missing_is_named_at_once(cache, tmp_path):
    chosen = settings(EVERY, tmp_path)
    named = [
        (VDVAE, "features.vdvae.checkpoint"),
        ("some/versatile", "features.text.model, features.vision.model"),
        ("some/base", "features.autokl.model, refine.base"),
        ("some/tiny", "features.autokl.tiny"),
        ("some/clip", "judges.clip.model"),
    ]

    def names(*stages):
        return [(need.name, need.setting) for need in missing(chosen, *stages)]

    assert names() == named
    assert names(until("refine")) == named[:4]
    assert names(until("stage1")) == [*named[:2], ("some/base", "features.autokl.model"), named[3]]
    assert missing(chosen, until("dataset")) == []
    with pytest.raises(InputError) as error:
        plan_study(chosen, base_dir=tmp_path)
    named = [f"{need.name} ({need.setting})" for need in missing(chosen)]
    assert [name in str(error.value) for name in named] == [not name.startswith(VDVAE) for name in named]
    with pytest.raises(InputError) as error:
        require_weights(chosen)
    assert all(name in str(error.value) for name in named)
    assert "`leanrecon fetch-weights RECIPE_OR_FILE`" in str(error.value)
    assert plan_study(chosen, base_dir=tmp_path, until="dataset")


def test_a_path_that_is_not_there_is_told_from_a_name(cache, tmp_path):
    gone = EVERY.replace("some/tiny", str(tmp_path / "tiny")).replace(VDVAE, "mine.th")
    with pytest.raises(InputError) as error:
        require_weights(settings(gone, tmp_path))
    assert "there is no file or folder mine.th (features.vdvae.checkpoint), " in str(error.value)
    assert f"{tmp_path / 'tiny'} (features.autokl.tiny). Set each to where it is." in str(error.value)


def test_a_study_is_planned_without_weights_whose_sizes_are_known(cache, tmp_path, capsys):
    text = EVERY.partition("[features.text]")[0]
    chosen = settings(text, tmp_path)
    stages = plan_study(chosen, base_dir=tmp_path)
    assert "features vdvae" in [stage.stage for stage in stages]
    show(stages, "4GB", missing(chosen))
    said = " ".join(capsys.readouterr().out.split())
    assert f"missing weights: {VDVAE} (features.vdvae.checkpoint); download them with `leanrecon fetch-weights" in said


def test_a_bare_name_is_a_path_first_and_then_one_in_the_cache(cache, tmp_path):
    def checkpoint():
        return settings(EVERY, tmp_path).features["vdvae"].model_dump()["checkpoint"]

    assert checkpoint() == VDVAE
    (cache / VDVAE).write_bytes(b"fetched")
    assert checkpoint() == str(cache / VDVAE)
    assert VDVAE not in [need.name for need in missing(settings(EVERY, tmp_path))]
    assert VDVAE in [need.name for need in needed(settings(EVERY, tmp_path))]  # and so is checked again
    (tmp_path / VDVAE).write_bytes(b"mine")
    assert checkpoint() == str(tmp_path / VDVAE)


def test_captions_are_wanted_where_settings_name_the_published_file(cache, tmp_path):
    def names(*overrides):
        chosen, _ = read_settings("nsd", ["refine=false", "features.clip=false", *overrides])
        return [need.name for need in needed(chosen)], chosen.dataset.model_dump()["captions"]

    assert names("dataset.captions=false") == ([VDVAE], None)
    assert names() == ([CAPTIONS, VDVAE], CAPTIONS)
    assert names("dataset.captions=mine.npy") == ([VDVAE], "mine.npy")
    (cache / CAPTIONS).write_bytes(b"fetched")
    assert names() == ([CAPTIONS, VDVAE], str(cache / CAPTIONS))
    (tmp_path / CAPTIONS).write_bytes(b"mine")
    assert names()[1] == CAPTIONS


def test_doctor_names_the_command_that_fetches(cache, monkeypatch):
    said = {need.recipe: need.missing for need in doctor.requirements()}
    assert "download them with `leanrecon fetch-weights nsd`" in said["nsd"]
    assert "leanrecon plan nsd" in said["nsd"]
    assert re.fullmatch(
        r"data are downloaded: `leanrecon plan brain-diffuser` says how much; "
        r"weights are missing: download them with `leanrecon fetch-weights brain-diffuser`",
        said["brain-diffuser"],
    )
    assert said["digits69"] == "data are missing: see `leanrecon recipes digits69`"
    assert "fetch-weights" not in said["digits69"] + said["demo-fast"] + said["demo"]
    monkeypatch.setattr("leanrecon.weights.needs.where", lambda need: cache)
    assert "fetch-weights" not in json.dumps({need.recipe: need.missing for need in doctor.requirements()})


@pytest.mark.parametrize("recipe", recipes())
def test_recipes_name_what_can_be_fetched(recipe, cache):
    own = ["dataset.path=data.mat"] if recipe == "digits69" else []
    needs = needed(read_settings(recipe, own)[0])
    packaged = recipe in ("demo", "demo-unet")
    assert {is_packaged(need.name) for need in needs} <= {packaged}
    for need in needs if not packaged else ():
        assert address_of(need.name) or (need.pieces and re.fullmatch(r"[\w.-]+/[\w.-]+", need.name))


def test_settings_without_weights_require_none(cache, tmp_path):
    chosen = settings('[dataset]\nkind = "simulated"\n', tmp_path)
    assert needed(chosen) == []
    require_weights(chosen)


def test_weights_of_regressors_are_asked_for_too(cache, tmp_path, monkeypatch):
    def asks(cls, settings, prefix):
        return [Need(f"{prefix}weights", VDVAE)]

    monkeypatch.setattr(MLPRegressor, "needs", classmethod(asks), raising=False)
    plain = settings('[features.pca]\n[dataset]\nkind = "simulated"\n[regression]\nkind = "mlp"\n', tmp_path)
    assert [(need.setting, need.name) for need in needed(plain)] == [("regression.pca.weights", VDVAE)]
    assert needed(plain, until("features")) == []
    text = '[features.pca]\n[dataset]\nkind = "simulated"\n[regression]\nkind = "stack"\nmembers = [{kind = "ridge"}, {kind = "mlp"}]\n'
    assert [need.setting for need in needed(settings(text, tmp_path))] == ["regression.pca.weights"]
