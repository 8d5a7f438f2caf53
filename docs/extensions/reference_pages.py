"""A Sphinx extension that writes the reference pages from the code: commands, settings, kinds and recipes.

The pages go to ``docs/reference/generated``; a page whose text is the same is left as it is.
"""

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer.main
from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.app import cli
from leanrecon.app.kinds import ABSENT, NEEDED, first_sentence, settings_of
from leanrecon.app.recipes import every
from leanrecon.study import settings
from leanrecon.study.recipes import recipes

GROUPS = {
    "datasets": ("Datasets", "dataset"),
    "features": ("Feature spaces", "features.NAME"),
    "regressors": ("Regressors", "regression"),
    "calibrations": ("Calibrations", "stage1.calibrate"),
    "alignments": ("Alignments", "dataset.alignment"),
    "decoders": ("Decoders", "decode"),
    "generators": ("Generators", "refine"),
    "judges": ("Judges", "judges.NAME"),
}


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / "reference" / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write(folder: Path) -> None:
    """Write all pages that have changed."""
    pages = {"cli": commands(), "settings": general(), "kinds": all_kinds(), "recipes": all_recipes()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in pages.items():
        text, path = "\n".join(lines) + "\n", folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# Commands


def commands() -> Iterator[str]:
    yield from ("# Command line", "", "`leanrecon COMMAND --help` (or `-h`) prints the same in a terminal.", "")
    group = typer.main.get_command(cli.app)
    assert hasattr(group, "commands")
    for name, command in group.commands.items():
        if not command.hidden:
            yield from _command(name, command)


def _command(name: str, command: click.Command) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not getattr(one, "hidden", False)]
    usage = " ".join([name, *(_argument(one) for one in arguments)])
    yield from (f"## `leanrecon {name}`", "", "```text", f"leanrecon {usage} [OPTIONS]", "```", "")
    for paragraph in inspect.cleandoc(command.help or "").replace("\f", "").split("\n\n"):
        yield from (_plain(paragraph), "")
    if arguments or options:
        yield from ("| | |", "|---|---|")
        for one in arguments:
            yield f"| `{one.name}` | {_plain(getattr(one, 'help', '') or '')} |"
        for one in options:
            names = ", ".join(f"`{text}`" for text in [*one.opts, *one.secondary_opts])
            yield f"| {names} | {_plain(getattr(one, 'help', '') or '')}{_default(one)} |"
        yield ""


def _argument(one: Any) -> str:
    shown = one.name.upper() + ("..." if one.nargs == -1 else "")
    return shown if one.required else f"[{shown}]"


def _default(one: Any) -> str:
    value = one.default
    if value in (None, False, (), []) or callable(value):
        return ""
    return f" Default: `{value}`."


# Settings


def general() -> Iterator[str]:
    yield from (
        "# Settings",
        "",
        "A study is described by one TOML file. Only `[dataset]` is needed. `leanrecon run` writes all settings, with",
        "every default, to `study.toml` in the study. `--set KEY=VALUE` overrides one, as in `--set regression.alpha=1000`.",
        "[](kinds) lists the settings of every kind.",
        "",
        "## Keys outside of any table",
        "",
        *_table(settings.GeneralSettings),
    )
    for name, model in inspect.getmembers(settings, inspect.isclass):
        if issubclass(model, BaseModel) and name != "GeneralSettings" and model.__module__ == settings.__name__:
            title = first_sentence(model).strip()
            if title.startswith("``["):
                yield from (f"## {title.replace('``', '`')}", "", *_table(model))


def all_kinds() -> Iterator[str]:
    yield from (
        "# Kinds and their settings",
        "",
        "A kind is one implementation of a part of the chain. Settings choose it by `kind`. `leanrecon kinds GROUP` prints",
        "the same for your installation, with the kinds of other packages.",
        "",
    )
    for group, (title, table) in GROUPS.items():
        names = sorted(kinds.BUILT_IN.get(group, {}))
        if not names:
            continue
        yield from (f"## {title}", "", f"In the table `[{table}]`.", "")
        for name in names:
            kind = kinds.get(group, name)
            yield from (f"### {name}", "", _plain(_told(kind)), "", *_table(kind.Settings))


def _told(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0]


def _table(model: type[BaseModel]) -> Iterator[str]:
    rows = settings_of(model)
    if not rows:
        yield from ("No settings.", "")
        return
    yield from ("| setting | type | default | |", "|---|---|---|---|")
    for key, values, default, sentence in rows:
        yield f"| `{key}` | {_values(values)} | {_short(default)} | {_plain(sentence)} |"
    yield ""


def _values(values: str) -> str:
    """A type, or the values that a setting may have, these as code."""
    return re.sub(r'"[^"]*"', r"`\g<0>`", values)


def _short(default: str) -> str:
    if default in (NEEDED, ABSENT):
        return default.strip("()")
    return "a table" if default.startswith("{") else f"`{default}`" if len(default) <= 60 else "a list"


# Recipes


def all_recipes() -> Iterator[str]:
    yield from (
        "# Recipes",
        "",
        "A recipe is a settings file that comes with leanrecon. `leanrecon run NAME` runs it; `--set` and a settings file of",
        "your own change it. `leanrecon plan NAME` tells bytes and memory on your machine, `leanrecon fetch-weights NAME`",
        "downloads what it names.",
        "",
    )
    told = {one.name: one for one in every()}
    for name, path in recipes().items():
        text = path.read_text(encoding="utf-8")
        head = re.match(r"((?:#.*\n)+)", text)
        about = [line.removeprefix("#").removeprefix(" ") for line in head[1].splitlines()] if head else []
        tables = tomllib.loads(text)
        used = [f"`{section}`" for section in settings.SECTIONS if section in tables]
        yield from (f"## {name}", "", *_prose(about), "", f"| paper | {_plain(told[name].paper)} |", "|---|---|")
        yield from (f"| {key} | {_plain(fact)} |" for key, fact in told[name].facts().items())
        yield from ("", f"Tables: {', '.join(used)}.", "")
        yield from ("```toml", text[head.end() if head else 0 :].strip(), "```", "")


def _prose(lines: list[str]) -> Iterator[str]:
    """The comment at the top of a recipe, its indented lines as code."""
    code = False
    for line in lines:
        indented = line.startswith("  ")
        if indented and not code:
            yield from ("", "```text")
        if code and not indented:
            yield from ("```", "")
        code = indented
        yield line[2:] if indented else _plain(line)
    if code:
        yield "```"


def _plain(text: str) -> str:
    """Text of a docstring for a table of Markdown: one line, nothing that is read as markup."""
    text = re.sub(r"``([^`]+)``", r"`\1`", " ".join(text.split()))
    outside = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace("|", "\\|") if part.startswith("`") else re.sub(r"([*_\[\]<>|$])", r"\\\1", part)
        for part in outside
    )
