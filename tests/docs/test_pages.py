"""The pages in docs/ and the README: what they show is what is there."""

import re
import tomllib
from pathlib import Path

import pytest
from sync_docs import shown, synced

ROOT = Path(__file__).parents[2]
DOCS = sorted(page for page in ROOT.glob("docs/**/*.md") if "generated" not in page.parts)
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, *ROOT.glob("colab/*.md"), *ROOT.glob("tests/*/README.md")])
GENERATED = ("cli", "settings", "kinds", "recipes")
EXAMPLES = ROOT / "tests" / "example_package" / "leanrecon_example"

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]+))?\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = [target for target, _ in _LINK.findall(page.read_text(encoding="utf-8"))]
    assert [target for target in links if not leads(page, target)] == []


def leads(page: Path, target: str) -> bool:
    """Whether a link leads to a file, to a page that it names without its ending, or to a page of the reference."""
    path = page.parent / target
    made = path.parent.name == "generated" and path.name in GENERATED
    return made or path.exists() or (page in DOCS and path.with_name(f"{path.name}.md").exists())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_blocks_show_the_files_as_they_are(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert synced(text) == text, f"run python scripts/sync_docs.py {name_of(page)}"


def test_add_a_kind_shows_every_example() -> None:
    page = (ROOT / "docs" / "add-a-kind.md").read_text(encoding="utf-8")
    files = {path.relative_to(ROOT).as_posix() for path in EXAMPLES.glob("*.py") if path.stem != "__init__"}
    assert set(shown(page)) == files


@pytest.mark.parametrize("drawing", sorted((ROOT / "docs").glob("*.svg")), ids=name_of)
def test_drawings_have_a_title_and_colours_for_dark_pages(drawing: Path) -> None:
    text = drawing.read_text(encoding="utf-8")
    assert "<title" in text
    assert "prefers-color-scheme: dark" in text


def test_toml_blocks_are_toml() -> None:
    for page in PAGES:
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            tomllib.loads(block)


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{name}.md" for name in ("choose", "areas", "generators", "networks"))]
)
def test_settings_that_a_page_shows_are_accepted(page: str) -> None:
    """Each block, beside a dataset where it has none of its own."""
    from leanrecon.study.settings import check_settings

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        check_settings({"dataset": {"kind": "simulated"}} | tomllib.loads(block))


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_reference_pages_name_every_command_setting_kind_and_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.main import get_command

    from leanrecon import kinds
    from leanrecon.app.cli import app
    from leanrecon.study.recipes import recipes

    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    import reference_pages

    reference_pages.write(tmp_path)
    text = {name: (tmp_path / f"{name}.md").read_text(encoding="utf-8") for name in GENERATED}
    for command in get_command(app).commands:
        assert f"## `leanrecon {command}`" in text["cli"]
    for group, names in kinds.BUILT_IN.items():
        for name in names:
            assert f"### {name}\n" in text["kinds"]
            for key in kinds.get(group, name).Settings.model_fields:
                assert key == "kind" or f"| `{key}` |" in text["kinds"]
    for name in recipes():
        assert f"## {name}\n" in text["recipes"]


def test_code_cells_of_tutorials_are_python_and_their_commands_are_there() -> None:
    """The cells run when the site is built (`sphinx-build -W docs build/docs`)."""
    from typer.main import get_command

    from leanrecon.app.cli import app

    commands = set(get_command(app).commands)
    for page in (ROOT / "docs" / "tutorials").glob("*.md"):
        cells = re.findall(
            r"```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        )
        assert cells or page.stem == "index"
        for cell in cells:
            if cell.startswith("%%bash\n"):  # unlike "!", it fails where its last command does
                assert set(re.findall(r"^leanrecon ([\w-]+)", cell, re.MULTILINE)) <= commands
            else:
                compile(cell, str(page), "exec")


def test_links_of_a_site_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    from check_links import broken

    (tmp_path / "folder").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">A</h1><a href="folder/">b</a><a href="folder/index.html#end">c</a><a href="#top">d</a>'
        '<a href="https://example.org/nothing">e</a><a href="gone.html">f</a><a href="#nowhere">g</a><img src="no.png">'
    )
    (tmp_path / "folder" / "index.html").write_text('<p id="end"><a href="../index.html#gone">h</a></p>')
    assert [(page.as_posix(), link) for page, link in broken(tmp_path)] == [
        ("folder/index.html", "../index.html#gone"),
        ("index.html", "gone.html"),
        ("index.html", "#nowhere"),
        ("index.html", "no.png"),
    ]


def test_pieces_of_what_a_command_printed_are_joined_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "extensions"))
    from whole_streams import joined

    pieces = [("stdout", "a wo"), ("stderr", "said"), ("stdout", "rd\nand"), ("stdout", " more\n")]
    outputs = [{"output_type": "stream", "name": name, "text": text} for name, text in pieces]
    picture = {"output_type": "display_data", "data": {}}
    assert joined([*outputs, picture]) == [
        {"output_type": "stream", "name": "stdout", "text": "a word\nand more\n"},
        {"output_type": "stream", "name": "stderr", "text": "said"},
        picture,
    ]
