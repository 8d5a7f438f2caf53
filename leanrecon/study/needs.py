"""Which weights and captions settings name, and which of them are not here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from leanrecon.errors import InputError
from leanrecon.study.settings import Settings
from leanrecon.weights.fetch import Want, is_published, where
from leanrecon.weights.folders import cache_folder
from leanrecon.weights.packaged import check_packaged, is_packaged
from leanrecon.weights.pieces import Piece
from leanrecon.weights.published import FILES

BRINGS = "`leanrecon fetch-weights RECIPE_OR_FILE` brings them"

NOT_HERE = "weights are not here"

_TINY = (Piece("network", (".", "vae")),)

_VISION = (
    Piece("network", ("image_encoder", ".")),
    Piece("processor", ("image_feature_extractor", "feature_extractor", ".")),
)

_OF_FEATURES = {
    ("vdvae", "checkpoint"): (),
    ("clip-text", "model"): (Piece("network", ("text_encoder", ".")), Piece("tokenizer", ("tokenizer", "."))),
    ("clip-vision", "model"): _VISION,
    ("autokl", "model"): (Piece("network", ("vae", ".")),),
    ("autokl", "tiny"): _TINY,
}
"""What a kind of feature space takes of what one of its settings names."""

_UNETS = {"versatile": ("image_unet", "text_unet")}
"""Networks that denoise, where it is not one unet."""


def wanted(settings: Settings) -> list[Want]:
    """All that these settings name, each once; with captions only if they are published."""
    every = _taken(settings, "evaluate")
    captions = _named(settings.dataset.model_dump().get("captions") or "")
    if captions in FILES:
        every.append(Want("dataset.captions", captions))
    merged: dict[str, Want] = {}
    for want in every:
        known = merged.setdefault(want.name, want)
        pieces = tuple(dict.fromkeys((*known.pieces, *want.pieces)))
        named = known.setting if want.setting in known.setting.split(", ") else f"{known.setting}, {want.setting}"
        merged[want.name] = Want(named, want.name, pieces)
    return list(merged.values())


def missing(settings: Settings, until: str = "evaluate") -> list[Want]:
    """The weights that the stages up to ``until`` take and that are not here."""
    return [want for want in _taken(settings, until) if where(want) is None]


def require_packaged(wants: Sequence[Want]) -> None:
    """Raise InputError for models that come with leanrecon, where any of them is wanted and they are not as they came."""
    if any(is_packaged(want.name) for want in wants):
        check_packaged()


def require_weights(settings: Settings, until: str, *, planned: bool = False) -> None:
    """Raise InputError that names all weights that are not here, and the command that fetches them.

    Where a study is only ``planned``, it takes the folders of models alone: sizes of other networks stand in settings.
    Models that come with leanrecon are compared with their checksums.
    """
    require_packaged(_taken(settings, until))
    lacking = [want for want in missing(settings, until) if want.pieces or not planned]
    if paths := [want for want in lacking if not is_published(want)]:
        raise InputError(f"there is no file or folder {_listed(paths)}", todo="set each to where it is")
    if lacking:
        raise InputError(told(lacking), todo=f"{BRINGS}, with the --set of this command; or set each to where it is")


def _taken(settings: Settings, until: str) -> list[Want]:
    """The weights that the stages up to ``until`` take."""
    features = () if until == "dataset" else _of_features(settings)
    refinement = _of_refinement(settings) if until in ("refine", "evaluate") else ()
    evaluation = _of_evaluation(settings) if until == "evaluate" else ()
    return [*features, *refinement, *evaluation]


def told(lacking: Sequence[Want]) -> str:
    """What is not here, with the settings that name it."""
    return f"{NOT_HERE}: {_listed(lacking)}"


def _listed(wants: Sequence[Want]) -> str:
    return ", ".join(f"{want.name} ({want.setting})" for want in wants)


def _named(text: str) -> str:
    """What a setting names: the file's own name, where it was found in the cache of fetched files."""
    path = Path(text)
    return path.name if path.parent == cache_folder() else text


def _of_features(settings: Settings) -> Iterator[Want]:
    for name, space in settings.features.items():
        table = space.model_dump()
        for (kind, key), pieces in _OF_FEATURES.items():
            if table.get("kind") == kind and table.get(key):
                yield Want(f"features.{name}.{key}", _named(table[key]), pieces)


def _of_evaluation(settings: Settings) -> Iterator[Want]:
    if settings.evaluate.clip:
        yield Want("evaluate.clip", settings.evaluate.clip, _VISION)


def _of_refinement(settings: Settings) -> Iterator[Want]:
    refine = settings.refine
    if refine.kind == "none":
        return
    networks = [*_UNETS.get(refine.kind, ("unet",)), *(() if refine.tiny_autoencoder else ("vae",))]
    pieces = (*(Piece("network", (name,)) for name in networks), Piece("scheduler", ("scheduler",)))
    yield Want("refine.base", refine.base, pieces)
    if refine.lora:
        yield Want("refine.lora", refine.lora, (Piece("lora", (".",)),))
    if refine.tiny_autoencoder:
        yield Want("refine.tiny_autoencoder", refine.tiny_autoencoder, _TINY)
