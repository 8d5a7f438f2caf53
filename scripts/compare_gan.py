"""Compare end-to-end decoders on a simulated subject: each loss off, other inputs, other comparators, areas alone.

    python scripts/compare_gan.py --work FOLDER                       every row, one after the other
    python scripts/compare_gan.py --work FOLDER --rows ridge all      some of them
    python scripts/compare_gan.py --work FOLDER --epochs 5            all of them, for less time

Every row is a study of the same train and test images, those of the recipe demo; what is there already is kept, and a
row that was killed is continued. Figures are means over the 60 test images with 95 % intervals over images; the judge is
the demo's CLIP. The comparator is the demo's autoencoder, at 32 pixels. No brain was measured.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import leanrecon

MODELS = Path(leanrecon.__file__).parent / "models"

DATASET = {
    "kind": "simulated", "n_train": 1200, "n_test": 60, "size": 64, "voxels": 4000, "presentations": 3, "noise": 2.0,
}  # fmt: skip

DECODE = {
    "kind": "gan", "size": 32, "width": 64, "hidden": 512, "discriminator_width": 4, "noise": 1.8, "average": 0.99,
    "batch_size": 24, "learning_rate": 1e-3, "schedule": "cosine", "epochs": 30, "checkpoint_minutes": 1.0,
}  # fmt: skip

AUTOENCODER = {"kind": "autokl", "model": str(MODELS / "diffusion"), "size": 32}
CLIP = {"kind": "clip-vision", "model": str(MODELS / "clip"), "form": "embedding"}
VDVAE = {
    "kind": "vdvae", "checkpoint": str(MODELS / "vdvae" / "vdvae.safetensors"), "n_latents": 9, "latents": "mean",
    "config": {
        "image_size": 64, "enc_blocks": "64d2,32d2,16x2,16d2,8x2,8d2,4x1,4d4,1x1",
        "dec_blocks": "1x1,4m1,4x1,8m4,8x2,16m8,16x2,32m16,64m32", "width": 32,
        "custom_width_str": "32:64,16:96,8:128,4:128,1:128", "bottleneck_multiple": 0.5, "zdim": 8, "num_mixtures": 4,
    },
}  # fmt: skip

ALL, ALONE = {"comparator": AUTOENCODER}, {"adversarial_weight": 0.0}

ROWS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "ridge": ("ridge to 256 pixel components", None),
    "all": ("image + features + adversarial", ALL),
    "image": ("image loss alone", ALONE),
    "no-adversarial": ("no adversarial loss", ALL | ALONE),
    "no-feature": ("no feature loss (comparator none)", {}),
    "no-image": ("no image loss", ALL | {"image_weight": 0.0}),
    "noise": ("all losses, random numbers in place of betas", ALL | {"inputs": "noise"}),
    "clip": ("comparator CLIP, which is the judge", {"comparator": CLIP}),
    "vdvae": ("comparator VDVAE", {"comparator": VDVAE}),
    "areas": ("image loss alone, all voxels", ALONE),
}
"""What a row is called, and the settings of its decoder beside ``DECODE``; None: a ridge."""

AREAS = {"V1-V3": ["V1", "V2", "V3"], "ventral": ["ventral"]}
"""Areas that the row "areas" trains for, each by itself."""

SHOWN = {"pixcorr": "PixCorr", "ssim": "SSIM", "two_way_clip": "two-way CLIP"}


def tables(row: str, epochs: int | None, memory: str) -> dict[str, Any]:
    """The settings of the study of one row."""
    decode = ROWS[row][1]
    common = {
        "memory": memory,
        "dataset": DATASET,
        "judges": {"clip": {"model": str(MODELS / "clip")}},
        "evaluate": {"permutations": 0, "resamples": 1000},
    }
    if decode is None:
        return common | {
            "features": {"pca": {"components": 256}},
            "regression": {"alpha": "loo", "standardize": True},
        }
    areas = {"areas": AREAS} if row == "areas" else {}
    return common | areas | {"decode": DECODE | decode | ({"epochs": epochs} if epochs else {})}


def lines_of(row: str, study: Path) -> list[str]:
    """The lines of a row of the table, from the study's record and figures: its own, and one for each area."""
    metrics = json.loads((study / "evaluation" / "metrics.json").read_text())
    lines = [line(ROWS[row][0], study, metrics["stage1"])]
    for area, of in metrics.get("areas", {}).items():
        lines.append(line(f"… {area}", study / "variants" / area, of["stage1"]))
    return lines


def line(name: str, study: Path, figures: dict[str, Any]) -> str:
    record = json.loads((study / "run.json").read_text())["stages"].get("decode", {})
    epochs = f"{record['epochs_trained']} ({record['best_epoch']})" if record else "–"
    waited = record.get("waited", {})
    waits = f"{waited['discriminator']} + {waited['generator']} of {record['steps']}" if record else "–"
    return f"| {' | '.join([name, epochs, waits, *(written(figures[metric]) for metric in SHOWN)])} |"


def written(figure: dict[str, float]) -> str:
    value, low, high = (f"{figure[key]:.3f}".replace("0.", ".", 1) for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the studies")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--epochs", type=int, help="epochs of every training in place of 30")
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--out", type=Path, help="file of the table; by default it is printed")
    asked = parser.parse_args()
    dataset = asked.work / "dataset"
    leanrecon.run({"memory": asked.memory, "dataset": DATASET, "features": {"pca": {}}}, study=dataset, until="dataset")
    head = ["decoder", "epochs (best)", "steps that discriminator + generator waited", *SHOWN.values()]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in asked.rows:
        study, started = asked.work / row, time.process_time()
        if not study.exists():
            shutil.copytree(dataset, study)
        leanrecon.run(tables(row, asked.epochs, asked.memory), study=study)
        found = lines_of(row, study)
        lines += found
        print(*found, f"{time.process_time() - started:.0f} CPU s", sep="\n", flush=True)
    text = "\n".join(lines) + "\n"
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
