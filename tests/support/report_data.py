"""Simulated studies for the report's tests: smooth random images, and figures computed from them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from leanrecon.evaluation.report.page import Page

METRICS = ("pixcorr", "ssim", "mse", "two_way_pixels", "two_way_pixels_reverse", "top1_pixels")

VOXELS = {
    "repeats": [3, 3],
    "areas": [
        {"area": "V1", "voxels": 1205, "ncsnr": 0.5004, "percent": 42.857},
        {"area": "", "voxels": 2300, "ncsnr": 0.25, "percent": 15.789},
    ],
}


AREAS = {"V2": (700, 0.3), "V1": (1205, 0.4), "a quite long name of an area": (90, 0.1)}
"""Voxels and pixel correlation of made-up areas."""


def images(rows: int, side: int, channels: int, seed: int) -> np.ndarray:
    """Smooth random images, uint8 [rows, side, side, channels]."""
    noise = np.random.default_rng(seed).standard_normal((rows, side, side, channels))
    smooth = gaussian_filter(noise, (0, side / 9, side / 9, 0))
    smooth -= smooth.min(axis=(1, 2, 3), keepdims=True)
    return (255 * smooth / smooth.max(axis=(1, 2, 3), keepdims=True)).astype(np.uint8)


def figures(values: dict[str, float], spread: float = 0.04) -> dict[str, dict[str, float | None]]:
    chance = {"two_way_pixels": 0.5, "two_way_pixels_reverse": 0.5, "top1_pixels": 1 / 60}
    return {
        key: {
            "value": v,
            "low": v - min(spread, abs(v) / 3),
            "high": v + min(spread, abs(v) / 3, abs(1 - v) / 3),
            "chance": chance.get(key),
        }
        for key, v in values.items()
    }


def of(*values: float) -> dict[str, dict[str, float | None]]:
    return figures(dict(zip(METRICS, values, strict=False)))


def study_page(
    *,
    rows: int = 60,
    side: int = 64,
    channels: int = 3,
    folds: int | None = None,
    simulated: bool = False,
    refined: bool = True,
    works: bool = True,
    captions: bool = True,
    areas: bool = False,
) -> Page:
    """A page like that of a real study."""
    rng = np.random.default_rng(5)
    seen = images(rows, side, channels, 0)
    wrong = images(rows, side, channels, 1)
    share = (rng.beta(4, 2, rows) if works else rng.uniform(0, 0.1, rows))[:, None, None, None]
    first = gaussian_filter(share * seen + (1 - share) * wrong, (0, side / 20, side / 20, 0)).astype(np.uint8)
    final = np.clip(1.25 * (share * seen + (1 - share) * wrong) - 25, 0, 255).astype(np.uint8)

    def r(made: np.ndarray, i: int) -> float:
        return float(np.corrcoef(seen[i].ravel(), made[i].ravel())[0, 1])

    def scores_of(made: np.ndarray) -> list[dict[str, float | None]]:
        found = []
        for i in range(rows):
            correlation = r(made, i)
            found.append(
                {
                    "pixcorr": correlation,
                    "ssim": 0.3 + 0.5 * correlation,
                    "mse": 0.08 * (1 - correlation),
                    "two_way_pixels": min(1.0, max(0.0, 0.5 + 0.6 * correlation)),
                    "top1_pixels": float(correlation > 0.7),
                }
            )
        return found

    stage1 = scores_of(first)
    last = scores_of(final) if refined else stage1
    scores: list[dict[str, Any]] = []
    for i in range(rows):
        score: dict[str, Any] = {"row": i, "stimulus": f"nsd-{10_000 + 37 * i}"}
        if folds:
            score["fold"] = i * folds // rows
        if captions:
            score["captions"] = [
                ["A dog runs over a wide green field", "Two boats lie in a calm harbour at dusk"][i % 2]
            ]
        scores.append(
            score | {f"stage1.{k}": v for k, v in stage1[i].items()} | {f"final.{k}": v for k, v in last[i].items()}
        )

    def mean(of_rows: list[dict[str, float | None]]) -> list[float]:
        return [float(np.mean([row[key] for row in of_rows])) for key in ("pixcorr", "ssim", "mse", "two_way_pixels")]

    gain = 0.15 if works else -0.01
    margin = {
        "pixcorr": {"value": gain, "low": gain - 0.05, "high": gain + 0.05},
        "mse": {"value": -gain / 10, "low": -gain / 10 - 0.004, "high": -gain / 10 + 0.004},
        "ssim": {"value": 0.01, "low": -0.02, "high": 0.04},
        "two_way_pixels": {"value": gain * 2, "low": gain * 2 - 0.06, "high": gain * 2 + 0.06},
    }
    baselines = {
        "mean_train_image": of(0.31, 0.52, 0.061, 0.5, 0.5, 0.017),
        "random_train_image": of(0.02, 0.28, 0.093, 0.51, 0.49, 0.02),
        "nearest_train_image": of(0.27, 0.33, 0.071, 0.62, 0.61),
        "shuffled_betas": of(0.12, 0.41, 0.078, 0.5, 0.5, 0.018),
    }
    metrics = {
        "preset": "native", "n_test": rows, "folds": folds, "simulated": simulated, "seed": 0, "resamples": 1000,
        "permutations": 5, "versions": {"leanrecon": "0.2.0"},
        "stage1": of(*mean(stage1), 0.83, 0.21), "final": of(*mean(last), 0.86, 0.26), "baselines": baselines,
        "upper_bounds": {"true_features": of(0.92, 0.81, 0.008, 1.0, 1.0, 0.97)},
        "features": {
            "vdvae": {
                "latent_r2_mean": {"value": 0.071, "low": 0.05, "high": 0.09, "chance": None},
                "two_way_features": {"value": 0.94, "low": 0.9, "high": 0.97, "chance": 0.5},
                "top1_features": {"value": 0.31, "low": 0.2, "high": 0.43, "chance": 1 / rows},
            }
        },
        "margins": dict.fromkeys(baselines, margin),
        "notes": ["SSIM is computed on grey images of 425 pixels.", "One image was all black and was made again in float32."],
    }  # fmt: skip
    if areas:
        metrics["n_voxels"] = 2300
        metrics["areas"] = {
            name: {"voxels": n, "stage1": of(r / 2), "final": of(r, 0.3, 0.08, 0.5 + r / 2), "features": {}}
            for name, (n, r) in AREAS.items()
        }
    if not refined:
        metrics["stage1"] = metrics["final"]
    drawn = {"precision": "float16", "seconds_per_image": 5.26, "retried": [7], "black": []} if refined else {}
    run = {
        "versions": {"leanrecon": "0.2.0", "numpy": np.__version__, "zarr": "3.1.3", "torch": "2.8.0"},
        "stages": {
            "dataset": stage(4.2, 0.9e9, 0.74e9, 4e9),
            "features vdvae": stage(1843, 3.1e9, 2.9e9, 4e9, device="cuda"),
            "regression vdvae": stage(
                212, 3.8e9, 3.6e9, 4e9, alpha={"median": 20_000.0, "per_target": True}, voxels_left_out=3
            ),
            "stage1": stage(65, 1.2e9, 1.3e9, 4e9),
            "refine": stage(420, 3.9e9, 3.2e9, 4e9, **drawn),
            "evaluate": stage(0.84, 0.6e9, 0.5e9, 4e9),
        },
    }
    settings = {
        "general": {"memory": "4GB", "device": "auto", "seed": 0},
        "dataset": {"kind": "arrays", "betas_train": "/data/subj01/betas_train.npy", "folds": folds},
        "features": {"vdvae": {"latents": "sample", "layers": 31}},
        "regression": {"kind": "ridge", "alpha": "loo", "standardize": True},
        "refine": {"kind": "lcm" if refined else "none"},
    }
    r2 = np.sort(rng.normal(0.06, 0.09, 4000))[::-1]
    groups = {f"layer {k + 1}": slice(400 * k, 400 * (k + 1)) for k in range(10)}

    def pictures() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        for i in range(rows):
            yield seen[i], first[i], final[i] if refined else None

    return Page(
        study="subj01, natural scenes", metrics=metrics, scores=scores, pictures=pictures(), simulated=simulated,
        settings=settings, records=run, latent_r2={"vdvae": r2}, latent_groups={"vdvae": groups},
        variants={f"fold{k:02d}": run for k in range(folds or 0)},
    )  # fmt: skip


def stage(seconds: float, planned: float, peak: float, budget: float, **notes: Any) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "planned_bytes": int(planned),
        "peak_bytes": int(peak),
        "budget_bytes": int(budget),
        "peak_resident_bytes": int(peak * 1.1),
        "settings": {},
        **notes,
    }
