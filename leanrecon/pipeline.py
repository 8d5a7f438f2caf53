"""The stages of a study in their order, each planned, measured and resumable, from stores to stores."""

import contextlib
import json
import os
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from leanrecon import features
from leanrecon.datasets.arrays import ingest_arrays
from leanrecon.datasets.files import locate
from leanrecon.errors import InputError, SettingsError, StoreError
from leanrecon.features.extract import extract
from leanrecon.features.space import FeatureSpace
from leanrecon.memory import MemoryBudget, PeakMemory
from leanrecon.progress import Progress
from leanrecon.regression.ridge import StreamingRidge
from leanrecon.settings import Settings, check_settings
from leanrecon.stores import Matrix, RowSubset, Store, as_matrix
from leanrecon.stores.disk import explained_disk_errors
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.study import Study

VERSIONS = ("leanrecon", "numpy", "scipy", "scikit-learn", "zarr", "pillow")
NO_IMAGES = "there are no images to take features from"
STAGES = ("dataset", "features", "regression")

HEADER = "# The settings of this study as they were run, with all defaults. Written by leanrecon.\n"
"""First line of a study's study.toml, which tells it from a settings file that someone wrote."""


@dataclass(frozen=True)
class Variant:
    """Which rows are trained on and tested: those of the split, or those of one fold."""

    study: Study
    train: list[int] | None = None
    test: list[int] | None = None

    @property
    def is_fold(self) -> bool:
        return self.test is not None

    @property
    def prefix(self) -> str:
        return f"{self.study.root.name}: " if self.is_fold else ""


class Pipeline:
    """Runs the stages of one study; what is complete already is not done again."""

    def __init__(
        self,
        settings: Settings,
        study: Study,
        *,
        base_dir: Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.settings = settings
        self.study = study
        self.base_dir = base_dir
        self.overwrite = overwrite
        self.progress = progress or Progress()
        self.spaces: dict[str, FeatureSpace] = {
            name: features.make(name, table, seed=settings.general.seed) for name, table in settings.features.items()
        }

    def run(self, until: str = STAGES[-1]) -> None:
        """Run the stages up to and including ``until``."""
        if self.study.settings.exists() and not is_study(self.study.root):
            raise StoreError(
                f"{self.study.settings} was not written by leanrecon, which would replace it",
                todo="choose a folder of its own for the study with --study",
            )
        dataset = self.settings.dataset
        if until != "dataset" and not (dataset.stimuli or dataset.stimuli_train):
            raise InputError(NO_IMAGES, todo="set dataset.stimuli_train and dataset.stimuli_test, or dataset.stimuli")
        with only_run(self.study.root):
            if not self.study.settings.exists():
                self._write_settings(STAGES[-1])
            for stage in STAGES[: STAGES.index(until) + 1]:
                getattr(self, f"_{stage}")()
                self._write_settings(stage)  # once this stage has accepted them

    # The stages

    def _dataset(self) -> None:
        with self._recorded("dataset", self.study, [self.study.betas("train")]) as (record, budget):
            ingest_arrays(
                self.settings.dataset,
                self.study,
                base_dir=self.base_dir,
                chunk=self.settings.stores.chunk,
                budget=budget,
                seed=self.settings.general.seed,
                overwrite=self.overwrite,
                progress=self.progress,
            )
            record["settings"] = self.settings.dataset.model_dump(exclude_none=True)

    def _features(self) -> None:
        for name, space in self.spaces.items():
            # What learns nothing describes an image alike in every fold.
            for variant in self._variants() if space.learns else self._variants()[:1]:
                where = variant.study if space.learns else self.study
                splits = ("train",) if variant.is_fold else ("train", "test")
                made = [where.features(name, split) for split in splits]
                with self._recorded(f"features {name}", where, made) as (record, budget):
                    images = Store.open(self.study.stimuli("train"))
                    how: dict[str, Any] = {"budget": budget, "overwrite": self.overwrite, "progress": self.progress}
                    space.fit(images, where.fitted(name), rows=variant.train, **how)
                    for split, path in zip(splits, made, strict=True):
                        images = Store.open(self.study.stimuli(split))
                        extract(space, images, path, chunk=self.settings.stores.chunk, **how)
                    record["settings"] = self.settings.features[name].model_dump(exclude_none=True)

    def _regression(self) -> None:
        for variant in self._variants():
            fits: dict[str, StreamingRidge] = {}
            for name, space in self.spaces.items():
                made = [variant.study.predictions(name)]
                with self._recorded(f"regression {name}", variant.study, made) as (record, budget):
                    self._predict(variant, name, space, fits, record, budget)

    def _predict(
        self,
        variant: Variant,
        name: str,
        space: FeatureSpace,
        fits: dict[str, StreamingRidge],
        record: dict[str, Any],
        budget: MemoryBudget,
    ) -> None:
        """Predict the features of the test rows; spaces with the same settings share one factor."""
        settings = self.settings.regression[name]
        split = "train" if variant.is_fold else "test"
        train, test = Store.open(self.study.betas("train")), Store.open(self.study.betas(split))
        where = variant.study if space.learns else self.study
        targets = Store.open(where.features(name, "train"))
        how = settings.model_dump(exclude={"kind"})
        made_of = {
            "betas": train.content,
            "test betas": test.content,
            "features": targets.content,
            "regression": settings.model_dump(exclude_none=True),
            "seed": self.settings.general.seed,
            "rows": fingerprint({"train": variant.train, "test": variant.test}) if variant.is_fold else "split",
        }
        store = Store.create(
            variant.study.predictions(name),
            (len(variant.test) if variant.test is not None else test.rows, targets.columns),
            np.float32,
            made_of=made_of,
            chunk=self.settings.stores.chunk,
            overwrite=self.overwrite,
        )
        if store.complete:
            return
        betas, y = _rows(train, variant.train), _rows(targets, variant.train)
        key = json.dumps(how, sort_keys=True)
        if key in fits and settings.alpha != "loo":
            ridge = fits[key].with_targets(y)
            ridge.budget = budget  # what it asks for belongs to this stage's record
        else:
            fits.clear()  # one factor at a time
            ridge = StreamingRidge(**how, seed=self.settings.general.seed, budget=budget, scratch=self.study.root)
            fits[key] = ridge.fit(betas, y, test=_rows(test, variant.test))
        label = f"{variant.prefix}regression {name}"
        if ridge.left_out_:
            self.progress.say(f"{label}: {ridge.left_out_} of {betas.shape[1]} voxels do not vary and are left out")
        if settings.alpha == "loo":
            chosen = f"{np.median(ridge.alpha_):.4g}" + (" (median over targets)" if settings.per_target else "")
            self.progress.say(f"{label}: leave-one-out chose alpha = {chosen}")
        done = store.column_groups - len(store.missing_column_groups())
        with self.progress.task(label, total=store.column_groups, unit="blocks", done=done) as advance:
            ridge.predict_into(_rows(test, variant.test), store, advance=advance)
        store.finish()
        alpha = np.asarray(ridge.alpha_)
        record |= {
            "settings": settings.model_dump(exclude_none=True),
            "alpha": float(alpha) if alpha.ndim == 0 else {"median": float(np.median(alpha)), "per_target": True},
            "voxels_left_out": ridge.left_out_,
        }

    def _variants(self) -> list[Variant]:
        """The one split, or every fold: each row is tested once and trained on in all other folds."""
        if not self.settings.dataset.folds:
            return [Variant(self.study)]
        folds = json.loads((self.study.root / "folds.json").read_text())["folds"]
        rows = sorted(row for fold in folds for row in fold)
        return [
            Variant(self.study.variant(f"fold{k:02d}"), sorted(set(rows) - set(fold)), fold)
            for k, fold in enumerate(folds)
        ]

    # Records

    @contextlib.contextmanager
    def _recorded(self, stage: str, study: Study, made: list[Path]) -> Iterator[tuple[dict[str, Any], MemoryBudget]]:
        """Measure a stage and keep its record in ``run.json``, unless all that it makes was there before."""
        done = not self.overwrite and all(is_complete(path) for path in made)
        budget = MemoryBudget.of(self.settings.general.memory)
        record: dict[str, Any] = {}
        started = time.monotonic()
        with PeakMemory() as memory:
            yield record, budget
        if done:
            return
        record |= {
            "seconds": round(time.monotonic() - started, 3),
            "budget_bytes": budget.allowed,
            "planned_bytes": max(budget.required, default=0),
            "peak_bytes": memory.peak,
            "peak_resident_bytes": memory.resident,
        }
        path = study.record
        records = json.loads(path.read_text()) if path.exists() else {"stages": {}}
        records["versions"] = {name: version(name) for name in VERSIONS}
        records["stages"][stage] = record
        _write_text(path, json.dumps(records, indent=2) + "\n")

    def _write_settings(self, stage: str) -> None:
        """Write study.toml: what the stages up to this one accepted, and what later ones were run with before."""
        tables = self.settings.tables()
        tables["dataset"] = _absolute(tables["dataset"], self.base_dir)
        if stage != STAGES[-1] and not self.overwrite and self.study.settings.exists():
            accepted = ("dataset", "stores", *STAGES[: STAGES.index(stage) + 1])
            with contextlib.suppress(SettingsError, tomllib.TOMLDecodeError):  # else all of them are new
                then = tomllib.loads(self.study.settings.read_text(encoding="utf-8"))
                kept = then | {name: tables[name] for name in accepted}
                check_settings(kept)
                tables = kept
        _write_text(self.study.settings, HEADER + tomli_w.dumps(tables))


def is_study(root: Path) -> bool:
    """Whether a folder is that of a study: whether leanrecon wrote the study.toml in it."""
    settings = Study(root).settings
    return settings.is_file() and settings.read_bytes().startswith(HEADER.encode())


def is_complete(path: Path) -> bool:
    """Whether there is a complete store at a path."""
    return (path / "zarr.json").exists() and Store.open(path, incomplete=True).complete


def _absolute(table: dict[str, Any], base_dir: Path | None) -> dict[str, Any]:
    """``[dataset]`` with its files found, so that study.toml continues and repairs the study from any folder."""
    roles = [f"{role}{split}" for role in ("betas", "stimuli", "captions") for split in ("", "_train", "_test")]
    found = {}
    for name in ("path", "test_index", *roles):
        if name in table and not table[name].startswith(":"):
            with contextlib.suppress(InputError):  # the stage dataset says what is missing
                path, key = locate(table[name], None, base_dir)
                found[name] = str(path.absolute()) if key is None else f"{path.absolute()}:{key}"
    return table | found


def _rows(store: Store, rows: list[int] | None) -> Matrix:
    matrix = as_matrix(store)
    return matrix if rows is None else RowSubset(matrix, rows)


def _write_text(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


@contextlib.contextmanager
def only_run(root: Path) -> Iterator[None]:
    """Hold a study's folder against a second run at the same time; the hold ends with the process, however it ends."""
    with explained_disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another run is at work in {root}", todo="wait for it, or choose another --study"
            ) from None
        except OSError:  # a file system without locks, as some mounted drives are
            pass
        yield
    finally:
        os.close(descriptor)
