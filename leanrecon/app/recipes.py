"""What is said of recipes: paper, data, weights with bytes and licences, memory and time, and what was reported with each."""

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
    memory: str
    time: str
    reported: str
    demo: bool

    def facts(self) -> dict[str, str]:
        """All of it but the paper, by its heading."""
        return {key: getattr(self, key) for key in ("data", "weights", "memory", "time", "reported")}

    def lines(self) -> list[str]:
        """Its name and paper, then a line for each fact."""
        return [f"{self.name}: {self.paper}", *(f"  {key:9} {told}" for key, told in self.facts().items())]


def every() -> Iterator[About]:
    """All recipes that come with leanrecon."""
    table, shown = read_toml(ABOUT), demos()
    for name, path in recipes().items():
        own = table[name]
        yield About(
            name,
            own["paper"],
            own["data"],
            _weights(path, table["weights"]),
            own.get("memory", f"`leanrecon plan {name}` tells it, once the data are there"),
            own.get("time", "not known"),
            own["reported"],
            name in shown,
        )


def text_of(name: str) -> str:
    """A recipe to be copied: what is said of it as comments, then its file; raises SettingsError for an unknown name."""
    text = find_recipe(name).read_text(encoding="utf-8")
    (own,) = (one for one in every() if one.name == name)
    return "".join(f"# {key}: {told}\n" for key, told in {"paper": own.paper, **own.facts()}.items()) + "\n" + text


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
