"""The report's tables as plain rows: figures beside baselines, stages with their memory, settings."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanrecon.evaluation.report.names import Figures, Label, Metric, figure, in_order, label, metric, number
from leanrecon.memory import format_bytes
from leanrecon.progress import format_seconds


@dataclass(frozen=True)
class Column:
    """One set of figures; ``kind`` is final, stage1, baseline, bound or region."""

    key: str
    kind: str
    label: Label
    figures: Figures


@dataclass(frozen=True)
class Cell:
    """A value and its interval as text; ``marked`` when it is clearly better than the best baseline."""

    value: str = ""
    interval: str = ""
    marked: bool = False


@dataclass(frozen=True)
class FigureRow:
    """One metric over all columns."""

    metric: Metric
    cells: list[Cell]
    chance: str

    @property
    def marked(self) -> bool:
        return any(cell.marked for cell in self.cells)


def columns(metrics: Mapping[str, Any]) -> list[Column]:
    """The sets of figures of metrics.json: final images, first ones where they differ, baselines, upper bounds."""
    final, stage1 = metrics.get("final") or {}, metrics.get("stage1") or {}
    shown = [Column("final", "final", label("final"), final or stage1)]
    if final and stage1 and stage1 != final:
        shown.append(Column("stage1", "stage1", label("stage1"), stage1))
    for group, kind in (("baselines", "baseline"), ("upper_bounds", "bound")):
        for key, figures in (metrics.get(group) or {}).items():
            shown.append(Column(key, kind, label(key), figures or {}))
    return shown


def figure_rows(shown: list[Column], margins: Mapping[str, Any]) -> list[FigureRow]:
    """One row a metric that any column has; the final image is marked where it beats the best baseline."""
    rows = []
    for key in in_order(key for column in shown for key in column.figures):
        shown_as = metric(key)
        chances = [figure(column.figures, key, "chance") for column in shown]
        chance = next((chance for chance in chances if chance is not None), None)
        cells = [
            cell(shown_as, column.figures, marked=column.kind == "final" and _beats_best(shown_as, shown, margins))
            for column in shown
        ]
        if any(cell.value for cell in cells):
            rows.append(FigureRow(shown_as, cells, "" if chance is None else shown_as.write(chance)))
    return rows


OPENING = 8
"""Rows of scores that the report opens with; the rest is folded away."""


def split_rows(rows: list[FigureRow]) -> tuple[list[FigureRow], list[FigureRow]]:
    """The rows that the report opens with, and those that it folds away.

    Reverse identification, scores of features, and further kinds of SSIM are folded first.
    """
    keys = [row.metric.key for row in rows]
    less = ("ssim_1d", "ssim_7x7", "ssim_rgb") if "ssim" in keys else ()
    last = ("_reverse", "_features", "_mean", "_total")
    kept = [row for key, row in zip(keys, rows, strict=True) if key not in less and not key.endswith(last)][:OPENING]
    kept = kept or rows[:OPENING]
    return kept, [row for row in rows if row not in kept]


def cell(shown_as: Metric, figures: Figures, *, marked: bool = False) -> Cell:
    """One metric's value and interval as text; empty where the figure is missing."""
    value, low, high = (figure(figures, shown_as.key, part) for part in ("value", "low", "high"))
    if value is None:
        return Cell()
    interval = "" if low is None or high is None else shown_as.interval(low, high)
    return Cell(shown_as.write(value), interval, marked)


def _beats_best(shown_as: Metric, shown: list[Column], margins: Mapping[str, Any]) -> bool:
    """Whether the whole interval of the paired margin over the best baseline lies on the good side."""
    values = {column.key: figure(column.figures, shown_as.key) for column in shown if column.kind == "baseline"}
    known = {key: value for key, value in values.items() if value is not None}
    if not known:
        return False
    best = (min if shown_as.lower_is_better else max)(known, key=lambda key: known[key])
    end = figure(margins.get(best) or {}, shown_as.key, "high" if shown_as.lower_is_better else "low")
    return end is not None and (end < 0 if shown_as.lower_is_better else end > 0)


@dataclass(frozen=True)
class Bar:
    """Shares of the bar's width, in percent, that memory takes; None where there is no such number or it is beyond."""

    peak: float | None
    planned: float | None
    budget: float | None
    over: bool


@dataclass(frozen=True)
class StageRow:
    """One stage of a run as it was measured."""

    name: str
    seconds: str
    peak: str
    planned: str
    budget: str
    notes: str
    bar: Bar


@dataclass(frozen=True)
class Record:
    """The stages of a study or of one of its variants."""

    name: str
    stages: list[StageRow]
    seconds: str
    peak: str


def record(name: str, run: Mapping[str, Any], *, scale: float) -> Record:
    """The stages of a run.json, their bars drawn to one scale in bytes."""
    stages: Mapping[str, Any] = run.get("stages") or {}
    rows = [_stage(stage, entry or {}, scale) for stage, entry in stages.items()]
    seconds = [number((entry or {}).get("seconds")) for entry in stages.values()]
    peaks = [number((entry or {}).get("peak_bytes")) for entry in stages.values()]
    return Record(
        name, rows, format_seconds(sum(s or 0 for s in seconds)), _bytes(max((p or 0 for p in peaks), default=0))
    )


def memory_scale(runs: Mapping[str, Mapping[str, Any]]) -> float:
    """Bytes at the end of a memory bar: room for every plan and peak, and for the budget unless it is far away."""
    entries = [entry or {} for run in runs.values() for entry in (run.get("stages") or {}).values()]
    used = max((number(e.get(key)) or 0 for e in entries for key in ("peak_bytes", "planned_bytes")), default=0)
    budget = max((number(e.get("budget_bytes")) or 0 for e in entries), default=0)
    return max(used * 1.05, min(budget * 1.02, used * 2.5)) or 1.0


def _stage(name: str, entry: Mapping[str, Any], scale: float) -> StageRow:
    peak, planned, budget = (number(entry.get(f"{key}_bytes")) or None for key in ("peak", "planned", "budget"))
    shares = [None if x is None or x > scale else 100 * x / scale for x in (peak, planned, budget)]
    over = peak is not None and planned is not None and peak > planned
    seconds = number(entry.get("seconds"))
    return StageRow(
        name,
        "" if seconds is None else format_seconds(seconds),
        _bytes(peak),
        _bytes(planned),
        _bytes(budget),
        _notes(entry),
        Bar(shares[0], shares[1], shares[2], over),
    )


def _notes(entry: Mapping[str, Any]) -> str:
    """What a stage recorded besides time and memory: alpha, voxels left out, the device. Its sentences stand above."""
    notes = []
    for key, value in entry.items():
        if key in ("seconds", "settings", "curve", "of", "notes") or key.endswith("_bytes") or value is None:
            continue
        if key == "alpha" and isinstance(value, Mapping):
            median = number(value.get("median"))
            notes.append("alpha per target" if median is None else f"alpha {_plain(median)} (median over targets)")
        elif key == "voxels_left_out":
            if value:
                notes.append(f"{value} {'voxel' if value == 1 else 'voxels'} left out")
        elif key == "seconds_per_image":
            notes.append(f"{format_seconds(float(value))} an image")
        elif key == "retried":
            notes += [f"{len(value)} drawn again in float32"] if value else []
        elif key == "black":
            notes += [f"{len(value)} black"] if value else []
        elif value not in ([], {}):
            notes.append(f"{key.replace('_', ' ')} {_said(value)}")
    return ", ".join(notes)


_ALL_SAID = 6
"""Values of a list that are written out; of a longer list, and of one of tables, the report says how many there are."""


def _said(value: Any) -> str:
    """A recorded value in words: ``yes``, ``0.5``, ``64, 64, 3``, ``(kernel rbf, gamma 0.5)``, ``15 in run.json``."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key.replace('_', ' ')} {_said(v)}" for key, v in value.items() if v is not None) + ")"
    if isinstance(value, list):
        short = len(value) <= _ALL_SAID and not any(isinstance(v, Mapping | list) for v in value)
        return ", ".join(map(_said, value)) if short else f"{len(value)} in run.json"
    if isinstance(value, bool):
        return "yes" if value else "no"
    amount = number(value)
    return str(value) if amount is None else _plain(amount)


def per_image(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The time that refining takes an image: the median over runs; empty where none was timed."""
    stages = [(run.get("stages") or {}).get("refine") or {} for run in runs.values()]
    times = [seconds for stage in stages if (seconds := number(stage.get("seconds_per_image"))) is not None]
    return format_seconds(statistics.median(times)) if times else ""


def _plain(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _bytes(n: float | None) -> str:
    return format_bytes(n) if n else ""


@dataclass(frozen=True)
class SettingsTable:
    """One table of study.toml: its dotted name and its keys with their values as TOML writes them."""

    name: str
    keys: list[tuple[str, str]]


def settings_tables(settings: Mapping[str, Any], prefix: str = "") -> list[SettingsTable]:
    """The tables of study.toml, nested ones under their dotted names; keys without a value are left out."""
    keys = [
        (key, _toml(value)) for key, value in settings.items() if value is not None and not isinstance(value, Mapping)
    ]
    inner = [
        table
        for key, value in settings.items()
        if isinstance(value, Mapping)
        for table in settings_tables(value, f"{prefix}.{key}" if prefix else str(key))
    ]
    return ([SettingsTable(prefix, keys)] if keys or (prefix and not inner) else []) + inner


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
