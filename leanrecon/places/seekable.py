"""The base class of files of which only ranges are read."""

import io
import os


class Seekable(io.RawIOBase):
    """A read-only file of ``size`` bytes with a position; subclasses define ``readinto``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(begin + offset, 0)
        return self._at
