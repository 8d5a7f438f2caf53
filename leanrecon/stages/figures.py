"""Common parts of the two stages evaluate, of images and of features alone: files of scores, and notes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel

from leanrecon import kinds
from leanrecon.errors import StoreError
from leanrecon.images import Array
from leanrecon.places import Location
from leanrecon.places.files import read_record, write_json, write_whole
from leanrecon.stages.scores import write_scores
from leanrecon.stages.stage import Run
from leanrecon.study.record import stage_record, versions
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, whole_brain

SCORES_NBYTES = 800
"""Bytes of a test row in the table of scores."""


class Figures(Protocol):
    """Scores of all test rows and of each fold."""

    metrics: dict[str, Any]
    """The content of metrics.json."""
    folds: list[dict[str, Any]]
    """The scores of each fold alone; empty without folds."""

    @property
    def columns(self) -> list[str]:
        """The columns of the table of scores."""


def are_current(run: Run, every: Sequence[Variant], made_of: str, files: Iterable[Location]) -> bool:
    """Whether scores of these stores exist: of the study, of every fold, as a table, and in further ``files``."""
    study = run.study
    kept = [study.scores, *(variant.study.metrics for variant in whole_brain(every)), *files]
    return all(path.exists() for path in kept) and not run.overwrite and _made_of(run) == made_of


def require_current(run: Run, made_of: str) -> None:
    """Raise StoreError if the study has no scores, or those of an earlier state of its stores."""
    there = _made_of(run)
    if there != made_of:
        raise StoreError(
            f"{run.study.root} has {'only scores of earlier stores' if there else 'no scores yet'}",
            todo="finish it with `leanrecon run` and the same settings, which writes the report as well",
        )


def write_figures(
    run: Run,
    every: Sequence[Variant],
    figures: Figures,
    rows: Iterable[dict[str, Any]],
    vectors: Mapping[Location, Array],
    made_of: str,
    notes: Sequence[str],
) -> None:
    """Write all scores, and metrics.json of the study last: its presence means that all is done.

    ``rows`` are those of the table of scores; ``vectors`` hold one number for each feature, by file.
    """
    study, whole = run.study, whole_brain(every)
    about = {"versions": versions(), "simulated": run.settings.dataset.located(run.base_dir).simulated}
    for variant, of_fold in zip(whole, figures.folds, strict=False):
        write_json(variant.study.metrics, of_fold | about | {"notes": [*of_fold["notes"], *notes]}, indent=1)
    for path, values in vectors.items():
        write_whole(path, lambda file, values=values: np.save(file, values.astype(np.float32)))  # type: ignore[misc]
    write_scores(study, figures.columns, rows)
    metrics = figures.metrics | about | {"made_of": made_of, "notes": [*figures.metrics["notes"], *notes]}
    write_json(study.metrics, metrics, indent=1)


def _made_of(run: Run) -> Any:
    return (read_record(run.study.metrics) or {}).get("made_of")


# Notes


def notes_of(run: Run, every: Sequence[Variant]) -> list[str]:
    """Notes for the reader of the report about the kinds that were used and what was fitted."""
    return [*_settings_notes(run.settings), *_learned_notes(whole_brain(every), run.settings)]


def _settings_notes(settings: Settings) -> list[str]:
    notes = [*kinds.optional(kinds.kind_of("datasets", settings.dataset), "notes", settings.dataset)]
    for name, judge in settings.judges.items():
        notes += kinds.optional(kinds.kind_of("judges", judge), "notes", judge)
        notes += _guided_notes(settings, name, judge)
        notes += _compared_notes(settings, name, judge)
    for space in settings.features.values():
        notes += kinds.optional(kinds.kind_of("features", space), "notes", space)
    for name, regression in settings.regression.items():
        notes += kinds.optional(kinds.kind_of("regressors", regression), "notes", regression, name)
    if settings.decode is not None:
        notes += kinds.optional(kinds.kind_of("decoders", settings.decode), "notes", settings.decode)
    return notes + kinds.optional(kinds.kind_of("generators", settings.refine), "notes", settings.refine)


def _learned_notes(whole: Sequence[Variant], settings: Settings) -> Iterator[str]:
    """Notes of regressors and of the calibration of first images; each sentence of several folds once."""
    of_spaces = {f"regression {name}": f"Regression of {name}: {{}}." for name in settings.regression}
    for stage, form in {**of_spaces, "stage1": "{}", "decode": "End-to-end decoder: {}."}.items():
        told: dict[str, int] = {}
        for variant in whole:
            for sentence in stage_record(variant.study, stage).get("notes", []):
                told[sentence] = told.get(sentence, 0) + 1
        for sentence, count in told.items():
            yield form.format(sentence) + ("" if count == len(whole) else f" (In {count} of {len(whole)} folds.)")


def _compared_notes(settings: Settings, name: str, judge: Any) -> Iterator[str]:
    """A note if an end-to-end decoder was trained on features of the same network, or family, as a judge's."""
    compared = getattr(settings.decode, "comparator", None)
    if not isinstance(compared, BaseModel):
        return
    kind, own = kinds.kind_of("judges", judge), compared.model_dump(mode="json")
    judged = judge.model_dump(mode="json")
    judged = judged.get("space") or judged
    named = [key for key in ("model", "checkpoint", "weights", "builder") if key in own and own[key] == judged.get(key)]
    family = getattr(kind, "family", None)
    groups = [group for group in ("features", "judges") if own["kind"] in kinds.names(group)]
    if named or (family and any(getattr(kinds.get(g, own["kind"]), "family", None) == family for g in groups)):
        yield (
            f"The judge {name} uses a network that the decoder was trained on, or one of the same family: its "
            "scores prove nothing."
        )


def _guided_notes(settings: Settings, name: str, judge: Any) -> Iterator[str]:
    """A note if the generator was guided by features of the same network family as a judge."""
    family = getattr(kinds.kind_of("judges", judge), "family", None)
    generator = kinds.kind_of("generators", settings.refine)
    roles = generator.roles(settings.refine).values()
    searched = generator.spaces(settings.refine).values() if getattr(generator, "learns", False) else ()
    spaces = [
        space
        for space in dict.fromkeys([*roles, *searched])
        if family and getattr(kinds.kind_of("features", settings.features[space]), "family", None) == family
    ]
    if spaces:
        by = "by predictions of" if set(spaces) <= set(roles) else "through"
        yield (
            f"The generator was guided {by} {' and '.join(spaces)}, features of the same family as the "
            f"judge {name}: its scores judge final images by the features that they were drawn for."
        )
