"""Settings of the dataset of kind ``nsd``: one subject, its sessions, region and captions, and the terms of use."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator

from leanrecon.datasets.files.named import needed_file
from leanrecon.datasets.files.open import located_array, needed_array
from leanrecon.datasets.nsd.layout import BUCKET, GENERAL, SESSIONS, SHARED, SIMULATED, TERMS
from leanrecon.datasets.plan import DatasetSettings
from leanrecon.places.paths import expanded, located


class NSDSettings(DatasetSettings):
    """``[dataset] kind = "nsd"``: one subject of the Natural Scenes Dataset, from S3 or from a folder."""

    kind: Literal["nsd"] = "nsd"
    """One subject of the Natural Scenes Dataset."""
    root: str = BUCKET
    """``s3://BUCKET[/PREFIX]``, or a folder in NSD's layout."""
    endpoint_url: str | None = None
    """An S3-compatible server other than Amazon's."""
    subject: int = Field(default=1, ge=1, le=len(SESSIONS))
    """Number of the subject, 1 to 8."""
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
    shared_train: int = Field(default=0, ge=0, lt=SHARED)
    """How many of the 1,000 images that all subjects saw are train images instead of test images; a group needs some."""
    allow_shared_stimuli: bool = False
    """Whether test images may be among the train images, under the same number or another."""
    zscore_sessions: bool = False
    """Whether each voxel's trials are z-scored within their session, before they are averaged."""

    @property
    def simulated(self) -> bool:
        return (expanded(self.root) / SIMULATED).exists()

    @property
    def tells_noise(self) -> bool:
        return True

    @property
    def publishes_noise(self) -> bool:
        return True

    @property
    def remote(self) -> bool:
        return self.root.startswith("s3://")

    @property
    def open_terms(self) -> str:
        return TERMS if self.remote and not self.accept_terms else ""

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

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        from leanrecon.datasets.nsd.files import open_source
        from leanrecon.datasets.nsd.voxels import MASKS, names_of

        found: list[Callable[[], object]] = []
        if not self.remote:
            found.append(partial(open_source, self.root, None, base_dir))
        found += [partial(needed_file, name, base_dir, "roi") for name in names_of(self.roi) if name.endswith(MASKS)]
        if self.captions is not None:
            found.append(partial(needed_array, self.captions, None, base_dir, "dataset.captions"))
        return found

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
