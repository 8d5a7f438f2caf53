"""Studies whose dataset has no images: settings that need images are refused; the other stages run."""

from collections.abc import Iterator

from leanrecon import kinds
from leanrecon.errors import InputError
from leanrecon.study.settings import Settings

GIVE_IMAGES = (
    "set dataset.stimuli_train and dataset.stimuli_test, or dataset.stimuli, or dataset.images, as the kind has them; "
    'without images give the features, as in [features.NAME] with kind = "precomputed"'
)

MISSING = (
    "The dataset has no images. So there are no first or final images, no pixel metrics, no judges and no baselines of "
    "images: these scores compare predicted features with true ones."
)
"""What a reader of the figures has to know."""


def check_images(settings: Settings) -> None:
    """Raise InputError that names all settings which need images."""
    if needing := list(_needing(settings)):
        verb = "needs" if len(needing) == 1 else "need"
        raise InputError(
            f"this dataset has no images, and {' and '.join(needing)} {verb} them",
            expected="feature spaces that are precomputed or describe captions, and nothing that draws or judges images",
            todo=GIVE_IMAGES,
        )


def _needing(settings: Settings) -> Iterator[str]:
    for name, space in settings.features.items():
        if kinds.kind_of("features", space).inputs == "images":
            yield f"[features.{name}]"
    if settings.decode is not None:
        yield "[decode]"
    if kinds.kind_of("generators", settings.refine).refines:
        yield "[refine]"
    for name in settings.judges:
        yield f"[judges.{name}]"
