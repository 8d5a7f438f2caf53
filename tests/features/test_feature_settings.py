import subprocess
import sys

import pytest

from leanrecon import kinds
from leanrecon.errors import SettingsError
from leanrecon.features.space import make_space

REQUIRED = {
    "autokl": {"model"},
    "clip-text": {"form", "model"},
    "clip-vision": {"form", "model"},
    "patches": set(),
    "pca": set(),
    "pixels": set(),
    "precomputed": set(),  # train and test, or array
    "vdvae": {"checkpoint"},
}
"""Settings of each kind that have no default."""


@pytest.mark.parametrize("kind", kinds.BUILT_IN["features"])
def test_a_kind_asks_for_what_it_can_not_do_without(kind):
    fields = kinds.get("features", kind).Settings.model_fields
    assert {name for name, field in fields.items() if field.is_required()} == REQUIRED[kind]
    for name in REQUIRED[kind]:
        with pytest.raises(SettingsError, match=f"features.{kind}.{name}"):
            make_space(kind, {})


@pytest.mark.parametrize("kind", kinds.BUILT_IN["features"])
def test_every_setting_has_a_sentence(kind):
    fields = kinds.get("features", kind).Settings.model_fields
    for name, field in fields.items():
        assert name == "kind" or (field.description or "").endswith("."), name


@pytest.mark.parametrize("kind", ["pca", "pixels"])
def test_every_kind_is_made_from_its_defaults_and_decodes(kind):
    space = make_space(kind, {}, seed=3, device="cpu")
    assert space.decodes
    assert space.name == kind
    assert space.settings.kind == kind
    assert space.dims((10, 10, 1)) == {"patches": 361}.get(kind, 100)
    assert space.decoded_shape((10, 10, 1)) == (10, 10, 1)


def test_a_table_of_another_name_gives_its_kind():
    space = make_space("small", {"kind": "pca", "components": 5})
    assert (space.name, space.settings.kind, space.dims((10, 10, 1))) == ("small", "pca", 5)


def test_settings_survive_a_round_through_the_written_study():
    settings = make_space("pixels", {"size": [8, 6]}).settings
    table = settings.model_dump(mode="json")
    assert table == {"kind": "pixels", "size": [8, 6]}
    assert make_space("pixels", table).settings == make_space("pixels", settings).settings == settings


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
        ("mine", {"kind": "vqvae"}, "features.mine.kind = 'vqvae' is unknown (did you mean vdvae?)"),
        ("../elsewhere", {"kind": "pca"}, "features.../elsewhere is not a name"),
    ],
)
def test_wrong_settings_are_named(name, table, found):
    with pytest.raises(SettingsError) as error:
        make_space(name, table)
    assert found.lower() in str(error.value).lower()


def test_nothing_heavy_is_imported_before_it_is_used():
    script = (
        "import sys, leanrecon.features\n"
        "assert not {'zarr', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "from leanrecon.features.space import make_space\n"
        "[make_space(kind, {}).cost((10, 10, 1)) for kind in ('pca', 'pixels')]\n"
        "make_space('pca', {}).fit_nbytes((100, 10, 10, 1), 100)\n"
        "make_space('vdvae', {'checkpoint': 'weights.th'})\n"
        "make_space('clip-text', {'form': 'sd15', 'model': 'clip'})\n"
        "make_space('clip-vision', {'form': 'versatile', 'model': 'clip'})\n"
        "make_space('autokl', {'model': 'base'})\n"
        "import leanrecon.features.first_images\n"
        "planning = {'zarr', 'scipy', 'torch', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "assert not planning, planning\n"
        "import leanrecon.features.extract\n"
        "heavy = {'sklearn', 'PIL', 'torch', 'scipy.linalg'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_planner_knows_no_storage():
    script = "import sys, leanrecon.features.plan\nassert not {'zarr', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
