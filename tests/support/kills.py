"""Work that stops in the middle, as if it were killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from leanrecon.stores import Store


class StoppedError(Exception):
    """What stops the work where KeyboardInterrupt is not wanted."""


@contextmanager
def stopping(after: int, error: type[BaseException] = KeyboardInterrupt, method: str = "write_chunk") -> Iterator[None]:
    """Raise an error instead of the write to a store that follows ``after`` others."""
    left, write = after, getattr(Store, method)

    def fragile(self: Store, *given: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return write(self, *given, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, method, fragile)
        yield
