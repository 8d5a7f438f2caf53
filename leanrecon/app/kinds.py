"""The kinds that are installed, listed in the terminal."""

import inspect
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape

from leanrecon import kinds
from leanrecon.app.as_toml import as_toml, sentence_of
from leanrecon.errors import SettingsError, plain
from leanrecon.validation import nearest


def show(group: str | None = None, name: str | None = None) -> None:
    """Print groups, kinds, their settings with defaults and one sentence each, and who provides them.

    Raises SettingsError for an unknown group or kind.
    """
    if group is not None and group not in kinds.GROUPS:
        raise SettingsError(f"{group} is not a group of kinds ({nearest(group, kinds.GROUPS)})")
    if group is not None and name is not None:
        kinds.get(group, name)  # an unknown or broken kind that was asked for is an error
    console = Console(highlight=False, soft_wrap=True)
    for one in kinds.GROUPS if group is None else (group,):
        console.print(f"[bold]{one}[/bold]")
        for entry in kinds.entries(one).values():
            if name in (None, entry.name):
                _show_kind(console, entry, with_settings=group is not None)
        for problem in kinds.clashes(one):
            console.print(f"  [red]not used[/red]  {escape(plain(problem))}")


def _show_kind(console: Console, entry: kinds.Entry, *, with_settings: bool) -> None:
    try:
        kind = kinds.get(entry.group, entry.name)
    except SettingsError as error:
        console.print(f"  {escape(plain(entry.name)):14} [red]broken[/red]  {escape(str(error))}")
        return
    provider = "" if entry.provider == kinds.SELF else f" [dim](by {escape(plain(entry.provider))})[/dim]"
    console.print(f"  {escape(plain(entry.name)):14} {escape(plain(first_sentence(kind)))}{provider}")
    if with_settings:
        for key, default, sentence in settings_of(kind.Settings):
            console.print(f"      {escape(f'{key} = {default}')}  [dim]{escape(sentence)}[/dim]")


def first_sentence(kind: Any) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def settings_of(model: type[BaseModel]) -> list[tuple[str, str, str]]:
    """The keys of a settings model, each with its default in TOML and what it means."""
    rows = []
    for key, field in model.model_fields.items():
        if key == "kind":
            continue
        default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
        shown = "(needed)" if default is PydanticUndefined else "(none)" if default is None else as_toml(default)
        rows.append((key, shown, sentence_of(field)))
    return rows
