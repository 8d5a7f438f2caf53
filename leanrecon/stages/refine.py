"""Final images of one part of a study: of its predictions, of a baseline's, or of true features."""

from collections.abc import Mapping
from typing import Any

from leanrecon.features.space import FeatureSpace
from leanrecon.features.unconditional import read_unconditional
from leanrecon.memory import MemoryBudget
from leanrecon.places import Location
from leanrecon.progress import Progress
from leanrecon.refinement.baselines import without_brain
from leanrecon.refinement.diffusion.refiner import Refiner
from leanrecon.stores import Matrix, Store, as_matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import Study
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant

Given = dict[str, tuple[Matrix, str]]
"""By what they are to the generator (text, vision, latents): rows, and the content of the store that they lie in."""


def make_refiner(settings: Settings, study: Study) -> Refiner:
    """The generator of a study; its record is of the images that it has drawn itself."""
    nothing = read_unconditional(study, settings.refine.unconditional())
    how: dict[str, Any] = {"seed": settings.general.seed, "device": settings.general.device, "scratch": study.weights}
    return Refiner(settings.refine, unconditional=nothing, **how)


def predicted(variant: Variant, settings: Settings) -> Given:
    """The predictions that the generator is led by."""
    stores = {role: Store.open(variant.study.predictions(name)) for role, name in settings.refine.roles().items()}
    return {role: (as_matrix(store), store.content) for role, store in stores.items()}


def true(variant: Variant, settings: Settings, spaces: Mapping[str, FeatureSpace]) -> Given:
    """The features of the test stimuli themselves in their place, for a ceiling that no brain gave."""
    stores = {
        role: Store.open(variant.of(spaces[name]).features(name, variant.test_split))
        for role, name in settings.refine.roles().items()
    }
    return {role: (variant.test_rows(store), store.content) for role, store in stores.items()}


def draw_final(
    refiner: Refiner,
    given: Given,
    first: Pictures,
    path: Location,
    *,
    baseline: str = "",
    overwrite: bool,
    budget: MemoryBudget,
    progress: Progress,
    label: str,
) -> None:
    """Draw the final images that are lacking, from first images and the rows of the same stimuli.

    ``baseline`` takes them without this brain: ``prior`` or ``shuffled``.
    """
    contents = {role: content for role, (_, content) in given.items()}
    made_of: dict[str, Any] = {"stage1": first.content, "refine": refiner.made_of(), **contents}
    if baseline:
        made_of |= {"baseline": baseline, "seed": refiner.seed}
    out = Pictures.create(path, first.rows, refiner.shape, made_of=made_of, overwrite=overwrite)
    if out.complete:
        return
    rows = {role: matrix for role, (matrix, _) in given.items()}
    images, led = without_brain(baseline, first, rows, seed=refiner.seed) if baseline else (first, rows)
    refiner.refine(images, led, out, budget=budget, progress=progress, label=label)
