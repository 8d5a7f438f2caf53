"""The Natural Scenes Dataset on a small disk: of its files only the bytes that matter, straight into a study's stores.

Allen et al. (2022), Nature Neuroscience 25, 116-126. boto3 and nibabel are imported when they are first used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, field_validator

from leanrecon.datasets.files.open import located_array
from leanrecon.datasets.nsd.layout import BUCKET, GENERAL, SESSIONS, SIMULATED, STIMULI, TRIALS
from leanrecon.datasets.plan import DatasetPlan, DatasetSettings
from leanrecon.memory import MemoryBudget
from leanrecon.places.paths import located
from leanrecon.progress import Progress
from leanrecon.study.layout import Study

if TYPE_CHECKING:
    from leanrecon.datasets.nsd.files import Prepared
    from leanrecon.datasets.nsd.hdf5_index import Layout

FORMAT = 1
"""Of the arithmetic that leads from files to stores: raised whenever it changes."""

SAMPLE = 1000
"""Voxels at most that the reliability of repeats is taken from."""

OVERHEAD = 110 * 10**6
"""Bytes that boto3, nibabel, SciPy's reader and Zarr take when they are loaded, with lists of trials and ids."""

_SILENT = Progress()
SPLITS = ("train", "test")
INDEX_SHARE = 0.35
"""Of the voxels' bytes, what their index and the gaps between them add: measured at subject 1's geometry."""


class NsdSettings(DatasetSettings):
    """``[dataset] kind = "nsd"``: one subject of the Natural Scenes Dataset, from S3 or from a folder."""

    kind: Literal["nsd"] = "nsd"
    root: str = BUCKET
    """``s3://BUCKET[/PREFIX]``, or a folder in NSD's layout."""
    endpoint_url: str | None = None
    """A server of S3's kind other than Amazon's."""
    subject: int = Field(default=1, ge=1, le=len(SESSIONS))
    sessions: int | list[int] | None = None
    """The first so many, or a list of their numbers; absent: all that the subject has."""
    roi: str | list[str] = GENERAL
    """An area, an atlas, or a mask as a NIfTI file; several as a list or joined by ``+``."""
    betas_format: Literal["auto", "hdf5", "nii.gz"] = "auto"
    """auto: hdf5, of which only the masked voxels are fetched, or nii.gz where there is none."""
    image_size: int | None = Field(default=None, ge=16, le=2048)
    """Height and width that images are resized to; absent: as stored."""
    captions: str | None = None
    """The annotation file ``COCO_73k_annots_curated.npy``; absent: no captions."""
    accept_terms: bool = False
    """Whether NSD's terms of use are accepted; needed where it is fetched."""
    check: Literal["stop", "warn"] = "stop"
    """What to do when the responses to repeats of an image are no more alike than those to different images."""
    zscore_sessions: bool = False
    """z-score each voxel's trials within their session before they are averaged."""

    @property
    def simulated(self) -> bool:
        return (Path(self.root).expanduser() / SIMULATED).exists()

    @property
    def tells_noise(self) -> bool:
        return True

    def located(self, base_dir: Path | None) -> Self:
        from leanrecon.datasets.nsd.voxels import MASKS, names_of

        names = names_of(self.roi)
        masks = {name: located(name, base_dir, Path.is_file) for name in names if name.endswith(MASKS)}
        return self.model_copy(
            update={
                "root": located(self.root, base_dir, Path.is_dir),
                "roi": [masks.get(name, name) for name in names] if masks else self.roi,
                "captions": self.captions and located_array(self.captions, base_dir),
            }
        )

    @field_validator("folds")
    @classmethod
    def _no_folds(cls, folds: int | None) -> int | None:
        if folds is not None:
            raise ValueError("NSD has test images of its own (those that all subjects saw), so leave folds out")
        return folds

    @field_validator("roi")
    @classmethod
    def _some_roi(cls, roi: str | list[str]) -> str | list[str]:
        if not roi or not all(part.strip() for part in ([roi] if isinstance(roi, str) else roi)):
            raise ValueError("name an area, an atlas or a mask")
        return roi

    @field_validator("sessions")
    @classmethod
    def _some_sessions(cls, sessions: int | list[int] | None) -> int | list[int] | None:
        if sessions is not None and (sessions == [] or sessions == 0):
            raise ValueError("name at least one session, or leave it out for all")
        return sessions


def plan_nsd(
    settings: NsdSettings, *, base_dir: Path | None = None, chunk: str | int | None = None, free: int
) -> DatasetPlan:
    """Say what fetching would move, make and take, from headers, the masks and the design; ``free`` changes nothing.

    Raises InputError for sessions that are missing and for files that don't fit together.
    """
    from leanrecon.datasets.nsd.files import Files, open_source, prepare
    from leanrecon.datasets.nsd.stimuli import stimuli_layout
    from leanrecon.stores.layout import chunk_nbytes

    with open_source(settings.root, settings.endpoint_url, base_dir) as source:
        files = Files(source)
        prepared = prepare(settings, files, base_dir)
        with files.need(STIMULI) as file:
            return plan_fetch(settings, prepared, stimuli_layout(file), chunk_nbytes(chunk))


def plan_fetch(settings: NsdSettings, prepared: "Prepared", images: "Layout", chunk: int) -> DatasetPlan:
    """The plan of a study whose files are known: arithmetic only."""
    from leanrecon.datasets.nsd.average import average_nbytes
    from leanrecon.datasets.nsd.betas import session_nbytes
    from leanrecon.datasets.nsd.stimuli import reading_nbytes, stored_shape
    from leanrecon.stores.layout import plan_chunks, store_nbytes

    voxels, design = len(prepared.voxels.index), prepared.design
    trials = (len(design.trial), voxels)
    shape = stored_shape(images.shape, settings.image_size)
    n = {split: len(design.rows(split)) for split in SPLITS}
    group = plan_chunks(trials, np.int16, chunk)[0] * voxels * 2
    image_group = plan_chunks((sum(n.values()), *shape), np.uint8, chunk)[0] * int(np.prod(shape))
    work = max(
        session_nbytes(prepared.voxels, prepared.betas.values()) + 3 * group,
        average_nbytes(trials, sum(n.values()), chunk, sessions=len(design.sessions) * settings.zscore_sessions),
        trials[0] * min(voxels, SAMPLE) * (2 + 4) + 3 * TRIALS * SAMPLE * 4 + 2 * chunk,
        reading_nbytes(images, shape) + 3 * image_group,
    )
    disk = store_nbytes(trials, np.int16, chunk)
    for split in SPLITS:
        disk += store_nbytes((n[split], voxels), np.float32, chunk) + store_nbytes((n[split], *shape), np.uint8, chunk)
    sizes = {name: prepared.found[name].size for name in prepared.betas.values()}
    surgical = int(voxels * TRIALS * 2 * (1 + INDEX_SHARE))
    download = sum(min(size, surgical) if name.endswith(".hdf5") else size for name, size in sizes.items())
    download += sum(n.values()) * int(np.prod(images.shape[1:]))
    scratch = max([size for name, size in sizes.items() if name.endswith(".nii.gz")], default=0)
    far = settings.root.startswith("s3://")
    return DatasetPlan(
        n["train"], n["test"], voxels, shape, None, OVERHEAD + work, disk,
        download=download if far else 0, scratch=scratch if far else 0,
    )  # fmt: skip


def ingest_nsd(
    settings: NsdSettings,
    study: Study,
    *,
    base_dir: Path | None = None,
    chunk: str | int | None = None,
    budget: MemoryBudget | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = _SILENT,
) -> None:
    """Fetch a subject's betas, images and captions into a study's stores, continuing where an earlier run stopped.

    Neither the memory budget nor the seed decides anything. ``rows.json`` names images by their number among
    NSD's 73,000 and trials by theirs in the experiment, both from 0; ``trials.json`` tells of every row of
    ``trials.zarr``. Where all is there already, nothing is asked of the network.
    Raises InputError for files that are missing, damaged, don't fit together or have changed, for trials that
    don't match the images, and where the terms of use are not accepted; NetworkError, BudgetError, StoreError.
    """
    from leanrecon.datasets.nsd.fetch import Fetch
    from leanrecon.stores.layout import chunk_nbytes

    budget = MemoryBudget.of(None) if budget is None else budget
    Fetch(settings, study, base_dir, chunk_nbytes(chunk), budget, overwrite, progress).run()
