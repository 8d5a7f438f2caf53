"""Help: every command answers to -h, and its examples are commands that exist with options that exist."""

import re
import shlex

import pytest
import typer.main
from typer.testing import CliRunner

from leanrecon.app import cli

GROUP = typer.main.get_command(cli.app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]


def examples(name: str) -> list[str]:
    found = re.search(r"Examples?: (.+)", " ".join((COMMANDS[name].help or "").split()))
    assert found, f"{name} has no example"
    return re.split(r"; | && ", found[1])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_answers_to_h_with_examples_that_it_takes(name: str) -> None:
    shown = CliRunner().invoke(cli.app, [name, "-h"])
    assert shown.exit_code == 0
    assert "Example" in shown.output
    for example in examples(name):
        program, command, *rest = shlex.split(example.partition(" > ")[0])
        assert program == "leanrecon"
        COMMANDS[command].make_context(command, rest)  # refuses unknown options and missing arguments


def test_the_program_answers_to_h() -> None:
    shown = CliRunner().invoke(cli.app, ["-h"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in COMMANDS)
