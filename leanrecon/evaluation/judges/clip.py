"""The CLIP that images are identified by: settings in, a network for the stage evaluate out."""

import functools
from pathlib import Path
from typing import Any

from leanrecon.evaluation.judges.judge import Judge as Encoder
from leanrecon.features.clip import CLIPVision, CLIPVisionSettings
from leanrecon.features.inference import LIBRARY_NBYTES, imports_nbytes
from leanrecon.features.space import Array, ImageShape
from leanrecon.study.settings import Settings

_SETTINGS = {"model": "evaluate.clip", "precision": "evaluate.clip_precision"}


class _CLIP(CLIPVision):
    """A CLIP that ``[evaluate]`` names."""

    def setting(self, key: str) -> str:
        return _SETTINGS[key]


class CLIPJudge:
    """CLIP's image embedding: the class token of the vision half, projected into the space shared with captions.

    It is what ``get_image_features`` of transformers gives, divided by its length, which changes no correlation
    (Radford et al. 2021, arXiv:2103.00020). Preprocessing, weights and memory are those of ``[features.clip-vision]``.
    """

    def __init__(self, settings: Settings) -> None:
        how = settings.evaluate
        self.model = judge_name(settings)
        table = CLIPVisionSettings(model=how.clip, form="embedding", precision=how.clip_precision)
        self._space = _CLIP(table, name="clip", device=settings.general.device)
        self.batch = self._space.cost_batch
        self._imports = imports_nbytes("transformers")  # before it is imported, as plans of later folds count it too

    @functools.cached_property
    def dims(self) -> int:
        return self._space.dims((1, 1, 3))

    @property
    def staying_nbytes(self) -> int:
        return self._imports + LIBRARY_NBYTES

    def work_nbytes(self, shape: ImageShape) -> int:
        return self._space.cost(shape).held - imports_nbytes("transformers")

    def made_of(self) -> dict[str, Any]:
        return self._space.made_of()

    def encode(self, images: Array) -> Array:
        return self._space.encode(images, range(len(images)))

    def release(self) -> None:
        self._space.release()


def make_judge(settings: Settings) -> Encoder | None:
    """The CLIP that settings name, its folder checked but no weights read; None where they name none.

    Raises InputError for a model that is not there, or has no vision half, projection or preprocessing.
    """
    if not settings.evaluate.clip:
        return None
    judge = CLIPJudge(settings)
    judge.work_nbytes((1, 1, 3))  # which looks at all that its folder has to hold
    return judge


def judge_name(settings: Settings) -> str:
    """What the CLIP is called in a report: its name on the hub, or that of its folder alone."""
    path = Path(settings.evaluate.clip)
    return path.name if path.is_absolute() else settings.evaluate.clip
