"""Arrays whose rows lie along the last axis, as MATLAB keeps trials: read as their transposes are."""

from pathlib import Path

import numpy as np
import pytest
from support.arrays import read

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.errors import StoreError
from leanrecon.study.layout import Study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    betas = rng.standard_normal((24, 24)).astype(np.float32)  # as many voxels as rows: only the setting tells
    images = rng.integers(0, 256, (24, 5, 4, 1), np.uint8)
    np.save(tmp_path / "betas.npy", betas)
    np.save(tmp_path / "turned.npy", np.ascontiguousarray(betas.T))
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "images_turned.npy", np.ascontiguousarray(np.moveaxis(images, 0, -1)))
    np.save(tmp_path / "runs.npy", np.repeat(np.arange(6), 4))
    return tmp_path


def ingest(folder: Path, name: str, betas: str, stimuli: str, *, rows_last: bool) -> Study:
    settings = ArraysSettings(
        betas=str(folder / betas), stimuli=str(folder / stimuli), runs=str(folder / "runs.npy"), group="run", folds=3,
        rows_last=rows_last,
    )  # fmt: skip
    study = Study(folder / name)
    Arrays(settings).ingest(study, base_dir=None, context=Context.of())
    return study


def test_turned_arrays_make_the_same_study(folder: Path) -> None:
    plain = ingest(folder, "plain", "betas.npy", "images.npy", rows_last=False)
    turned = ingest(folder, "last", "turned.npy", "images_turned.npy", rows_last=True)
    for store in ("betas", "stimuli"):
        np.testing.assert_array_equal(read(getattr(turned, store)("train")), read(getattr(plain, store)("train")))
    assert turned.folds.read_text() == plain.folds.read_text()


def test_turning_a_square_array_is_noticed(folder: Path) -> None:
    ingest(folder, "study", "betas.npy", "images.npy", rows_last=False)
    with pytest.raises(StoreError):
        ingest(folder, "study", "betas.npy", "images_turned.npy", rows_last=True)
