"""``leanrecon export figures``: all scores as CSV, and the report's plots as SVG and PNG that stand alone."""

import csv
import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from leanrecon.errors import InputError
from leanrecon.evaluation.report import plots
from leanrecon.evaluation.report.drawing import SCALE, colours, png, standalone
from leanrecon.stages.export_figures import GAP, IMAGES, SIDE, TABLE, export_figures
from leanrecon.stages.pipeline import Pipeline
from leanrecon.stages.stage import Run
from leanrecon.study.layout import Study
from leanrecon.study.settings import check_settings

SETTINGS = {
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 10, "size": 16, "voxels": 120},
    "areas": {"early": ["V1", "V2"]},
    "features": {"pca": {"components": 6, "size": 8}},
    "evaluate": {"permutations": 0, "resamples": 100},
}


def write(value: float) -> str:
    return f"{value:.2f}"


def test_a_dot_is_drawn_where_the_svg_has_it_in_the_colour_of_its_kind() -> None:
    svg = plots.dots("Title", [plots.Dot("Final", 0.5, 0.4, 0.6, "final"), plots.Dot("Mean", 0.2)], write, chance=0.1)
    root = ElementTree.fromstring(standalone(svg))
    circles = [mark for mark in root.iter() if mark.tag.endswith("circle")]
    picture = np.asarray(Image.open(io.BytesIO(png(svg))))
    for circle, name in zip(circles, ("accent", "grey"), strict=True):
        wanted = colours()[name]
        assert circle.get("fill") == wanted
        x, y = (round(float(circle.get(key, "")) * SCALE) for key in ("cx", "cy"))
        rgb = [int(wanted[k : k + 2], 16) for k in (1, 3, 5)]
        assert np.abs(picture[y, x].astype(int) - rgb).max() <= 2
    assert not [mark for mark in root.iter() if mark.get("class") or "var(" in str(mark.attrib)]
    assert picture.shape[1] == plots.WIDTH * SCALE


def test_labels_are_drawn_in_letters_that_the_font_has() -> None:
    one, other = (png(plots.dots("T", [plots.Dot(label, 0.5)], write)) for label in ("16 × 16", "16 x 16"))
    assert one == other


def test_every_sort_of_plot_becomes_an_image_with_ink() -> None:
    values = np.linspace(-0.4, 0.9, 50)
    drawn = (
        plots.histogram("H", values, write, [plots.Mark("mean", 0.3)]),
        plots.curve("C", values, write),
        plots.losses("L", [3.0, 2.0, 1.5], [None, 2.2, 1.8], 2),
    )
    for svg in drawn:
        picture = np.asarray(Image.open(io.BytesIO(png(svg))))
        assert 0.005 < (picture < 250).any(axis=2).mean() < 0.8
        ElementTree.fromstring(standalone(svg))


@pytest.mark.slow
def test_a_study_gives_its_scores_and_plots_without_matplotlib(tmp_path: Path) -> None:
    settings, study = check_settings(SETTINGS), Study(tmp_path / "study")
    Pipeline(settings, study).run()
    before = set(sys.modules)
    names = export_figures(Run(settings, study), tmp_path / "out")
    assert "matplotlib" not in set(sys.modules) - before
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    metrics = json.loads((study.root / "evaluation" / "metrics.json").local_path().read_text())
    with (tmp_path / "out" / TABLE).open(newline="") as file:
        rows = {(row["of"], row["name"], row["metric"]): row for row in csv.DictReader(file)}
    for (of, name), found in {
        ("final", "Final image"): metrics["final"],
        ("baselines", "mean_train_image"): metrics["baselines"]["mean_train_image"],
        ("features", "pca"): metrics["features"]["pca"],
        ("areas", "early/final"): metrics["areas"]["early"]["final"],
    }.items():
        for key, figure in found.items():
            assert float(rows[of, name, key]["value"]) == figure["value"], (of, name, key)
    assert {"scores-pixel-correlation.svg", "scores-pixel-correlation.png", "areas-pixel-correlation.svg"} <= set(names)
    sheet = Image.open(tmp_path / "out" / IMAGES)
    assert sheet.size == (9 * (SIDE + GAP) - GAP, 2 * (SIDE + GAP) - GAP), "three each, seen above final images"
    with pytest.raises(InputError, match="holds files already"):
        export_figures(Run(settings, study), tmp_path / "out")
