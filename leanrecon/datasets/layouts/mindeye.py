"""MindEye2's files of NSD on Hugging Face (Scotti et al. 2024): betas, images and ids of one subject.

Three files are read: ``betas_all_subj0N_fp32_renorm.hdf5``, ``COCO_73k_subj_indices.hdf5`` and ``shared1000.npy``;
with images also ``coco_images_224_float16.hdf5``, from which only the images that were shown are read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from leanrecon.datasets.builder.dataset import Builder
from leanrecon.datasets.builder.settings import FolderSettings
from leanrecon.errors import InputError
from leanrecon.places.inputs import InputFile

if TYPE_CHECKING:
    from leanrecon.datasets.builder.materials import Images, Materials

Array = np.ndarray[Any, Any]

SESSION = 750
"""Trials of a session."""

IMAGES = "coco_images_224_float16.hdf5"


class MindEyeSettings(FolderSettings):
    """``[dataset] kind = "mindeye"``: the files of one subject as MindEye2 publishes them."""

    kind: Literal["mindeye"] = "mindeye"
    """MindEye2's files of NSD."""
    subject: int = Field(ge=1, le=8)
    """Subject 1 to 8."""
    images: bool = True
    """Whether the images are there; without them, features have to be precomputed."""

    @property
    def has_images(self) -> bool:
        return self.images


class MindEye(Builder):
    """MindEye2's files of NSD as a dataset."""

    Settings: ClassVar[type[BaseModel]] = MindEyeSettings

    @classmethod
    def notes(cls, settings: Any) -> Iterable[str]:
        """Sentences that a reader of the report must know."""
        yield from super().notes(settings)
        yield "The betas come z-scored from MindEye2's authors; which trials their statistics used is not in the files."

    def materials(self, base_dir: Path | None) -> "Materials":
        """Open the files of the subject. Test trials are those of the 1,000 images that all subjects saw."""
        from leanrecon.datasets.builder.materials import Materials, Trials, VoxelTable
        from leanrecon.datasets.files.named import needed_folder
        from leanrecon.datasets.layouts.files import one_of, opened, whole_array

        root, subject = needed_folder(self.settings.root, base_dir, "root"), f"subj{self.settings.subject:02}"
        betas_file = one_of(root, [f"betas_all_{subject}_fp32_renorm.hdf5", f"betas_all_{subject}.hdf5"], "betas")
        index_file = one_of(root, ["COCO_73k_subj_indices.hdf5"], "table of trials")
        shared_file = one_of(root, ["shared1000.npy"], "list of shared images")
        betas = opened(betas_file, "betas", shape=(None, None))
        image_of = whole_array(index_file, subject).ravel()
        shared = whole_array(shared_file).ravel()
        if not np.array_equal(image_of, np.rint(image_of)) or image_of.min() < 0 or image_of.max() >= len(shared):
            raise InputError(
                f"{index_file}:{subject} names images {image_of.min()} to {image_of.max()}",
                expected=f"numbers of NSD's images, from 0 to {len(shared) - 1}",
            )
        image_of = image_of.astype(np.int64)
        if len(image_of) > len(betas):  # fewer sessions than the design
            image_of = image_of[: len(betas)]
        is_shared = shared.astype(bool)
        trials = Trials(
            stimulus=[f"nsd-{image:05}" for image in image_of.tolist()],
            split=["test" if test else "train" for test in is_shared[image_of].tolist()],
            session=(np.arange(len(image_of)) // SESSION).tolist(),
        )
        return Materials(
            responses=betas,
            trials=trials,
            voxels=VoxelTable(betas.shape[1]),
            images=self._images(root, image_of) if self.settings.images else None,
            files=[betas_file, index_file, shared_file],
            held=400 * len(image_of),
        )

    def _images(self, root: InputFile, image_of: Array) -> "Images":
        from leanrecon.datasets.builder.materials import Images
        from leanrecon.datasets.layouts.files import one_of, opened

        path = one_of(root, [IMAGES], "images (or set dataset.images = false)")
        rows = opened(path, "images", shape=(None, 3, None, None))
        if image_of.max() >= len(rows):
            raise InputError(f"{rows.name} has {len(rows)} images", expected=f"image {image_of.max()} among them")
        height, width = rows.shape[2:]
        names = {f"nsd-{image:05}": image for image in np.unique(image_of).tolist()}
        return Images(rows, names, (height, width, 3), [path], unit_images)


def unit_images(block: Array) -> Array:
    """Numbers from 0 to 1, channels first, as uint8 with channels last."""
    values = block.astype(np.float32)
    if not np.isfinite(values).all() or values.min() < -0.01 or values.max() > 1.01:
        raise InputError(f"an image has values from {values.min():g} to {values.max():g}", expected="0 to 1")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
