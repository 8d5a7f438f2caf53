"""The type of settings that name weights: a path, or a name on the Hugging Face Hub or among fetched files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel


@dataclass(frozen=True)
class NamesWeights:
    """Marks a field of a settings model whose value names weights."""


WeightsName = Annotated[str, NamesWeights()]
"""A setting that names weights; paths are resolved from the current folder, the settings file, then the caches."""


def weight_fields(model: type[BaseModel]) -> Iterator[str]:
    """The names of the fields of a settings model that name weights."""
    for name, field in model.model_fields.items():
        if any(isinstance(mark, NamesWeights) for mark in field.metadata):
            yield name
