"""What reading files in buckets asks for, from the shapes of their arrays: requests and bytes, about."""

from collections.abc import Iterable
from dataclasses import dataclass

from leanrecon.datasets.files.rows import Rows
from leanrecon.places.inputs import DIRECT, MOST, NEAR, PAGE, InputFile, is_url
from leanrecon.places.location import Location

_SMALL = 4
"""Requests of a small file that is looked at twice: its size and its first page, or less where that is kept."""

_VOLUME = 7
"""Requests of a small file that is known by its content too, such as a mask."""

_ZARR_OPENED, _ZARR_LOOKED = 3, 2
"""Requests that opening an array of Zarr takes, and looking whether it has changed."""


@dataclass(frozen=True)
class Asked:
    """Requests to buckets and the bytes that are received; they add up."""

    requests: int = 0
    nbytes: int = 0

    def __add__(self, other: "Asked") -> "Asked":
        return Asked(self.requests + other.requests, self.nbytes + other.nbytes)

    def part(self, share: float) -> "Asked":
        return Asked(round(self.requests * share), round(self.nbytes * share))


def read_once(rows: Rows, at_once: int) -> Asked:
    """Of all rows of an array, ``at_once`` of them at a time; nothing of files on this machine."""
    kept = rows.nbytes <= DIRECT and all(one.pieces is None for one in rows.sources())
    if not rows.away or kept:  # short files are kept from when they were read for their content
        return Asked()
    return Asked(rows.asked(max(at_once, 1)), rows.nbytes)


def scattered(rows: Rows, wanted: int, bands: int) -> Asked:
    """Of ``wanted`` rows that lie all over an array, as many in each of so many bands; each band goes through the file."""
    if not rows.away or not wanted:
        return Asked()
    each, nbytes = wanted / bands, rows.nbytes / len(rows)
    pieces = [one.pieces for one in rows.sources() if one.pieces is not None]
    if pieces:
        read = bands * min(sum(pieces), each)
        return Asked(round(read), round(read * rows.nbytes / sum(pieces)))
    if all(one.spans for one in rows.sources()) and (len(rows) / each - 1) * nbytes <= NEAR:
        return Asked(bands * -(-rows.nbytes // MOST), bands * rows.nbytes)
    opened = bands * sum(not one.spans for one in rows.sources())  # such files are opened again for each band
    return Asked(wanted + opened, round(wanted * nbytes))


def known_by_content(arrays: Iterable[Rows], looks: int) -> Asked:
    """Of opening these arrays, reading their files through for their SHA-256, and looking so often whether they changed."""
    files: dict[str, dict[str | None, Rows]] = {}
    for rows in (one for array in arrays for one in array.sources() if one.away):
        files.setdefault(str(rows.path), {})[rows.key] = rows
    asked = Asked()
    for of in files.values():
        nbytes = sum(rows.nbytes for rows in of.values())
        pieces = [rows.pieces for rows in of.values() if rows.pieces is not None]
        if pieces:
            asked += Asked(_ZARR_OPENED * len(of) + 3 + sum(pieces) + _ZARR_LOOKED * looks, nbytes)
        else:
            asked += Asked(2 * len(of) + 2 + -(-nbytes // MOST) + looks, nbytes + min(PAGE * len(of), nbytes))
    return asked


def volumes(files: Iterable[InputFile], looks: int) -> Asked:
    """Of small files that are known by their content, such as masks and tables."""
    return Asked((_VOLUME + looks) * sum(isinstance(file, Location) for file in files))


def small_files(specs: Iterable[str | None], path: str | None) -> Asked:
    """Of small files beside the arrays, such as captions and masks; those given as ``:KEY`` are in ``path``."""
    named = [path if spec.startswith(":") else spec for spec in specs if spec is not None]
    return Asked(_SMALL * sum(spec is not None and is_url(spec) for spec in named))
