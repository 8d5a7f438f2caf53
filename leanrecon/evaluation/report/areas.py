"""The report's section by area: main metrics of each area's voxels beside those of all voxels."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from leanrecon.evaluation.report import plots
from leanrecon.evaluation.report.names import Figures, Label, Metric, figure, in_order, metric, number
from leanrecon.evaluation.report.tables import Cell, Column, cell

MAIN = ("pixcorr", "ssim", "two_way_pixels")
"""Metrics shown by area, beside the main metric of every judge."""

ALL_VOXELS = "All voxels"


@dataclass(frozen=True)
class AreaRow:
    """One area, or all voxels: how many there are, and a cell for every main metric."""

    name: str
    voxels: str
    cells: list[Cell]
    all: bool


@dataclass(frozen=True)
class AreaTable:
    """Areas in the order of the settings, and all voxels last."""

    metrics: list[Metric]
    rows: list[AreaRow]


def main_metrics(shown: list[Column]) -> list[str]:
    """The main metrics that any set of figures has: pixels, then one for each judge."""
    keys = in_order(key for column in shown for key in column.figures)
    by_judges = [
        key
        for key in keys
        if key.startswith(("two_way_", "distance_", "mse_", "perceptual_"))
        and not key.endswith(("_reverse", "_features"))
        and key not in MAIN
    ]
    return [key for key in keys if key in MAIN] + by_judges


def area_columns(metrics: Mapping[str, Any]) -> list[Column]:
    """The final images' figures of every area, and of all voxels last; empty where there are no areas."""
    areas = metrics.get("areas") or {}
    if not areas:
        return []
    columns = [
        Column(name, "region", Label(name, "", name), (entry or {}).get("final") or (entry or {}).get("stage1") or {})
        for name, entry in areas.items()
    ]
    every: Figures = metrics.get("final") or metrics.get("stage1") or {}
    return [*columns, Column("", "final", Label(ALL_VOXELS, "", "all voxels"), every)]


def area_table(metrics: Mapping[str, Any]) -> AreaTable | None:
    """The table by area; None where there are no areas."""
    shown = area_columns(metrics)
    if not shown:
        return None
    keys = main_metrics(shown)
    rows = []
    for column in shown:
        every = column.kind == "final"
        voxels = number(metrics.get("n_voxels") if every else (metrics["areas"][column.key] or {}).get("voxels"))
        cells = [cell(metric(key), column.figures) for key in keys]
        rows.append(AreaRow(column.label.name, "–" if voxels is None else f"{voxels:,.0f}", cells, every))
    return AreaTable([metric(key) for key in keys], rows)


def subject_table(metrics: Mapping[str, Any]) -> AreaTable | None:
    """The table by subject, of the final images: rows are subjects, their test rows in place of voxels."""
    every = Label("All subjects", "", "all subjects")
    return _by_rows(metrics.get("subjects") or {}, [Column("", "final", every, _final(metrics))], metrics)


def test_set_table(metrics: Mapping[str, Any]) -> AreaTable | None:
    """The table by test set, of the final images: rows are test sets, their test rows in place of voxels."""
    return _by_rows(metrics.get("tests") or {}, [], metrics)


def _final(metrics: Mapping[str, Any]) -> Figures:
    figures: Figures = metrics.get("final") or metrics.get("stage1") or {}
    return figures


def _by_rows(parts: Mapping[str, Any], last: list[Column], metrics: Mapping[str, Any]) -> AreaTable | None:
    """Parts of the test rows, and all of them last; None where there are no parts."""
    if not parts:
        return None
    shown = [
        *(Column(name, "region", Label(name, "", name), (of or {}).get("final") or {}) for name, of in parts.items()),
        *last,
    ]
    keys = main_metrics(shown)
    rows = []
    for column in shown:
        own = metrics if column.kind == "final" else parts[column.key] or {}
        n = number(own.get("n_test"))
        cells = [cell(metric(key), column.figures) for key in keys]
        rows.append(AreaRow(column.label.name, "–" if n is None else f"{n:,.0f}", cells, column.kind == "final"))
    return AreaTable([metric(key) for key in keys], rows)


def similarity_table(metrics: Mapping[str, Any]) -> AreaTable | None:
    """The table by similarity to the nearest train image, ``voxels`` of its rows being the similarities; None without."""
    quarters = [quarter or {} for quarter in metrics.get("by_similarity") or []]
    shown = [
        Column(str(k), "region", Label(f"Quarter {k + 1}", "", ""), quarter.get("final") or {})
        for k, quarter in enumerate(quarters)
    ]
    keys = main_metrics(shown) if shown else []
    if not keys:
        return None
    rows = []
    for column, quarter in zip(shown, quarters, strict=True):
        low, high = number(quarter.get("low")), number(quarter.get("high"))
        between = "–" if low is None or high is None else f"{low:.2f} to {high:.2f}".replace("-", "−")
        cells = [cell(metric(key), column.figures) for key in keys]
        rows.append(AreaRow(column.label.name, between, cells, False))
    return AreaTable([metric(key) for key in keys], rows)


def dot_plots(shown: list[Column], keys: list[str]) -> Iterator[tuple[str, str]]:
    """The title and the drawing of each metric that several sets of figures have, with intervals and chance."""
    for key in keys:
        shown_as = metric(key)
        rows = [
            plots.Dot(
                column.label.name,
                value,
                figure(column.figures, key, "low"),
                figure(column.figures, key, "high"),
                column.kind,
            )
            for column in shown
            if (value := figure(column.figures, key)) is not None
        ]
        if len(rows) > 1:
            chance = figure(shown[0].figures, key, "chance")
            digits = 0 if shown_as.percent else 2

            def write(x: float, shown_as: Metric = shown_as, digits: int = digits) -> str:
                return shown_as.write(x, digits)

            yield shown_as.name, plots.dots(shown_as.name, rows, write, chance=chance)
