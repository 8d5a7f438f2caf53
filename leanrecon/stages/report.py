"""The report of a study, from its scores and images."""

import io
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.ceiling import area_ceilings
from leanrecon.errors import StoreError
from leanrecon.evaluation.image_sources import StoredImages
from leanrecon.evaluation.report.gallery import pixcorr, shown_rows
from leanrecon.evaluation.report.page import Page, render
from leanrecon.images import Array
from leanrecon.places import Location, seals
from leanrecon.places.files import read_json, read_record, unreadable
from leanrecon.stages.check import kept_check
from leanrecon.stages.refine import make_generator
from leanrecon.stages.scores import Score, each_score, read_scores
from leanrecon.stages.stage import Run
from leanrecon.stores.images import image_shape
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.variants import Variant, whole_brain

MOST_SHOWN = 1200
"""The most test images that the report shows: each takes some 20 kB of the page."""

Row = tuple[Array, Array, Array | None]
"""The stimulus, the first image, and the final image if it differs."""


def write_page(run: Run, every: Sequence[Variant]) -> None:
    """Write report.html from the figures and images of a study."""
    study, whole = run.study, whole_brain(every)
    _figures(study)
    refines = make_generator(run.settings).refines
    likeness = [pixcorr(score) for score in each_score(study)]
    shown = shown_rows(likeness, MOST_SHOWN)
    scores = read_scores(study, set(shown))
    with run.progress.task("report", total=len(scores), unit="images") as advance:

        def rows() -> Iterator[Row]:
            for row in rows_of_images(whole, study, refined=refines, only=set(shown)):
                yield row
                advance(1)

        page = replace(
            page_of(run, every),
            scores=_with_captions(scores, shown, whole, study),
            likeness=likeness,
            pictures=rows(),
        )
        _render(page, study)


def write_feature_page(run: Run, every: Sequence[Variant]) -> None:
    """Write report.html of a study without images, from its figures."""
    _render(page_of(run, every), run.study)


def _figures(study: Study) -> dict[str, Any]:
    metrics: dict[str, Any] | None = read_record(study.metrics)
    if metrics is None:
        raise StoreError(f"there is no {study.metrics}", todo=study.metrics.todo())
    return metrics


def page_of(run: Run, every: Sequence[Variant]) -> Page:
    """The content of the report, besides images and their scores."""
    study, metrics = run.study, _figures(run.study)
    return Page(
        study=study.root.address().rpartition("/")[2],
        metrics=metrics,
        scores=[],
        pictures=(),
        simulated=run.settings.dataset.located(run.base_dir).simulated,
        settings=_without_folders(run.settings.tables()),
        records=read_record(study.record) or {},
        variants={v.name: read_record(v.study.record) or {} for v in every if v.name},
        latent_r2=_latent_r2(run),
        latent_groups=_latent_groups(run),
        voxels=_ceilings(run),
        checked=kept_check(study),
        versions=metrics["versions"],
    )


def _ceilings(run: Run) -> dict[str, Any] | None:
    """The noise ceilings by area, and whether they were published with the dataset."""
    dataset = run.settings.dataset
    found = area_ceilings(run.study) if dataset.tells_noise else None
    return None if found is None else found | {"published": dataset.publishes_noise}


def _render(page: Page, study: Study) -> None:
    seals.forget(study.report)  # until it is written whole
    render(page, study.report)
    seals.fix(study.report)


def rows_of_images(whole: Sequence[Variant], study: Study, *, refined: bool, only: Collection[int]) -> Iterator[Row]:
    """The images of some rows of scores, in order; ``only`` has their numbers."""
    number = itertools.count()
    for variant in whole:
        seen = StoredImages(Store.open(study.stimuli(variant.test_split)), variant.test_images)
        first = Pictures.open(variant.study.reconstructions("stage1"))
        final = Pictures.open(variant.study.reconstructions("final")) if refined else None
        for row in range(first.rows):
            if next(number) in only:
                yield seen.read(row), first.read(row), None if final is None else final.read(row)


def _latent_groups(run: Run) -> dict[str, Any]:
    """Named groups of features by space; some depend on the shape of the images."""
    if run.settings.dataset.has_images:
        shape = image_shape(Store.open(run.study.stimuli("train")))
        for space in run.spaces.values():
            space.dims(shape)
    return {name: groups for name, space in run.spaces.items() if (groups := space.groups())}


def _latent_r2(run: Run) -> dict[str, Array]:
    paths = {name: run.study.latent_r2(name) for name in run.spaces}
    return {name: _read_latent_r2(path) for name, path in paths.items() if path.exists()}


def _read_latent_r2(path: Location) -> Array:
    try:
        data = path.read_bytes()
        seals.check(path, data)
        found: Array = np.load(io.BytesIO(data), allow_pickle=False)
        return found
    except (ValueError, EOFError, FileNotFoundError) as error:
        raise unreadable(path, error) from None


def _with_captions(scores: list[Score], shown: Sequence[int], whole: Sequence[Variant], study: Study) -> list[Score]:
    """The scores of the rows shown with the captions of each row's image, where the study has captions."""
    captions = read_json(study.captions(whole[0].test_split))
    if captions is None:
        return scores
    images = np.concatenate([variant.test_images for variant in whole])[shown]
    try:
        return [score | {"captions": captions[image]} for score, image in zip(scores, images.tolist(), strict=True)]
    except (IndexError, KeyError, TypeError):
        path = study.captions(whole[0].test_split)
        raise unreadable(path, "it does not hold a list of captions for every image") from None


def _without_folders(table: dict[str, Any]) -> dict[str, Any]:
    """Settings with file names instead of paths: reports are shared, and folders are private."""
    named: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            named[key] = _without_folders(value)
        elif isinstance(value, list):
            named[key] = [_file_name(item) for item in value]
        else:
            named[key] = _file_name(value)
    return named


def _file_name(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
