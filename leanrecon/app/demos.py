"""Demos of recipes: each recipe's own file, run at a small size on simulated data in the layout that it reads.

``recipes/demos/NAME.toml`` tells what is simulated and what is changed. All other settings are the recipe's.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanrecon.app.terminal import say, tell_end
from leanrecon.errors import BudgetError, SettingsError, StoreError
from leanrecon.memory import SPARE, MemoryBudget, format_bytes, give_back
from leanrecon.places.files import read_json, write_json
from leanrecon.places.hold import no_empty_folders
from leanrecon.progress import Progress
from leanrecon.study.needs import require_weights
from leanrecon.study.recipes import RECIPES, read_tables, read_toml, recipes
from leanrecon.study.settings import Settings
from leanrecon.validation import nearest

if TYPE_CHECKING:
    from leanrecon.study.layout import Study

FOLDER = RECIPES / "demos"

NETWORKS = "demo"
"""The recipe whose small networks come with leanrecon."""

WRITERS = {
    "bdpy": "leanrecon.datasets.layouts.bdpy_simulate:simulate_bdpy",
    "miyawaki": "leanrecon.datasets.layouts.miyawaki_simulate:simulate_miyawaki",
    "nsd": "leanrecon.datasets.nsd.simulate:simulate_nsd",
}
"""What writes a simulated subject, by its layout."""

MARK = "demo.json"
"""The file in a folder of simulated data that says how it was written, and whether wholly."""


@dataclass(frozen=True)
class Change:
    """A setting that a demo changes."""

    key: str
    now: Any
    """None where it is left out."""
    before: Any
    """What the recipe says; None where it leaves it to the default."""

    def text(self) -> str:
        was = "the recipe leaves it to its default" if self.before is None else f"the recipe: {_short(self.before)}"
        return f"{self.key} is left out ({was})" if self.now is None else f"{self.key} = {_short(self.now)} ({was})"


@dataclass(frozen=True)
class Demo:
    """A recipe at a small size, with its data in a folder."""

    name: str
    about: str
    """What was simulated, in a few words."""
    layout: str
    writes: dict[str, Any]
    """What the writer of the layout is given."""
    members: tuple[str, ...]
    """Names of studies that come first, up to their dataset."""
    member: dict[str, Any]
    """The settings of each; ``{member}`` stands for its name."""
    changes: dict[str, Any]
    """Tables over those of the recipe; ``{data}`` stands for the folder of the data."""
    networks: tuple[str, ...]
    """Keys that are taken from the recipe of the small networks; ``KEY = OTHER`` takes another one's value."""
    drop: tuple[str, ...]
    """Keys of the recipe that are left out."""

    @classmethod
    def of(cls, name: str) -> "Demo":
        """The demo of a recipe; raises SettingsError where there is none."""
        known = demos()
        if name not in known:
            raise SettingsError(f"there is no demo of {name} ({nearest(name, known)})", todo="see `leanrecon recipes`")
        table = read_toml(known[name])
        return cls(
            name,
            table["about"],
            table["layout"],
            table.get("write", {}),
            tuple(table.get("members", ())),
            table.get("member", {}),
            table.get("set", {}),
            tuple(table.get("networks", ())),
            tuple(table.get("drop", ())),
        )

    def tables(self, data: Path) -> dict[str, Any]:
        """The recipe's tables with all changes."""
        own = _merged(read_toml(recipes()[self.name]), _filled(self.changes, data=str(data)))
        small = read_toml(recipes()[NETWORKS])
        for line in self.networks:
            key, _, other = line.partition(" = ")
            own = _merged(own, _at(key, _value(small, other or key)))
        for key in self.drop:
            table, _, name = key.rpartition(".")
            del _value(own, table)[name]
        return own

    def changed(self, data: Path) -> Iterator[Change]:
        """What differs from the recipe, but for what the small networks need."""
        of_networks = tuple(line.partition(" = ")[0] for line in self.networks)
        before, now = (dict(_flat(tables)) for tables in (read_toml(recipes()[self.name]), self.tables(data)))
        for key in dict.fromkeys((*now, *before)):
            if before.get(key) != now.get(key) and not key.startswith(of_networks):
                yield Change(key, now.get(key), before.get(key))

    def settings(self, data: Path, sets: list[str] | None, memory: str | None) -> tuple[Settings, Path]:
        """The settings of the study, and the folder that their paths start from."""
        return read_tables(self.tables(data), RECIPES, sets or (), memory=memory)

    @property
    def mark(self) -> dict[str, Any]:
        """What the data's file ``MARK`` says, beside whether they are complete."""
        return {"recipe": self.name, "layout": self.layout, "write": self.writes}

    @contextlib.contextmanager
    def undone(self, data: Path, study: "Study") -> Iterator[None]:
        """Remove the data that the block wrote if it raises before the study has its dataset; other files stay."""
        marks = [{**self.mark, "complete": complete} for complete in (False, True)]
        there = read_json(data / MARK) == marks[True]
        with no_empty_folders(data.parent):
            try:
                yield
            except Exception:
                if not there and read_json(data / MARK) in marks and not study.rows.is_file():
                    shutil.rmtree(data)
                raise

    def prepare(self, data: Path, *, memory: str | None, overwrite: bool, progress: Progress) -> None:
        """Write the simulated data and the studies of members, as far as they are not there.

        Raises StoreError for a folder that holds something else.
        """
        from leanrecon.stages.pipeline import Pipeline
        from leanrecon.study.layout import Study

        wanted, kept = self.mark, read_json(data / MARK)
        if kept != {**wanted, "complete": True}:
            _make_room(data, kept, wanted, overwrite)
            write_json(data / MARK, {**wanted, "complete": False})
            module, _, function = WRITERS[self.layout].partition(":")
            getattr(import_module(module), function)(data, **self.writes, progress=progress)
            write_json(data / MARK, {**wanted, "complete": True})
        for member in self.members:
            tables = _filled(self.member, data=str(data), member=member)
            settings, base_dir = read_tables(tables, RECIPES, memory=memory)
            progress.say(f"member {member}")
            Pipeline(settings, Study(data / member), base_dir=base_dir, overwrite=overwrite, progress=progress).run(
                "dataset"
            )


def demos() -> dict[str, Path]:
    """What each demo changes, by the name of its recipe."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def _make_room(data: Path, kept: Any, wanted: Mapping[str, Any], overwrite: bool) -> None:
    """Make the folder; only what a demo wrote is replaced, and what another one wrote only if that was asked for."""
    if data.exists() and any(data.iterdir()):
        own = isinstance(kept, dict) and {key: kept.get(key) for key in wanted} == wanted
        if kept is None or not (own or overwrite):
            raise StoreError(
                f"{data} holds other files" if kept is None else f"{data} holds the data of another demo",
                expected="a folder for the simulated data",
                todo="choose another --study" + ("" if kept is None else ", or replace them with --overwrite"),
            )
        shutil.rmtree(data)
    data.mkdir(parents=True, exist_ok=True)


def _merged(tables: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables with others laid over them; a table that names a kind replaces one of another kind."""
    result = dict(tables)
    for key, value in over.items():
        before = result.get(key)
        result[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return result


def _filled(value: Any, **names: str) -> Any:
    """A value with the names in braces filled in."""
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, Mapping):
        return {key: _filled(part, **names) for key, part in value.items()}
    return [_filled(part, **names) for part in value] if isinstance(value, list) else value


def _value(tables: Mapping[str, Any], key: str) -> Any:
    found: Any = tables
    for name in key.split("."):
        found = found[name]
    return found


def _at(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    tables: dict[str, Any] = value
    return tables


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _require_memory(settings: Settings, base_dir: Path, study: Path) -> None:
    """Raise BudgetError if any stage is planned to take more than is allowed: before any of them, not after hours."""
    from leanrecon.stages.pipeline import plan_study

    give_back()
    allowed = MemoryBudget.of(settings.general.memory).allowed
    largest = max(plan_study(settings, base_dir=base_dir, study=study), key=lambda stage: stage.memory)
    if largest.memory > allowed:
        enough = -(-(largest.memory + SPARE) // 1_000_000)
        raise BudgetError(
            f"{largest.stage} needs at least {format_bytes(largest.memory)}, more than the {format_bytes(allowed)} allowed",
            todo=f'raise the budget to "{enough}MB" or more (setting `memory`, option --memory)',
        )


def run_demo(
    name: str,
    study: Path | None,
    memory: str | None,
    *,
    overwrite: bool,
    sets: list[str] | None,
    cluster: str | None = None,
) -> None:
    """Run the demo of a recipe from simulated data to its report, and say what it changes of the recipe."""
    from leanrecon.app.options import progress
    from leanrecon.execution.cluster import Cluster
    from leanrecon.stages.pipeline import Pipeline, stages_of
    from leanrecon.study.layout import Study

    began, workers = time.monotonic(), None if cluster is None else Cluster(cluster)
    demo = Demo.of(name)
    folder = study or Path(f"demo-{name}")
    data = folder.with_name(f"{folder.name}-data")
    settings, _ = demo.settings(data, sets, memory)
    require_weights(settings)
    say(f"the recipe {name} at small size, on {demo.about}; what is changed:")
    for change in demo.changed(data):
        say(f"  {change.text()}")
    if demo.networks:
        keys = ", ".join(line.partition(" = ")[0] for line in demo.networks)
        say(f"  {keys}: the small networks that come with leanrecon")
    with demo.undone(data, Study(folder)):
        demo.prepare(data, memory=memory, overwrite=overwrite, progress=progress())
        settings, base_dir = demo.settings(data, sets, memory)  # now that its files are there
        if workers is None:  # with workers, this process holds less
            _require_memory(settings, base_dir, folder)
        options: dict[str, Any] = {"overwrite": overwrite, "progress": progress(), "cluster": workers}
        Pipeline(settings, Study(folder), base_dir=base_dir, **options).run()
    tell_end(folder, stages_of(settings)[-1].name, time.monotonic() - began)
    say(f"done: {Study(folder).report}")
