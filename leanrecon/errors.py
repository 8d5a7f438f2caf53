"""Errors that a user can cause: each says what was found, what was expected and what to do."""


class LeanreconError(Exception):
    """A mistake or a limit outside the program; the command line prints it and exits with 2.

    ``found`` is one sentence without a full stop; ``expected`` and ``todo``, where given, follow it.
    """

    def __init__(self, found: str, *, expected: str | None = None, todo: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.todo = todo
        sentences = [found]
        if expected:
            sentences.append(f"Expected {expected}")
        if todo:
            sentences.append(todo[0].upper() + todo[1:])
        super().__init__(". ".join(s.rstrip(".") for s in sentences) + ".")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.found, self.expected, self.todo)


def _rebuild(kind: type[LeanreconError], found: str, expected: str | None, todo: str | None) -> LeanreconError:
    return kind(found, expected=expected, todo=todo)


class InputError(LeanreconError, ValueError):
    """Data that can't be used: wrong shape, dtype, values, or missing."""


class SettingsError(LeanreconError, ValueError):
    """A setting that is unknown or out of range."""


class BudgetError(LeanreconError, MemoryError):
    """A memory budget too small for a stage; says the least that would do."""


class StoreError(LeanreconError, OSError):
    """A store that is incomplete, damaged, made of something else, or can't be written."""

    def __str__(self) -> str:  # OSError would print its arguments as a tuple
        return str(self.args[0])


class NetworkError(LeanreconError):
    """A server that can't be reached, that keeps failing, or that has something else than it is asked for.

    No OSError, which would be taken for one of the disk that is written to.
    """


class LeanreconWarning(UserWarning):
    """Something that a user should know about a result that is otherwise fine."""
