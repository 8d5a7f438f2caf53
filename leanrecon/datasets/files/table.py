"""Tables of trials: TSV and CSV files with a header line, as BIDS and most programs write them."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from leanrecon.datasets.files.rows import refused_by_system, unreadable
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile, open_text, size_of

MISSING = ("", "n/a", "N/A", "NA", "nan", "NaN")
"""What stands for a value that is not known; BIDS writes n/a."""

_LONGEST = 2**20  # characters of one field


@dataclass(frozen=True)
class Table:
    """The columns of a table by name, as text."""

    path: InputFile
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def texts(self, name: str) -> list[str]:
        """A column without missing values; raises InputError where there is none, or where values are missing."""
        if name not in self.columns:
            raise InputError(
                f"{self.path} has no column {name!r}; its columns are {', '.join(self.columns)}",
                todo="rename the column that holds it",
            )
        values = self.columns[name]
        if missing := [row for row, value in enumerate(values) if value in MISSING]:
            raise InputError(
                f"{self.path} has no {name} in row {missing[0]}, and {len(missing)} such rows",
                expected=f"a {name} in every row",
                todo="complete the table, or leave these trials out of it and of the betas",
            )
        return values

    def numbers(self, name: str) -> list[int]:
        """A column of whole numbers; texts such as ``run-02`` count by their last digits."""
        values = []
        for row, text in enumerate(self.texts(name)):
            digits = text.removesuffix(".0").rpartition("-")[2]
            if not digits.isdecimal() or len(digits) > 9:
                raise InputError(f"{self.path} has {name} {text!r} in row {row}", expected="a whole number")
            values.append(int(digits))
        return values


def read_table(path: InputFile) -> Table:
    """Read a .tsv, .csv or .txt table; raises InputError where it is not a table, or its lines differ in length.

    The delimiter is a tab, a comma or a semicolon: the one that splits the header line most often.
    """
    try:
        with open_text(path, newline="") as file:
            header_line = file.readline(_LONGEST)
            delimiter = max("\t,;", key=header_line.count)
            file.seek(0)
            lines = _lines(file, delimiter)
            names = [name.strip() for name in next(lines, [])]
            _check_names(path, names)
            columns: list[list[str]] = [[] for _ in names]
            for number, line in enumerate(lines, start=2):
                if len(line) != len(names):
                    raise InputError(
                        f"{path} has {len(line)} fields in line {number} and {len(names)} in its header",
                        expected="the same number of fields in every line",
                    )
                for column, value in zip(columns, line, strict=True):
                    column.append(value.strip())
    except OSError as error:
        raise refused_by_system(str(path), error) or unreadable(str(path), error) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} can't be read as a table: {error}", expected="TSV or CSV, in UTF-8") from error
    return Table(path, dict(zip(names, columns, strict=True)))


def _lines(file: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    return (line for line in csv.reader(file, delimiter=delimiter) if line)


def _check_names(path: InputFile, names: list[str]) -> None:
    if not names or not all(names):
        raise InputError(
            f"{path} has no header line with the names of its columns", expected="stimulus, run, session …"
        )
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{path} has columns of the same name: {', '.join(sorted(repeated))}", expected="one of each")


def table_nbytes(path: InputFile) -> int:
    """Most bytes of memory that a table takes: a Python string a field."""
    return 12 * size_of(path)
