"""The settings of the regressor ``stack``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator

from leanrecon import kinds
from leanrecon.errors import SettingsError


class StackSettings(BaseModel):
    """Several regressors to the rows of a feature space, combined (Wolpert 1992; Breiman 1996, stacked regressions)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["stack"] = "stack"
    """Several regressors, combined by non-negative weights."""
    members: Annotated[list[SerializeAsAny[BaseModel]], Field(min_length=2, max_length=16)]
    """The regressors that are combined: a table of settings each, as in [{kind = "ridge"}, {kind = "mlp"}]."""
    folds: Annotated[int, Field(strict=True, ge=2)] = 5
    """Folds of the train rows whose predictions the weights are learned from."""
    block: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Number of neighbouring targets that share weights; absent: all targets do."""

    @field_validator("members", mode="before")
    @classmethod
    def _of_their_kinds(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [
            member
            if isinstance(member, BaseModel)
            else kinds.settings_of("regressors", _table(member, k), f"members[{k}].", default="ridge")
            for k, member in enumerate(value)
        ]


def _table(member: Any, k: int) -> Mapping[str, Any]:
    if not isinstance(member, Mapping):
        raise SettingsError(f"members[{k}] is not a table", expected='one with a kind, as in {kind = "ridge"}')
    return member
