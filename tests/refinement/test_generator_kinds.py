"""What each kind of generator says of itself: settings, roles, published weights, checks; and the kind none."""

import numpy as np
import pytest
from support.diffusion_models import TOKENS, WIDTH

from leanrecon import kinds
from leanrecon.context import Context
from leanrecon.errors import InputError, SettingsError
from leanrecon.refinement.baselines import prior, shuffled, without_brain
from leanrecon.stores.pictures import Pictures
from leanrecon.weights.names import weight_fields

STABLE = ("lcm", "ddim", "ddpm")
BUILT_IN = ("none", "versatile", *STABLE)
STABLE_FOLDERS = {"unet", "vae", "scheduler"}
VERSATILE_FOLDERS = {"image_unet", "text_unet", "vae", "scheduler"}


def settings_of(kind, **table):
    required = {} if kind == "none" else {"base": "some/base", "text": "clip"}
    required |= {"vision": "seen"} if kind == "versatile" else {}
    return kinds.settings_of("generators", {"kind": kind} | required | table, "refine.", default="none")


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_setting_of_every_kind_has_one_sentence(kind):
    fields = kinds.get("generators", kind).Settings.model_fields
    for name, field in fields.items():
        assert field.description, name
        assert field.description.rstrip().endswith("."), name
        assert len(field.description.split()) <= 25, name


def test_roles_are_filled_by_the_feature_spaces_that_settings_name():
    lcm, versatile = settings_of("lcm"), settings_of("versatile", start="autokl")
    assert kinds.kind_of("generators", lcm).roles(lcm) == {"text": "clip"}
    roles = kinds.kind_of("generators", versatile).roles(versatile)
    assert roles == {"text": "clip", "vision": "seen", "latents": "autokl"}
    none = settings_of("none")
    assert kinds.kind_of("generators", none).roles(none) == {}


@pytest.mark.parametrize(
    ("kind", "table", "expected"),
    [
        ("none", {}, {}),
        ("lcm", {}, {}),  # without guidance
        ("ddim", {"guidance": 3.0}, {"text": "clip"}),
        ("ddim", {"guidance": 3.0, "negative": "empty.npy"}, {}),
        ("versatile", {}, {"text": "clip", "vision": "seen"}),  # guided by default
        ("versatile", {"negative": "empty.npy"}, {"vision": "seen"}),
        ("versatile", {"negative_vision": "black.npy"}, {"text": "clip"}),
        ("versatile", {"guidance": 1.0}, {}),
        ("versatile", {"start": "autokl"}, {"text": "clip", "vision": "seen"}),  # latents guide nothing
    ],
)
def test_guidance_asks_for_unconditional_embeddings_that_no_file_gives(kind, table, expected):
    settings = settings_of(kind, **table)
    assert kinds.kind_of("generators", settings).unconditional_roles(settings) == expected


def needs(kind, **table):
    settings = settings_of(kind, **table)
    found = kinds.optional(kinds.kind_of("generators", settings), "needs", settings)
    return {need.setting: (need.name, {piece.folders[0] for piece in need.pieces}) for need in found}


@pytest.mark.parametrize("kind", STABLE)
def test_stable_diffusion_needs_its_networks_and_what_settings_add(kind):
    assert needs(kind) == {"refine.base": ("some/base", STABLE_FOLDERS)}
    assert needs(kind, tiny_autoencoder="some/tiny", lora="some/lora") == {
        "refine.base": ("some/base", {"unet", "scheduler"}),
        "refine.tiny_autoencoder": ("some/tiny", {"."}),
        "refine.lora": ("some/lora", {"."}),
    }


def test_versatile_diffusion_needs_both_of_its_networks_and_none_needs_nothing():
    assert needs("versatile") == {"refine.base": ("some/base", VERSATILE_FOLDERS)}
    assert needs("none") == {}


def test_settings_that_name_weights_are_marked():
    assert set(weight_fields(type(settings_of("lcm")))) == {"base", "lora", "negative", "tiny_autoencoder"}
    versatile = set(weight_fields(type(settings_of("versatile"))))
    assert versatile == {"base", "negative", "negative_vision", "tiny_autoencoder"}


def test_settings_written_by_earlier_versions_load_unchanged():
    lcm = {
        "kind": "lcm", "base": "some/base", "lora": "some/lora", "lora_scale": 1.0, "steps": 4, "strength": 0.75,
        "guidance": 1.0, "negative": "", "text": "clip", "start": "stage1", "precision": "auto", "offload": "auto",
        "tiny_autoencoder": "", "size": 512, "batch": "auto", "baselines": [],
    }  # fmt: skip
    assert settings_of("lcm", lora="some/lora") == kinds.settings_of("generators", lcm, "refine.", default="none")
    assert settings_of("lcm", lora="some/lora").model_dump() == lcm
    versatile = {key: value for key, value in lcm.items() if key not in ("lora", "lora_scale")} | {
        "kind": "versatile", "steps": 37, "scheduler": "ddim", "guidance": 7.5, "negative_vision": "", "vision": "seen",
        "mixing": 0.6,
    }  # fmt: skip
    assert settings_of("versatile").model_dump() == versatile


def test_notes_say_that_a_model_draws_final_images():
    for kind in BUILT_IN:
        notes = kinds.optional(kinds.get("generators", kind), "notes", settings_of(kind))
        assert len(notes) == (kind != "none")


# Checked before anything is drawn


def test_weights_that_can_not_work_are_refused_by_the_check(make, tmp_path):
    make().check()
    make(guidance=3.0).check()  # unconditional embeddings may not be encoded yet
    with pytest.raises(SettingsError, match=r"refine.size = 72. Expected a multiple of 16"):
        make(size=72).check()
    with pytest.raises(InputError, match="there is no"):
        make(lora=str(tmp_path / "none.safetensors")).check()
    np.save(tmp_path / "wrong.npy", np.zeros((TOKENS, WIDTH + 1)))
    make(negative=str(tmp_path / "wrong.npy")).check()  # not used without guidance
    with pytest.raises(InputError, match="refine.negative.* holds"):
        make(guidance=3.0, negative=str(tmp_path / "wrong.npy")).check()


# No refinement


@pytest.fixture
def none():
    settings = settings_of("none")
    return kinds.kind_of("generators", settings)(settings)


def test_without_refinement_final_images_are_the_first_ones_byte_for_byte(none, first, tmp_path):
    out = Pictures.create(tmp_path / "final", first.rows, first.shape, made_of=none.made_of())
    context = Context.of("50GB")
    none.draw(first, {}, out, context)
    assert out.complete
    assert [out.file(row).read_bytes() for row in range(5)] == [first.file(row).read_bytes() for row in range(5)]
    assert context.peaks.largest > 0
    assert (none.refines, none.shape, none.record()) == (False, None, {})
    assert none.made_of() == {"kind": "none"}
    plan = none.plan(5, 10**9)
    assert (plan.summary, plan.scratch) == ("none", 0)


def test_images_of_an_earlier_run_are_kept_without_refinement(none, first, tmp_path):
    def final():
        return Pictures.create(tmp_path / "final", first.rows, first.shape, made_of=none.made_of())

    none.draw(first, {}, final(), Context.of("50GB"))
    kept = final()
    before = (tmp_path / "final" / "00000.png").stat().st_mtime_ns
    kept.discard([3])
    context = Context.of("50GB")
    none.draw(first, {}, kept, context)
    assert kept.complete
    assert (tmp_path / "final" / "00000.png").stat().st_mtime_ns == before
    none.draw(first, {}, final(), complete := Context.of("50GB"))
    assert complete.peaks.projected == []


def test_without_refinement_there_are_no_baselines():
    with pytest.raises(SettingsError, match="refine: baselines are drawn by a generator"):
        settings_of("none", baselines=["prior"])


def test_keys_of_a_generator_are_unknown_without_refinement():
    with pytest.raises(SettingsError, match="refine.steps is unknown"):
        settings_of("none", steps=4)


# Baselines


def test_baselines_are_chosen_by_name(first, text):
    predicted, row = {"text": text}, np.empty((1, TOKENS * WIDTH), np.float32)

    def values(pair):
        images, rows = pair
        rows["text"].read(range(2, 3), range(TOKENS * WIDTH), row)
        return images.read(2).tobytes() + row.tobytes()

    assert values(without_brain("prior", first, predicted, seed=3)) == values(prior(first, predicted))
    assert values(without_brain("shuffled", first, predicted, seed=3)) == values(shuffled(first, predicted, seed=3))
    with pytest.raises(ValueError, match="oracle is not a baseline made from predictions"):
        without_brain("oracle", first, predicted, seed=3)


def test_a_generator_s_plan_names_its_kind_and_steps(make):
    plan = make(steps=3).plan(5, 10**12)
    assert plan.summary.startswith("lcm, 3 steps, float32, weights in memory")
