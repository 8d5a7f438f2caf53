"""``leanrecon kinds``: kinds with their settings, as a settings file takes them."""

import tomllib

import pytest
from pydantic import TypeAdapter

from leanrecon import kinds
from leanrecon.app.kinds import ABSENT, NEEDED, settings_of, show
from leanrecon.errors import SettingsError


def test_a_kind_is_shown_by_its_name_alone_in_every_group_that_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    show("none")
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if not line.startswith(" ")]
    assert headings == [group for group in kinds.GROUPS if "none" in kinds.entries(group)]
    assert len(headings) == 3


def test_settings_are_shown_with_the_values_that_they_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    show("regressors", "ridge")
    out = capsys.readouterr().out
    assert '      kernel = "linear"  ("linear", "rbf", "auto") Kernel of betas' in out
    assert "      standardize = true  (true or false) Whether voxels" in out
    assert "      alphas = (absent)  (list of number) Alphas" in out
    assert "mlp" not in out


@pytest.mark.parametrize("group", kinds.GROUPS)
def test_defaults_are_toml_and_every_setting_says_what_it_is(group: str) -> None:
    for name in kinds.BUILT_IN[group]:
        for key, values, default, sentence in settings_of(kinds.get(group, name).Settings):
            assert values
            assert sentence.endswith("."), (name, key)
            assert "``" not in sentence, (name, key)
            if default in (NEEDED, ABSENT):
                continue
            field = kinds.get(group, name).Settings.model_fields[key]
            read = tomllib.loads(f"{key} = {default}")[key]
            if not isinstance(read, dict):  # tables are validated by the kind that they name
                read = TypeAdapter(field.annotation).validate_python(read)
            assert read == field.get_default(call_default_factory=True), (name, key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ridg",), r"ridg is not a group of kinds, nor a kind \(did you mean ridge\?\)"),
        (("features", "ridge"), r"'ridge' is not a feature space \(known: autokl, "),
    ],
)
def test_an_unknown_name_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        show(*words)
