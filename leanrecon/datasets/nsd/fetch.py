"""From NSD's files to a study's stores: trials, the check that they match the images, betas, images and captions."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.nsd.aside import Aside
from leanrecon.datasets.nsd.average import Averages, average, sample, single
from leanrecon.datasets.nsd.dataset import (
    CAPTION_NBYTES,
    FORMAT,
    OVERHEAD,
    SPLITS,
    TOGETHER,
    NSDSettings,
    come_together,
    fetch_nbytes,
)
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
from leanrecon.datasets.nsd.pieces import (
    IMAGES,
    SESSIONS,
    fetch_sessions,
    fetched,
    fill_images,
    images_in,
    rows_of_session,
    share_images,
    share_sessions,
    trials_path,
)
from leanrecon.datasets.nsd.staging import Staging
from leanrecon.datasets.nsd.stimuli import captions_of, lie_apart, stimuli_layout, stored_shape
from leanrecon.datasets.reliability import judge, repeat_reliability, sampled_voxels
from leanrecon.datasets.shared_images import refuse_shared_images
from leanrecon.datasets.sidecars import keep_json, remove_others, sources_path, sweep
from leanrecon.errors import InputError, StoreError
from leanrecon.memory import format_bytes
from leanrecon.places import Location
from leanrecon.progress import Advance, Progress
from leanrecon.stores.store import Store, remove
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows, SplitRows

Array = np.ndarray[Any, Any]


@dataclass
class Fetch:
    """One run of the stage dataset, which continues what earlier ones began."""

    settings: NSDSettings
    study: Study
    base_dir: Path | None
    context: Context

    def run(self) -> None:
        """Do what is not done yet."""
        deciding_now = deciding(self.settings, self.base_dir)
        known = None if self.context.overwrite else recall(self.study, deciding_now)
        if known is not None and self._is_done(known):
            self._captions(known)
            return
        _accept(self.settings, self.study, self.context.progress)
        with open_source(self.settings.root, self.settings.endpoint_url, self.base_dir) as source:
            files = Files(source, dict(known.found) if known else {})
            prepared = known or prepare(self.settings, files, self.base_dir)
            if known is None:
                try:
                    check_unchanged(self.study, files, deciding_now)
                except (InputError, StoreError):
                    if not self.context.overwrite:
                        raise
                    self._discard()
            if self.context.overwrite:
                remove_others(self.study, captions=SPLITS if self.settings.captions else ())
            with files.need(STIMULI) as file:
                images = stimuli_layout(file)
                self._require(prepared, images)
                sweep(self.study)
                trials = self._create_trials(prepared)
                self.study.rows.unlink(missing_ok=True)  # written last: its presence says that all is done
                if known is None:
                    keep(prepared, self.study, deciding_now)
                stimuli = self._create_stimuli(prepared)
                with self._images_aside(prepared, files, images, trials, stimuli) as aside:
                    self._fetch_trials(prepared, files, trials, aside)
                    betas = self._create_betas(prepared, trials)
                    wanted = not all(store.complete for store in betas.values())
                    if wanted:
                        self._check(prepared, trials)
                        self._make_betas(prepared, trials, betas)
                    self._fetch_images(prepared, files, images, stimuli, aside)
            if source.local(STIMULI) is None:
                moved = source.traffic
                self.context.progress.say(f"fetched {format_bytes(moved.nbytes)} in {moved.requests} requests")
        if not self.settings.allow_shared_stimuli:
            numbers = {split: list(prepared.design.shown(split)) for split in SPLITS}
            refuse_shared_images(self.study, lambda split, row: f"image {numbers[split][row]}", self.context)
        self._captions(prepared)
        self._write_rows(prepared)

    def _require(self, prepared: Prepared, images: Layout) -> None:
        """Refuse too small a budget; what workers share each of them requires."""
        shared: tuple[str, ...] = ()
        if self.context.executor is not None:
            shared = (SESSIONS, IMAGES) if lie_apart(images) else (SESSIONS,)
        held = self._held(prepared)
        free = self.context.budget.free - held
        work = fetch_nbytes(self.settings, prepared, images, self.context.chunk, without=shared, free=free)
        self.context.require("fetching the dataset", held + work)

    def _held(self, prepared: Prepared) -> int:
        """Bytes of memory that libraries and captions take."""
        return OVERHEAD + (CAPTION_NBYTES * len(np.unique(prepared.design.stimulus)) if self.settings.captions else 0)

    # Stores

    @property
    def trials_path(self) -> Location:
        return trials_path(self.study)

    def _create(self, path: Location, shape: tuple[int, ...], dtype: Any, **made_of: Any) -> Store:
        made = {"kind": "nsd", "format of the dataset": FORMAT, **made_of}
        return Store.create(
            path, shape, dtype, made_of=made, chunk=self.context.chunk, overwrite=self.context.overwrite
        )

    def _create_trials(self, prepared: Prepared) -> Store:
        """Trials are made of the session files, whichever their format; sources.json tells whether these have changed."""
        shape = (len(prepared.design.trial), len(prepared.voxels.index))
        decides = {
            "subject": self.settings.subject,
            "sessions": prepared.design.sessions,
            "roi": prepared.voxels.digest(),
        }
        return self._create(self.trials_path, shape, np.int16, dataset=decides)

    def _create_betas(self, prepared: Prepared, trials: Store) -> dict[str, Store]:
        stores = {}
        for split, n in rows_of(self.settings, prepared).items():
            dataset: dict[str, Any] = {"zscore_sessions": self.settings.zscore_sessions}
            if not self.settings.averages(split):
                dataset["repeats" if split == "train" else "test_repeats"] = "single"
            elif self.settings.rescales(split):
                dataset["rescale_average"] = True
            decides = {"trials": trials.content, "design": prepared.design.digest(), "dataset": dataset}
            stores[split] = self._create(
                self.study.betas(split), (n, trials.columns), np.float32, split=split, **decides
            )
        return stores

    def _create_stimuli(self, prepared: Prepared) -> dict[str, Store]:
        shape = stored_shape(prepared.stimuli, self.settings.image_size)
        return {
            split: self._create(
                self.study.stimuli(split),
                (len(prepared.design.shown(split)), *shape),
                np.uint8,
                split=split,
                design=prepared.design.digest(),
                dataset={"image_size": self.settings.image_size},
            )
            for split in SPLITS
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
            remove(path)
        fetched(self.trials_path).delete_tree()

    # Steps

    def _images_aside(
        self, prepared: Prepared, files: Files, layout: Layout, trials: Store, stores: dict[str, Store]
    ) -> AbstractContextManager[Aside | None]:
        """Fetch images in a thread of their own while sessions come: these are limited by requests, images by the link."""
        chunk, free = self.context.chunk, self.context.budget.free - self._held(prepared)
        done = trials.complete or all(store.complete for store in stores.values())
        if done or self.context.executor or not come_together(self.settings, prepared, layout, chunk, free):
            return nullcontext()
        return Aside(
            lambda advance: self._fill_images(prepared, layout, stores, advance),
            files.source.stop,
            _missing(stores.values()),
        )

    def _fetch_trials(self, prepared: Prepared, files: Files, store: Store, images: Aside | None = None) -> None:
        """Fetch the sessions that are missing; ``images`` come meanwhile, if at all."""
        staging = Staging(store, fetched(store.path))
        staging.begin()
        while len(missing := staging.missing()):
            sessions = np.unique(missing // TRIALS).tolist()
            total, context = len(prepared.betas), self.context.named("betas")
            note = None if images is None else lambda: f"{images.count} images"
            with context.task(total=total, unit="sessions", done=total - len(sessions), note=note) as advance:
                if context.executor is not None:
                    share_sessions(staging, sessions, context.executor, files.source.traffic, advance)
                    continue
                for k in fetch_sessions(files, prepared, staging, sessions, 1 if images is None else TOGETHER):
                    staging.seal(staging.ends(rows_of_session(k)))
                    advance(1)
                    if images is not None:
                        images.look()
        staging.finish()
        store.finish()

    def _check(self, prepared: Prepared, trials: Store) -> None:
        """Show how reliable repeats are; raises InputError, or warns, where they are no better than chance."""
        design = prepared.design
        found = repeat_reliability(sample(trials, sampled_voxels(trials.columns)), design.stimulus, design.session)
        todo = "check that sessions, design and mask belong together"
        judge(found, self.study, self.context.progress, check=self.settings.check, todo=todo)

    def _make_betas(self, prepared: Prepared, trials: Store, betas: dict[str, Store]) -> None:
        """Write averages over repeats together, then single trials, split by split."""
        design, zscore = prepared.design, self.settings.zscore_sessions
        averages = [
            Averages(store, list(design.shown(split).values()), self.settings.rescales(split))
            for split, store in betas.items()
            if self.settings.averages(split)
        ]
        if averages:
            total = max(of.store.column_groups for of in averages)
            done = total - len({j for of in averages for j in of.store.missing_column_groups()})
            with self.context.named("betas, averaged").task(total=total, unit="blocks", done=done) as advance:
                average(trials, design, averages, zscore=zscore, advance=advance)
        for split, store in betas.items():
            if not self.settings.averages(split):
                done = store.rows - _missing([store])
                context = self.context.named(f"betas, {split}")
                with context.task(total=store.rows, unit="rows", done=done) as advance:
                    single(trials, design, store, design.trials(split), zscore=zscore, advance=advance)
            store.finish()

    def _fetch_images(
        self, prepared: Prepared, files: Files, layout: Layout, stores: dict[str, Store], aside: Aside | None
    ) -> None:
        """Fetch the images that are missing, or wait until those that come aside are there."""
        total = sum(store.rows for store in stores.values())
        told = 0 if aside is None else aside.count
        missing = _missing(stores.values()) if aside is None else aside.missing - told
        context, executor = self.context.named("stimuli"), self.context.executor
        if executor is not None and not lie_apart(layout):
            self.context.progress.say("stimuli: in this process, because the file keeps several images in a chunk")
            executor = None
        with context.task(total=total, unit="images", done=total - missing) as advance:
            if aside is not None:
                aside.wait(advance, told)
            elif executor is None:
                self._fill_images(prepared, layout, stores, advance)
            else:
                for split, store in stores.items():
                    if store.missing_row_groups():
                        numbers = list(prepared.design.shown(split))
                        share_images(layout, store, split, numbers, executor, files.source.traffic, advance)
                    store.finish()

    @staticmethod
    def _fill_images(prepared: Prepared, layout: Layout, stores: dict[str, Store], advance: Advance) -> None:
        """Fetch the images that are missing, in this process.

        The fewer test images come first: while sessions come as well, nothing is lost between the two.
        """
        for split, store in reversed(stores.items()):
            numbers, shape = list(prepared.design.shown(split)), (store.shape[1], store.shape[2], store.shape[3])
            fill_images(store, numbers, store.missing_row_groups(), images_in(layout, shape), advance)
            store.finish()

    def _captions(self, prepared: Prepared) -> None:
        if self.settings.captions is None:
            return
        for split in SPLITS:
            images = list(prepared.design.shown(split))
            texts = captions_of(self.settings.captions, images, prepared.stimuli[0], self.base_dir)
            keep_json(self.study.captions(split), texts, "captions", overwrite=self.context.overwrite)

    def _write_rows(self, prepared: Prepared) -> None:
        design = prepared.design
        splits, ids = {}, {}
        for split in SPLITS:
            shown = design.shown(split)
            ids[split] = [str(image) for image in shown]
            if self.settings.averages(split):
                numbers = [design.trial[trials].tolist() for trials in shown.values()]
                splits[split] = SplitRows(np.arange(len(shown)), numbers, [len(trials) for trials in numbers])
            else:
                own = design.trials(split)
                splits[split] = SplitRows(
                    np.searchsorted(np.array(list(shown)), design.stimulus[own]),
                    [[number] for number in design.trial[own].tolist()],
                    [1] * len(own),
                    session=design.session[own].tolist(),
                    run=design.run[own].tolist(),
                )
        Rows(splits, ids).write(self.study)


def _missing(stores: Iterable[Store]) -> int:
    """Number of rows that are not written yet."""
    return sum(len(store.group_rows(i)) for store in stores for i in store.missing_row_groups())


def _accept(settings: NSDSettings, study: Study, progress: Progress) -> None:
    """Show the terms of use before the first fetch; raises InputError unless they are accepted."""
    if not settings.root.startswith("s3://"):
        return
    if not settings.accept_terms:
        raise InputError(
            f"the terms of use of the Natural Scenes Dataset are not accepted. {TERMS.rstrip('.')}",
            todo="read them, then set dataset.accept_terms = true",
        )
    if not sources_path(study).exists():
        for line in TERMS.splitlines():
            progress.say(line)


def rows_of(settings: NSDSettings, prepared: Prepared) -> dict[str, int]:
    """Number of rows of betas of each split; raises InputError where one is empty."""
    design = prepared.design
    images = {split: len(design.shown(split)) for split in SPLITS}
    if not all(images.values()):
        raise InputError(
            f"these sessions show {images['train']} images to train on and {images['test']} that all subjects saw",
            expected="some of both",
            todo="choose more sessions",
        )
    return {split: images[split] if settings.averages(split) else len(design.trials(split)) for split in SPLITS}
