"""Published weights and captions that the settings of a study name."""

from collections.abc import Iterator

from leanrecon import kinds
from leanrecon.study.settings import Settings
from leanrecon.weights import needs as weights
from leanrecon.weights.folders import cache_folder
from leanrecon.weights.needs import Need
from leanrecon.weights.pieces import Piece
from leanrecon.weights.published import FILES

_UNETS = {"versatile": ("image_unet", "text_unet")}


def needed(settings: Settings) -> list[Need]:
    """All weights that these settings name, each once; with captions only if they are published."""
    captions = str(settings.dataset.model_dump().get("captions") or "")
    published = captions.removeprefix(f"{cache_folder()}/") in FILES
    return weights.merge([*_up_to(settings, "evaluate"), *([Need("dataset.captions", captions)] if published else [])])


def missing(settings: Settings, until: str = "evaluate") -> list[Need]:
    """The weights that the stages up to ``until`` take and that are not on this machine."""
    return weights.missing(_up_to(settings, until))


def require_weights(settings: Settings, until: str, *, planned: bool = False) -> None:
    """Raise InputError that names all missing weights of the stages up to ``until``."""
    weights.require(_up_to(settings, until), planned=planned)


def _up_to(settings: Settings, until: str) -> list[Need]:
    features = () if until == "dataset" else _of_features(settings)
    refinement = _of_refinement(settings) if until in ("refine", "evaluate") else ()
    evaluation = _of_evaluation(settings) if until == "evaluate" else ()
    return [*features, *refinement, *evaluation]


def _of_features(settings: Settings) -> Iterator[Need]:
    for name, space in settings.features.items():
        yield from kinds.kind_of("features", space).needs(space, f"features.{name}.")


def _of_evaluation(settings: Settings) -> Iterator[Need]:
    if settings.evaluate.clip:
        judge = kinds.get("judges", "clip")
        yield from judge.needs(judge.Settings(model=settings.evaluate.clip), "judges.clip.")


def _of_refinement(settings: Settings) -> Iterator[Need]:
    refine = settings.refine
    if refine.kind == "none":
        return
    networks = [*_UNETS.get(refine.kind, ("unet",)), *(() if refine.tiny_autoencoder else ("vae",))]
    pieces = (*(Piece("network", (name,)) for name in networks), Piece("scheduler", ("scheduler",)))
    yield Need("refine.base", refine.base, pieces)
    if refine.lora:
        yield Need("refine.lora", refine.lora, (Piece("lora", (".",)),))
    if refine.tiny_autoencoder:
        yield Need("refine.tiny_autoencoder", refine.tiny_autoencoder, (Piece("network", (".", "vae")),))
