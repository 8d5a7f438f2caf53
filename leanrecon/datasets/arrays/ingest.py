"""From opened arrays to a study's complete stores, step by step, continuing what an earlier run began."""

import zipfile
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.arrays.inputs import Inputs, Split
from leanrecon.datasets.arrays.repeats import Repeats
from leanrecon.datasets.builder.columns import Columns
from leanrecon.datasets.builder.noise import noise_of
from leanrecon.datasets.files.rows import Convert, Pooled, Rows
from leanrecon.datasets.images import stimulus_ids
from leanrecon.datasets.ingest import Source, fill_betas, fill_store
from leanrecon.datasets.nearby import Nearby, forget_copies
from leanrecon.datasets.sidecars import (
    SourceFiles,
    forget_other_kind,
    keep_json,
    remove_others,
    sources_path,
    sweep,
)
from leanrecon.datasets.splits import check_shared, fold_rows, fraction_rows
from leanrecon.datasets.voxel_reliability import reliable_voxels
from leanrecon.errors import InputError
from leanrecon.memory import buffer
from leanrecon.places import Location
from leanrecon.places.files import read_json, write_json, write_whole
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows as StudyRows
from leanrecon.study.rows import joined_groups

Array = np.ndarray[Any, Any]
Stores = dict[tuple[str, str], Store]
"""By role (betas or stimuli) and split."""


class Ingest:
    """One run of the stage dataset over opened arrays."""

    def __init__(self, inputs: Inputs, study: Study, context: Context) -> None:
        self.inputs = inputs
        self.settings = inputs.settings
        self.study = study
        self.context = context
        self.known_ids: dict[str, list[list[str]]] = {}
        """Ids of the images of all arrays, by what decides them: kept in sources.json, as finding them reads all images."""

    def run(self) -> dict[str, Any]:
        """Write what is not there yet, rows.json last; returns what the record of the stage tells."""
        captions = self.inputs.captions()
        sweep(self.study)
        if self.context.overwrite:
            forget_other_kind(self.study, "arrays")
        self._recall_sources()
        splits, repeats = self._splits()
        splits, told = self._select(self._nearby(splits, repeats), repeats)
        with self.sources.named():
            stores = self._create(splits, repeats)
        if self.context.overwrite:
            self._remove_others(set(repeats))
        self._keep_sources()
        rows = StudyRows({n: of.record() for n, of in repeats.items()}, {n: of.images for n, of in repeats.items()})
        done = all(store.complete for store in stores.values()) and rows.are_in(self.study)
        if not done:
            self.study.rows.unlink(missing_ok=True)  # written last: its presence says that all is done
            self._fill_betas(splits, repeats, stores)
            self._fill_images(splits, repeats, stores)
        for split in splits if captions is not None else []:
            given = [row for array in self.inputs.of_split(captions or [], split.name) for row in array]
            texts = repeats[split.name].captions(given)
            keep_json(self.study.captions(split.name), texts, "captions", overwrite=self.context.overwrite)
        if (self.context.overwrite and not done) or not self._voxels_are_told():
            self._write_voxels(splits, repeats)
        if self.settings.folds:
            groups = repeats["train"].groups(by_run=self.settings.group == "run")
            folds = {"folds": fold_rows(groups, self.settings.folds, self.context.seed)}
            keep_json(self.study.folds, folds, "folds or another seed", overwrite=self.context.overwrite)
        if not done:
            rows.write(self.study)
        forget_copies(self.study)
        return told

    # Voxels

    def _nearby(self, splits: list[Split], repeats: dict[str, Repeats]) -> list[Split]:
        """The splits with betas that are copied to this machine first, where rows of an image lie apart in a bucket."""
        if not any(of.repeated for of in repeats.values()):
            return splits
        copies = {
            id(betas): Nearby(betas, self.study, self.inputs.betas_made_of(k), self.context)
            for k, betas in enumerate(self.inputs.arrays["betas"])
            if betas.away
        }
        return [replace(split, betas=_replaced(split.betas, copies)) for split in splits]

    def _select(self, splits: list[Split], repeats: dict[str, Repeats]) -> tuple[list[Split], dict[str, Any]]:
        """The splits with the reliable voxels alone, from repeats of train images, and what the record tells of them."""
        least, path, inputs = self.settings.min_reliability, self.study.voxel_reliability, self.inputs
        if least is None:
            if self.context.overwrite:
                path.unlink(missing_ok=True)
            return splits, {}
        of, betas = repeats["train"], splits[0].betas
        trials = of.shown_rows
        made_of = inputs.made_of("betas", "train", self.context.seed) | {"reliability of": trials}
        kept, found = reliable_voxels(path, lambda: betas, trials, least, made_of, self.context)
        inputs.chosen = inputs.chosen.part(kept, found)
        inputs.voxels = len(kept)
        told = {"voxels_left_out": len(found) - len(kept)}
        return [replace(split, betas=Columns(split.betas, kept)) for split in splits], told

    def _voxels_are_told(self) -> bool:
        """Whether voxels.npz is there and tells of these voxels and areas; what others added to it is kept."""
        wanted = self.inputs.chosen.arrays()
        try:
            with self.study.voxels.open() as file, np.load(file, allow_pickle=False) as there:
                return all(np.array_equal(there[key], wanted[key]) for key in wanted)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False

    def _write_voxels(self, splits: list[Split], repeats: dict[str, Repeats]) -> None:
        """Write which voxels there are, their areas and, from repeats of images, how much of them is signal."""
        arrays: dict[str, Any] = self.inputs.chosen.arrays()
        betas = [split.betas for split in splits]
        starts = [0, *np.cumsum([len(rows) for rows in betas]).tolist()]
        if len(splits) == 2 and not self.inputs.paired:
            betas, starts = betas[:1], [0, 0]  # both splits are of one array
        trials = {
            split.name: [[start + row for row in rows] for rows in repeats[split.name].shown_rows]
            for split, start in zip(splits, starts, strict=False)
        }
        every = Pooled(betas) if len(betas) > 1 else betas[0]
        arrays |= noise_of(every, trials, folds=bool(self.settings.folds))
        write_whole(self.study.voxels, lambda file: np.savez(file, **arrays))

    # Rows

    def _splits(self) -> tuple[list[Split], dict[str, Repeats]]:
        """The splits as they lie in the arrays, and which of their rows show the same image."""
        ids = self._image_ids()
        runs = self.inputs.runs()
        splits = self.inputs.splits(self._test_rows(ids, runs))
        repeats = {}
        for split in splits:
            names = [name for array in self.inputs.of_split(ids, split.name) for name in array]
            of = self.inputs.of_split(runs, split.name) if runs is not None else None
            averaged = self.settings.averages(split.name)
            every = Repeats(np.arange(len(names)), names, averaged, None if of is None else np.concatenate(of))
            repeats[split.name] = every.part(split.index)
        if "stimuli" in self.inputs.roles and len(splits) == 2 and not self.settings.allow_shared_stimuli:
            named = {split.name: split.locate("stimuli") for split in splits}
            check_shared({name: of.ids for name, of in repeats.items()}, named)
        return splits, repeats

    def _test_rows(self, ids: list[list[str]], runs: list[Array] | None) -> Array:
        """The test rows of a lone array; whole images are drawn for test_fraction, or what runs join."""
        if self.settings.test_index:
            return self.inputs.test_rows()
        if not self.settings.test_fraction:
            return np.arange(0)
        groups = ids[0]
        if self.settings.group == "run" and runs is not None:
            groups = [str(number) for number in joined_groups(groups, runs[0].tolist())]
        return fraction_rows(groups, self.settings.test_fraction, self.context.seed)

    def _image_ids(self) -> list[list[str]]:
        """The id of each row's image, array by array: of its pixels, or the row's number where there are no images."""
        made_of = self.inputs.images_made_of()
        if made_of is None:
            ends = np.cumsum([len(rows) for rows in self.inputs.arrays["betas"]]).tolist()
            return [[str(row) for row in range(a, b)] for a, b in pairwise([0, *ends])]
        key = fingerprint(made_of)
        if key not in self.known_ids:
            self.known_ids = {key: self._scan_images()}
        return self.known_ids[key]

    def _scan_images(self) -> list[list[str]]:
        """Read all images for their ids; raises InputError where all of them are black."""
        arrays = self.inputs.arrays["stimuli"]
        found: list[list[str]] = []
        brightest = 0
        with self.context.named("stimuli, looking for repeats").task(
            total=sum(map(len, arrays)), unit="rows"
        ) as advance:
            for split, rows in zip(self.inputs.scanned(), arrays, strict=True):
                plan = self.inputs.plan_store("stimuli", split, len(rows), self.context.chunk, self.context.budget.free)
                step = min(plan.at_once * self.inputs.group_rows("stimuli", len(rows), self.context.chunk), len(rows))
                memory = buffer((step, *rows.shape[1:]), np.uint8)
                found.append([])
                for start in range(0, len(rows), step):
                    stop = min(start + step, len(rows))
                    rows.read(np.arange(start, stop), memory[: stop - start], self.convert)
                    found[-1] += stimulus_ids(self.inputs.images(memory[: stop - start]))
                    brightest = max(brightest, int(memory[: stop - start].max()))
                    advance(stop - start)
                rows.release()
        if brightest <= 1:
            raise InputError(
                f"all images are black: no value in them is above {brightest}",
                expected="integers from 0 to 255, floating-point numbers from 0 to 1, or bool",
                todo="save images of 0 and 1 as bool, and run again with --overwrite",
            )
        return found

    @cached_property
    def convert(self) -> Convert:
        """How images become uint8; floating-point ones are read through for it."""
        return self.inputs.converter()

    # What is known of the files

    def _recall_sources(self) -> None:
        record = read_json(sources_path(self.study))
        record = record if isinstance(record, dict) else {}
        self.inputs.sources = self.sources = SourceFiles(record.get("files"))
        ids = record.get("ids")
        self.known_ids = dict(ids) if isinstance(ids, dict) else {}

    def _keep_sources(self) -> None:
        record = {"files": self.sources.seen, "ids": self.known_ids}
        if read_json(sources_path(self.study)) != record:
            write_json(sources_path(self.study), record)

    # Stores

    def _path(self, role: str, split: str) -> Location:
        return self.study.betas(split) if role == "betas" else self.study.stimuli(split)

    def _create(self, splits: list[Split], repeats: dict[str, Repeats]) -> Stores:
        """Open every store for writing, so that one made of something else is refused before anything is written."""
        stores = {}
        for role in self.inputs.roles:
            for split in splits:
                of = repeats[split.name]
                n = len(of.images) if role == "stimuli" or of.averaged else len(of.index)
                stores[role, split.name] = Store.create(
                    self._path(role, split.name),
                    self.inputs.store_shape(role, n),
                    np.float32 if role == "betas" else np.uint8,
                    made_of=self.inputs.made_of(role, split.name, self.context.seed),
                    chunk=self.context.chunk,
                    overwrite=self.context.overwrite,
                )
        return stores

    def _at_once(self, role: str, split: Split, store: Store) -> int:
        return self.inputs.plan_store(role, split, store.rows, self.context.chunk, self.context.budget.free).at_once

    def _fill_betas(self, splits: list[Split], repeats: dict[str, Repeats], stores: Stores) -> None:
        """Fill the betas of all splits, then judge the NaN in them together: only then are they complete."""
        own = [stores["betas", split.name] for split in splits]
        if all(store.complete for store in own):
            return
        parts = []
        for split, store in zip(splits, own, strict=True):
            rows, index = repeats[split.name].responses(split.betas, rescaled=self.settings.rescales(split.name))
            parts.append((split.name, store, Source(rows, index, self._at_once("betas", split, store))))
        nan = fill_betas(parts, self.inputs.voxels, self.context)
        if nan.labels:
            self.context.progress.say(nan.labels)
        self.sources.refuse_changes(own)
        for store in own:
            store.finish()

    def _fill_images(self, splits: list[Split], repeats: dict[str, Repeats], stores: Stores) -> None:
        for split in splits if "stimuli" in self.inputs.roles else []:
            store = stores["stimuli", split.name]
            if not store.complete:
                convert = self.convert if store.missing() else None
                at_once = self._at_once("stimuli", split, store)
                index = repeats[split.name].first
                source = Source(split.rows("stimuli"), index, at_once, convert, self.inputs.images)
                fill_store(store, source, self.context.named(f"stimuli, {split.name}"))
                self.sources.refuse_changes([store])
                store.finish()

    def _remove_others(self, splits: set[str]) -> None:
        """Remove what other settings made and these don't: the test stores of a split that is now folded, say."""
        captions = getattr(self.settings, self.inputs.names("captions")[0])
        remove_others(
            self.study,
            captions=splits if captions else (),
            folds=bool(self.settings.folds),
            betas=splits,
            stimuli=splits if "stimuli" in self.inputs.roles else (),
        )


def _replaced(rows: Rows, copies: dict[int, Nearby]) -> Rows:
    """An array, or several one after the other, with the copies of those that have one."""
    if isinstance(rows, Pooled):
        return Pooled([_replaced(part, copies) for part in rows.parts])
    return copies.get(id(rows), rows)
