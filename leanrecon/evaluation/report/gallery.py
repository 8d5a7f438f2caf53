"""The gallery's cards: which scores they carry, which rows are shown first, their pictures one row at a time."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from leanrecon.errors import InputError
from leanrecon.evaluation.report.names import Metric, in_order, metric, number
from leanrecon.evaluation.report.thumbnails import Thumbnail, thumbnail

Array = np.ndarray[Any, Any]
Pictures = tuple[Array, Array, Array | None]
"""The image seen, the first image and the final one (None without refinement): uint8 ``[height, width, 1 or 3]``."""

Scores = Sequence[Mapping[str, Any]]

STRIP = (("Best", 5), ("Middle", 3), ("Worst", 3))
"""What the strip at the head of the page shows, and how many of them at most."""

MAIN = ("pixcorr", "ssim", "two_way_pixels")
"""The scores that every card shows."""

_HASH = re.compile(r"[0-9a-f]{16}")  # as images of arrays are named; ids of other lengths come from the dataset
_ABOUT_A_ROW = ("row", "stimulus", "test_set", "subject", "fold", "captions")


@dataclass(frozen=True)
class ScoreColumn:
    """A score that cards carry and are sorted by."""

    key: str
    label: str
    metric: Metric
    main: bool = False


@dataclass(frozen=True)
class Card:
    """One test row."""

    row: int
    stimulus: str
    title: str
    """The stimulus id, or ``Test image N`` where the id is a hash of the image."""
    fold: str
    captions: list[str]
    values: list[float | None]
    pictures: list[Thumbnail]


def score_columns(scores: Scores) -> list[ScoreColumn]:
    """The scores that any row has: of final images, then of first ones where they differ, then others."""
    keys = list(dict.fromkeys(key for score in scores for key in score if key not in _ABOUT_A_ROW))
    final, first = (
        in_order(key.removeprefix(f"{part}.") for key in keys if key.startswith(f"{part}."))
        for part in ("final", "stage1")
    )
    differ = any(
        number(score.get(f"final.{name}")) != number(score.get(f"stage1.{name}"))
        for score in scores
        for name in set(final) & set(first)
    )
    columns = [ScoreColumn(f"final.{name}", metric(name).name, metric(name), name in MAIN) for name in final]
    for name in first:
        if name not in final:
            columns.append(ScoreColumn(f"stage1.{name}", metric(name).name, metric(name), name in MAIN))
        elif differ:
            columns.append(ScoreColumn(f"stage1.{name}", f"{metric(name).name}, first image", metric(name)))
    others = [key for key in keys if not key.startswith(("final.", "stage1."))]
    columns += [ScoreColumn(key, metric(key).name, metric(key)) for key in others]
    return [column for column in columns if any(number(score.get(column.key)) is not None for score in scores)]


def pixcorr(score: Mapping[str, Any]) -> float | None:
    """The pixel correlation of a row's final image, or of its first one where there is no other."""
    final = number(score.get("final.pixcorr"))
    return number(score.get("stage1.pixcorr")) if final is None else final


def strip_rows(scores: Scores) -> list[tuple[str, list[int]]]:
    """Which rows are the best, the middle and the worst by pixel correlation; no row is in two of them."""
    return strip_of([pixcorr(score) for score in scores])


def strip_of(likeness: Sequence[float | None]) -> list[tuple[str, list[int]]]:
    """The same from the pixel correlation of every row."""
    values = {i: value for i, value in enumerate(likeness) if value is not None}
    ranked = sorted(values, key=lambda i: -values[i])
    n = len(ranked)
    if n < 3:
        names = {0: (), 1: ("The only one",), 2: ("Best", "Worst")}[n]
        return [(name, [i]) for name, i in zip(names, ranked, strict=True)]
    best, middle, worst = (min(most, n // 3) for _, most in STRIP)
    start = min(max((n - middle) // 2, best), n - worst - middle)
    shown = (ranked[:best], ranked[start : start + middle], ranked[n - worst :])
    return [(name, rows) for (name, _), rows in zip(STRIP, shown, strict=True)]


def shown_rows(likeness: Sequence[float | None], most: int) -> list[int]:
    """Which rows a page shows: all, or those of the strip and others at even distances, about ``most``."""
    n = len(likeness)
    if n <= most:
        return list(range(n))
    strip = {row for _, rows in strip_of(likeness) for row in rows}
    return sorted(strip | set(np.linspace(0, n - 1, most).astype(int).tolist()))


def card(score: Mapping[str, Any], i: int, columns: Sequence[ScoreColumn], pictures: list[Thumbnail]) -> Card:
    """The card of the i-th test row."""
    row_number, fold = number(score.get("row")), score.get("fold")
    row = i if row_number is None else int(row_number)
    stimulus = str(score.get("stimulus", i))
    return Card(
        row,
        stimulus,
        f"Test image {row}" if _HASH.fullmatch(stimulus) else stimulus,
        "" if fold is None else str(fold),
        [str(caption) for caption in score.get("captions") or []],
        [number(score.get(column.key)) for column in columns],
        pictures,
    )


AGAIN = "run the stage evaluate again with --overwrite"


def spool(pictures: Iterable[Pictures], rows: int, file: IO[str], *, keep: set[int]) -> dict[int, list[Thumbnail]]:
    """Encode the pictures of every row into a file, a line a row; returns those of the rows to keep and of the first.

    Raises InputError when there are more or fewer pictures than rows.
    """
    waiting = iter(pictures)
    kept: dict[int, list[Thumbnail]] = {}
    for i in range(rows):
        row = _thumbnails(waiting, rows)
        if row is None:
            raise InputError(f"the report has scores of {rows} test rows but pictures of {i}", todo=AGAIN)
        file.write(json.dumps([(picture.uri, picture.width, picture.height) for picture in row]) + "\n")
        if i in keep or i == 0:
            kept[i] = row
    if next(waiting, None) is not None:
        raise InputError(f"the report has scores of {rows} test rows but pictures of more", todo=AGAIN)
    return kept


def spooled(file: IO[str]) -> Iterator[list[Thumbnail]]:
    """The pictures of every row, as they were spooled."""
    file.seek(0)
    for line in file:
        yield [Thumbnail(*picture) for picture in json.loads(line)]


def _thumbnails(pictures: Iterator[Pictures], rows: int) -> list[Thumbnail] | None:
    """The thumbnails of the next row; None after the last. Its pictures are dropped on return."""
    row = next(pictures, None)
    return None if row is None else [thumbnail(image, rows) for image in row if image is not None]
