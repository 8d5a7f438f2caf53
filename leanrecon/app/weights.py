"""What ``leanrecon doctor --weights`` prints and keeps."""

from collections.abc import Sequence

from leanrecon.app.networks import Named, here, named
from leanrecon.app.references import (
    RECORD,
    Checked,
    changed,
    check,
    entry_of,
    key_of,
    read_references,
    write_references,
)
from leanrecon.app.terminal import say
from leanrecon.errors import BudgetError, InputError, LeanreconError, SettingsError
from leanrecon.memory import MemoryBudget
from leanrecon.places.paths import cache_folder
from leanrecon.weights.samples import CLASSES, photograph


def check_weights(sources: Sequence[str], memory: str | None, *, overwrite: bool = False) -> None:
    """Check every network whose weights are here, and compare its numbers with those kept, or keep them.

    ``sources`` are recipes or settings files; none: all recipes and presets that come with leanrecon. Networks are
    loaded one after another, each only if the budget has room for it. Raises InputError that names every network
    whose weights are wrong, or whose numbers have changed; ``overwrite`` keeps the present numbers instead.
    """
    there, lacking = here(named(sources))
    kept = read_references()
    refused: list[str] = []
    done: set[str] = set()
    for one in there:
        try:
            found = _checked(one, memory, done)
        except (SettingsError, BudgetError) as error:  # a missing library, or too little memory
            say(f"{one.title}: not checked. {error}")
            continue
        except LeanreconError as error:
            found = Checked("", "", problems=[str(error)])
        if found is None:
            continue  # the same network, under another setting
        problems = list(found.problems)
        then = kept.get(found.key)
        if not problems and then is not None and not overwrite and (difference := changed(found, then)):
            problems = [difference]
        if not problems and (then is None or overwrite):
            kept[found.key] = entry_of(found, one.title)
            write_references(kept)
        how = "; ".join(problems) if problems else f"as on {kept[found.key]['date']}" if then else "recorded"
        say(f"{one.title}: {how}. {'; '.join(found.said)}".rstrip(". ") + f" ({', '.join(one.places)})")
        refused += [f"{one.title}: {'; '.join(problems)}"] if problems else []
    say(f"{len(done)} networks checked; their numbers are kept in {cache_folder() / RECORD}")
    if lacking:
        names = sorted({need.name for one in lacking for need in one.needs})
        say(f"not here: {', '.join(names)}")
    if refused:
        raise InputError(
            f"{len(refused)} of {len(there)} networks are refused: {' | '.join(refused)}",
            expected="the numbers that the same weights gave before, and weights that were trained",
            todo="go back to the libraries' earlier versions, or fetch the weights again; to go on with new numbers, make all "
            "features again and run `leanrecon doctor --weights --overwrite`",
        )


def _checked(one: Named, memory: str | None, done: set[str]) -> Checked | None:
    """What a network gives; None for one that was checked already."""
    network = one.make("auto")
    if (key := key_of(network)) in done:
        return None
    shape = photograph(next(iter(CLASSES))).shape
    nbytes = max(n.nbytes(shape) for n in (network, network.classifier()) if n is not None)
    MemoryBudget.of(memory).require(one.title, nbytes)
    done.add(key)
    try:
        return check(network)
    finally:
        network.made.release()
