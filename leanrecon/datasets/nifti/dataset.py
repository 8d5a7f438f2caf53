"""A study from a lab's own betas: 4-D NIfTI files, a mask, a table of trials and a folder of images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import TrialsSettings, located_files
from leanrecon.datasets.files.named import matching
from leanrecon.places.inputs import is_url

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Materials


class NiftiSettings(TrialsSettings):
    """``[dataset] kind = "nifti"``: betas, mask, trials, images and areas as a lab keeps them."""

    kind: Literal["nifti"] = "nifti"
    """NIfTI files of any lab."""
    betas: str
    """The files of the betas: one path, or a pattern such as ``sub-01_run-*_betas.nii.gz``, sorted by name."""

    def located(self, base_dir: Path | None) -> Self:
        own = super().located(base_dir)
        return own.model_copy(update={"betas": located_files(own.betas, base_dir)})

    def finders(self, base_dir: Path | None) -> list[Callable[[], object]]:
        of_betas = [] if is_url(self.betas) else [partial(matching, self.betas, base_dir, "betas")]
        return [*of_betas, *super().finders(base_dir)]


class Nifti(Builder):
    """NIfTI files of any lab as a dataset."""

    Settings: ClassVar[type[BaseModel]] = NiftiSettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the files that settings name; raises InputError where they are missing or don't fit together."""
        from leanrecon.datasets.nifti.read import read_materials

        return read_materials(self.settings, base_dir)
