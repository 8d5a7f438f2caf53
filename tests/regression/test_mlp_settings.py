"""Settings of networks: typed once, explained, and the same from Python and from a settings file."""

import inspect
import subprocess
import sys

import pytest
from sklearn.base import clone

from leanrecon.errors import SettingsError
from leanrecon.regression.mlp.mlp import StreamingMLP
from leanrecon.regression.mlp.settings import MLPSettings


def test_the_estimator_and_the_settings_file_have_the_same_parameters_and_defaults():
    defaults = MLPSettings().model_dump(exclude={"kind"})
    parameters = inspect.signature(StreamingMLP).parameters
    assert {name: parameters[name].default for name in defaults} == defaults
    assert {name: value for name, value in StreamingMLP().get_params().items() if name in defaults} == defaults
    own = {"budget", "seed", "scratch", "device", "folder", "overwrite", "progress", "label"}
    assert set(parameters) == set(defaults) | own


def test_every_setting_is_explained_in_one_sentence():
    for name, field in MLPSettings.model_fields.items():
        text = field.description or ""
        assert text.endswith("."), name
        assert 2 <= len(text.split()) <= 25, name
        assert name == "kind" or text in StreamingMLP.__doc__


def test_parameters_are_kept_untouched_cloned_and_changed():
    alphas = (1.0, 10.0)
    mlp = StreamingMLP(hidden=7, alphas=alphas, seed=3)
    assert mlp.hidden == 7
    assert mlp.alphas is alphas
    other = clone(mlp)
    assert other.get_params() == mlp.get_params()
    assert other.set_params(hidden=9).hidden == 9
    assert mlp.hidden == 7


def test_unknown_parameters_are_refused_with_the_nearest_known_one():
    with pytest.raises(SettingsError, match=r"StreamingMLP has no parameter 'hiden' \(did you mean hidden\?\)"):
        StreamingMLP(hiden=7)
    with pytest.raises(SettingsError, match="StreamingMLP has no parameter 'hiden'"):
        StreamingMLP().set_params(hiden=7)


def test_refusals_of_pairs_of_settings_say_what_to_set():
    with pytest.raises(ValueError, match='with head = "full", set skip = "none" and inputs = "betas"'):
        MLPSettings(head="full")
    with pytest.raises(ValueError, match='with skip = "none", set inputs = "betas"'):
        MLPSettings(skip="none")


PLANNING = """
import sys
from leanrecon.regression.mlp.regressor import MLPRegressor, MLPSettings
from leanrecon.regression.regressor import RegressionShapes
shapes = RegressionShapes(n=8859, p=15_724, m=982, s=8859, t=91_168, x_block=7872, y_block=7872)
MLPRegressor(MLPSettings()).plan(shapes, 8_000_000_000)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_planning_imports_no_heavy_library():
    done = subprocess.run([sys.executable, "-c", PLANNING], check=True, capture_output=True, text=True)
    assert not {"torch", "zarr", "scipy", "sklearn", "accelerate"} & set(done.stdout.split())
