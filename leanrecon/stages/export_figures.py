"""Figures and tables of a study for a paper: all scores as CSV, and every plot of the report as SVG and PNG."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.evaluation.report.drawing import png, standalone
from leanrecon.evaluation.report.gallery import pixcorr, strip_of
from leanrecon.evaluation.report.names import label, metric, number
from leanrecon.evaluation.report.page import drawn
from leanrecon.images import Array, fitted_into, resize, with_channels
from leanrecon.places import LocationLike, as_location
from leanrecon.places.files import write_whole
from leanrecon.stages.refine import make_generator
from leanrecon.stages.report import page_of, rows_of_images
from leanrecon.stages.scores import each_score
from leanrecon.stages.stage import Run
from leanrecon.study.variants import variants, whole_brain

TABLE = "scores.csv"
IMAGES = "images.png"

COLUMNS = ("of", "name", "metric", "metric_name", "value", "low", "high", "chance")
"""The columns of the table: low and high are the bounds of the 95 % interval."""

SIDE, GAP = 192, 8
"""Pixels of an image's longer side on the sheet of images, and of the gap between two images."""

_GROUPS = ("final", "stage1", "baselines", "upper_bounds", "features", "areas", "subjects", "similarity")


def export_figures(run: Run, folder: LocationLike, *, overwrite: bool = False) -> list[str]:
    """Write the scores, plots and best, middle and worst images of a study into a folder; returns the files' names.

    Raises StoreError for a study that was not evaluated, InputError for a folder that is not empty, unless
    ``overwrite``.
    """
    to = as_location(folder)
    if any(to.iterdir()) and not overwrite:
        raise InputError(f"{to} holds files already", todo="choose another --out, or add --overwrite to replace them")
    every = variants(run.study, run.settings)
    page = page_of(run, every)
    files: dict[str, bytes] = {TABLE: _table(page.metrics).encode()}
    for name, plot in drawn(page):
        files[f"{name}.svg"] = standalone(plot.svg).encode()
        files[f"{name}.png"] = png(plot.svg)
    if (sheet := _sheet(run, whole_brain(every))) is not None:
        files[IMAGES] = sheet
    for name, content in files.items():
        write_whole(to / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return list(files)


def rows_of(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each score of metrics.json: of final and first images, baselines, upper bounds, features, areas …"""
    for group in _GROUPS:
        yield from _scores(group, (), metrics.get(group))


def _scores(group: str, names: tuple[str, ...], found: Any) -> Iterator[dict[str, Any]]:
    """The scores at any depth below a group; the last name is that of the metric."""
    if not isinstance(found, Mapping):
        return
    if "value" in found and names:
        *of, key = names
        name = "/".join(of) if of else label(group).name
        numbers = {part: number(found.get(part)) for part in ("value", "low", "high", "chance")}
        yield {"of": group, "name": name, "metric": key, "metric_name": metric(key).name, **numbers}
        return
    for name, part in found.items():
        yield from _scores(group, (*names, str(name)), part)


def _table(metrics: Mapping[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of(metrics))
    return out.getvalue()


def _sheet(run: Run, whole: Any) -> bytes | None:
    """A sheet of the best, middle and worst test images: stimuli above first and final images. None without images."""
    from PIL import Image

    if not run.settings.dataset.has_images:
        return None
    chosen = [row for _, rows in strip_of([pixcorr(score) for score in each_score(run.study)]) for row in rows]
    refined = make_generator(run.settings).refines
    found = rows_of_images(whole, run.study, refined=refined, only=set(chosen))
    by_row = dict(zip(sorted(chosen), found, strict=True))
    columns = [[_shown(image) for image in by_row[row] if image is not None] for row in chosen]
    if not columns:
        return None
    height, width = (max(image.shape[axis] for column in columns for image in column) for axis in (0, 1))
    sheet = np.full((len(columns[0]) * (height + GAP) - GAP, len(columns) * (width + GAP) - GAP, 3), 255, np.uint8)
    for k, column in enumerate(columns):
        for j, image in enumerate(column):
            top, left = j * (height + GAP), k * (width + GAP)
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "PNG", dpi=(300, 300))
    return out.getvalue()


def _shown(image: Array) -> Array:
    """An image in RGB at the size for the sheet."""
    height, width, channels = image.shape
    return with_channels(resize(image, fitted_into((height, width, channels), SIDE)), 3)
