"""From members' stores to the stores of a group, continuing what an earlier run began."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from leanrecon.context import Context
from leanrecon.datasets.group.dataset import PANEL
from leanrecon.datasets.group.members import Member, Members
from leanrecon.datasets.group.shared import shared_betas
from leanrecon.datasets.group.versions import Versions
from leanrecon.datasets.shared_images import refuse_shared_images
from leanrecon.datasets.sidecars import forget_other_kind, keep_json, n_voxels, remove_others, sources_path, sweep
from leanrecon.errors import InputError, StoreError
from leanrecon.memory import buffer, give_back
from leanrecon.places import Location
from leanrecon.places.files import read_json, write_whole
from leanrecon.stores.fingerprint import fingerprint
from leanrecon.stores.images import ImageReader
from leanrecon.stores.matrix import as_matrix
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.rows import AVERAGE, SPLITS, Rows, SplitRows

Array = np.ndarray[Any, Any]

FORMAT = 3
"""Of the arithmetic that leads from members to a group: raised whenever it changes."""

_MADE_OF = "leanrecon made of"
"""The array of alignment.npz that says what the alignment was fitted on."""


@dataclass(frozen=True)
class Making:
    """How several subjects become one dataset."""

    kind: str
    alignment: Any
    dims: int
    decides: Mapping[str, Any]
    """The settings that decide the betas."""
    learns: bool = True
    """Whether the alignment is fitted on shared images."""
    average: bool = False
    """Whether means over subjects are tested as well."""
    allow_shared_stimuli: bool = False


class Ingest:
    """One run of the stage dataset over opened members."""

    def __init__(self, making: Making, members: Members, study: Study, context: Context) -> None:
        self.making = making
        self.members = members
        self.study = study
        self.context = context
        self.alignment = making.alignment
        self._places: dict[str, Array] = {}
        self.dims = making.dims

    def run(self) -> None:
        """Write what is not there yet; rows.json is written last."""
        sweep(self.study)
        if self.context.overwrite:
            forget_other_kind(self.study, self.making.kind)
            sources_path(self.study).unlink(missing_ok=True)
        stores = self._create()
        captions = self._captions()
        if self.context.overwrite:
            remove_others(self.study, captions=SPLITS if captions else ())
        rows = self._rows()
        done = all(store.complete for store in stores.values()) and self._is_recorded(rows)
        if not done:
            self.study.rows.unlink(missing_ok=True)  # written last: its presence says that all is done
            for split in SPLITS:
                self._copy_images(split, stores["stimuli", split])
                give_back()
            self._refuse_shared_images()
            give_back()
            if not all(stores["betas", split].complete for split in SPLITS):
                self._fit()
                give_back()
                for split in SPLITS:
                    self._transform(split, stores["betas", split])
        for split, texts in captions.items():
            keep_json(self.study.captions(split), texts, "captions", overwrite=self.context.overwrite)
        if n_voxels(self.study, "index") != self.dims:
            write_whole(self.study.voxels, lambda file: np.savez(file, index=np.arange(self.dims)))
        if not done:
            rows.write(self.study)

    def _is_recorded(self, rows: Rows) -> bool:
        try:
            return Rows.read(self.study) == rows
        except StoreError:
            return False

    # Rows, stores and captions

    def _rows(self) -> Rows:
        """The rows of all members, one after the other."""
        splits = {}
        for split in SPLITS:
            number = {name: k for k, name in enumerate(self.members.images[split])}
            own = [member.rows[split] for member in self.members.each]
            stimulus = [number[name] for member in self.members.each for name in member.rows.stimulus_ids(split)]
            optional: dict[str, Any] = {
                key: [value for rows in own for value in getattr(rows, key)]
                for key in ("session", "run")
                if all(getattr(rows, key) is not None for rows in own)
            }
            splits[split] = SplitRows(
                np.array(stimulus, np.int64),
                [trials for rows in own for trials in rows.trials],
                [n for rows in own for n in rows.repeats],
                subject=[member.name for member in self.members.each for _ in range(len(member.rows[split]))],
                **optional,
            )
            if split == "test" and self.making.average:
                splits[split] = with_averages(splits[split], len(number))
        return Rows(splits, {split: list(self.members.images[split]) for split in SPLITS})

    def _averages(self, split: str) -> bool:
        """Whether a split has rows of means over subjects, after those of the members."""
        return split == "test" and self.making.average

    def _n_rows(self, split: str) -> int:
        averages = len(self.members.images[split]) if self._averages(split) else 0
        return self.members.n_rows(split) + averages

    def _create(self) -> dict[tuple[str, str], Store]:
        """Open every store for writing, so that one made of something else is refused before anything is written."""
        stores = {}
        for split in SPLITS:
            images = self.members.images[split]
            shapes: dict[str, tuple[int, ...]] = {
                "stimuli": (len(images), *self.members.image_shape),
                "betas": (self._n_rows(split), self.dims),
            }
            for role, shape in shapes.items():
                made_of: dict[str, Any] = {"kind": self.making.kind, "format of the group": FORMAT, "split": split}
                contents = {m.name: getattr(m, role)[split].content for m in self.members.each}
                made_of["members"] = contents
                made_of["order"] = [m.name for m in self.members.each]
                made_of["images"] = fingerprint({"ids": list(images)})
                if role == "betas":
                    made_of |= {"dataset": dict(self.making.decides), "fitted on": self._fitted_on()}
                    if self._averages(split):
                        made_of["average"] = True
                stores[role, split] = Store.create(
                    self.study.betas(split) if role == "betas" else self.study.stimuli(split),
                    shape,
                    np.float32 if role == "betas" else np.uint8,
                    made_of=made_of,
                    chunk=self.context.chunk,
                    overwrite=self.context.overwrite,
                )
        return stores

    def _captions(self) -> dict[str, list[list[str]]]:
        """The captions of every image by split, or nothing where a member has none."""
        read = {(m.name, split): read_json(m.study.captions(split)) for m in self.members.each for split in SPLITS}
        if not all(isinstance(texts, list) for texts in read.values()):
            return {}
        return {
            split: [read[self.members.each[k].name, split][row] for k, row in self.members.images[split].values()]
            for split in SPLITS
        }

    def _copy_images(self, split: str, store: Store) -> None:
        """Copy each image from the first member that has it; others must have the same under its id."""
        wanted = list(self.members.images[split].values())
        readers = [ImageReader(member.stimuli[split]) for member in self.members.each] if store.missing() else []
        missing = store.missing_row_groups()
        done = store.rows - sum(len(store.group_rows(i)) for i in missing)
        memory = buffer((store.chunk_rows if missing else 0, *store.shape[1:]), np.uint8)
        versions = Versions(self.members, split)
        with self.context.named(f"stimuli, {split}").task(total=store.rows, unit="images", done=done) as advance:
            for i in missing:
                group = store.group_rows(i)
                for k, reader in enumerate(readers):
                    places = [row for row in group if wanted[row][0] == k]
                    for run, images in reader.runs([wanted[row][1] for row in places]):
                        start = places[run.start] - group.start
                        memory[start : start + len(images)] = images
                versions.refuse_others(group, memory[: len(group)], readers)
                store.write_rows(i, memory[: len(group)])
                advance(len(group))
        store.finish()

    def _refuse_shared_images(self) -> None:
        """Compare images by their bytes: members of different kinds may know one image by different ids."""
        if self.making.allow_shared_stimuli:
            return
        ids = {split: list(self.members.images[split]) for split in SPLITS}
        refuse_shared_images(self.study, lambda split, row: f"image {ids[split][row]}", self.context)

    # The alignment

    def _fitted_on(self) -> str | None:
        """A hash of all that decides the alignment; None where nothing is learned."""
        if not self.making.learns:
            return None
        contents = {member.name: member.betas["train"].content for member in self.members.each}
        about = {"shared": self.members.shared, "order": list(contents), "seed": self.context.seed, "format": FORMAT}
        return fingerprint({"betas": contents, **about, **self.making.decides})

    @property
    def _state_path(self) -> Location:
        return self.study.at("betas/*.npz", "alignment")

    def _fit(self) -> None:
        """Fit the alignment on the train betas of the shared images, or take up what an earlier run learned."""
        names = [member.name for member in self.members.each]
        if not self.making.learns:
            self.alignment.load({}, names)
            return
        state = self._known_state()
        if state is None:
            matrices = {member.name: as_matrix(self._shared(member)) for member in self.members.each}
            self.alignment.fit(matrices, self.context.named("alignment"))
            learned = {**self.alignment.state(), _MADE_OF: np.array(self._fitted_on())}
            write_whole(self._state_path, lambda file: np.savez(file, **learned))
        else:
            self.alignment.load(state, names)
        self._scratch.delete_tree()

    def _known_state(self) -> Mapping[str, Array] | None:
        """What an earlier run learned from the same betas."""
        state = read_state(self._state_path)
        return state if state is not None and str(state.pop(_MADE_OF, "")) == self._fitted_on() else None

    @property
    def _scratch(self) -> Location:
        return self.study.root / "betas" / "shared"

    def _shared(self, member: Member) -> Store:
        """A store of the member's train betas of the shared images, needed while the alignment is fitted."""
        return shared_betas(
            self._scratch / f"{fingerprint({'member': member.name})[:16]}.zarr",
            member.betas["train"],
            enumerate(member.rows.stimulus_ids("train")),
            self.members.shared,
            self.context.named(f"betas of shared images, {member.name}"),
        )

    def _transform(self, split: str, store: Store) -> None:
        """Write the missing betas: the rows of all members in the shared space."""
        missing = store.missing_row_groups()
        done = store.rows - sum(len(store.group_rows(i)) for i in missing)
        starts = np.cumsum([0, *(len(member.rows[split]) for member in self.members.each)])
        panel: tuple[tuple[int, int], Array] | None = None
        averages = self._mean_rows(split) if missing and self._averages(split) else None
        memory = buffer((store.chunk_rows if missing else 0, self.dims), np.float32)
        with self.context.named(f"betas, {split}").task(total=store.rows, unit="rows", done=done) as advance:
            for i in missing:
                group = store.group_rows(i)
                row = group.start
                while row < group.stop:
                    if row >= starts[-1]:
                        assert averages is not None
                        block = averages[row - starts[-1] :][: group.stop - row]
                        memory[row - group.start : len(group)] = block
                        break
                    k = int(np.searchsorted(starts, row, side="right")) - 1
                    inside = row - int(starts[k])
                    if panel is None or panel[0] != (k, inside // PANEL):
                        panel = None  # let go of before the next one is made
                        panel = (k, inside // PANEL), self._panel(self.members.each[k], split, inside // PANEL)
                    block = panel[1][inside % PANEL :][: group.stop - row]
                    memory[row - group.start : row - group.start + len(block)] = block
                    row += len(block)
                store.write_rows(i, memory[: len(group)])
                advance(len(group))
        store.finish()

    def _panel(self, member: Member, split: str, number: int) -> Array:
        aligned = self._aligned(member, member.betas[split][number * PANEL : (number + 1) * PANEL])
        if self._absent.any():
            aligned = np.where(self._absent, np.float32(np.nan), aligned)
        changes = getattr(self.alignment, "left_out", lambda subject: None)(member.name) if split == "train" else None
        if changes is not None:
            places = self._shared_rows(member)[number * PANEL :][: len(aligned)]
            aligned[places >= 0] += changes[places[places >= 0]]
        return aligned

    def _aligned(self, member: Member, betas: Array) -> Array:
        aligned = np.asarray(self.alignment.transform(member.name, betas), np.float32)
        if aligned.shape != (len(betas), self.dims):
            raise InputError(
                f"the alignment gave betas of shape {aligned.shape} for {member.name}",
                expected=f"{(len(betas), self.dims)}, as it planned",
            )
        return aligned

    @cached_property
    def _absent(self) -> Array:
        """Dimensions that some subject has no betas of, since its mask lacks them: bool [dims]. All rows lack them.

        A voxel of a study is NaN in every row or in none, so that one row tells.
        """
        absent = np.zeros(self.dims, bool)
        for member in self.members.each:
            for split in SPLITS:
                absent |= np.isnan(self._aligned(member, member.betas[split][0:1])).any(axis=0)
        if absent.all():
            raise InputError(
                "no voxel has betas in every subject: each is NaN in all rows of one of them",
                expected="masks that overlap",
                todo="choose an alignment that brings subjects into a shared space (`leanrecon kinds` lists them)",
            )
        return absent

    def _shared_rows(self, member: Member) -> Array:
        """For each train row of a member the number of its image among the shared ones, -1 where it is none."""
        if member.name not in self._places:
            number = {name: k for k, name in enumerate(self.members.shared)}
            self._places[member.name] = np.array([number.get(n, -1) for n in member.rows.stimulus_ids("train")])
        return self._places[member.name]

    def _mean_rows(self, split: str) -> Array:
        """The mean over subjects of the rows of each image, float64 [images, dims]: each subject counts alike."""
        images = {name: k for k, name in enumerate(self.members.images[split])}
        sums, seen = buffer((len(images), self.dims), np.float64), np.zeros(len(images))
        for member in self.members.each:
            place = np.array([images[name] for name in member.rows.stimulus_ids(split)])
            counts = np.bincount(place, minlength=len(images))
            seen += counts > 0
            for number in range(-(-len(place) // PANEL)):
                own = place[number * PANEL : (number + 1) * PANEL]
                np.add.at(sums, own, self._panel(member, split, number) / counts[own, None])
        sums /= seen[:, None]
        return sums


def read_state(path: Location) -> dict[str, Array] | None:
    """The arrays of an alignment that was kept; None where there is none, or none that can be read."""
    try:
        with path.open() as file, np.load(file, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def means_of_images(rows: SplitRows, images: int) -> SplitRows:
    """One row an image: the mean over all its rows."""
    of_image: list[list[int]] = [[] for _ in range(images)]
    for row, image in enumerate(rows.stimulus.tolist()):
        of_image[image].append(row)
    return SplitRows(
        np.arange(images),
        [[trial for row in own for trial in rows.trials[row]] for own in of_image],
        [sum(rows.repeats[row] for row in own) for own in of_image],
    )


def with_averages(rows: SplitRows, images: int) -> SplitRows:
    """The rows of all members, and after them one an image: the mean over subjects."""
    means = means_of_images(rows, images)
    return SplitRows(
        np.concatenate([rows.stimulus, means.stimulus]),
        [*rows.trials, *means.trials],
        [*rows.repeats, *means.repeats],
        subject=[*(rows.subject or []), *[AVERAGE] * images],
    )
