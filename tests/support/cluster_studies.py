"""Settings of small studies whose parts workers share: blocks of a stage, parts of a fit, whole variants."""

from pathlib import Path
from typing import Any

import numpy as np

BLOCKS: dict[str, Any] = {
    "dataset": {"kind": "simulated", "n_train": 90, "n_test": 20, "voxels": 120, "size": 32},
    "features": {"pca": {"components": 30, "size": 32}},
    "regression": {"alpha": 100.0},
    "stores": {"chunk": "4KB"},
    "evaluate": {"permutations": 1, "resamples": 100},
}
"""Chunks of features and predictions, and images."""


def parts_of_a_fit(folder: Path, rows: int, voxels: int, targets: int, alpha: Any) -> dict[str, Any]:
    """Targets that some voxels carry, of other programs."""
    rng = np.random.default_rng(0)
    paths: dict[str, str] = {}
    for split, n in (("train", rows), ("test", 20)):
        betas = rng.standard_normal((n, voxels), np.float32)
        features = 9 * rng.standard_normal((n, targets), np.float32)
        features += betas[:, :20] @ np.resize([1, -2, 3], (20, targets)).astype(np.float32)
        for name, array in (("betas", betas), ("features", features)):
            np.save(folder / f"{name}_{split}.npy", array)
            paths[f"{name}_{split}"] = str(folder / f"{name}_{split}.npy")
    return {
        "dataset": {"betas_train": paths["betas_train"], "betas_test": paths["betas_test"]},
        "features": {"big": {"kind": "precomputed", "train": paths["features_train"], "test": paths["features_test"]}},
        "regression": {"alpha": alpha},
        "stores": {"chunk": "500KB"},
    }


def whole_variants(folder: Path) -> dict[str, Any]:
    """Forty images in five folds, of which two areas are decoded besides."""
    rng = np.random.default_rng(0)
    code = rng.standard_normal((40, 6))
    images = np.clip(128 + 40 * (code @ rng.standard_normal((6, 432))), 0, 255).astype(np.uint8)
    betas = code @ rng.standard_normal((6, 60)) + 0.3 * rng.standard_normal((40, 60))
    np.save(folder / "b.npy", betas.astype(np.float32))
    np.save(folder / "s.npy", images.reshape(40, 12, 12, 3))
    np.save(folder / "a.npy", np.repeat(np.array(["V1", "V2", "FFA"]), 20))
    return {
        "dataset": {
            "betas": str(folder / "b.npy"),
            "stimuli": str(folder / "s.npy"),
            "areas": str(folder / "a.npy"),
            "folds": 5,
        },
        "areas": {"early": ["V1", "V2"], "face": ["FFA"]},
        "features": {"pixels": {"size": 12}, "pca": {"components": 5, "size": 8}},
        "regression": {"alpha": "loo", "voxel_weights": "accuracy", "voxel_power": 0.5},
        "stage1": {"space": "pixels"},
        "stores": {"chunk": "1KB"},
        "evaluate": {"permutations": 2, "resamples": 100},
    }
