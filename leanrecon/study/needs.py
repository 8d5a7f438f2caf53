"""Which published weights and captions a study's settings need, and which of them are not here."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from leanrecon import kinds
from leanrecon.errors import InputError
from leanrecon.places.paths import cache_folder
from leanrecon.study.settings import Settings
from leanrecon.weights import needs
from leanrecon.weights.needs import Need
from leanrecon.weights.published import FILES


def needed(settings: Settings, stages: Sequence[str] | None = None) -> list[Need]:
    """All weights that the stages read, each once, and captions if they are published; None: all stages."""
    return needs.merge([*_of_dataset(settings), *_of_stages(settings, stages)])


def missing(settings: Settings, stages: Sequence[str] | None = None) -> list[Need]:
    """The weights that the stages read and that are not here, and captions that are published."""
    captions = _of_dataset(settings) if stages is None or "dataset" in stages else ()
    return needs.missing(needs.merge([*_of_stages(settings, stages), *captions]))


def require_weights(settings: Settings, stages: Sequence[str] | None = None, *, planned: bool = False) -> None:
    """Raise InputError that names all weights that are not here, and the command that fetches them.

    A study that is only ``planned`` needs the folders of models alone. Models that come with leanrecon are compared
    with their checksums.
    """
    needs.require(needs.merge(_of_stages(settings, stages)), planned=planned)


def require_inputs(
    settings: Settings, base_dir: Path | None, stages: Sequence[str] | None = None, *, begun: bool = False
) -> None:
    """Raise InputError that names all weights, files and folders which are not here, and what to do about each.

    ``begun`` says that the study has its dataset, for which what it is made of may be gone.
    """
    found: list[InputError] = []
    try:
        require_weights(settings, stages)
    except InputError as error:
        found.append(error)
    named = [] if begun else [("", find) for find in settings.dataset.finders(base_dir)]
    if stages is None or "features" in stages:
        for name, space in settings.features.items():
            finders = getattr(space, "finders", None)
            named += [(f"features.{name}.", find) for find in (finders(base_dir) if finders else ())]
    for prefix, find in named:
        try:
            find()
        except InputError as error:
            found.append(InputError(f"{prefix}{error.found}", expected=error.expected, todo=error.todo))
    if len(found) == 1:
        raise found[0]
    if found:
        raise _all_of(found)


def _all_of(errors: Sequence[InputError]) -> InputError:
    """One error of several: what to do stands behind each, or at the end where it is the same for more than one."""
    todos = Counter(error.todo for error in errors if error.todo)
    told = [f"{e.found} ({e.todo})" if e.todo and todos[e.todo] == 1 else e.found for e in errors]
    shared = [todo for todo, count in todos.items() if count > 1]
    return InputError("; ".join(dict.fromkeys(told)), todo="; ".join(shared) or None)


def _of_stages(settings: Settings, stages: Sequence[str] | None) -> Iterator[Need]:
    if stages is None or "features" in stages:
        for name, space in settings.features.items():
            yield from kinds.optional(kinds.kind_of("features", space), "needs", space, f"features.{name}.")
    if stages is None or "regression" in stages:
        for name, regressor in settings.regression.items():
            yield from kinds.optional(kinds.kind_of("regressors", regressor), "needs", regressor, f"regression.{name}.")
    if settings.decode is not None and (stages is None or "decode" in stages):
        yield from kinds.optional(kinds.kind_of("decoders", settings.decode), "needs", settings.decode)
    if stages is None or "refine" in stages:
        yield from kinds.optional(kinds.kind_of("generators", settings.refine), "needs", settings.refine)
    if stages is None or "evaluate" in stages:
        for name, judge in settings.judges.items():
            yield from kinds.optional(kinds.kind_of("judges", judge), "needs", judge, f"judges.{name}.")


def _of_dataset(settings: Settings) -> Iterator[Need]:
    captions = str(getattr(settings.dataset, "captions", None) or "")
    name = Path(captions).name if Path(captions).parent == cache_folder() else captions
    if name in FILES:
        yield Need(needs.CAPTIONS, name)
