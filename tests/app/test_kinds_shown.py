"""What `leanrecon kinds` prints can be copied into a settings file."""

import tomllib

import pytest
from pydantic import TypeAdapter

from leanrecon import kinds
from leanrecon.app.kinds import settings_of


@pytest.mark.parametrize("group", kinds.GROUPS)
def test_defaults_are_shown_as_toml_reads_them(group: str) -> None:
    for name in kinds.entries(group):
        model = kinds.get(group, name).Settings
        for key, shown, sentence in settings_of(model):
            assert "``" not in sentence, (name, key)
            if shown in ("(needed)", "(none)"):
                continue
            field = model.model_fields[key]
            read = tomllib.loads(f"{key} = {shown}")[key]
            if not isinstance(read, dict):  # tables are validated by the kind that they name
                read = TypeAdapter(field.annotation).validate_python(read)
            assert read == field.get_default(call_default_factory=True), (name, key)
