"""The figures of a study: reconstructions and predictions beside baselines, over all folds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.evaluation.bootstrap import (
    Figures,
    Resampling,
    Scores,
    average,
    bootstrap_nbytes,
    figures,
    margins,
    numbered,
)
from leanrecon.evaluation.comparison import compare_images, compare_nbytes
from leanrecon.evaluation.judges.embeddings import STIMULI, Encoder, embed, embed_nbytes, identified
from leanrecon.evaluation.latents import compare_latents, latents_nbytes
from leanrecon.evaluation.settings import PRESETS, EvaluateSettings
from leanrecon.evaluation.sources import (
    Chosen,
    Drawn,
    Images,
    Same,
    mean_image,
    nearest_nbytes,
    nearest_rows,
    random_rows,
)
from leanrecon.images import Array, ImageShape
from leanrecon.memory import MemoryBudget
from leanrecon.progress import Progress
from leanrecon.stores.matrix import Matrix
from leanrecon.stores.pictures import Pictures
from leanrecon.stores.store import Store

SHUFFLED = "shuffled_betas"
MEAN = "mean_train_image"
BASELINES = (MEAN, "random_train_image", "nearest_train_image", SHUFFLED)
REFINED = {"prior": "prior_only", "shuffled": "shuffled_predictions"}
"""Baselines of final images as they are named among the figures."""

CEILING, REFINED_CEILING = "true_features", "oracle"

SLACK = 24_000_000
"""Bytes of SciPy's filters, of Pillow, and of threads."""


@dataclass(frozen=True)
class Fold:
    """What is known of the one split, or of one fold: all in the order of its test rows."""

    label: str
    names: Sequence[str]
    """The stimulus of every test row."""
    stimuli: Store
    test_rows: Array
    """Where the test rows lie in ``stimuli``."""
    train_stimuli: Store
    train_rows: Array
    predicted: Mapping[str, Matrix]
    true: Mapping[str, Matrix]
    space: str
    """The feature space that first images were decoded from."""
    train_features: Matrix
    stage1: Pictures
    final: Pictures | None
    """None where no stage refines the first images."""
    refined: Mapping[str, Pictures]
    """Final images of baselines, by name: of the mean prediction, of another row's."""
    shuffled: Sequence[tuple[Matrix, Pictures]]
    trained: int
    """How many test rows show a stimulus that was trained on."""
    ceiling: Pictures | None
    """Decoded from the true features of the test stimuli."""
    refined_ceiling: Pictures | None = None
    """Final images from the true features."""
    embeddings: Path | None = None
    """Where embeddings of all these images are kept, if a network judges them."""


@dataclass
class Evaluation:
    """All figures, and the scores of single images behind them."""

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    """A dict a test row: its stimulus, its fold and its scores, ``stage1.pixcorr`` and the like."""
    latent_r2: dict[str, Array]
    """R² of every latent by feature space, float64 [dims], averaged over the folds."""
    folds: list[dict[str, Any]]
    """The figures of each fold alone; empty without folds."""


@dataclass
class _Judged:
    drawn: Resampling
    images: dict[str, Scores]
    features: dict[str, Scores]
    r2: dict[str, Array]
    names: Sequence[str]
    rows: Array
    trained: int

    @property
    def final(self) -> str:
        """The source of the final images: the first ones, where no stage refines them."""
        return "final" if "final" in self.images else "stage1"


def evaluate(
    folds: Iterator[Fold],
    settings: EvaluateSettings,
    *,
    seed: int,
    budget: MemoryBudget,
    progress: Progress,
    n_folds: int | None = None,
    encoder: Encoder | None = None,
) -> Evaluation:
    """Measure the reconstructions of every fold, and average the figures over the folds.

    With an ``encoder`` images are identified by its embeddings as well. Raises BudgetError before any image is read.
    """
    judged = [_judge(fold, k, settings, seed, budget, progress, encoder) for k, fold in enumerate(folds)]
    about = {
        "preset": settings.preset,
        "folds": n_folds,
        "seed": seed,
        "resamples": settings.resamples,
        "permutations": settings.permutations,
    }
    rows = [row for k, fold in enumerate(judged) for row in _rows(fold, k if n_folds else None)]
    r2 = {name: _mean_r2([fold.r2[name] for fold in judged]) for name in judged[0].r2}
    own = [about | {"folds": None} | _metrics([fold]) for fold in judged] if n_folds else []
    return Evaluation(about | _metrics(judged), rows, r2, own)


def _metrics(judged: Sequence[_Judged]) -> dict[str, Any]:
    """All figures over some folds."""
    drawn = [fold.drawn for fold in judged]
    found = {name: figures([fold.images[name] for fold in judged], drawn) for name in judged[0].images}
    baselines = [name for name in (*BASELINES, *REFINED.values()) if name in found]
    final = judged[0].final
    return {
        "n_test": sum(len(fold.names) for fold in judged),
        "n_stimuli": len({name for fold in judged for name in fold.names}),
        "stage1": found["stage1"],
        "final": found[final],
        "baselines": {name: found[name] for name in baselines},
        "ceilings": {name: found[name] for name in (CEILING, REFINED_CEILING) if name in found},
        "features": {name: figures([fold.features[name] for fold in judged], drawn) for name in judged[0].features},
        "margins": {
            name: margins([fold.images[final] for fold in judged], [fold.images[name] for fold in judged], drawn)
            for name in baselines
        },
        "notes": _notes(found["stage1"], judged),
    }


def plan_evaluate(
    shape: ImageShape,
    m: int,
    n: int,
    dims: Mapping[str, int],
    settings: EvaluateSettings,
    chunk: int,
    block: int,
    *,
    encoder: Encoder | None = None,
    drawn: Sequence[ImageShape] = (),
) -> int:
    """Memory that ``evaluate`` takes in bytes, of stimuli of ``shape`` and feature spaces of so many ``dims``.

    An ``encoder`` is shown them and reconstructions of the shapes ``drawn``.
    """
    compared = PRESETS[settings.preset] or shape
    counts = bootstrap_nbytes(m, settings.resamples)
    embedding = 0 if encoder is None else embed_nbytes(encoder, (shape, *drawn), m, chunk)
    staying = 0 if encoder is None else encoder.staying_nbytes
    return SLACK + counts + staying + max(
        embedding,
        compare_nbytes(compared, m, most_sources(settings), chunk),
        max(latents_nbytes(m, d) for d in dims.values()),
        nearest_nbytes(m, n, block),
        shape[0] * shape[1] * shape[2] * 24 + 2 * chunk,
    )  # fmt: skip


def most_sources(settings: EvaluateSettings) -> int:
    """How many sources of images are compared with the test stimuli, at most."""
    return len(BASELINES) + len(REFINED) + 4 + settings.permutations


def _judge(
    fold: Fold,
    k: int,
    settings: EvaluateSettings,
    seed: int,
    budget: MemoryBudget,
    progress: Progress,
    encoder: Encoder | None,
) -> _Judged:
    m = len(fold.names)
    height, width, channels = fold.stimuli.shape[1:]
    shape = PRESETS[settings.preset] or (height, width, channels)
    dims = {name: matrix.shape[1] for name, matrix in fold.true.items()}
    chunk, block = fold.stimuli.buffer_nbytes(), fold.train_features.block
    drawn_shapes = [pictures.shape for pictures in (fold.stage1, fold.final) if pictures is not None]
    work = plan_evaluate(
        (height, width, channels), m, len(fold.train_rows), dims, settings, chunk, block,
        encoder=encoder, drawn=drawn_shapes,
    )  # fmt: skip
    budget.require("evaluate", work)
    drawn = Resampling(numbered(fold.names), settings.resamples, seed, k)
    sources = dict(_sources(fold, seed))
    seen = Chosen(fold.stimuli, fold.test_rows)
    label, by_clip = f"{fold.label}evaluate", {}
    if encoder is not None and fold.embeddings is not None:
        every = {STIMULI: seen, **sources}
        where = fold.embeddings
        found = embed(encoder, every, m, (height, width, channels), where, progress=progress, label=label)
        by_clip = identified(found, fold.names)
    images = compare_images(sources, seen, fold.names, shape, progress=progress, label=label)
    for source, scores in by_clip.items():
        images[source].add(scores)
    features, r2 = {}, {}
    for name, predicted in fold.predicted.items():
        features[name], r2[name] = compare_latents(predicted, fold.true[name], fold.names)
    images["stage1"].add(features[fold.space])
    for j, (predicted, _) in enumerate(fold.shuffled):
        images[f"{SHUFFLED} {j}"].add(compare_latents(predicted, fold.true[fold.space], fold.names)[0])
    for name in ("two_way_pixels", "top1_pixels", "two_way_clip", "top1_clip"):
        images[MEAN].rows.pop(f"{name}_reverse", None)  # one image for all ties with itself
    shuffled = [images.pop(f"{SHUFFLED} {j}") for j in range(len(fold.shuffled))]
    if shuffled:
        images[SHUFFLED] = average(shuffled)
    return _Judged(drawn, images, features, r2, fold.names, fold.test_rows, fold.trained)


def _sources(fold: Fold, seed: int) -> Iterator[tuple[str, Images]]:
    yield "stage1", Drawn(fold.stage1)
    if fold.final is not None:
        yield "final", Drawn(fold.final)
    yield MEAN, Same(mean_image(fold.train_stimuli, fold.train_rows))
    yield "random_train_image", Chosen(fold.train_stimuli, random_rows(fold.train_rows, len(fold.names), seed))
    nearest = nearest_rows(fold.predicted[fold.space], fold.train_features)
    yield "nearest_train_image", Chosen(fold.train_stimuli, fold.train_rows[nearest])
    for j, (_, pictures) in enumerate(fold.shuffled):
        yield f"{SHUFFLED} {j}", Drawn(pictures, fold.stage1.shape)
    for name, pictures in fold.refined.items():
        yield REFINED[name], Drawn(pictures)
    if fold.ceiling is not None:
        yield CEILING, Drawn(fold.ceiling, fold.stage1.shape)
    if fold.refined_ceiling is not None:
        yield REFINED_CEILING, Drawn(fold.refined_ceiling)


def _rows(fold: _Judged, k: int | None) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(fold.names):
        row: dict[str, Any] = {"row": int(fold.rows[i]), "stimulus": name}
        if k is not None:
            row["fold"] = k
        for stage, source in (("stage1", "stage1"), ("final", fold.final)):
            row |= {f"{stage}.{metric}": float(values[i]) for metric, values in fold.images[source].rows.items()}
        yield row


def _notes(stage1: Figures, judged: Sequence[_Judged]) -> list[str]:
    notes = []
    missing = [name for name in ("ssim", "ssim_1d", "ssim_7x7") if name not in stage1]
    if missing:
        notes.append(f"{', '.join(missing)} left out: the images are smaller than its window.")
    trained = sum(fold.trained for fold in judged)
    if trained:
        n_test = sum(len(fold.names) for fold in judged)
        notes.append(
            f"{trained} of {n_test} test rows show images that were trained on (allow_shared_stimuli): "
            "these figures are not those of images that the decoder has never seen."
        )
    smallest = min(fold.drawn.distinct for fold in judged)
    if smallest == 1:
        notes.append("A single test image has no interval, no R², and nothing to be told from.")
    elif smallest < 10:
        notes.append(f"Only {smallest} test images{' in a fold' if len(judged) > 1 else ''}: intervals are too narrow.")
    return notes


def _mean_r2(folds: Sequence[Array]) -> Array:
    widest = max(map(len, folds))  # components that a fold's train images lack are NaN
    padded = [np.pad(r2, (0, widest - len(r2)), constant_values=np.nan) for r2 in folds]
    known = np.isfinite(padded).sum(axis=0)
    total: Array = np.nansum(padded, axis=0) / np.where(known, known, np.nan)
    return total
