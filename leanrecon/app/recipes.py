"""What is said of recipes: the paper, the data, the weights with bytes and licences, and what was reported with each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanrecon.app.demos import demos
from leanrecon.memory import format_bytes
from leanrecon.study.needs import needed
from leanrecon.study.recipes import RECIPES, find_recipe, read_tables, read_toml, recipes
from leanrecon.weights.packaged import is_packaged

ABOUT = RECIPES / "about" / "recipes.toml"


@dataclass(frozen=True)
class About:
    """One recipe."""

    name: str
    paper: str
    data: str
    weights: str
    reported: str
    demo: bool

    def line(self) -> str:
        """All of it on one line."""
        parts = [self.paper, f"data: {self.data}", f"weights: {self.weights}", f"reported: {self.reported}"]
        return f"{self.name:17}" + " · ".join(parts)


def every() -> Iterator[About]:
    """All recipes that come with leanrecon."""
    table, shown = read_toml(ABOUT), demos()
    for name, path in recipes().items():
        own = table[name]
        yield About(name, own["paper"], own["data"], _weights(path, table["weights"]), own["reported"], name in shown)


def text_of(name: str) -> str:
    """A recipe as it is, to be copied; raises SettingsError for an unknown name."""
    return find_recipe(name).read_text(encoding="utf-8")


def _weights(path: Path, known: dict[str, Any]) -> str:
    """The published weights that a recipe needs, each with its bytes and licence."""
    tables = read_toml(path)
    captions = tables["dataset"].get("captions")
    settings, _ = read_tables({**tables, "dataset": {"kind": "simulated"}}, RECIPES)  # its own may name no file yet
    names = [*([captions] if captions else ()), *(need.name for need in needed(settings))]
    if not names:
        return "none"
    parts = []
    for name in names:
        if is_packaged(name):
            continue
        own = known.get(_published(name, known), {})
        size = format_bytes(own["bytes"]) if "bytes" in own else ""
        told = ", ".join(filter(None, (size, own.get("licence", "licence not looked up"))))
        parts.append(f"{own.get('name', name)} ({told})")
    return ", ".join(parts) or "come with leanrecon"


def _published(name: str, known: dict[str, Any]) -> str:
    """The published name of weights; of a file that was fetched, that of the file."""
    return name if name in known else Path(name).name
