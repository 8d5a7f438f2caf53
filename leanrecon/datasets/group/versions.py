"""Whether members mean the same picture by the same id."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from leanrecon.datasets.group.members import Members
from leanrecon.errors import InputError
from leanrecon.stores.images import ImageReader

Array = np.ndarray[Any, Any]


class Versions:
    """Compares each image with those that other members have under its id."""

    def __init__(self, members: Members, split: str) -> None:
        self.members = members
        self.wanted = list(members.images[split].items())
        self.rows = [{name: row for row, name in enumerate(member.rows.ids[split])} for member in members.each]

    def refuse_others(self, group: range, images: Array, readers: Sequence[ImageReader]) -> None:
        """Raise InputError where another member has other bytes than ``images`` [group, height, width, channels]."""
        for k, (rows, reader) in enumerate(zip(self.rows, readers, strict=True)):
            own = [
                (rows[name], row)
                for row in group
                for name, (first, _) in [self.wanted[row]]
                if name in rows and first < k
            ]
            own.sort()
            places = np.array([row - group.start for _, row in own], np.int64)
            for run, found in reader.runs([row for row, _ in own]):
                differ = (found != images[places[run]]).any(axis=(1, 2, 3))
                if differ.any():
                    name, (first, _) = self.wanted[group.start + int(places[run][differ][0])]
                    one, other = (self.members.each[number].name for number in (first, k))
                    raise InputError(
                        f"image {name} of {one} and of {other} are different pictures",
                        expected="one version of each image in all members, as images are matched by their ids",
                        todo="make all members from the same stimuli, cut and resized alike",
                    )
