"""How long a server that fails is asked again, and which of its answers are worth it."""

import random
import time
from collections.abc import Callable

from leanrecon.errors import LeanreconError, NetworkError

TIMEOUT = 20.0
"""Seconds without a byte after which a request is given up and sent again."""

ATTEMPTS = 8
"""Requests in a row that may bring nothing before the network is taken for gone: about a minute of waiting."""

PATIENCE = 0.25
"""Seconds of waiting after the first failure; doubled after each further one, up to ``LONGEST``."""
LONGEST = 16.0

PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers that are worth asking again after."""


class Patience:
    """Waits after each failure to read ``name``, longer each time, until there were too many in a row.

    ``check`` is what a user should look at then; ``wait`` passes so many seconds.
    """

    def __init__(self, name: str, check: str, wait: Callable[[float], None] = time.sleep) -> None:
        self.name = name
        self.check = check
        self.wait = wait
        self.failures = 0

    def after(self, error: Exception, *, progress: bool = False) -> None:
        """Wait; raises NetworkError after too many failures without ``progress``, and errors of ours as they are."""
        if isinstance(error, LeanreconError):
            raise error
        self.failures = 1 if progress else self.failures + 1
        if self.failures >= ATTEMPTS:
            raise NetworkError(
                f"{self.name} could not be read in {ATTEMPTS} attempts ({_first_line(error)})",
                todo=f"check {self.check} and run the same command again; everything fetched so far is kept",
            ) from error
        # Waits differ by chance, so that requests that failed together don't come back together.
        self.wait(min(PATIENCE * 2 ** (self.failures - 1), LONGEST) * random.uniform(0.5, 1))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
