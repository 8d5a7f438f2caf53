"""Retry policy for HTTP and S3."""

import random
import time
from collections.abc import Callable

from leanrecon.errors import LeanreconError, NetworkError

TIMEOUT = 20.0
"""Seconds without a byte after which a request is abandoned and sent again."""

ATTEMPTS = 8
"""Failed requests in a row after which the network counts as down: about a minute of waiting."""

TO_PLAN = 4
"""Failed requests in a row after which a plan does without the network: about two seconds of waiting."""

FIRST_WAIT = 0.25
"""Seconds of waiting after the first failure; each further one doubles it, up to ``LONGEST_WAIT``."""
LONGEST_WAIT = 16.0

RETRIED = {408, 425, 429, 500, 502, 503, 504}
"""HTTP status codes after which a request is sent again."""


class Retry:
    """Waits after each failed request, longer each time, until there were too many failures in a row.

    ``name`` is what is read, ``check`` what a user should check if that fails. ``wait`` sleeps for some seconds.
    ``attempts`` is how many failures in a row are too many, where they are not ``ATTEMPTS``.
    """

    def __init__(
        self, name: str, check: str, wait: Callable[[float], None] = time.sleep, attempts: int | None = None
    ) -> None:
        self.name = name
        self.check = check
        self.wait = wait
        self.attempts = ATTEMPTS if attempts is None else attempts
        self.failures = 0

    def after(self, error: Exception, *, progress: bool = False) -> None:
        """Wait before the next attempt; ``progress`` says that bytes arrived before the failure.

        Raises NetworkError after too many failures without progress, and a LeanreconError as it is.
        """
        if isinstance(error, LeanreconError):
            raise error
        self.failures = 1 if progress else self.failures + 1
        if self.failures >= self.attempts:
            raise NetworkError(
                f"{self.name} could not be read in {self.attempts} attempts ({_first_line(error)})",
                todo=f"check {self.check} and run the same command again; everything fetched so far is kept",
            ) from error
        # Waits are random, so that requests that failed together are not sent again together.
        self.wait(min(FIRST_WAIT * 2 ** (self.failures - 1), LONGEST_WAIT) * random.uniform(0.5, 1))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
