"""The registry of kinds: which datasets, feature spaces, regressors, … there are, and who provides them.

Built-in kinds stand in one table. Other packages add theirs through entry points of the group ``leanrecon.<group>``
(``leanrecon.datasets``, ``leanrecon.features``, …). A kind is imported when it is first asked for.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel

from leanrecon.errors import SettingsError, shown
from leanrecon.validation import nearest, validate

BUILT_IN: dict[str, dict[str, str]] = {
    "datasets": {
        "arrays": "leanrecon.datasets.arrays.dataset:Arrays",
        "nsd": "leanrecon.datasets.nsd.dataset:NSD",
        "simulated": "leanrecon.datasets.simulated.dataset:Simulated",
        "nifti": "leanrecon.datasets.nifti.dataset:Nifti",
        "mindeye": "leanrecon.datasets.layouts.mindeye:MindEye",
        "algonauts": "leanrecon.datasets.layouts.algonauts:Algonauts",
        "brain-diffuser": "leanrecon.datasets.layouts.brain_diffuser:BrainDiffuser",
        "bdpy": "leanrecon.datasets.layouts.bdpy:Bdpy",
        "glmsingle": "leanrecon.datasets.layouts.glmsingle:GLMsingle",
        "miyawaki": "leanrecon.datasets.layouts.miyawaki:Miyawaki",
        "group": "leanrecon.datasets.group.dataset:Group",
        "joined": "leanrecon.datasets.group.joined:Joined",
    },
    "features": {
        "autokl": "leanrecon.features.autokl:AutoKL",
        "clip-text": "leanrecon.features.clip.text:CLIPText",
        "clip-vision": "leanrecon.features.clip.vision:CLIPVision",
        "patches": "leanrecon.features.patches:Patches",
        "pca": "leanrecon.features.pca:PCA",
        "pixels": "leanrecon.features.pixels:Pixels",
        "precomputed": "leanrecon.stages.precomputed:Precomputed",
        "vdvae": "leanrecon.features.vdvae.space:VDVAESpace",
    },
    "regressors": {
        "ridge": "leanrecon.regression.ridge.regressor:RidgeRegressor",
        "mlp": "leanrecon.regression.mlp.regressor:MLPRegressor",
        "local": "leanrecon.regression.local.regressor:LocalRegressor",
        "stack": "leanrecon.regression.stack.regressor:StackRegressor",
    },
    "calibrations": {
        "none": "leanrecon.calibration.none:NoCalibration",
        "linear": "leanrecon.calibration.linear:LinearCalibration",
        "boost": "leanrecon.calibration.boost:BoostCalibration",
        "conv": "leanrecon.calibration.conv.conv:ConvCalibration",
    },
    "alignments": {
        "none": "leanrecon.alignment.none:NoAlignment",
        "pca": "leanrecon.alignment.pca:PCAAlignment",
        "procrustes": "leanrecon.alignment.procrustes:ProcrustesAlignment",
        "srm": "leanrecon.alignment.srm:SRMAlignment",
    },
    "decoders": {
        "gan": "leanrecon.decoders.gan.gan:GAN",
    },
    "generators": {
        "none": "leanrecon.refinement.none:NoRefinement",
        "lcm": "leanrecon.refinement.diffusion.stable:LCM",
        "ddim": "leanrecon.refinement.diffusion.stable:DDIM",
        "ddpm": "leanrecon.refinement.diffusion.stable:DDPM",
        "versatile": "leanrecon.refinement.diffusion.versatile:Versatile",
        "inversion": "leanrecon.refinement.inversion.generator:Inversion",
    },
    "judges": {
        "clip": "leanrecon.evaluation.judges.clip:CLIPJudge",
        "dists": "leanrecon.evaluation.judges.perceptual:DISTSJudge",
        "lpips": "leanrecon.evaluation.judges.perceptual:LPIPSJudge",
        "module": "leanrecon.evaluation.judges.module:ModuleJudge",
        "space": "leanrecon.evaluation.judges.space:SpaceJudge",
        "swav": "leanrecon.evaluation.judges.swav:SwAVJudge",
        "torchvision": "leanrecon.evaluation.judges.torchvision:TorchvisionJudge",
    },
}
"""``MODULE:CLASS`` of every built-in kind, by group."""

GROUPS = tuple(BUILT_IN)

SINGULAR = {
    "datasets": "dataset",
    "features": "feature space",
    "regressors": "regressor",
    "calibrations": "calibration",
    "alignments": "alignment",
    "decoders": "decoder",
    "generators": "generator",
    "judges": "judge",
}
"""What one kind of each group is called in messages."""

REQUIRED: dict[str, tuple[str, ...]] = {
    "datasets": ("plan", "ingest"),
    "features": ("dims", "cost", "encode", "made_of", "inputs", "learns", "decodes", "conditions", "calibrates"),
    "regressors": ("plan", "predict", "made_of"),
    "calibrations": ("plan", "learn", "apply", "made_of", "calibrates", "least", "find", "record"),
    "alignments": ("plan", "fit", "transform", "state", "load"),
    "decoders": ("image_shape", "plan", "train", "decode", "made_of"),
    "generators": ("refines", "roles", "unconditional_roles", "check", "plan", "draw", "made_of", "record"),
    "judges": ("dims", "encode", "made_of", "check", "work_nbytes", "release"),
}
"""What a kind of each group must have beside ``Settings``; the protocols beside each group say what they do."""

WHEN_MADE: dict[str, tuple[str, ...]] = {
    "generators": ("shape",),
    "judges": ("measure", "model", "batch", "staying_nbytes"),
}
"""What it must have once it is made, on its class or from its ``__init__``."""

SELF = "leanrecon"
"""The provider of built-in kinds."""

_loaded: set[str] = set()  # distributions of the kinds that were loaded


@dataclass(frozen=True)
class Entry:
    """Where a kind is found, and the distribution that provides it."""

    group: str
    name: str
    target: str
    provider: str
    entry_point: EntryPoint | None = None


def entries(group: str) -> dict[str, Entry]:
    """All kinds of a group by name; built-in kinds win over others of the same name."""
    found = {name: Entry(group, name, target, SELF) for name, target in BUILT_IN[group].items()}
    for entry in _third_party(group):
        found.setdefault(entry.name, entry)
    return found


def names(group: str) -> list[str]:
    """The names of all kinds of a group."""
    return sorted(entries(group))


def clashes(group: str) -> list[str]:
    """One sentence for each entry point whose name another kind has already; such entry points are not used."""
    used = entries(group)
    return [
        f"the distribution {entry.provider} registers {group} kind {entry.name!r}, a name that "
        f"{used[entry.name].provider} has taken; {entry.target} is not used"
        for entry in _third_party(group)
        if used[entry.name] != entry
    ]


def get(group: str, name: str) -> Any:
    """The class of a kind, imported now.

    Raises SettingsError for an unknown name, with the nearest known one; for a kind that fails to import; and for one
    that lacks a part of its protocol. The message names the distribution that provides it.
    """
    known = entries(group)
    if name not in known:
        raise SettingsError(
            f"{name!r} is not a {SINGULAR[group]} ({nearest(name, known) if known else 'none is installed'})",
            todo=None if known else f"install a package that provides one by an entry point leanrecon.{group}",
        )
    return _load(known[name])


def kind_of(group: str, settings: BaseModel) -> Any:
    """The class of the kind that these settings are for."""
    return get(group, settings.model_dump(include={"kind"})["kind"])


def settings_of(group: str, table: Mapping[str, Any], prefix: str, *, default: str) -> BaseModel:
    """Validate a table of settings with the model of its kind; ``default`` is the kind where the table names none.

    ``prefix`` names the table in messages, as in ``dataset.``. Raises SettingsError with every problem.
    """
    name = table.get("kind", default)
    known = entries(group)
    if not isinstance(name, str) or (name not in known and "kind" in table):
        hint = nearest(name if isinstance(name, str) else "", known) if known else "none is installed"
        raise SettingsError(f"{prefix}kind = {shown(name)} is unknown ({hint})")
    try:
        kind = get(group, name)
    except SettingsError as error:
        section = prefix.rstrip(".")
        advice = None if name in known else f'give [{section}] a kind, as in kind = "{next(iter(known), "NAME")}"'
        raise SettingsError(f"{section}: {error.found}", expected=error.expected, todo=advice or error.todo) from None
    settings: BaseModel = validate(kind.Settings, {**table, "kind": name}, prefix)
    return settings


def broken(group: str) -> list[str]:
    """One sentence for each kind of a group that can't be used, and for each name that clashes."""
    problems = clashes(group)
    for entry in entries(group).values():
        try:
            _load(entry)
        except SettingsError as error:
            problems.append(str(error))
    return problems


def providers() -> list[str]:
    """The other distributions whose kinds this process has loaded."""
    return sorted(_loaded - {SELF})


@functools.cache
def _third_party(group: str) -> tuple[Entry, ...]:
    found = []
    for point in sorted(entry_points(group=f"{SELF}.{group}"), key=lambda p: (p.dist.name if p.dist else "", p.name)):
        provider = point.dist.name if point.dist else "an unknown distribution"
        found.append(Entry(group, point.name, point.value, provider, point))
    return tuple(found)


@functools.cache
def _load(entry: Entry) -> Any:
    try:
        if entry.entry_point is not None:
            kind = entry.entry_point.load()
        else:
            module, _, name = entry.target.partition(":")
            kind = getattr(import_module(module), name)
    except Exception as error:
        if entry.provider == SELF:
            raise
        raise SettingsError(
            f"the {entry.group} kind {entry.name!r} of the distribution {entry.provider} can't be imported "
            f"({entry.target}: {type(error).__name__}: {error})",
            todo=f"repair or uninstall {entry.provider}; every other kind works",
        ) from error
    if lacking := _lacking(kind, entry):
        raise _incomplete(entry, lacking)
    default = kind.Settings.model_fields["kind"].default
    if default != entry.name:
        raise SettingsError(
            f"the {entry.group} kind {entry.name!r} of the distribution {entry.provider} has Settings.kind = {shown(default)}",
            expected="the name of its entry point",
            todo="make the two equal",
        )
    _loaded.add(entry.provider)
    return kind


def made(group: str, settings: BaseModel, **how: Any) -> Any:
    """The kind that these settings are for, made from them; raises SettingsError where it lacks a part then."""
    kind = kind_of(group, settings)
    one = kind(settings, **how)
    own = vars(one) if hasattr(one, "__dict__") else {}
    if lacking := [name for name in WHEN_MADE.get(group, ()) if not hasattr(kind, name) and name not in own]:
        raise _incomplete(entries(group)[settings.model_dump(include={"kind"})["kind"]], lacking)
    return one


def _incomplete(entry: Entry, lacking: Sequence[str]) -> SettingsError:
    parts = [*REQUIRED[entry.group], *WHEN_MADE.get(entry.group, ())]
    return SettingsError(
        f"the {entry.group} kind {entry.name!r} of the distribution {entry.provider} lacks {', '.join(lacking)}",
        expected=f"a class with Settings, {', '.join(parts)}",
        todo="see docs/add-a-kind.md for the protocol of each group",
    )


def _lacking(kind: Any, entry: Entry) -> list[str]:
    """The parts of its group's protocol that a kind does not have."""
    model = getattr(kind, "Settings", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ["Settings (a pydantic model)"]
    if "kind" not in model.model_fields:
        return [f'Settings.kind (kind: Literal["{entry.name}"] = "{entry.name}")']
    return [name for name in REQUIRED[entry.group] if not hasattr(kind, name)]


def optional(kind: Any, part: str, *arguments: Any) -> list[Any]:
    """What a part of a kind gives, such as ``needs`` or ``notes``; nothing where the kind leaves the part out."""
    give = getattr(kind, part, None)
    return [] if give is None else list(give(*arguments))
