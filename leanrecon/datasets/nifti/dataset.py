"""A study from a lab's own betas: 4-D NIfTI files, a mask, a table of trials and a folder of images."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, Field

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import BuilderSettings
from leanrecon.places.paths import located

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Materials


class NiftiSettings(BuilderSettings):
    """``[dataset] kind = "nifti"``: betas, mask, trials, images and areas as a lab keeps them."""

    kind: Literal["nifti"] = "nifti"
    """NIfTI files of any lab."""
    betas: str
    """The files of the betas: one path, or a pattern such as ``sub-01_run-*_betas.nii.gz``, sorted by name."""
    mask: str | None = None
    """A NIfTI file of the voxels to use; absent: voxels that are neither NaN nor 0 in the first volume."""
    trials: str
    """A TSV or CSV table, one line a volume: ``stimulus``; also ``run``, ``session`` and ``split``."""
    images: str | None = None
    """The folder of the images; a stimulus is the name of a file, with or without its ending."""
    areas: str | None = None
    """A pattern of masks, each named by its file, or one label image."""
    area_names: str | None = None
    """A table of the label image: ``index`` and ``name``."""
    image_size: list[int] | None = Field(default=None, min_length=2, max_length=2)
    """[height, width] of the images in the study; absent: those of the first image."""

    @property
    def has_images(self) -> bool:
        return self.images is not None

    def located(self, base_dir: Path | None) -> Self:
        own = super().located(base_dir)
        paths = {
            name: value for name in ("betas", "mask", "trials", "areas", "area_names") if (value := getattr(own, name))
        }
        found = {name: located(value, base_dir, Path.is_file) for name, value in paths.items() if "*" not in value}
        patterns = {name: _absolute(value, base_dir) for name, value in paths.items() if "*" in value}
        if own.images:
            found["images"] = located(own.images, base_dir, Path.is_dir)
        return own.model_copy(update=found | patterns)


class Nifti(Builder):
    """NIfTI files of any lab as a dataset."""

    Settings: ClassVar[type[BaseModel]] = NiftiSettings

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the files that settings name; raises InputError where they are missing or don't fit together."""
        from leanrecon.datasets.nifti.read import read_materials

        return read_materials(self.settings, base_dir)


def _absolute(pattern: str, base_dir: Path | None) -> str:
    path = Path(pattern).expanduser()
    for folder in (Path.cwd(), base_dir):
        if folder is not None and any(folder.glob(pattern) if not path.is_absolute() else ()):
            return str((folder / pattern).absolute())
    return str(path) if path.is_absolute() else pattern
