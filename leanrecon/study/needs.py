"""Which published weights and captions a study's settings need, and which of them are not here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from leanrecon import kinds
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
