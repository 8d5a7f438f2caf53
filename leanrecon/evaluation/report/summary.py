"""The main scores of a study as lines of text, for the end of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from leanrecon.evaluation.report.areas import main_metrics
from leanrecon.evaluation.report.names import figure, metric
from leanrecon.evaluation.report.tables import cell, columns

BESIDE = ("final", "stage1", "mean_train_image", "shuffled_betas")
"""The sets of scores that are shown, where the study has them."""

MOST = 6
"""Scores that are shown at most."""

_BETWEEN = 2  # spaces between two columns


def main_scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    """A line for each main score: the reconstructions with 95 % intervals beside baselines and chance; none without images."""
    shown = [column for column in columns(metrics) if column.key in BESIDE and column.figures]
    keys = main_metrics(shown)[:MOST]
    if not keys:
        return
    table = [["score", *(column.label.name for column in shown), "chance"]]
    for key in keys:
        cells = [cell(metric(key), column.figures) for column in shown]
        chances = [chance for column in shown if (chance := figure(column.figures, key, "chance")) is not None]
        texts = [
            f"{one.value} ({one.interval})" if one.interval and k == 0 else one.value for k, one in enumerate(cells)
        ]
        table.append([metric(key).short, *texts, metric(key).write(chances[0]) if chances else ""])
    widths = [max(len(row[k]) for row in table) + _BETWEEN for k in range(len(table[0]))]
    for row in table:
        yield "".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
