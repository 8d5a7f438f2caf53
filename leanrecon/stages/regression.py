"""Predictions of a feature space: by a ridge or by a network, as measured and with betas and features paired at random."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.memory import MemoryBudget
from leanrecon.progress import Progress
from leanrecon.regression.mlp.mlp import StreamingMLP
from leanrecon.regression.ridge.ridge import StreamingRidge
from leanrecon.regression.settings import MLPSettings, RidgeSettings
from leanrecon.stores import Matrix, Store
from leanrecon.study.settings import GeneralSettings

Fits = dict[str, StreamingRidge]
"""The ridge that was fitted last, by its settings: spaces with the same ones share its factor."""


@dataclass(frozen=True)
class Given:
    """The betas and features to learn from, and the betas to predict from."""

    betas: Matrix
    targets: Matrix
    test: Matrix


def predict_with_ridge(
    settings: RidgeSettings,
    general: GeneralSettings,
    given: Given,
    stores: Sequence[Store],
    fits: Fits,
    *,
    budget: MemoryBudget,
    scratch: Path,
    progress: Progress,
    label: str,
) -> dict[str, Any]:
    """Fill the stores of a space's predictions; returns what run.json keeps of it.

    The first store is of the pairing as it was measured, each other one of betas and features paired at random.
    """
    how = settings.model_dump(exclude={"kind"})
    key = json.dumps(how, sort_keys=True)
    if key in fits and settings.alpha != "loo":
        ridge = fits[key].with_targets(given.targets)
        ridge.budget = budget  # what it asks for belongs to this stage's record
    else:
        fits.clear()  # one factor at a time
        ridge = StreamingRidge(**how, seed=general.seed, budget=budget, scratch=scratch)
        fits[key] = ridge.fit(given.betas, given.targets, test=given.test, shuffled=len(stores) > 1)
    _say_left_out(ridge.left_out_, given, progress, label)
    if settings.alpha == "loo":
        chosen = f"{np.median(ridge.alpha_):.4g}" + (" (median over targets)" if settings.per_target else "")
        progress.say(f"{label}: leave-one-out chose alpha = {chosen}")
    total = sum(store.column_groups for store in stores)
    done = total - sum(len(store.missing_column_groups()) for store in stores)
    with progress.task(label, total=total, unit="blocks", done=done) as advance:
        for k, store in enumerate(stores):
            paired = ridge.shuffled([general.seed, k - 1]) if k else ridge
            paired.predict_into(given.test, store, advance=advance)
            store.finish()
    alpha = np.asarray(ridge.alpha_)
    return {
        "settings": settings.model_dump(exclude_none=True),
        "alpha": float(alpha) if alpha.ndim == 0 else {"median": float(np.median(alpha)), "per_target": True},
        "voxels_left_out": ridge.left_out_,
    }


def predict_with_network(
    settings: MLPSettings,
    general: GeneralSettings,
    given: Given,
    stores: Sequence[Store],
    folders: Sequence[Path],
    *,
    groups: Sequence[str],
    overwrite: bool,
    budget: MemoryBudget,
    scratch: Path,
    progress: Progress,
    label: str,
) -> dict[str, Any]:
    """Fill the stores as ``predict_with_ridge`` does, by a network that is trained or continued for each, in its folder.

    ``groups`` [n] are the stimuli of the train rows.
    """
    mlp = StreamingMLP(
        **settings.model_dump(exclude={"kind"}),
        budget=budget,
        seed=general.seed,
        scratch=scratch,
        device=general.device,
        folder=folders[0],
        overwrite=overwrite,
        progress=progress,
        label=label,
    )
    mlp.fit(given.betas, given.targets, groups=groups, test_rows=given.test.shape[0])
    _say_left_out(mlp.left_out_, given, progress, label)
    for k, (store, folder) in enumerate(zip(stores, folders, strict=True)):
        if store.complete:
            continue
        fitted = mlp
        if k:
            fitted = mlp.shuffled([general.seed, k - 1], folder=folder, label=f"{label}, shuffled betas {k}")
        done = store.column_groups - len(store.missing_column_groups())
        with progress.task(
            f"{fitted.label}, predictions", total=store.column_groups, unit="blocks", done=done
        ) as advance:
            fitted.predict_into(given.test, store, advance=advance)
        store.finish()
    history = mlp.history_
    record = {
        "settings": settings.model_dump(exclude_none=True),
        "epochs_trained": len(history.train) - 1,
        "best_epoch": history.best,
        "voxels_left_out": mlp.left_out_,
        "curve": history.as_dict(),
    }
    if mlp.alpha_ is not None:
        record["alpha"] = mlp.alpha_
    return record


def _say_left_out(voxels: int, given: Given, progress: Progress, label: str) -> None:
    if voxels:
        progress.say(f"{label}: {voxels} of {given.betas.shape[1]} voxels do not vary and are left out")
