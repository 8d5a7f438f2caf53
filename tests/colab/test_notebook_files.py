"""The notebooks as they lie in the repository: without output, and saying the same as badge, README and pyproject.toml."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from run_notebook import PARAMETER, set_parameters

from leanrecon.study.recipes import recipes

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
SVG = "https://colab.research.google.com/assets/colab-badge.svg"


def opened(name: str) -> str:
    """Where Colab opens a notebook of the repository."""
    return (
        REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
        + f"/blob/main/colab/{name}"
    )


def read(path: Path):
    return nbformat.read(path, as_version=4)


def source(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells)


def code(path: Path) -> str:
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")


def test_there_are_four_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "leanrecon.ipynb",
        "local_decoders.ipynb",
        "nifti.ipynb",
        "your_data.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_output(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [], f"{path.name} holds output: clear it before it is committed"
            assert cell.execution_count is None
            assert set(cell.metadata) == set()
    assert set(notebook.metadata) == {"colab", "kernelspec", "language_info"}


def test_badge_readme_notebooks_and_urls_agree() -> None:
    badges = rf"\[!\[[^]]*\]\({re.escape(SVG)}\)\]\(([^)]*)\)"
    for path in NOTEBOOKS:
        assert re.findall(badges, source(path)) == [opened(path.name)]
    urls = {url for name, url in PROJECT["urls"].items() if name.startswith("Notebook")}
    assert urls == {opened(path.name) for path in NOTEBOOKS}
    readme = (ROOT / "README.md").read_text()
    assert readme.index(SVG) < readme.index("## "), "the badge stands near the top"
    assert set(re.findall(badges, readme)) == {opened("leanrecon.ipynb")}
    everywhere = readme + (ROOT / "colab" / "README.md").read_text() + "".join(map(source, NOTEBOOKS))
    assert set(re.findall(r"https://colab\.research\.google\.com/github/\S+?\.ipynb", everywhere)) == {
        opened(path.name) for path in NOTEBOOKS
    }
    own = REPOSITORY.rpartition("/")[0]  # whatever else is linked of ours lies in that repository
    assert set(re.findall(rf"{own}/[^/\s)#\"]+", everywhere)) <= {REPOSITORY}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_leanrecon_comes_from_one_constant_which_is_the_repository_that_colab_opens(path: Path) -> None:
    assert re.findall(r'^LEANRECON_SOURCE = "([^"]*)"', code(path), re.MULTILINE) == [f"git+{REPOSITORY}"]
    install = (ROOT / "docs" / "install.md").read_text()
    assert f"{PROJECT['name']}[models] @ git+{REPOSITORY}" in install, "the same as the page tells"
    assert code(path).count('"install"') == 1
    assert not re.search(r"^\s*[!%]pip", code(path), re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_fields_are_plain_values_and_commands_are_there(path: Path) -> None:
    from typer.main import get_command

    from leanrecon.app.cli import app

    fields = [found for line in code(path).split("\n") if (found := PARAMETER.match(line))]
    assert code(path).count("# @param") == len(fields) == len({found["name"] for found in fields})
    for found in fields:
        ast.literal_eval(found["value"])
    commands = get_command(app).commands
    lines = [line.removeprefix("%leanrecon ") for line in code(path).split("\n") if line.startswith("%leanrecon ")]
    used = {shlex.split(line)[0] for line in lines} - {"--version"}
    assert used <= set(commands)
    called = set(re.findall(r"\bleanrecon\.(\w+)\(", code(path)))
    assert called <= {"plan", "run", "open"}
    assert {"plan", "run"} <= used | called
    for line in lines:
        options = {word for word in shlex.split(line) if word.startswith("--") and word != "--version"}
        known = {name for p in commands.get(shlex.split(line)[0], get_command(app)).params for name in p.opts}
        assert options <= known, line


def test_the_recipes_to_choose_are_there() -> None:
    (offered,) = re.findall(r"^RECIPE = .*# @param (\[.*?\])", code(ROOT / "colab" / "leanrecon.ipynb"), re.MULTILINE)
    assert set(ast.literal_eval(offered)) <= set(recipes())


def test_a_field_that_is_not_there_is_refused() -> None:
    notebook = read(NOTEBOOKS[0])
    set_parameters(notebook, {"WHAT": "nsd", "SESSIONS": "3", "ACCEPT_TERMS": "True", "MORE": '--set a.b="c d"'})
    text = "\n".join(cell.source for cell in notebook.cells)
    assert 'WHAT = "nsd"  # @param' in text
    assert "SESSIONS = 3  # @param" in text
    assert "ACCEPT_TERMS = True  # @param" in text
    assert 'MORE = "--set a.b=\\"c d\\""  # @param' in text
    with pytest.raises(SystemExit, match="WAHT"):
        set_parameters(read(NOTEBOOKS[0]), {"WAHT": "nsd"})


@pytest.mark.parametrize("name", ["README.md", "colab/README.md"])
def test_commands_of_the_readmes_are_there(name: str) -> None:
    """Each starts with a command and options that the command line knows."""
    from typer.main import get_command

    from leanrecon.app.cli import app

    commands = get_command(app).commands
    text = (ROOT / name).read_text()
    found = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.split("\n")]
    found += re.findall(r"`(leanrecon [^`]*)`", text)
    lines = [line.partition("#")[0] for part in found for line in part.split("&&")]
    lines = [line.strip().split() for line in lines if line.strip().startswith("leanrecon ")]
    assert lines
    for _, command, *words in lines:
        assert command in commands, command
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


@pytest.mark.slow
def test_scripts_of_the_readmes_are_there() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "colab" / "README.md").read_text()
    scripts = set(re.findall(r"scripts/\w+\.py", text))
    assert {"scripts/run_notebook.py", "scripts/simulate_nsd_run.py"} <= scripts
    for script in scripts:
        done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
