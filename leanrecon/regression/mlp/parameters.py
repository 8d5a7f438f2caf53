"""Parameters of an estimator that are the fields of a settings model, which types, describes and checks them."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

Estimator = TypeVar("Estimator", bound=type)


def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """Names and defaults of the fields of a settings model, without ``kind``."""
    return {name: field.default for name, field in model.model_fields.items() if name != "kind"}


def parameters_from(model: type[BaseModel]) -> Callable[[Estimator], Estimator]:
    """Give the signature and the docstring of an estimator the fields of a settings model.

    The estimator's ``__init__`` takes them as its last argument, ``**settings``. scikit-learn reads the signature.
    """

    def decorate(estimator: Estimator) -> Estimator:
        init: Any = estimator.__init__  # type: ignore[misc]
        own = list(inspect.signature(init).parameters.values())[:-1]
        fields = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_annotation(model, name)
            )
            for name, default in defaults_of(model).items()
        ]
        init.__signature__ = inspect.Signature([own[0], *fields, *own[1:]], return_annotation=None)
        listed = "\n".join(
            f"    {name} : {default!r} by default\n        {model.model_fields[name].description}"
            for name, default in defaults_of(model).items()
        )
        estimator.__doc__ = inspect.cleandoc(estimator.__doc__ or "").replace("{settings}", inspect.cleandoc(listed))
        return estimator

    return decorate


def _annotation(model: type[BaseModel], name: str) -> Any:
    return model.model_fields[name].annotation
