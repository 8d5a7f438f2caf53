"""Some of the images of a folder."""

from typing import Any

from leanrecon.images import Array, ImageShape
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.pictures import Pictures


class SomePictures(Pictures):
    """Some images of a folder, in a given order, to be read."""

    def __init__(self, base: Pictures, index: Array) -> None:
        self.base, self.index = base, index

    @property
    def rows(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> ImageShape:
        return self.base.shape

    @property
    def content(self) -> str:
        return fingerprint({"pictures": self.base.content, "rows": self.index.tolist()})

    def plain(self) -> dict[str, Any]:
        return self.base.plain() | {"rows": self.index.tolist()}

    def read(self, row: int) -> Array:
        return self.base.read(int(self.index[row]))
