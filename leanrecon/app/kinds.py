"""The kinds that are installed, listed in the terminal."""

import inspect
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from leanrecon import kinds
from leanrecon.app.toml import sentence_of, type_of, written
from leanrecon.errors import SettingsError, plain
from leanrecon.validation import nearest

NEEDED, ABSENT = "(needed)", "(absent)"
"""What is shown in place of a default: a setting that must be set, and one that is left out."""


def show(group: str | None = None, name: str | None = None) -> None:
    """Print groups, kinds, their settings with types, defaults and one sentence each, and who provides them.

    A kind's name alone, in place of a group's, stands for the kinds of that name in every group. Raises SettingsError
    for an unknown group or kind.
    """
    groups = kinds.GROUPS if group is None else (group,)
    if group is not None and group not in kinds.GROUPS:
        groups, name = tuple(one for one in kinds.GROUPS if name is None and group in kinds.entries(one)), name or group
    if not groups:
        known = {*kinds.GROUPS, *(kind for one in kinds.GROUPS for kind in kinds.entries(one))}
        raise SettingsError(
            f"{group} is not a group of kinds, nor a kind ({nearest(str(group), known)})", todo="see `leanrecon kinds`"
        )
    console = Console(highlight=False, soft_wrap=True)
    for one in groups:
        if name is not None:
            kinds.get(one, name)  # an unknown or broken kind that was asked for is an error
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
        for key, values, default, sentence in settings_of(kind.Settings):
            console.print(f"      {escape(f'{key} = {default}')}  [dim]{escape(f'({values}) {sentence}')}[/dim]")


def first_sentence(kind: Any) -> str:
    """The first line of a class's own docstring."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]


def settings_of(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    """The keys of a settings model, each with its type and default as TOML writes them, and what it means."""
    rows = []
    for key, field in model.model_fields.items():
        if key == "kind":
            continue
        default = NEEDED if field.is_required() else field.get_default(call_default_factory=True)
        shown = default if default is NEEDED else ABSENT if default is None else written(default)
        rows.append((key, type_of(field.annotation), shown, sentence_of(field)))
    return rows
