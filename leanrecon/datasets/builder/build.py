"""From materials to a study's complete stores, step by step, continuing what an earlier run began."""

from pathlib import Path
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.arrays.voxels import labels_of
from leanrecon.datasets.builder.columns import Columns, Levels, Standardised, StoreRows
from leanrecon.datasets.builder.materials import SPACE, Materials
from leanrecon.datasets.builder.noise import noise_of
from leanrecon.datasets.builder.plan import ROWS, is_copied, is_staged, plan_betas, plan_images, plan_trials
from leanrecon.datasets.builder.settings import BuilderSettings
from leanrecon.datasets.builder.splits import repeats_of, split_trials
from leanrecon.datasets.files.picked import Picked
from leanrecon.datasets.files.rows import Rows
from leanrecon.datasets.ingest import Source, fill_betas, fill_store
from leanrecon.datasets.nearby import Nearby, forget_copies
from leanrecon.datasets.reliability import judge, repeat_reliability, sampled_voxels
from leanrecon.datasets.shared_images import equal_images, refuse_shared_images
from leanrecon.datasets.sidecars import SourceFiles, forget_other_kind, keep_json, remove_others, sources_path, sweep
from leanrecon.datasets.splits import SHARED_TODO, fold_rows
from leanrecon.datasets.voxel_reliability import reliable_voxels
from leanrecon.places.files import read_json, write_json, write_whole
from leanrecon.progress import counted
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows as StudyRows

Array = np.ndarray[Any, Any]


class Build:
    """One run of the stage dataset over materials."""

    def __init__(
        self,
        kind: str,
        materials: Materials,
        settings: BuilderSettings,
        study: Study,
        base_dir: Path | None,
        context: Context,
    ) -> None:
        materials.check()
        self.kind, self.materials, self.settings = kind, materials, settings
        self.study, self.context = study, context
        self.parts = split_trials(materials.trials, settings, context.seed, base_dir)
        self.repeats = repeats_of(materials.trials, self.parts, settings, materials.images)
        self.of_areas = materials.voxels.chosen(settings.chosen_areas)
        self.kept = np.arange(len(self.of_areas))
        """Which of the voxels of the areas are used: all, or the reliable ones."""
        self.told: dict[str, Any] = {}
        """What the record of the stage tells."""
        known = read_json(sources_path(study))
        self.sources = SourceFiles(known.get("files") if isinstance(known, dict) else None)
        files = [self.sources.content(path) for path in materials.files]
        self.source = {"kind": kind, "files": files, **materials.made_of}

    @property
    def columns(self) -> Array:
        """The voxels that are used, as columns of the responses, ascending."""
        return self.of_areas[self.kept]

    def run(self) -> dict[str, Any]:
        """Write what is not there yet, rows.json last; returns what the record of the stage tells."""
        sweep(self.study)
        overwrite = self.context.overwrite
        if overwrite:
            forget_other_kind(self.study, self.kind)
        self._select()
        rows = StudyRows(
            {split: of.record() for split, of in self.repeats.items()},
            {split: of.images for split, of in self.repeats.items()},
        )
        stores = {split: self._create_betas(split) for split in self.repeats}
        images = {split: self._create_images(split) for split in self.repeats} if self.materials.images else {}
        if overwrite:
            remove_others(
                self.study,
                captions=self.repeats if self.materials.captions is not None else (),
                folds=bool(self.settings.folds),
                betas=self.repeats,
                stimuli=self.repeats if self.materials.images is not None else (),
            )
        record = {"files": self.sources.seen}
        if read_json(sources_path(self.study)) != record:
            write_json(sources_path(self.study), record)
        done = all(store.complete for store in (*stores.values(), *images.values())) and rows.are_in(self.study)
        if not done:
            self.study.rows.unlink(missing_ok=True)  # written last: its presence says that all is done
            self._tell_left_out()
            self._fill_betas(stores)
            for split, store in images.items():
                self._fill_images(split, store)
            self._refuse_shared_images()
        if self.materials.captions is not None:
            for split, of in self.repeats.items():
                texts = self.materials.captions(of.images)
                keep_json(self.study.captions(split), texts, "captions", overwrite=overwrite)
        if self.settings.folds:
            keep_json(self.study.folds, self._folds(done), "folds or another seed", overwrite=overwrite)
        if not rows.are_in(self.study):
            rows.write(self.study)
        forget_copies(self.study)
        return self.told

    def _tell_left_out(self) -> None:
        """Say how many trials are of neither split, and what the table calls their split."""
        names, used = self.materials.trials.split, np.zeros(len(self.materials.trials), bool)
        for part in self.parts.values():
            used[part] = True
        if names is None or used.all():
            return
        values = sorted({names[row] for row in np.flatnonzero(~used).tolist()})
        called = ", ".join(repr(value) for value in values[:5]) + (" …" if len(values) > 5 else "")
        self.context.progress.say(
            f"{np.count_nonzero(~used)} of {counted(len(used), 'trials')} are left out: their split is {called}, "
            "and neither train nor test"
        )

    # Voxels

    def _select(self) -> None:
        """Choose the reliable voxels, from repeats of train images alone; what was found is kept for later runs."""
        least, path = self.settings.min_reliability, self.study.voxel_reliability
        if least is None:
            if self.context.overwrite:
                path.unlink(missing_ok=True)
            return
        trials = self.repeats["train"].shown_rows
        made_of = self._made_of("train") | {"reliability of": trials}
        self.kept, self.reliability = reliable_voxels(
            path, lambda: self._standardised(self._staged()), trials, least, made_of, self.context
        )
        self.told = {"voxels_left_out": len(self.of_areas) - len(self.kept)}

    # Stores

    def _made_of(self, split: str) -> dict[str, Any]:
        settings = self.settings
        made: dict[str, Any] = {**self.source, "voxels": settings.chosen_areas}
        made |= {"zscore": settings.zscore, "repeats": "average" if settings.averages(split) else "single"}
        made["trials"] = [self.parts[split].tolist(), list(self.repeats[split].ids)]
        if settings.zscore == "train":
            made["train"] = self.parts["train"].tolist()
        if settings.rescales(split):
            made["rescale_average"] = True
        if settings.min_reliability is not None:
            train = fingerprint({"train": self.parts["train"].tolist()})
            made["min_reliability"] = {"least": settings.min_reliability, "train": train}
        return {"dataset": made | {"trials": fingerprint({"of": made["trials"]})}}

    def _create_betas(self, split: str) -> Store:
        shape = (len(self.repeats[split].trials), len(self.columns))
        return self._create(self.study.betas(split), shape, np.float32, self._made_of(split))

    def _create_images(self, split: str) -> Store:
        assert self.materials.images is not None
        names = self.repeats[split].images
        images = self.materials.images
        made = {"kind": self.kind, "images": fingerprint({"ids": names}), "shape": list(images.shape)}
        made["files"] = fingerprint({"of": [self.sources.content(path) for path in images.files]})
        return self._create(self.study.stimuli(split), (len(names), *images.shape), np.uint8, {"dataset": made})

    def _create(self, path: Any, shape: tuple[int, ...], dtype: Any, made_of: dict[str, Any]) -> Store:
        with self.sources.named():
            return Store.create(
                path, shape, dtype, made_of=made_of, chunk=self.context.chunk, overwrite=self.context.overwrite
            )

    # Responses

    def _fill_betas(self, stores: dict[str, Store]) -> None:
        if all(store.complete for store in stores.values()) and self.study.voxels.is_file():
            return
        responses = self._standardised(self._staged())
        if len(self.kept) < len(self.of_areas):
            responses = Columns(responses, self.kept)
        self._check(responses)
        self._write_voxels(responses)
        parts = []
        for split, store in stores.items():
            of = self.repeats[split]
            rows, index = of.responses(responses, rescaled=self.settings.rescales(split))
            plan = plan_betas(
                self.materials, store.rows, len(self.columns), self.context.chunk, self.context.budget.free,
                averaged=of.averaged,
            )  # fmt: skip
            parts.append((split, store, Source(rows, index, plan.at_once)))
        fill_betas(parts, len(self.columns), self.context)
        self.sources.refuse_changes(stores.values())
        for store in stores.values():
            store.finish()

    def _staged(self) -> Rows:
        """The responses of the chosen voxels, to be read in any order."""
        chosen = Columns(self.materials.responses, self.of_areas)
        made = {**self.source, "voxels": self.settings.chosen_areas}
        if not is_staged(self.materials):
            copied = is_copied(self.materials, self.repeats.values())
            return Nearby(chosen, self.study, made, self.context) if copied else chosen
        store = self._create(self.study.betas("trials"), chosen.shape, np.float32, {"dataset": made})
        if not store.complete:
            plan = plan_trials(self.materials, store.columns, self.context.chunk, self.context.budget.free)
            source = Source(chosen, np.arange(len(chosen)), plan.at_once)
            fill_store(store, source, self.context.named("trials"))
            self.sources.refuse_changes([store])
            store.finish()
        return StoreRows(store, self.materials.responses.name)

    def _standardised(self, responses: Rows) -> Rows:
        """The responses, z-scored as the settings say: every voxel within its groups, or by the train trials."""
        by = self.settings.zscore
        if by == "none":
            return responses
        used = np.zeros(len(responses), bool)
        if by == "train":
            groups = np.zeros(len(responses), np.int64)
            used[self.parts["train"]] = True
        else:
            groups = self.materials.trials.groups(by)
            used[np.concatenate(list(self.parts.values()))] = True
        levels = Levels(groups, responses.shape[1], used)
        memory = np.empty((ROWS, responses.shape[1]), np.float32)
        with self.context.named(f"z-scores by {by}").task(total=len(responses), unit="rows") as advance:
            for start in range(0, len(responses), ROWS):
                own = range(start, min(start + ROWS, len(responses)))
                responses.read(np.arange(own.start, own.stop), memory[: len(own)])
                levels.look(own, memory[: len(own)])
                advance(len(own))
        responses.release()
        return Standardised(responses, levels.finish())

    def _check(self, responses: Rows) -> None:
        """Show how reliable repeats are; raises InputError, or warns, where they are no better than chance."""
        used = np.sort(np.concatenate(list(self.parts.values())))
        columns = sampled_voxels(responses.shape[1])
        names: dict[str, int] = {}
        stimulus = np.array(
            [names.setdefault(self.materials.trials.stimulus[row], len(names)) for row in used.tolist()]
        )
        if len(names) == len(used):
            return  # no image was shown twice
        trials = self.materials.trials
        session = trials.groups("session" if trials.session else "run") if trials.session or trials.run else None
        values = np.empty((len(used), len(columns)), np.float32)
        Columns(responses, columns).read(used, values)
        responses.release()
        values[:, np.isnan(values).any(axis=0)] = 0
        found = repeat_reliability(values, stimulus, np.zeros(len(used)) if session is None else session[used])
        todo = "check the order of the table against the betas"
        judge(found, self.study, self.context.progress, check=self.settings.check, todo=todo)

    def _write_voxels(self, responses: Rows) -> None:
        table, columns = self.materials.voxels, self.columns
        arrays: dict[str, Any] = {name: values[columns] if len(values) == table.n and name not in SPACE else values
                                  for name, values in table.arrays.items()}  # fmt: skip
        arrays.setdefault("index", columns)
        masks = {name: mask[columns] for name, mask in table.areas.items()}
        labels = labels_of(masks) if masks else np.full(len(columns), "", "<U1")
        trials = {split: of.shown_rows for split, of in self.repeats.items()}
        unknown = np.full(len(columns), np.nan, np.float32)
        arrays |= {"areas": labels, **{f"area/{name}": mask for name, mask in masks.items()}}
        arrays |= {"ncsnr": unknown, "ncsnr_train": unknown}
        arrays |= noise_of(responses, trials, folds=bool(self.settings.folds))
        if self.settings.min_reliability is not None:
            arrays["reliability"] = self.reliability[self.kept]
        write_whole(self.study.voxels, lambda file: np.savez(file, **arrays))

    # Images

    def _fill_images(self, split: str, store: Store) -> None:
        if store.complete:
            return
        images = self.materials.images
        assert images is not None
        names = self.repeats[split].images
        ordered = Picked(images.rows, [images.row_of[name] for name in names], images.shape, np.uint8, images.convert)
        plan = plan_images(self.materials, store.rows, self.context.chunk, self.context.budget.free)
        source = Source(ordered, np.arange(len(names)), plan.at_once)
        fill_store(store, source, self.context.named(f"stimuli, {split}"))
        self.sources.refuse_changes([store])
        store.finish()

    def _refuse_shared_images(self) -> None:
        """Compare train and test images by their bytes: one picture may lie in several files, under several names."""
        if self.materials.images is None or len(self.repeats) < 2 or self.settings.allow_shared_stimuli:
            return
        names = {split: of.images for split, of in self.repeats.items()}
        todo = f"give both one name in the table of trials, {SHARED_TODO}"
        refuse_shared_images(self.study, lambda split, row: names[split][row], self.context, todo)

    def _folds(self, done: bool) -> dict[str, Any]:
        """The rows of each fold. Images of equal bytes stay together; where folds are ``done``, images are not read again."""
        assert self.settings.folds is not None
        of, by_run = self.repeats["train"], self.settings.group == "run"
        folds = {"folds": fold_rows(of.groups(by_run=by_run), self.settings.folds, self.context.seed)}
        if self.materials.images is None or self.settings.allow_shared_stimuli:
            return folds
        if done and read_json(self.study.folds) == folds:
            return folds
        if equal := equal_images(self.study, of.images, self.context):
            name, other = next(iter(equal.items()))
            self.context.progress.say(
                f"{counted(len(equal), 'images')} equal an image of another name, as {name} does {other}: "
                "folds keep them together"
            )
            groups = of.groups(by_run=by_run, equal=equal)
            folds = {"folds": fold_rows(groups, self.settings.folds, self.context.seed)}
        return folds
