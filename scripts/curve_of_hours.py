"""The curve of hours: what a new subject's reconstructions gain from a group, by how many of its train images are used.

    python scripts/curve_of_hours.py GROUP NEW --out FOLDER [--rows 0.125 0.25 0.5 1]

GROUP is the study of a group, NEW that of a new subject; both need their stage dataset. For every part of NEW's train
images two studies are run to their figures with GROUP's settings: through the group's space, and from NEW's own voxels.
A third stage dataset says which of them ``route = "auto"`` takes, by train images alone. Intervals are 95 % bootstrap
intervals of the paired difference over test images. A stopped run continues with the same command.
"""

import argparse
import tomllib
from pathlib import Path

import numpy as np

import leanrecon


def tables(group: Path, new: Path, rows: float, route: str) -> dict[str, object]:
    """The settings of one study."""
    found = tomllib.loads((group / "study.toml").read_text())
    dataset = {"kind": "joined", "joins": str(group.resolve()), "member": str(new.resolve()), "route": route}
    if rows != 1:
        dataset["rows"] = rows
    return found | {"dataset": dataset}


def scores(study: Path, settings: dict[str, object], metric: str) -> np.ndarray:
    """The scores of every test row of a study that is run to its end."""
    results = leanrecon.run(settings, study=study)
    return np.array([row[f"final.{metric}"] for row in results.scores], np.float64)


def interval(values: np.ndarray, resamples: int = 10_000) -> str:
    """A mean with its interval over test images."""
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return f"{values.mean():+.4f} ({low:+.4f}, {high:+.4f})"


def main(group: Path, new: Path, out: Path, parts: list[float], metric: str) -> None:
    """A line for every part of the train images."""
    print(f"{'rows':>8} {'own':>8} {'group':>8}   group less own{'':16} auto takes   auto less own")
    for rows in parts:
        name = f"{rows:g}".replace(".", "_")
        of = {
            route: scores(out / f"{name}-{route}", tables(group, new, rows, route), metric)
            for route in ("own", "group")
        }
        auto = out / f"{name}-auto"
        leanrecon.run(tables(group, new, rows, "auto"), study=auto, until="dataset")
        with np.load(auto / "betas" / "alignment.npz") as kept:
            taken = str(kept["route"])
        gain = of["group"] - of["own"]
        chosen = interval(of[taken] - of["own"])
        print(
            f"{rows:8g} {of['own'].mean():8.4f} {of['group'].mean():8.4f}   {interval(gain)}   {taken:10}   {chosen}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the studies")
    parser.add_argument("--rows", type=float, nargs="+", default=[1 / 8, 1 / 4, 1 / 2, 1], help="shares, or numbers")
    parser.add_argument("--metric", default="pixcorr")
    given = parser.parse_args()
    main(given.group, given.new, given.out, given.rows, given.metric)
