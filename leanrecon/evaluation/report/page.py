"""The report: figures beside baselines, every image, and how it was made, as one HTML file."""

import base64
import hashlib
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.evaluation.report import plots
from leanrecon.evaluation.report.areas import (
    area_columns,
    area_table,
    dot_plots,
    main_metrics,
    similarity_table,
    subject_table,
    test_set_table,
)
from leanrecon.evaluation.report.gallery import (
    Array,
    Pictures,
    Scores,
    card,
    pixcorr,
    score_columns,
    spool,
    spooled,
    strip_rows,
)
from leanrecon.evaluation.report.names import WITHOUT_BRAIN, figure, label, metric, number
from leanrecon.evaluation.report.patterns import pattern_plots, scale_weights
from leanrecon.evaluation.report.tables import (
    Column,
    FigureRow,
    columns,
    figure_rows,
    memory_scale,
    per_image,
    record,
    settings_tables,
    split_rows,
)
from leanrecon.evaluation.report.verdict import MIN_TEST_IMAGES, features_alone, verdict
from leanrecon.places import LocationLike, as_location
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.files import write_whole


@dataclass(frozen=True)
class Page:
    """All that the report shows, as plain data. The section by area is shown where metrics.json has ``areas``."""

    study: str
    """The study's name, as the page's title."""
    metrics: Mapping[str, Any]
    """metrics.json."""
    scores: Scores
    """One a test row that is shown: ``row``, ``stimulus``, ``fold`` and ``captions`` where there are any, ``final.ssim``
    and its like."""
    pictures: Iterable[Pictures]
    """One a test row that is shown, in the order of the scores; taken one at a time."""
    likeness: Sequence[float | None] = ()
    """The pixel correlation of every test row, shown or not; empty where all are shown."""
    simulated: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The tables of study.toml."""
    records: Mapping[str, Any] = field(default_factory=dict)
    """run.json."""
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The run.json of every variant."""
    latent_r2: Mapping[str, Array] = field(default_factory=dict)
    """R² of every predicted feature, ``[dims]`` by feature space."""
    latent_groups: Mapping[str, Mapping[str, slice]] = field(default_factory=dict)
    """Named runs of the features of a space (the layers of VDVAE)."""
    voxels: Mapping[str, Any] | None = None
    """``repeats`` [fewest, most] averaged in a test row, and ``areas``: ``area``, ``voxels``, ``ncsnr``, ``percent`` each."""
    checked: Mapping[str, Any] | None = None
    """What ``leanrecon check`` said of the train rows: ``verdict``, and ``lines`` of text."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries; where there are none, those of run.json or metrics.json are shown."""


@dataclass(frozen=True)
class Plot:
    """A drawn plot with its heading and a remark on how to read it."""

    title: str
    remark: str
    svg: str


@dataclass(frozen=True)
class Space:
    """What is shown of one feature space."""

    name: str
    figures: list[FigureRow]
    plots: list[Plot]


LOSSES = {
    "image": "Image loss",
    "feature": "Feature loss",
    "adversarial": "Adversarial loss",
    "real": "Discriminator, real images",
    "generated": "Discriminator, generated images",
}
"""The losses of an end-to-end decoder by their names in its record."""


def render(page: Page, out: LocationLike) -> None:
    """Write the report as one self-contained HTML file, beside its place first and then renamed into it.

    Pictures are taken one row at a time and wait on disk for their place in the page, so that a thousand rows
    need no more memory than a few. Raises InputError when there are not as many pictures as rows of scores.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    scored, strip = score_columns(page.scores), strip_rows(page.scores)
    folder = as_location(out).parent.workplace()
    with (
        explained_disk_errors(folder / as_location(out).name),
        tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as waiting,
    ):
        kept = spool(page.pictures, len(page.scores), waiting, keep={i for _, rows in strip for i in rows})
        context = _context(page) | {
            "scored": scored,
            "refined": any(len(pictures) == 3 for pictures in kept.values()),
            "strip": [
                (name, [(card(page.scores[i], i, scored, kept[i]), _written(page.scores[i])) for i in rows])
                for name, rows in strip
            ],
            "cards": (card(page.scores[i], i, scored, pictures) for i, pictures in enumerate(spooled(waiting))),
        }
        parts = (text.encode() for text in template.generate(**context))
        write_whole(out, lambda file: file.writelines(parts))


def drawn(page: Page) -> Iterator[tuple[str, Plot]]:
    """All plots of a page, each with a name that suits a file."""
    shown = columns(page.metrics)
    parts = {
        "scores": [*_dots(shown, features=True), *_histogram(page, shown)],
        "patterns": [_svg(one.title, one.remark, one.svg) for one in pattern_plots(page.metrics)],
        "areas": list(_dots(area_columns(page.metrics))),
        "training": list(_training("decode", "the end-to-end decoder", page)),
        **{f"features-{space.name}": space.plots for space in _spaces(page)},
    }
    for part, every in parts.items():
        for plot in every:
            plain = unicodedata.normalize("NFKD", f"{part} {plot.title}").lower()  # R² becomes r2
            yield "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in plain).split()), plot


def _context(page: Page) -> dict[str, Any]:
    """What the template shows besides pictures."""
    from markupsafe import Markup

    metrics = page.metrics
    simulated = page.simulated or bool(metrics.get("simulated"))
    shown = columns(metrics)
    n_test = metrics.get("n_test") or len(page.scores)
    few = metrics.get("n_stimuli", n_test) < MIN_TEST_IMAGES  # too few for intervals: nothing is marked as better
    opening, further = split_rows(figure_rows(shown, {} if few else metrics.get("margins") or {}))
    runs = {"": page.records, **page.variants}
    scale = memory_scale(runs)
    here = Path(__file__).parent
    style, script = ((here / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "study": page.study,
        "simulated": simulated,
        "metrics": metrics,
        "n_test": n_test,
        "n_shown": len(page.scores),
        "alone": features_alone(metrics),
        "verdict": verdict({**metrics, "n_test": n_test, "simulated": simulated}),
        "columns": shown,
        "figures": opening,
        "further": further,
        "plots": [*_dots(shown, features=True), *_histogram(page, shown)],
        "without_brain": WITHOUT_BRAIN,
        "areas": area_table(metrics),
        "subjects": subject_table(metrics),
        "test_sets": test_set_table(metrics),
        "similarity": similarity_table(metrics),
        "area_plots": list(_dots(area_columns(metrics))),
        "pattern_plots": [_svg(one.title, one.remark, one.svg) for one in pattern_plots(metrics)],
        "scale_weights": scale_weights(metrics),
        "spaces": list(_spaces(page)),
        "training": list(_training("decode", "the end-to-end decoder", page)),
        "voxels": page.voxels,
        "checked": page.checked,
        "folds": sorted({str(s["fold"]) for s in page.scores if s.get("fold") is not None}, key=_natural),
        "records": [record(name, run, scale=scale) for name, run in runs.items() if run.get("stages")],
        "per_image": per_image(runs),
        "settings": settings_tables(page.settings),
        "versions": page.versions or page.records.get("versions") or metrics.get("versions") or {},
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",  # the page allows this script and no other
    }


def _written(score: Mapping[str, Any]) -> str:
    value = pixcorr(score)
    return "" if value is None else metric("pixcorr").write(value, 2)


def _natural(text: str) -> tuple[bool, float, str]:
    value = number(text)
    return value is None, value or 0.0, text


def _svg(title: str, remark: str, svg: str) -> Plot:
    from markupsafe import Markup

    return Plot(title, remark, Markup(svg))  # plots escape the text in them


def _dots(shown: list[Column], *, features: bool = False) -> Iterator[Plot]:
    keys = [*main_metrics(shown), *(["two_way_features"] if features else [])]
    for title, svg in dot_plots(shown, keys):
        yield _svg(title, "Dots are means, lines their 95 % intervals", svg)


def _histogram(page: Page, shown: list[Column]) -> Iterator[Plot]:
    every = page.likeness or [pixcorr(score) for score in page.scores]
    values = [value for value in every if value is not None]
    if len(values) > 1:
        marks = [
            plots.Mark(column.label.name, value, column.kind)
            for column in shown
            if column.kind in ("final", "baseline") and (value := figure(column.figures, "pixcorr")) is not None
        ]
        svg = plots.histogram("Pixel correlation, image by image", values, metric("pixcorr").write, marks)
        yield _svg("Pixel correlation, image by image", f"{len(values)} images; lines are means", svg)


def _spaces(page: Page) -> Iterator[Space]:
    """Feature spaces with their figures, R² of their features sorted, and R² by group."""
    features = page.metrics.get("features") or {}
    for name in dict.fromkeys([*features, *page.latent_r2]):
        rows = figure_rows([Column(name, "final", label(name), features.get(name) or {})], {})
        yield Space(name, rows, [*_r2(name, page), *_training(f"regression {name}", name, page)])


def _training(stage: str, name: str, page: Page) -> Iterator[Plot]:
    """The training curves of a stage's network, of the first fold where there are folds."""
    for run_name, run in {"": page.records, **page.variants}.items():
        curve = ((run.get("stages") or {}).get(stage) or {}).get("curve")
        if not curve or len(curve["train"]) < 2:
            continue
        svg = plots.losses(f"Training of {name}", curve["train"], curve["validation"], curve["best"])
        where = f" in {run_name}" if run_name else ""
        remark = f"Dashed: the loss of the rows learned from{where}, with noise and dropout. "
        if curve["validation"][-1] is not None:
            remark += "Solid: that of train rows held out. No test row is among them"
        yield _svg("Losses while the network learned", remark, svg)
        for loss, values in (curve.get("losses") or {}).items():
            if loss in LOSSES and any(values):
                own = plots.losses(f"{LOSSES[loss]} of {name}", [None, *values], [], curve["best"])
                yield _svg(LOSSES[loss], "Mean over the steps of each epoch", own)
        return


def _r2(space: str, page: Page) -> Iterator[Plot]:
    if space not in page.latent_r2:
        return
    values = np.asarray(page.latent_r2[space], dtype=np.float64).ravel()
    known = values[np.isfinite(values)]
    if not len(known):
        return
    write = metric("latent_r2_mean").write
    remark = (
        f"{100 * np.mean(known > 0):.0f} % of {len(known):,} features are predicted better than by their mean; "
        f"median R² {write(float(np.median(known)))}"
    )
    if len(known) < len(values):
        remark += f"; {len(values) - len(known):,} without a value are left out"
    yield _svg("R² of the predicted features, sorted", remark, plots.curve(f"R² of {space}", known, write))
    rows = []
    for group, where in page.latent_groups.get(space, {}).items():
        part = values[where][np.isfinite(values[where])]
        if len(part):
            low, middle, high = (float(np.quantile(part, share)) for share in (0.1, 0.5, 0.9))
            rows.append(plots.Dot(group, middle, low, high, "group"))
    if rows:
        svg = plots.dots(f"R² of {space} by group", rows, lambda x: metric("latent_r2_mean").write(x, 2))
        yield _svg("R² by group of features", "Dots are medians, lines hold the middle 80 % of features", svg)
