"""The table of scores, evaluation/scores.csv: one line for each test row, written and read line by line."""

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import IO, Any

from leanrecon.errors import StoreError
from leanrecon.places import Location, seals
from leanrecon.places.files import unreadable, write_whole
from leanrecon.study.layout import Study

Score = dict[str, Any]

_WHOLE, _TEXT = ("row", "fold"), ("stimulus", "subject", "test_set")


def write_scores(study: Study, columns: Sequence[str], rows: Iterable[Score]) -> None:
    """Write the scores of every test row; rows may lack columns."""

    def write(file: IO[bytes]) -> None:
        lines = csv.DictWriter(_Encoded(file), columns, lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)

    write_whole(study.scores, write)


class _Encoded:
    """A write-only text file over a binary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(text.encode())
        return len(text)


def read_scores(study: Study, only: Collection[int] | None = None) -> list[Score]:
    """The scores of every test row, or of those in ``only``, as numbers, with its row, stimulus id and fold."""
    return [score for k, score in enumerate(each_score(study)) if only is None or k in only]


def each_score(study: Study) -> Iterator[Score]:
    """The scores of every test row, one after the other. Raises StoreError for a table that can't be read."""
    path = study.scores
    if not path.is_file():
        raise StoreError(f"there is no {path}", todo="run the stage evaluate again with --overwrite")
    if seals.state(path) is seals.State.DAMAGED:
        raise seals.damaged(path)
    yield from _parsed(path)


def _parsed(path: Location) -> Iterator[Score]:
    try:
        with path.open() as file:
            lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
            columns = next(lines, [])
            if not {"row", "stimulus"} <= set(columns):
                raise ValueError(f"its columns are {', '.join(columns)[:80] or 'missing'}")
            for line in lines:
                if len(line) != len(columns):
                    raise ValueError(f"line {lines.line_num} has {len(line)} of {len(columns)} columns")
                yield {key: _value(key, text) for key, text in zip(columns, line, strict=True) if text != ""}
    except (ValueError, OSError, csv.Error) as error:
        raise unreadable(path, error) from None


def _value(key: str, text: str) -> Any:
    if key in _TEXT:
        return text
    return int(text) if key in _WHOLE else float(text)
