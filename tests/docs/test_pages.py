"""The pages in docs/ and the README: what they show is what is there."""

import re
import tomllib
from pathlib import Path

import pytest
from sync_docs import shown, synced

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("colab/*.md"), *ROOT.glob("tests/*/README.md")])
EXAMPLES = ROOT / "tests" / "example_package" / "leanrecon_example"

_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#([^)\s]+))?\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    broken = [
        target for target, _ in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()
    ]
    assert broken == []


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


def test_settings_in_the_readme_are_accepted() -> None:
    """Each block, beside a dataset where it has none of its own."""
    from leanrecon.study.settings import check_settings

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        check_settings({"dataset": {"kind": "simulated"}} | tomllib.loads(block))
