"""Predictions of a feature space by a network: trained or continued, and once more for each pairing at random."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanrecon.memory import MemoryBudget
from leanrecon.progress import Progress
from leanrecon.regression.mlp import StreamingMLP
from leanrecon.regression.settings import MLPSettings
from leanrecon.settings import GeneralSettings
from leanrecon.stores import Matrix, Store
from leanrecon.study import Study
from leanrecon.variants import Variant


def predict_with_network(
    settings: MLPSettings,
    general: GeneralSettings,
    variant: Variant,
    name: str,
    matrices: Sequence[Matrix],
    stores: Sequence[Store],
    studies: Sequence[Study],
    *,
    budget: MemoryBudget,
    scratch: Path,
    overwrite: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Fill the stores of a space's predictions; returns what run.json keeps of it.

    ``matrices`` are the train betas, the train features and the test betas. The first store is of the pairing as it was
    measured, each other one of betas and features paired at random, for which a network of its own is trained.
    """
    betas, targets, test = matrices
    label = f"{variant.prefix}regression {name}"
    mlp = StreamingMLP(
        **settings.model_dump(exclude={"kind"}),
        budget=budget,
        seed=general.seed,
        scratch=scratch,
        device=general.device,
        folder=studies[0].network(name),
        overwrite=overwrite,
        progress=progress,
        label=label,
    )
    mlp.fit(betas, targets, groups=variant.learned(), test_rows=test.shape[0])
    if mlp.left_out_:
        progress.say(f"{label}: {mlp.left_out_} of {betas.shape[1]} voxels do not vary and are left out")
    for k, (store, study) in enumerate(zip(stores, studies, strict=True)):
        if store.complete:
            continue
        fitted = mlp
        if k:
            fitted = mlp.shuffled(
                [general.seed, k - 1], folder=study.network(name), label=f"{label}, shuffled betas {k}"
            )
        done = store.column_groups - len(store.missing_column_groups())
        with progress.task(
            f"{fitted.label}, predictions", total=store.column_groups, unit="blocks", done=done
        ) as advance:
            fitted.predict_into(test, store, advance=advance)
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
