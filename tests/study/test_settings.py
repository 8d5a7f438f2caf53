import math
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import tomli_w
from pydantic import create_model

from leanrecon import kinds
from leanrecon.errors import SettingsError
from leanrecon.study.evaluate_settings import EvaluateSettings
from leanrecon.study.recipes import find_settings, read_settings, read_tables, recipes
from leanrecon.study.settings import GeneralSettings, StageOneSettings, StoresSettings, check_settings
from leanrecon.validation import validate

DATASET = {"betas": "betas.npy", "stimuli": "images.npy", "test_fraction": 0.1}
FULL = {
    "memory": "4GB",
    "seed": 7,
    "dataset": DATASET | {"path": "all.h5", "image_shape": [8, 8], "image_order": "F"},
    "stores": {"chunk": "1MB"},
    "features": {"pixels": {"size": 32}, "small": {"kind": "pca", "components": 5}, "pca": {}},
    "regression": {"alpha": 2.0, "standardize": False, "small": {"alpha": "loo", "alphas": [1.0, 10.0]}},
}


def write(path, tables):
    path.write_text(tomli_w.dumps(tables))
    return path


# Defaults


def test_only_the_dataset_is_needed():
    settings = check_settings({"dataset": DATASET})
    assert list(settings.features) == ["pca"]
    assert settings.general.memory is None
    assert settings.tables() == {
        "device": "auto",
        "seed": 0,
        "dataset": DATASET
        | {
            "kind": "arrays",
            "image_order": "C",
            "rows_last": False,
            "allow_shared_stimuli": False,
            "group": "stimulus",
            "repeats": "single",
            "test_repeats": "single",
            "rescale_average": False,
        },
        "stores": {"chunk": "8MB"},
        "features": {"pca": {"kind": "pca", "components": 256, "size": 64}},
        "regression": {
            "kind": "ridge",
            "alpha": "loo",
            "per_target": False,
            "standardize": True,
            "restandardize": "none",
            "kernel": "linear",
            "gamma": "loo",
            "voxel_weights": "none",
            "voxel_power": "loo",
        },
        "stage1": {"size": "stimuli", "calibrate": {"kind": "none"}},
        "refine": {"kind": "none", "baselines": []},
        "evaluate": {"preset": "native", "blend": 0.0, "permutations": 5, "resamples": 1000},
    }


@pytest.mark.parametrize("tables", [{"dataset": DATASET}, FULL])
def test_settings_with_all_defaults_written_out_read_back_the_same(tmp_path, tables):
    settings = check_settings(tables)
    again, base_dir = read_settings(write(tmp_path / "study.toml", settings.tables()))
    assert again == settings
    assert again.tables() == settings.tables()
    assert base_dir == tmp_path


def test_regression_is_for_every_space_and_overridden_for_one():
    settings = check_settings(FULL)
    assert {name: ridge.alpha for name, ridge in settings.regression.items()} == {
        "pixels": 2.0,
        "small": "loo",
        "pca": 2.0,
    }
    assert all(ridge.standardize is False for ridge in settings.regression.values())
    assert settings.regression["small"].alphas == [1.0, 10.0]
    assert settings.regression["pca"].alphas is None


def test_what_all_spaces_share_is_written_once_where_set_reaches_it(tmp_path):
    tables = check_settings(FULL).tables()["regression"]
    assert tables["standardize"] is False
    assert {name: table for name, table in tables.items() if isinstance(table, dict)} == {
        "pixels": {"alpha": 2.0},
        "small": {"alpha": "loo", "alphas": [1.0, 10.0]},
        "pca": {"alpha": 2.0},
    }
    path = write(tmp_path / "study.toml", check_settings({"dataset": DATASET}).tables())
    settings, _ = read_settings(path, ["regression.alpha=3"])
    assert settings.regression["pca"].alpha == 3.0


# Problems


def test_every_problem_is_listed_at_once():
    with pytest.raises(SettingsError) as error:
        check_settings(
            {
                "memory": "4XB",
                "seed": "x",
                "colour": "red",
                "dataset": {"betas": "b.npy", "test_fraction": 1.5, "stimulli": "i.npy"},
                "stores": {"chunk": "huge"},
                "features": {"pca": {"components": 0}, "pixls": {}},
                "regression": {"alpha": -1, "pcs": {"alpha": 1}},
            }
        )
    for problem in (
        "memory = '4XB': '4XB' is not a size in bytes",
        "seed = 'x': ",
        "colour is unknown (known: ",
        "dataset.test_fraction = 1.5: input should be less than 1",
        "dataset.stimulli is unknown (did you mean stimuli?)",
        "stores.chunk = 'huge': 'huge' is not a size in bytes",
        "features.pca.components = 0: input should be greater than or equal to 1",
        "features.pixls: 'pixls' is not a feature space (did you mean pixels?)",
        'regression.alpha = -1: a number, 0 or more, or "loo" is expected',
        "regression.pcs is for a feature space that is not there",
    ):
        assert str(error.value).count(problem) == 1, problem


@pytest.mark.parametrize(
    ("tables", "hint"),
    [
        ({"memmory": "4GB"}, r"^memmory is unknown \(did you mean memory\?\)\.$"),
        ({"regresion": {}}, r"^regresion is unknown \(did you mean regression\?\)\.$"),
        ({"stores": {"chunks": "1MB"}}, r"^stores\.chunks is unknown \(did you mean chunk\?\)\.$"),
        ({"dataset": DATASET | {"fold": 3}}, r"^dataset\.fold is unknown \(did you mean folds\?\)\.$"),
        (
            {"features": {"pca": {"component": 3}}},
            r"^features\.pca\.component is unknown \(did you mean components\?\)\.$",
        ),
        ({"regression": {"alhpa": 3}}, r"^regression\.alhpa is unknown \(did you mean alpha\?\)\.$"),
        (
            {"features": {"pca": {}}, "regression": {"pca": {"alhpa": 3}}},
            r"^regression\.pca\.alhpa is unknown \(did you mean alpha\?\)\.$",
        ),
        (
            {"features": {"pca": {}}, "regression": {"alhpa": 3, "pca": {"alpha": 3}}},
            r"^regression\.alhpa is unknown \(did you mean alpha\?\)\.$",
        ),
        ({"regression": {"pac": {"alpha": 1}}}, r"not there \(did you mean pca\?\)\.$"),
        ({"dataset": {"kind": "array"}}, r"^dataset\.kind = 'array' is unknown \(did you mean arrays\?\)\.$"),
        ({"regression": 5}, r"^regression is not a table, as in \[regression\]\.$"),
        ({"dataset": "betas.npy"}, r"^dataset is not a table, as in \[dataset\]\.$"),
        ({"features": {"pca": 5}}, r"^features\.pca is not a table, as in \[features\.pca\]\.$"),
        ({"device": "gpu"}, r"^device = 'gpu': input should be 'auto'"),
        ({"features": {"../up": {"kind": "pca"}}}, r"^features\.\.\./up is not a name"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_known_name(tables, hint):
    with pytest.raises(SettingsError, match=hint):
        check_settings({"dataset": DATASET} | tables)


def test_a_missing_dataset_is_asked_for():
    with pytest.raises(
        SettingsError, match=r"there is no \[dataset\]\. Expected a table with a kind: algonauts, arrays"
    ):
        check_settings({})


# Files, recipes and --set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2.0),
        ("1e4", 10_000.0),
        ("2.5", 2.5),
        ('"loo"', "loo"),
        ("loo", "loo"),
    ],
)
def test_numbers_and_words_are_set(tmp_path, text, value):
    settings, _ = read_settings(write(tmp_path / "s.toml", {"dataset": DATASET}), [f"regression.alpha={text}"])
    assert settings.regression["pca"].alpha == value


def test_any_setting_can_be_set(tmp_path):
    path = write(tmp_path / "s.toml", {"dataset": DATASET, "features": {"pca": {}}})
    settings, _ = read_settings(
        path,
        [
            "dataset.image_shape=[28, 28]",
            "dataset.stimuli=C:\\data\\images = 3.npy:key",
            "features.pixels.size = original",
            "regression.pca.alphas=[1, 10.0]",
            "regression.standardize=false",
            "seed=3",
            "stores.chunk=1MB",
        ],
        memory="2GB",
    )
    assert settings.dataset.image_shape == [28, 28]
    assert settings.dataset.stimuli == "C:\\data\\images = 3.npy:key"
    assert set(settings.features) == {"pca", "pixels"}
    assert settings.regression["pca"].alphas == [1.0, 10.0]
    assert settings.regression["pixels"].standardize is False
    assert (settings.general.seed, settings.general.memory, settings.stores.chunk) == (3, "2GB", "1MB")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("regression.alpha", r"^--set regression\.alpha\. Expected section\.key=value\.$"),
        ("=3", r"^--set =3\. Expected section\.key=value\.$"),
        ("regression..alpha=3", r"Expected section\.key=value"),
        ("dataset.betas.x=3", r"^--set dataset\.betas\.x=3: betas is a value, not a table\.$"),
        ("regression.alhpa=3", r"regression\.alhpa is unknown \(did you mean alpha\?\)"),
        ("regresion.alpha=3", r"regresion is unknown \(did you mean regression\?\)"),
        ("features.pac.components=3", r"features\.pac: 'pac' is not a feature space \(did you mean pca\?\)"),
        ("seed=", r"seed = '': "),
    ],
)
def test_wrong_overrides_are_refused(tmp_path, override, problem):
    path = write(tmp_path / "s.toml", {"dataset": DATASET})
    with pytest.raises(SettingsError, match=problem):
        read_settings(path, [override])


def test_a_file_that_is_no_toml_is_refused_with_its_place(tmp_path):
    (tmp_path / "s.toml").write_text("[dataset]\nbetas = betas.npy\n")
    with pytest.raises(SettingsError, match=r"s\.toml is not valid TOML: .*line 2"):
        read_settings(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"s\.toml is not valid TOML"):
        read_settings(tmp_path / "s.toml")


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(
        SettingsError, match=r"digit69 is neither a settings file nor a recipe \(did you mean digits69\?\)"
    ):
        read_settings("digit69")


def test_the_folder_of_a_study_stands_for_its_settings(tmp_path):
    path = write(tmp_path / "study.toml", {"dataset": DATASET})
    assert find_settings(tmp_path) == path
    with pytest.raises(SettingsError, match="is neither a settings file nor a recipe"):
        find_settings(tmp_path.parent)


def test_every_recipe_is_described_and_valid():
    known = recipes()
    assert "digits69" in known
    for name, path in known.items():
        assert path.read_text(encoding="utf-8").startswith("# "), "the first line says what it is"
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        needed = ["dataset.path=file.mat"] if ":" in str(tables["dataset"].get("betas_train")) else []
        settings, _ = read_settings(name, needed)
        assert settings.tables() == check_settings(settings.tables()).tables()


def test_false_leaves_out_what_is_there(tmp_path):
    path = write(tmp_path / "a.toml", {"dataset": DATASET, "features": {"pca": {}, "pixels": {}}, "seed": 3})
    settings, _ = read_settings(path, ["features.pixels=false", "seed=false"])
    assert (list(settings.features), settings.general.seed) == (["pca"], 0)
    with pytest.raises(SettingsError, match="features.pixels is not a table"):
        read_settings(write(path, {"dataset": DATASET}), ["features.pixels=false"])
    assert not read_settings(path, ["regression.standardize=false"])[0].regression["pca"].standardize


def test_nsd_can_be_run_without_a_generator():
    whole, _ = read_settings("nsd")
    assert (whole.refine.kind, whole.refine.steps, whole.refine.text) == ("lcm", 4, "clip")
    settings, _ = read_settings("nsd", ["refine=false", "features.clip=false", "dataset.captions=false"])
    assert settings.refine.kind == "none"
    assert list(settings.features) == ["vdvae"]
    assert settings.dataset.captions is None


@pytest.mark.parametrize(
    ("refine", "said"),
    [
        (
            {"guidance": 3.0, "text": "pca"},
            "refine.guidance = 3 needs refine.negative, .* the feature space pca has none",
        ),
        ({"guidance": 3.0, "text": "pca", "negative": "nothing.npy"}, None),
        ({"guidance": 3.0, "text": "clip-text"}, None),
        ({"kind": "versatile", "text": "clip-text", "vision": "pca"}, "needs refine.negative_vision"),
        ({"kind": "versatile", "text": "clip-text", "vision": "clap"}, "refine.vision = 'clap' is not a feature space"),
    ],
)
def test_guidance_needs_an_unconditional_embedding(refine, said):
    spaces = {"pca": {}, "clip-text": {"model": "a", "form": "sd15"}}
    tables = {"dataset": DATASET, "features": spaces, "refine": {"kind": "ddim", "base": "b"} | refine}
    if said is None:
        assert check_settings(tables).refine.guidance == 3
        return
    with pytest.raises(SettingsError, match=said):
        check_settings(tables)


def test_settings_are_checked_without_the_libraries_that_stages_need():
    command = "import sys, leanrecon.study.settings; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout.split()
    assert {"torch", "sklearn", "scipy", "h5py", "PIL"}.isdisjoint(loaded)


def test_kinds_of_regression_may_differ_between_spaces():
    tables = {"dataset": {"kind": "simulated"}, "features": {"pca": {}, "pixels": {}}}
    for regression, chosen in (
        ({"kind": "mlp", "epochs": 7, "standardize": False, "pixels": {"kind": "ridge", "alpha": 3}}, ("mlp", "ridge")),
        ({"epochs": 7, "standardize": False, "alpha": 3, "pca": {"kind": "mlp", "alpha": "loo"}}, ("mlp", "ridge")),
        ({"kind": "mlp", "epochs": 7, "standardize": False, "pixels": {"alpha": 3}}, ("mlp", "mlp")),
    ):
        settings = check_settings(tables | {"regression": regression})
        pca, pixels = settings.regression["pca"], settings.regression["pixels"]
        assert (pca.kind, pixels.kind) == chosen
        assert (pca.epochs, pca.alpha, pixels.alpha) == (7, "loo", 3.0)
        assert pca.standardize is pixels.standardize is False
        assert check_settings(settings.tables()) == settings  # as study.toml is read again


@pytest.mark.parametrize(
    ("regression", "found"),
    [
        ({"kind": "mpl"}, r"^regression\.kind = 'mpl' is unknown \(did you mean mlp\?\)\.$"),
        ({"pca": {"kind": "mpl"}}, r"^regression\.pca\.kind = 'mpl' is unknown \(did you mean mlp\?\)\.$"),
        ({"kind": "mlp", "epoch": 3}, r"^regression\.epoch is unknown \(did you mean epochs\?\)\.$"),
        ({"epochs": 3}, r"^regression\.epochs is unknown"),
        ({"pca": {"kind": "mlp", "hiden": 3}}, r"^regression\.pca\.hiden is unknown \(did you mean hidden\?\)\.$"),
        ({"kind": "mlp", "hidden": 1.5}, r"^regression\.hidden = 1\.5: input should be a valid integer"),
        ({"kind": "mlp", "pca": {"head": "full"}}, r'^regression\.pca: skip = "ridge" needs head = "pca"'),
    ],
)
def test_what_a_network_does_not_know_is_refused(regression, found):
    tables = {"dataset": {"kind": "simulated"}, "features": {"pca": {}}, "regression": regression}
    with pytest.raises(SettingsError, match=found):
        check_settings(tables)


# Numbers

SHARED = {
    "general": GeneralSettings,
    "stores": StoresSettings,
    "stage1": StageOneSettings,
    "evaluate": EvaluateSettings,
}


def every_field():
    """Every setting that holds a number or a truth value, as a model of its own: those of all kinds."""
    models = dict(SHARED)
    for group in kinds.GROUPS:
        models |= {f"{group}.{name}": kinds.get(group, name).Settings for name in kinds.names(group)}
    for name, model in models.items():
        for field, info in model.model_fields.items():
            held = set(re.findall(r"\b(int|float|bool)\b", str(info.annotation)))
            if held:
                yield f"{name}.{field}", held, create_model("One", value=(info.annotation, info))


FIELDS = list(every_field())


def taken(model, value):
    try:
        return validate(model, {"value": value}, "").value
    except SettingsError:
        return None


def test_settings_of_every_kind_are_tried():
    assert len(FIELDS) > 200
    assert {held for _, of, _ in FIELDS for held in of} == {"int", "float", "bool"}


@pytest.mark.parametrize("value", [True, False, np.True_, "1", "0.5", "nan", [True], ["1"], [True, True, True]])
def test_truth_values_and_texts_are_no_numbers(value):
    part = value[0] if isinstance(value, list) else value
    for name, held, model in FIELDS:
        found = taken(model, value)
        if isinstance(part, str) or "bool" not in held:
            assert found is None, name
        else:
            assert found is None or isinstance(found, bool), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("inf"), [math.nan], [math.inf] * 3])
def test_numbers_are_finite(value):
    for name, _, model in FIELDS:
        assert taken(model, value) is None, name


@pytest.mark.parametrize("value", [0, 1, 1.0, "yes", "true", "off"])
def test_numbers_and_texts_are_no_truth_values(value):
    tried = [name for name, held, model in FIELDS if held == {"bool"} and taken(model, value) is not None]
    assert tried == []
    assert sum(held == {"bool"} for _, held, _ in FIELDS) > 20


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"seed": True}, "seed = true: a number is expected, not true or false"),
        ({"seed": "1"}, "seed = '1': a number is expected, without quotation marks"),
        (
            {"evaluate": {"permutations": False}},
            "evaluate.permutations = false: a number is expected, not true or false",
        ),
        ({"features": {"pca": {"components": False}}}, "features.pca.components = false: "),
        (
            {"dataset": {"kind": "simulated", "n_train": False}},
            "dataset.n_train = false: a number is expected, not true",
        ),
        ({"dataset": {"kind": "simulated", "noise": math.inf}}, "dataset.noise = inf: a finite number is expected"),
        ({"dataset": {"kind": "nsd", "sessions": [True]}}, "dataset.sessions = [True]: a number is expected, not true"),
        ({"regression": {"standardize": 1}}, "regression.standardize = 1: true or false is expected"),
        ({"regression": {"standardize": "no"}}, "regression.standardize = 'no': true or false is expected"),
        ({"stage1": {"calibrate": {"kind": "linear", "alpha": True}}}, "alpha = true: a number is expected"),
        ({"regression": {"voxel_power": 1e300}}, "up to 16"),
        ({"regression": {"kind": "mlp", "blocks": 2**62}}, "less than or equal to 1000"),
        ({"stage1": {"calibrate": {"kind": "boost", "least_leaf": 2**62}}}, "less than or equal to 1000000"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_expected(tables, said):
    with pytest.raises(SettingsError, match=re.escape(said)):
        check_settings({"dataset": DATASET} | tables)


def test_integers_have_64_bits(tmp_path):
    assert read_tables({"dataset": DATASET, "seed": 2**63 - 1}, tmp_path)[0].general.seed == 2**63 - 1
    for value in (2**63, 10**400, -(2**63) - 1):
        with pytest.raises(SettingsError, match=r"seed is an integer of more than 64 bits"):
            read_tables({"dataset": DATASET, "seed": value}, tmp_path)


def test_tables_in_python_hold_paths_tuples_and_numbers_of_numpy(tmp_path):
    given = {
        "seed": np.int64(3),
        "dataset": {"betas": tmp_path / "b.npy", "stimuli": "i.npy", "test_fraction": np.float32(0.25)},
        "regression": {"alphas": np.array([1.0, 10.0]), "alpha": "loo", "standardize": np.True_},
        "stage1": {"size": (8, 16)},
    }
    settings, _ = read_tables(given, tmp_path)
    assert settings.general.seed == 3
    assert settings.dataset.betas == str(tmp_path / "b.npy")
    assert settings.dataset.test_fraction == 0.25
    assert settings.regression["pca"].alphas == [1.0, 10.0]
    assert settings.stage1.size == (8, 16)
    assert tomllib.loads(tomli_w.dumps(settings.tables()))["seed"] == 3
    with pytest.raises(SettingsError, match=r"dataset\.betas = array\(") as error:
        read_tables({"dataset": {"betas": np.zeros((100, 100))}}, tmp_path)
    assert len(str(error.value)) < 1000
