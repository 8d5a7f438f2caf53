import subprocess
import sys

import pytest

from leanrecon import features
from leanrecon.errors import SettingsError
from leanrecon.features.space import DecodingSpace

NEEDS = {
    "autokl": {"model"},
    "clip-text": {"form", "model"},
    "clip-vision": {"form", "model"},
    "pca": set(),
    "pixels": set(),
    "vdvae": {"checkpoint"},
}
"""What a kind can't be made without: where its weights are."""


@pytest.mark.parametrize("kind", features.KINDS)
def test_a_kind_asks_for_what_it_can_not_do_without(kind):
    fields = features.settings_model(kind).model_fields
    assert {name for name, field in fields.items() if field.is_required()} == NEEDS[kind]
    for name in NEEDS[kind]:
        with pytest.raises(SettingsError, match=f"features.{kind}.{name}"):
            features.make(kind, {})


@pytest.mark.parametrize("kind", [kind for kind in features.KINDS if not NEEDS[kind]])
def test_every_kind_is_made_from_its_defaults_and_fits_the_protocol(kind):
    space = features.make(kind, {}, seed=3, device="cpu")
    assert isinstance(space, DecodingSpace)
    assert space.name == kind
    assert space.settings.kind == kind
    assert space.dims((10, 10, 1)) == 100


def test_a_table_of_another_name_gives_its_kind():
    space = features.make("small", {"kind": "pca", "components": 5})
    assert (space.name, space.settings.kind, space.dims((10, 10, 1))) == ("small", "pca", 5)


def test_settings_survive_a_round_through_the_written_study():
    table = features.settings_of("pixels", {"size": [8, 6]}).model_dump(mode="json")
    assert table == {"kind": "pixels", "size": [8, 6]}
    assert features.settings_of("pixels", table) == features.settings_of("pixels", {"size": [8, 6]})


@pytest.mark.parametrize(
    ("name", "table", "found"),
    [
        ("pca", {"components": 0}, "features.pca.components = 0: Input should be greater than or equal to 1"),
        ("pca", {"componets": 3}, "features.pca.componets is unknown (did you mean components?)"),
        ("pca", {"size": 2.5}, "features.pca.size = 2.5"),
        ("pca", {"components": 0, "size": -1}, "features.pca.size = -1"),
        ("pixels", {"size": [8, 8, 3]}, "features.pixels.size"),
        ("pixel", {}, "features.pixel: 'pixel' is not a feature space (did you mean pixels?)"),
        ("mine", {}, "give [features.mine] a kind"),
        ("mine", {"kind": "vqvae"}, "'vqvae' is not a feature space"),
        ("../elsewhere", {"kind": "pca"}, "features.../elsewhere is not a name"),
    ],
)
def test_wrong_settings_are_named(name, table, found):
    with pytest.raises(SettingsError) as error:
        features.make(name, table)
    assert found.lower() in str(error.value).lower()


def test_nothing_heavy_is_imported_before_it_is_used():
    script = (
        "import sys, leanrecon.features as f\n"
        "assert not {'zarr', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "import leanrecon.features.extract\n"
        "[f.make(kind, {}) for kind in ('pca', 'pixels')]\n"
        "f.make('vdvae', {'checkpoint': 'weights.th'})\n"
        "f.make('clip-text', {'form': 'sd15', 'model': 'clip'})\n"
        "heavy = {'sklearn', 'PIL', 'torch', 'scipy.linalg'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_planner_knows_no_storage():
    script = "import sys, leanrecon.features.plan\nassert not {'zarr', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
