"""The way from NSD's files to a study's stores: trials, the check that they match the images, betas, images, captions."""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.datasets.nsd.average import average, sample
from leanrecon.datasets.nsd.betas import session_trials
from leanrecon.datasets.nsd.dataset import FORMAT, SAMPLE, SPLITS, NsdSettings, plan_fetch
from leanrecon.datasets.nsd.files import (
    Files,
    Prepared,
    check_unchanged,
    deciding,
    keep,
    open_source,
    prepare,
    recall,
)
from leanrecon.datasets.nsd.hdf5_index import Layout
from leanrecon.datasets.nsd.layout import STIMULI, TERMS, TRIALS
from leanrecon.datasets.nsd.staging import Staging
from leanrecon.datasets.nsd.stimuli import captions_of, read_images, stimuli_layout, stored_shape
from leanrecon.datasets.reliability import repeat_reliability
from leanrecon.datasets.sidecars import keep_json, remove_others, sources_path, sweep
from leanrecon.errors import InputError, LeanreconWarning, StoreError
from leanrecon.memory import MemoryBudget, format_bytes
from leanrecon.places import Location
from leanrecon.places.disk import explained_disk_errors
from leanrecon.places.files import write_json
from leanrecon.progress import Progress
from leanrecon.stores.store import Store, remove
from leanrecon.study.layout import Study

Array = np.ndarray[Any, Any]


@dataclass
class Fetch:
    """One run of the stage dataset, which continues what earlier ones began."""

    settings: NsdSettings
    study: Study
    base_dir: Path | None
    chunk: int
    budget: MemoryBudget
    overwrite: bool
    progress: Progress

    def run(self) -> None:
        """Do what is not done yet."""
        deciding_now = deciding(self.settings, self.base_dir)
        known = None if self.overwrite else recall(self.study, deciding_now)
        if known is not None and self._is_done(known):
            self._captions(known)
            return
        _accept(self.settings, self.study, self.progress)
        with open_source(self.settings.root, self.settings.endpoint_url, self.base_dir) as source:
            files = Files(source, dict(known.found) if known else {})
            prepared = known or prepare(self.settings, files, self.base_dir)
            if known is None:
                try:
                    check_unchanged(self.study, files, deciding_now)
                except (InputError, StoreError):
                    if not self.overwrite:
                        raise
                    self._discard()
            if self.overwrite:
                remove_others(self.study, captions=SPLITS if self.settings.captions else ())
            with files.need(STIMULI) as file:
                images = stimuli_layout(file)
                work = plan_fetch(self.settings, prepared, images, self.chunk).work
                self.budget.require("fetching the dataset", work)
                sweep(self.study)
                trials = self._create_trials(prepared)
                self.study.rows.unlink(missing_ok=True)  # written last, so that its presence says that all is done
                if known is None:
                    keep(prepared, self.study, deciding_now)
                self._fetch_trials(prepared, files, trials)
                betas = self._create_betas(prepared, trials)
                stimuli = self._create_stimuli(prepared)
                if not all(store.complete for store in betas.values()):
                    self._check(prepared, trials)
                    self._average(prepared, trials, betas)
                self._fetch_images(prepared, images, stimuli)
            if source.local(STIMULI) is None:
                moved = source.traffic
                self.progress.say(f"fetched {format_bytes(moved.nbytes)} in {moved.requests} requests")
        self._captions(prepared)
        self._write_rows(prepared)

    # Stores

    @property
    def trials_path(self) -> Location:
        return self.study.root / "betas" / "trials.zarr"

    def _create(self, path: Location, shape: tuple[int, ...], dtype: Any, **made_of: Any) -> Store:
        made = {"kind": "nsd", "format of the dataset": FORMAT, **made_of}
        return Store.create(path, shape, dtype, made_of=made, chunk=self.chunk, overwrite=self.overwrite)

    def _create_trials(self, prepared: Prepared) -> Store:
        """Trials are made of the session files, whichever their format: sources.json holds these to what they were."""
        shape = (len(prepared.design.trial), len(prepared.voxels.index))
        decides = {
            "subject": self.settings.subject,
            "sessions": prepared.design.sessions,
            "roi": prepared.voxels.digest(),
        }
        return self._create(self.trials_path, shape, np.int16, dataset=decides)

    def _create_betas(self, prepared: Prepared, trials: Store) -> dict[str, Store]:
        decides = {
            "trials": trials.content,
            "design": prepared.design.digest(),
            "dataset": {"zscore_sessions": self.settings.zscore_sessions},
        }
        return {
            split: self._create(self.study.betas(split), (n, trials.columns), np.float32, split=split, **decides)
            for split, n in _rows(prepared).items()
        }

    def _create_stimuli(self, prepared: Prepared) -> dict[str, Store]:
        shape = stored_shape(prepared.stimuli, self.settings.image_size)
        return {
            split: self._create(
                self.study.stimuli(split),
                (n, *shape),
                np.uint8,
                split=split,
                design=prepared.design.digest(),
                dataset={"image_size": self.settings.image_size},
            )
            for split, n in _rows(prepared).items()
        }

    def _is_done(self, known: Prepared) -> bool:
        """Whether an earlier run made all of it; raises StoreError where it did so with other settings."""
        paths = [self.trials_path, *(of(split) for of in (self.study.betas, self.study.stimuli) for split in SPLITS)]
        try:
            trials, *_ = [Store.open(path) for path in paths]
        except StoreError:
            return False
        self._create_trials(known)
        self._create_betas(known, trials)
        self._create_stimuli(known)
        return self.study.rows.exists()

    def _discard(self) -> None:
        """Remove what was made from files that have changed."""
        for path in (
            self.trials_path,
            *(of(split) for of in (self.study.betas, self.study.stimuli) for split in SPLITS),
        ):
            if _fetched(path).exists():
                with explained_disk_errors(path):
                    shutil.rmtree(_fetched(path))
            remove(path)

    def _staging(self, store: Store) -> Staging:
        return Staging(store, _fetched(store.path))

    # Steps

    def _fetch_trials(self, prepared: Prepared, files: Files, store: Store) -> None:
        staging = self._staging(store)
        while len(staging.missing()):
            sessions = np.unique(staging.missing() // TRIALS).tolist()
            total = len(prepared.betas)
            with self.progress.task("betas", total=total, unit="sessions", done=total - len(sessions)) as advance:
                for k in sessions:
                    name = prepared.betas[prepared.design.sessions[k]]
                    here = files.source.local(name)
                    with files.need(name) as file:
                        for first, block in session_trials(file, here, prepared.voxels, staging.own / "download"):
                            staging.put(k * TRIALS + first, block)
                    advance(1)
        staging.finish()
        store.finish()

    def _check(self, prepared: Prepared, trials: Store) -> None:
        """Show how reliable repeats are; raises InputError, or warns, where they are no better than chance."""
        design = prepared.design
        columns = np.arange(trials.columns)
        if len(columns) > SAMPLE:
            columns = np.sort(np.random.default_rng(0).choice(len(columns), SAMPLE, replace=False))
        found = repeat_reliability(sample(trials, columns), design.stimulus, design.session)
        self.progress.say(f"repeat reliability: {found}")
        write_json(self.study.reliability, found.as_record(), indent=1)
        if not found.judged:
            self.progress.say("too few images were repeated to tell whether trials and images match")
        elif not found.above_chance:
            problem = InputError(
                f"trials and images don't match: {found}",
                expected="repeats that are clearly more alike than different images",
                todo='check that sessions, design and mask belong together, or go on with dataset.check = "warn"',
            )
            if self.settings.check == "stop":
                raise problem
            warnings.warn(str(problem), LeanreconWarning, stacklevel=2)

    def _average(self, prepared: Prepared, trials: Store, betas: dict[str, Store]) -> None:
        total = max(store.column_groups for store in betas.values())
        done = total - len({j for store in betas.values() for j in store.missing_column_groups()})
        with self.progress.task("betas, averaged", total=total, unit="blocks", done=done) as advance:
            average(trials, prepared.design, betas, zscore=self.settings.zscore_sessions, advance=advance)
        for store in betas.values():
            store.finish()

    def _fetch_images(self, prepared: Prepared, layout: Layout, stores: dict[str, Store]) -> None:
        shown = {split: np.array(list(prepared.design.rows(split)), np.int64) for split in SPLITS}
        staging = {split: self._staging(store) for split, store in stores.items()}
        total = sum(map(len, shown.values()))
        while wanted := {
            int(shown[split][row]): (split, row) for split in SPLITS for row in staging[split].missing().tolist()
        }:
            shape = stored_shape(prepared.stimuli, self.settings.image_size)
            with self.progress.task("stimuli", total=total, unit="images", done=total - len(wanted)) as advance:
                for images, block in read_images(layout, np.array(sorted(wanted), np.int64), shape):
                    for image, values in zip(images.tolist(), block, strict=True):
                        split, row = wanted[image]
                        staging[split].put(row, values[None])
                    advance(len(images))
        for split, store in stores.items():
            staging[split].finish()
            store.finish()

    def _captions(self, prepared: Prepared) -> None:
        if self.settings.captions is None:
            return
        for split in SPLITS:
            images = list(prepared.design.rows(split))
            texts = captions_of(self.settings.captions, images, prepared.stimuli[0], self.base_dir)
            keep_json(self.study.captions(split), texts, "captions", overwrite=self.overwrite)

    def _write_rows(self, prepared: Prepared) -> None:
        records = {}
        for split in SPLITS:
            rows = prepared.design.rows(split)
            numbers = [prepared.design.trial[trials].tolist() for trials in rows.values()]
            records[split] = {
                "stimulus": [str(image) for image in rows],
                "trials": numbers,
                "repeats": [len(trials) for trials in numbers],
            }
        write_json(self.study.rows, records)


def _fetched(path: Location) -> Path:
    """The folder of what has come of a store and waits for its neighbours."""
    return path.with_name(f"{path.stem}.fetched").local_path()


def _accept(settings: NsdSettings, study: Study, progress: Progress) -> None:
    """Show the terms of use before the first fetch; raises InputError unless they are accepted."""
    if not settings.root.startswith("s3://"):
        return
    if not settings.accept_terms:
        raise InputError(
            f"the terms of use of the Natural Scenes Dataset are not accepted. {TERMS.rstrip('.')}",
            todo="read them, then set dataset.accept_terms = true",
        )
    if not sources_path(study).exists():
        progress.say(TERMS)


def _rows(prepared: Prepared) -> dict[str, int]:
    """Number of rows of each split; raises InputError where one is empty."""
    n = {split: len(prepared.design.rows(split)) for split in SPLITS}
    if not all(n.values()):
        raise InputError(
            f"these sessions show {n['train']} images to train on and {n['test']} that all subjects saw",
            expected="some of both",
            todo="choose more sessions",
        )
    return n
