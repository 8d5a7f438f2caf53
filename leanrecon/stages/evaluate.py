"""The stage evaluate: what it is given of a study, and the files that it leaves there.

It alone looks at test stimuli to judge by; nothing before it may.
"""

import csv
import io
import itertools
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon import features
from leanrecon.context import Context
from leanrecon.datasets.ceiling import area_ceilings
from leanrecon.errors import StoreError
from leanrecon.evaluation.evaluate import Evaluation, Fold, evaluate
from leanrecon.evaluation.judges.clip import judge_name, make_judge
from leanrecon.evaluation.judges.embeddings import Encoder
from leanrecon.evaluation.report.page import Page, render
from leanrecon.evaluation.sources import Chosen, Drawn
from leanrecon.features.space import Array, DecodingSpace, FeatureSpace
from leanrecon.features.stage1 import decoding_space, draw, picture_shape
from leanrecon.memory import MemoryBudget
from leanrecon.places.files import read_json, write_json, write_text, write_whole
from leanrecon.progress import Progress
from leanrecon.stages.refine import draw_final, make_refiner, true
from leanrecon.stores import Matrix, Store, as_matrix
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import image_shape
from leanrecon.stores.pictures import Pictures
from leanrecon.study.layout import Study
from leanrecon.study.record import is_complete, recorded, versions
from leanrecon.study.settings import Settings
from leanrecon.study.variants import Variant, variants

FORMAT = 1
"""Version of the figures: raised when one of them is taken in another way."""


def assess(
    settings: Settings,
    study: Study,
    spaces: Mapping[str, FeatureSpace],
    first: DecodingSpace,
    *,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Measure the reconstructions of a study, and write metrics.json, the scores of every image and the report."""
    every = variants(study, settings.dataset.folds)
    judge = make_judge(settings)
    judged = _content(judge)
    made_of = fingerprint(_made_of(every, study, settings, spaces, first, judged))
    made = [
        study.scores,
        *(study.latent_r2(name) for name in spaces),
        *(v.study.metrics for v in every),
    ]
    stages = ("stage1", "final") if _with_oracle(settings) else ("stage1",)
    ceilings = [variant.oracle.reconstructions(stage) for variant in every for stage in stages]
    embeddings = [path for v in every for path in v.study.embeddings.glob("*.zarr")] if judge else []
    there = all(path.exists() for path in made) and all(is_complete(path) for path in (*ceilings, *embeddings))
    known = there and not overwrite and (read_json(study.metrics) or {}).get("made_of") == made_of
    if known and study.report.exists():
        return
    if not known:
        study.report.unlink(missing_ok=True)  # a report of other figures
        about = {"made_of": made_of, **({"clip": {"model": judge.model, "content": judged}} if judge else {})}
        _measure(every, study, settings, spaces, first, judge, about, overwrite=overwrite, progress=progress)
    _report(every, study, settings, spaces, progress)


def write_report(study: Study, settings: Settings, *, progress: Progress) -> None:
    """Write report.html again from what a study holds.

    Raises StoreError while its stores are not complete, or where its figures are of an earlier state of them.
    """
    spaces = {name: features.make(name, table, seed=settings.general.seed) for name, table in settings.features.items()}
    first = decoding_space(list(spaces.values()), settings.stage1.space)
    every = variants(study, settings.dataset.folds)
    metrics = read_json(study.metrics) or {}
    found, clip = metrics.get("made_of"), metrics.get("clip") or {}
    judged = ""
    if settings.evaluate.clip:  # a report takes no weights: what those were that judged stands in the figures
        judged = (
            str(clip.get("content")) if clip.get("model") == judge_name(settings) else _content(make_judge(settings))
        )
    if found != fingerprint(_made_of(every, study, settings, spaces, first, judged)):
        raise StoreError(
            f"{study.root} has no figures" + (" of its present stores, only of earlier ones" if found else " yet"),
            todo="finish it with `leanrecon run` and the same settings, which writes the report as well",
        )
    _report(every, study, settings, spaces, progress)


def _content(judge: Encoder | None) -> str:
    """A fingerprint of the network that judges, ``""`` where there is none."""
    return "" if judge is None else fingerprint(judge.made_of())


def _measure(
    every: list[Variant],
    study: Study,
    settings: Settings,
    spaces: Mapping[str, FeatureSpace],
    first: DecodingSpace,
    judge: Encoder | None,
    about: dict[str, Any],
    *,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Take all figures and write them, those of all folds last: their presence says that all is done."""
    context = Context.of(settings.general.memory)
    budget = context.budget
    with recorded("evaluate", study, context, [study.metrics]) as record:
        for variant in every:
            _draw_ceiling(variant, study, first, settings, budget, overwrite=overwrite, progress=progress)
        first.release()
        if _with_oracle(settings):
            _refine_ceiling(every, study, settings, spaces, budget, overwrite=overwrite, progress=progress)
        folds = (_fold(variant, study, settings, spaces, first) for variant in every)
        found = evaluate(
            folds,
            settings.evaluate,
            seed=settings.general.seed,
            budget=budget,
            progress=progress,
            n_folds=settings.dataset.folds,
            encoder=judge,
        )
        origin = {"versions": versions(), "simulated": settings.dataset.simulated}
        for variant, own in zip(every, found.folds, strict=False):
            write_json(variant.study.metrics, own | origin | {"notes": own["notes"] + _notes(settings)}, indent=1)
        found.metrics |= origin | about
        found.metrics["notes"] += _notes(settings)
        _write(study, found)
        record["settings"] = settings.evaluate.table()


def _notes(settings: Settings) -> list[str]:
    """What a reader has to know of settings: who judged, and what takes more than the train rows."""
    return [
        *_judged_by(settings),
        *(
            f"Predictions of {name} were re-standardised with the mean and spread of all test predictions together "
            '(restandardize = "transductive"): a row depends on which others were tested.'
            for name, ridge in settings.regression.items()
            if ridge.restandardize == "transductive"
        ),
    ]


def _judged_by(settings: Settings) -> Iterator[str]:
    if settings.evaluate.clip:
        yield f"Figures by CLIP are by the image embedding of {judge_name(settings)}."
        led = [name for name in settings.refine.roles().values() if _is_of_clip(settings.features[name])]
        if led:
            yield (
                f"The generator was led by predictions of {' and '.join(led)}, which are a CLIP's own features: "
                "figures by CLIP judge final images on the ground that they were drawn for."
            )


def _is_of_clip(space: Any) -> bool:
    return str(space.model_dump().get("kind", "")).startswith("clip-")


def _report(
    every: list[Variant], study: Study, settings: Settings, spaces: Mapping[str, FeatureSpace], progress: Progress
) -> None:
    metrics = read_json(study.metrics)
    scores = read_scores(study)
    with progress.task("report", total=len(scores), unit="images") as advance:

        def pictures() -> Iterator[tuple[Array, Array, Array | None]]:
            for shown in rows_of_pictures(every, study, refined=settings.refine.kind != "none"):
                yield shown
                advance(1)

        render(
            Page(
                study=study.root.local_path().absolute().name,
                metrics=metrics,
                scores=_captioned(scores, every, study),
                pictures=pictures(),
                simulated=settings.dataset.simulated,
                settings=_without_folders(settings.tables()),
                records=read_json(study.record) or {},
                variants={v.study.root.name: read_json(v.study.record) or {} for v in every if v.is_fold},
                latent_r2={
                    name: np.load(study.latent_r2(name), allow_pickle=False)
                    for name in settings.features
                    if study.latent_r2(name).exists()
                },
                latent_groups={name: groups for name, space in spaces.items() if (groups := space.groups())},
                voxels=area_ceilings(study) if settings.dataset.tells_noise else None,
                versions=metrics["versions"],
            ),
            study.report,
        )


def _without_folders(table: dict[str, Any]) -> dict[str, Any]:
    """Settings with the names of files alone: a report is handed on, and folders are nobody else's business."""
    named = {}
    for key, value in table.items():
        if isinstance(value, dict):
            value = _without_folders(value)
        elif isinstance(value, list):
            value = [_name_alone(item) for item in value]
        named[key] = _name_alone(value)
    return named


def _name_alone(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


# What the figures are taken from


def _made_of(
    every: list[Variant],
    study: Study,
    settings: Settings,
    spaces: Mapping[str, FeatureSpace],
    first: DecodingSpace,
    judged: str,
) -> dict[str, Any]:
    """The contents of all that is compared, and of the network that judges; raises StoreError unless it is complete."""
    made_of: dict[str, Any] = {
        "format": FORMAT,
        "seed": settings.general.seed,
        "evaluate": settings.evaluate.of_figures(),
        **({"clip": judged} if settings.evaluate.clip else {}),
        "stimuli": [Store.open(study.stimuli(split)).content for split in ("train", every[0].test_split)],
        "names": fingerprint({"rows": [variant.names() for variant in every]}),
    }
    for variant in every:
        shuffled = variant.shuffled(settings.evaluate.permutations)
        refined = [variant.study, *variant.refined(settings.refine.baselines).values()]
        images = [*((of, "final") for of in refined), *((of, "stage1") for of in (variant.study, *shuffled))]
        made_of[variant.study.root.name if variant.is_fold else "split"] = {
            "predictions": {name: Store.open(variant.study.predictions(name)).content for name in spaces},
            "shuffled": [Store.open(of.predictions(first.name)).content for of in shuffled],
            "features": [
                Store.open(variant.of(space).features(name, variant.test_split)).content
                for name, space in spaces.items()
            ],
            "images": [Pictures.open(of.reconstructions(stage)).content for of, stage in images],
        }
    return made_of


def _draw_ceiling(
    variant: Variant,
    study: Study,
    first: DecodingSpace,
    settings: Settings,
    budget: MemoryBudget,
    *,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Draw what the feature space makes of the true features of the test stimuli: no reconstruction can do better."""
    first.load(variant.of(first).fitted(first.name))
    images = image_shape(Store.open(study.stimuli("train")))
    features = Store.open(variant.of(first).features(first.name, variant.test_split))
    rows = variant.index(features, variant.test).tolist()
    pictures = Pictures.create(
        variant.oracle.reconstructions("stage1"),
        len(rows),
        picture_shape(first, "decoded", images),
        made_of={
            "space": first.made_of() | first.decode_made_of(),
            "features": features.content,
            "rows": fingerprint({"rows": rows}),
        },
        overwrite=overwrite,
    )
    label = f"{variant.prefix}ceiling"
    draw(first, features, pictures, images, rows=rows, budget=budget, progress=progress, label=label)


def _with_oracle(settings: Settings) -> bool:
    return settings.refine.kind != "none" and "oracle" in settings.refine.baselines


def _refine_ceiling(
    every: list[Variant],
    study: Study,
    settings: Settings,
    spaces: Mapping[str, FeatureSpace],
    budget: MemoryBudget,
    *,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Draw what the generator makes of true features: a ceiling, which no brain gave."""
    for variant in every:
        draw_final(
            make_refiner(settings, study),
            true(variant, settings, spaces),
            Pictures.open(variant.oracle.reconstructions("stage1")),
            variant.oracle.reconstructions("final"),
            overwrite=overwrite,
            budget=budget,
            progress=progress,
            label=f"{variant.prefix}ceiling, refined",
        )


def _fold(
    variant: Variant, study: Study, settings: Settings, spaces: Mapping[str, FeatureSpace], first: DecodingSpace
) -> Fold:
    train, test = Store.open(study.stimuli("train")), Store.open(study.stimuli(variant.test_split))

    def predicted(of: Study, name: str) -> Matrix:
        return as_matrix(Store.open(of.predictions(name)))

    return Fold(
        label=variant.prefix,
        names=variant.names(),
        trained=variant.trained(),
        stimuli=test,
        test_rows=variant.index(test, variant.test),
        train_stimuli=train,
        train_rows=variant.index(train, variant.train),
        predicted={name: predicted(variant.study, name) for name in spaces},
        true={
            name: variant.test_rows(Store.open(variant.of(space).features(name, variant.test_split)))
            for name, space in spaces.items()
        },
        space=first.name,
        train_features=variant.train_rows(Store.open(variant.of(first).features(first.name, "train"))),
        stage1=Pictures.open(variant.study.reconstructions("stage1")),
        final=Pictures.open(variant.study.reconstructions("final")) if settings.refine.kind != "none" else None,
        refined={
            name: Pictures.open(of.reconstructions("final"))
            for name, of in variant.refined(settings.refine.baselines).items()
        },
        shuffled=[
            (predicted(of, first.name), Pictures.open(of.reconstructions("stage1")))
            for of in variant.shuffled(settings.evaluate.permutations)
        ],
        ceiling=Pictures.open(variant.oracle.reconstructions("stage1")),
        refined_ceiling=Pictures.open(variant.oracle.reconstructions("final")) if _with_oracle(settings) else None,
        embeddings=variant.study.embeddings,
    )


# The files


def _write(study: Study, found: Evaluation) -> None:
    for name, r2 in found.latent_r2.items():
        write_whole(study.latent_r2(name), lambda file, r2=r2: np.save(file, r2.astype(np.float32)))  # type: ignore[misc]
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(key for row in found.rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows)
    write_text(study.scores, text.getvalue())
    write_json(study.metrics, found.metrics, indent=1)


def read_scores(study: Study) -> list[dict[str, Any]]:
    """The scores of every test row as numbers, with its number, its stimulus and its fold."""
    try:
        with io.TextIOWrapper(study.scores.open(), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise StoreError(
            f"{study.scores} can't be read: {error.strerror}", todo="run the stage evaluate again with --overwrite"
        ) from None
    whole = ("row", "fold")
    return [
        {key: int(v) if key in whole else v if key == "stimulus" else float(v) for key, v in row.items() if v != ""}
        for row in rows
    ]


def _captioned(scores: list[dict[str, Any]], every: list[Variant], study: Study) -> list[dict[str, Any]]:
    captions = read_json(study.captions(every[0].test_split))
    if captions is None:
        return scores
    own = [captions[row] for variant in every for row in (variant.test or range(len(captions)))]
    return [score | {"captions": said} for score, said in zip(scores, own, strict=True)]


def rows_of_pictures(
    every: list[Variant], study: Study, *, refined: bool, only: Collection[int] | None = None
) -> Iterator[tuple[Array, Array, Array | None]]:
    """What was seen, the first image and, if ``refined``, the final one of every row of scores, or of some, in order."""
    number = itertools.count()
    for variant in every:
        stimuli = Store.open(study.stimuli(variant.test_split))
        seen = Chosen(stimuli, variant.index(stimuli, variant.test))
        first = Drawn(Pictures.open(variant.study.reconstructions("stage1")))
        final = Drawn(Pictures.open(variant.study.reconstructions("final"))) if refined else None
        for row in range(first.pictures.rows):
            if only is not None and next(number) not in only:
                continue
            yield seen.read(row), first.read(row), final.read(row) if final else None
