"""The arrays that a study's settings name, opened and found to fit together; only their headers are read."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leanrecon.datasets.arrays.checks import check_betas, check_length, check_lengths, check_numbers
from leanrecon.datasets.arrays.repeats import Averaged
from leanrecon.datasets.arrays.voxels import choose_voxels
from leanrecon.datasets.builder.columns import Columns
from leanrecon.datasets.captions import caption_size
from leanrecon.datasets.files.asked import Asked, known_by_content, read_once, small_files
from leanrecon.datasets.files.captions import read_captions
from leanrecon.datasets.files.libraries import loaded_nbytes
from leanrecon.datasets.files.open import open_array
from leanrecon.datasets.files.rows import Convert, Pooled, Rows
from leanrecon.datasets.files.turned import Turned
from leanrecon.datasets.images import (
    Values,
    check_like_train,
    check_scale,
    image_shape_of,
    look_through,
    scale_of,
    to_images,
    to_uint8,
)
from leanrecon.datasets.splits import check_split, fold_rows, read_test_rows
from leanrecon.datasets.voxel_reliability import select_nbytes
from leanrecon.errors import InputError

if TYPE_CHECKING:
    from leanrecon.datasets.arrays.dataset import ArraysSettings
    from leanrecon.datasets.ingest import StorePlan
    from leanrecon.datasets.sidecars import SourceFiles

Array = np.ndarray[Any, Any]
_Part = tuple[Rows, Array]
"""An array, and some of its rows, ascending."""

ROW_NBYTES = 650
"""Bytes of a row beside its numbers: ids, places and trials in lists, and the same as JSON."""


_NOISE = 64 * 12 + 10 * 8
"""Bytes a voxel that its noise takes: rows as read and in float64, and sums."""


@dataclass(frozen=True)
class Split:
    """One split: the arrays that it lies in, and its rows in them, ascending."""

    name: str
    betas: Rows
    stimuli: Rows | None
    index: Array

    def rows(self, role: str) -> Rows:
        rows = self.betas if role == "betas" else self.stimuli
        assert rows is not None
        return rows

    def locate(self, role: str) -> Callable[[int], str]:
        return lambda row: self.rows(role).locate(int(self.index[row]))


class Inputs:
    """The arrays of a study, opened and found to fit together; only headers have been read."""

    def __init__(self, settings: "ArraysSettings", base_dir: Path | None, opened: ExitStack) -> None:
        self.settings = settings
        self.overhead = loaded_nbytes(settings)
        self.base_dir = base_dir
        self.paired = settings.betas is None
        self.roles = [role for role in ("betas", "stimuli") if getattr(settings, self.names(role)[0])]
        self.arrays = {
            role: [opened.enter_context(self.open(name)) for name in self.names(role)] for role in self.roles
        }
        betas, stimuli = self.arrays["betas"], self.arrays.get("stimuli", [])
        for rows in betas:
            check_betas(rows)
        for rows in stimuli:
            check_numbers(rows, "biuf", "images")
            if rows.dtype == np.int8:
                raise InputError(
                    f"{rows.name} holds int8 values, which end at 127",
                    expected="images from 0 to 255",
                    todo="save them as uint8 from where they still go to 255",
                )
        for responses, images in zip(betas, stimuli, strict=False):
            check_lengths(responses, images)
        self.voxels = betas[0].shape[1]
        if self.paired and betas[1].shape[1] != self.voxels:
            raise InputError(
                f"{betas[0].name} has {self.voxels} voxels and {betas[1].name} has {betas[1].shape[1]}",
                expected="the same voxels in train and test",
            )
        self.chosen = choose_voxels(settings, self.voxels, base_dir)
        if len(self.chosen.columns) < self.voxels:
            self.voxels = len(self.chosen.columns)
            self.arrays["betas"] = betas = [Columns(rows, self.chosen.columns) for rows in betas]
        shapes = [image_shape_of(r.name, r.shape, settings.image_shape, settings.image_order) for r in stimuli]
        if len(set(shapes)) > 1:
            raise InputError(
                f"{stimuli[0].name} has images of shape {shapes[0]} and {stimuli[1].name} of {shapes[1]}",
                expected="one shape (height, width, channels) in train and test",
            )
        self.image_shape = shapes[0] if shapes else None
        self.n_rows = sum(map(len, betas))
        self._test_rows: Array | None = None
        self.sources: SourceFiles | None = None
        """Fingerprints of files that have not changed, which spare reading a whole file again."""

    def names(self, role: str) -> list[str]:
        return [f"{role}_train", f"{role}_test"] if self.paired else [role]

    def open(self, name: str) -> Rows:
        rows = open_array(getattr(self.settings, name), self.settings.path, self.base_dir)
        return Turned(rows) if self.settings.rows_last else rows

    def test_rows(self) -> Array:
        """The rows that test_index names."""
        if self._test_rows is None:
            spec = str(self.settings.test_index)
            self._test_rows = read_test_rows(spec, self.n_rows, self.settings.path, self.base_dir)
        return self._test_rows

    def expected_test_rows(self) -> int:
        """How many test rows there will be; with test_fraction, if no stimulus were repeated."""
        settings, n = self.settings, self.n_rows
        if settings.folds:
            fold_rows([str(row) for row in range(n)], settings.folds, 0)  # refuses more folds than rows
            return 0
        if self.paired:
            return len(self.arrays["betas"][1])
        return len(self.test_rows()) if settings.test_index else max(round((settings.test_fraction or 0) * n), 1)

    def splits(self, test_rows: Array) -> list[Split]:
        """The splits that are stored; ``test_rows`` says which rows of a lone array are for testing."""
        betas, stimuli = self.arrays["betas"], self.arrays.get("stimuli", [])
        if self.settings.folds:
            pooled = [Pooled(parts) if len(parts) > 1 else parts[0] for parts in (betas, stimuli) if parts]
            return [Split("train", pooled[0], pooled[1] if stimuli else None, np.arange(self.n_rows))]
        if self.paired:
            parts = [np.arange(len(rows)) for rows in betas]
        else:
            parts = [np.setdiff1d(np.arange(self.n_rows), test_rows), test_rows]
            betas, stimuli = betas * 2, stimuli * 2
        check_split(len(parts[0]), len(parts[1]))
        images: list[Rows] | list[None] = stimuli or [None, None]
        return [Split(*of) for of in zip(("train", "test"), betas, images, parts, strict=True)]

    def scanned(self) -> list[Split]:
        """Each array of images as a split of its own, to be read from its first row to its last."""
        pairs = zip(self.arrays["betas"], self.arrays["stimuli"], strict=True)
        return [Split("", betas, images, np.arange(len(images))) for betas, images in pairs]

    def store_shape(self, role: str, n: int) -> tuple[int, ...]:
        return (n, self.voxels) if role == "betas" else (n, *(self.image_shape or ()))

    def plan_store(self, role: str, split: Split, n: int, chunk: int, free: int) -> "StorePlan":
        """Plan the filling of the store of ``n`` betas or images of a split."""
        from leanrecon.datasets.ingest import plan_store
        from leanrecon.datasets.nearby import read_nbytes

        rows = split.rows(role)
        averaged = role == "betas" and self.settings.averages(split.name)
        return plan_store(
            self.store_shape(role, n),
            np.float32 if role == "betas" else np.uint8,
            chunk,
            free=free,
            together=n if averaged and rows.away else rows.together,  # a band of means goes through the file
            held=rows.held + self.captions_nbytes + ROW_NBYTES * self.n_rows,
            scratch=(read_nbytes(rows, chunk) if role == "betas" else rows.scratch)
            + self.overhead
            + averaged * self.voxels * 8,
            working=Averaged.working if averaged else 1,
        )

    def plan_copies(self, chunk: int, free: int) -> "list[StorePlan]":
        """Copies of betas in buckets, which are made where images are repeated: that is not known before they are read."""
        from leanrecon.datasets.nearby import plan_copy

        held = self.overhead + self.captions_nbytes + ROW_NBYTES * self.n_rows
        betas = [rows for rows in self.arrays["betas"] if rows.away and "stimuli" in self.roles]
        copies = [plan_copy(rows, chunk, free - held) for rows in betas]
        return [replace(copy, work=copy.work + held) for copy in copies]

    def group_rows(self, role: str, n: int, chunk: int) -> int:
        """Rows of a row group of the store."""
        from leanrecon.stores.layout import plan_chunks

        return plan_chunks(self.store_shape(role, n), np.float32 if role == "betas" else np.uint8, chunk)[0]

    def images(self, block: Array) -> Array:
        assert self.image_shape is not None
        return to_images(block, self.image_shape, self.settings.image_order)

    def converter(self) -> Convert:
        """How images become uint8; floating-point train images decide, and test images have to agree.

        ``image_range`` decides where it is set. The rows of a lone array that test_fraction is to draw from, or that
        are folded, are all looked at: which of them are tested is not known yet, or all are trained on.
        """
        arrays = self.arrays["stimuli"]
        name = " and ".join(rows.name for rows in arrays)
        train, test = self._looked_at(arrays)
        if not train and not test:
            return to_uint8(name, 1)
        whole_types = any(rows.dtype.kind in "iu" for rows in arrays)
        names = " and ".join(rows.name for rows, _ in train or test)
        found = [look_through(rows, index) for rows, index in train or test]
        if (largest := self.settings.image_range) is not None:
            scale = 255 // largest
            check_scale(names, Values.of_all(found), scale)
        else:
            scale = scale_of(names, found, beside_whole_types=whole_types)
        for rows, index in test if train else []:
            values = look_through(rows, index)
            if self.settings.image_range is None:
                check_like_train(f"the test images in {rows.name}", values, names, scale)
            else:
                check_scale(rows.name, values, scale)
        for rows in arrays:
            rows.release()
        return to_uint8(name, scale)

    def _looked_at(self, arrays: list[Rows]) -> tuple[list[_Part], list[_Part]]:
        """The floating-point images that decide the scale, and those that have to agree with it."""
        parts: tuple[list[_Part], list[_Part]] = ([], [])
        for k, rows in enumerate(arrays):
            if rows.dtype.kind != "f":
                continue
            every = np.arange(len(rows))
            if self.settings.test_index:
                parts[0].append((rows, np.setdiff1d(every, self.test_rows())))
                parts[1].append((rows, self.test_rows()))
            else:
                parts[k if self.paired and not self.settings.folds else 0].append((rows, every))
        return parts

    def made_of(self, role: str, split: str, seed: int) -> dict[str, Any]:
        """What decides a store's contents: the arrays, the split, the averages and, for images, shape and order."""
        own = [f"{role}_{split}"] if self.paired and not self.settings.folds else self.names(role)
        prints = {name: self._print(rows) for name, rows in zip(self.names(role), self.arrays[role], strict=True)}
        made: dict[str, Any] = {"kind": "arrays"} | {name: prints[name] for name in own}
        if self.settings.rows_last:
            made["rows_last"] = True
        if self.settings.folds:
            made["split"] = "folds"
        elif self.settings.test_index:
            made["test_index"] = hashlib.sha256(self.test_rows().astype("<i8").tobytes()).hexdigest()
        elif self.settings.test_fraction:
            made |= {"test_fraction": self.settings.test_fraction, "seed": seed}
            made["stimuli"] = self._print(self.arrays["stimuli"][0]) if "stimuli" in self.arrays else None
            if self.settings.group == "run":
                made["group"] = "run"
        if role == "stimuli":
            made |= self._image_form()
            if len(own) < len(prints) and any(rows.dtype.kind == "f" for rows in self.arrays[role]):
                made["scaled_with"] = {name: of for name, of in prints.items() if name not in own}
        else:
            made |= self._voxels_made_of()
        if role == "betas" and self.settings.averages(split):  # rows as they are given need no mention
            made["repeats"] = "average"
            made["images"] = self.images_made_of()
            if self.settings.rescales(split):
                made["rescale_average"] = True
        return {"dataset": made}

    def betas_made_of(self, k: int) -> dict[str, Any]:
        """What decides the rows of an array of betas, before they are split and averaged."""
        turned = {"rows_last": True} if self.settings.rows_last else {}
        columns = {"voxels": hashlib.sha256(self.chosen.columns.astype("<i8").tobytes()).hexdigest()}
        return self._print(self.arrays["betas"][k]) | turned | columns

    def _voxels_made_of(self) -> dict[str, Any]:
        """What decides which voxels are used; nothing where all are."""
        settings = self.settings
        made: dict[str, Any] = {}
        if settings.mask or settings.voxels:
            made["voxels"] = hashlib.sha256(self.chosen.columns.astype("<i8").tobytes()).hexdigest()
        if settings.min_reliability is not None:
            prints = [self._print(rows) for rows in (*self.arrays["betas"], *self.arrays["stimuli"])]
            made["min_reliability"] = {"least": settings.min_reliability, "arrays": prints}
        return made

    def asked(self, plans: "Sequence[tuple[str, Split, StorePlan]]", chunk: int) -> Asked:
        """What reading the arrays asks of buckets, where no image is repeated: for their content, for ids and rows."""
        every = [rows for role in self.roles for rows in self.arrays[role]]
        asked = known_by_content(every, 1 + len({split.name for role, split, _ in plans if role == "stimuli"}))
        for role, split, plan in plans:
            at_once = plan.at_once * self.group_rows(role, len(split.index), chunk)
            share = len(split.index) / max(len(split.rows(role)), 1)
            asked += read_once(split.rows(role), at_once).part(share)
            if role == "stimuli":
                asked += read_once(split.rows(role), at_once).part(share)
                floats = split.rows(role).dtype.kind == "f"
                asked += read_once(split.rows(role), len(split.rows(role))).part(share * floats)
        settings = self.settings
        small = [getattr(settings, name) for role in ("captions", "runs") for name in self.names(role)]
        return asked + small_files([*small, settings.test_index, settings.mask, settings.areas], settings.path)

    def noise_nbytes(self) -> int:
        """Bytes that telling voxels' noise and reliability from repeats takes, beside what reading rows takes."""
        rows = self.arrays["betas"]
        reading = max(of.held + of.scratch for of in rows) + self.captions_nbytes + ROW_NBYTES * self.n_rows
        return reading + self.overhead + max(select_nbytes(self.voxels), _NOISE * self.voxels)

    def _image_form(self) -> dict[str, Any]:
        flat = len(self.arrays["stimuli"][0].shape) == 2
        return {
            "image_shape": list(self.image_shape or ()),
            "image_order": self.settings.image_order if flat else None,
            **({} if self.settings.image_range is None else {"image_range": self.settings.image_range}),
        }

    def images_made_of(self) -> dict[str, Any] | None:
        """What decides the ids of all images; None where there are none."""
        if "stimuli" not in self.arrays:
            return None
        return {"arrays": [self._print(rows) for rows in self.arrays["stimuli"]], **self._image_form()}

    def _print(self, rows: Rows) -> dict[str, Any]:
        from leanrecon.datasets.sidecars import SourceFiles

        self.sources = self.sources or SourceFiles()
        return {"file": self.sources.content(rows.path), "key": rows.key}

    def of_split(self, arrays: list[Any], split: str) -> list[Any]:
        """Those of a list with one item an array that a split draws its rows from."""
        if self.settings.folds or not self.paired:
            return arrays
        return [arrays[0 if split == "train" else 1]]

    @cached_property
    def captions_nbytes(self) -> int:
        """Most bytes that reading and keeping the captions takes; 0 where there are none."""
        given = [getattr(self.settings, name) for name in self.names("captions")]
        return sum(caption_size(spec, self.settings.path, self.base_dir).nbytes for spec in given if spec)

    def captions(self) -> list[list[list[str]]] | None:
        """The captions of each array, or None; each is as long as its betas."""
        names = self.names("captions")
        if not getattr(self.settings, names[0]):
            return None
        read = [read_captions(getattr(self.settings, name), self.settings.path, self.base_dir) for name in names]
        for name, captions, rows in zip(names, read, self.arrays["betas"], strict=True):
            check_length(name, len(captions), rows)
        return read

    def runs(self) -> list[Array] | None:
        """The run of each row of each array, or None."""
        names = self.names("runs")
        if not getattr(self.settings, names[0]):
            return None
        read = []
        for name, betas in zip(names, self.arrays["betas"], strict=True):
            with open_array(getattr(self.settings, name), self.settings.path, self.base_dir) as rows:
                check_numbers(rows, "iuf", "run numbers")
                check_length(name, int(np.prod(rows.shape, dtype=np.int64)), betas)
                values = rows[:].ravel()
            if not np.array_equal(values, np.rint(values)):
                raise InputError(f"{rows.name} holds numbers that are not whole", expected="the run of each row")
            read.append(values.astype(np.int64))
        return read
