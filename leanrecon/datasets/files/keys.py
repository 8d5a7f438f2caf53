"""The array of a file that a key names, among those that are there."""

import difflib
from collections.abc import Callable, Sequence

from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

LISTED = 20
"""Keys that an error message lists at most."""


def choose_key(
    path: InputFile | str, key: str | None, names: Sequence[str], describe: Callable[[str], str], more: int = 0
) -> str:
    """The wanted key, or the only one; else an InputError lists those there, described, with the nearest name.

    ``more`` is how many there are beside ``names``. A key that stands for two arrays is refused.
    """
    wanted = names[0] if key is None and len(names) == 1 and not more else key
    if wanted is not None and (n := names.count(wanted)):
        if n > 1:
            raise InputError(
                f"{path} holds {n} arrays named {wanted!r}", expected="one", todo="save it again with one array a name"
            )
        return wanted
    listed = [f"{name} {_described(name, describe)}" for name in names[:LISTED]]
    rest = len(names) + more - len(listed)
    there = "; ".join(listed) + (f" and {rest} more" if rest else "") if names else "no arrays at all"
    near = difflib.get_close_matches(key, names, 1, 0.4) if key else []
    found = f"{path} has no array {key!r}" if key else f"{path} holds {len(names) + more} arrays and no key was given"
    todo = f'perhaps "{near[0]}" is meant' if near else 'name the array as "FILE:KEY"'
    raise InputError(found, expected=f"one of those it has: {there}", todo=todo)


def _described(name: str, describe: Callable[[str], str]) -> str:
    try:
        return describe(name)
    except Exception as error:  # a neighbour that is damaged doesn't hide the names of the others
        return f"(damaged: {error})"
