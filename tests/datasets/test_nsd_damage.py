"""What is damaged on its way, or left over from other files and other datasets, is never taken for this one's data."""

import errno
import gzip
import io
import json
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.nsd.betas import nifti_shape, session_trials
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.files import deciding
from leanrecon.datasets.nsd.layout import SIMULATED, STIMULI, SubjectFiles
from leanrecon.datasets.nsd.voxels import Voxels
from leanrecon.datasets.simulated.dataset import Simulated, SimulatedSettings
from leanrecon.errors import InputError
from leanrecon.net.ranges import Folder, LocalFile, Traffic
from leanrecon.progress import Progress
from leanrecon.stages.figures import write_figures
from leanrecon.stages.stage import Run
from leanrecon.stores import Store
from leanrecon.study.layout import Study
from leanrecon.study.settings import check_settings

nibabel = pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")

pytestmark = pytest.mark.slow

NAMES = SubjectFiles(1)


def run(root: Path, folder: Path, *, overwrite: bool = False, **changes: object) -> Study:
    settings = NSDSettings(**({"root": str(root), "sessions": 2} | changes))
    NSD(settings).ingest(Study(folder), base_dir=None, context=Context.of(chunk=100_000, overwrite=overwrite))
    return Study(folder)


def trials(study: Study) -> np.ndarray:
    return Store.open(study.root / "betas" / "trials.zarr")[:]


@pytest.fixture
def copied(small_nsd: Path, tmp_path: Path) -> Path:
    """A copy of which a test may replace files; unchanged ones are linked."""
    root = tmp_path / "nsd"
    shutil.copytree(small_nsd, root, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return root


def replace(path: Path, data: bytes) -> None:
    path.unlink()  # the link, not what it links to
    path.write_bytes(data)


@pytest.fixture(scope="module")
def study(small_nsd: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(small_nsd, tmp_path_factory.mktemp("study"))


def test_a_byte_that_only_the_checksum_of_a_nifti_tells_of_is_an_error(copied: Path, tmp_path: Path) -> None:
    path = copied / NAMES.betas(1, "nii.gz")
    packed = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))  # stored: any byte can be unpacked
    packed[len(packed) // 2] ^= 1
    replace(path, bytes(packed))
    with pytest.raises(InputError, match=r"session01\.nii\.gz is damaged or cut short"):
        run(copied, tmp_path / "study", betas_format="nii.gz")
    betas = tmp_path / "study" / "betas"
    assert not Store.open(betas / "trials.zarr", incomplete=True).has(0)
    assert not list(betas.rglob("*.rows")), "not a row of it was kept"


@pytest.mark.parametrize(
    ("at", "form", "value"), [(70, "<h", 12345), (108, "<f", float("nan")), (108, "<f", -1e30), (40, "<h", 9)]
)  # the type of the numbers, where they begin, how many dimensions there are
def test_a_wrong_header_of_a_nifti_is_an_error_in_words(
    small_nsd: Path, study: Study, tmp_path: Path, at: int, form: str, value: float
) -> None:
    header = bytearray(gzip.decompress((small_nsd / NAMES.betas(1, "nii.gz")).read_bytes()))
    struct.pack_into(form, header, at, value)
    path = tmp_path / "session01.nii.gz"
    path.write_bytes(gzip.compress(header, 1))
    with LocalFile(path, path.name, Traffic()) as file, pytest.raises(InputError, match=r"session01\.nii\.gz"):
        nifti_shape(file)
        session_trials(file, path, Voxels.read(study.voxels), tmp_path).__enter__()


def test_a_fetched_file_that_the_disk_damaged_is_fetched_again(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    path = small_nsd / NAMES.betas(1, "nii.gz")
    voxels = Voxels.read(study.voxels)

    def read() -> np.ndarray:
        with (
            LocalFile(path, "session01.nii.gz", Traffic()) as file,
            session_trials(file, None, voxels, tmp_path) as block,
        ):
            return block

    with (
        pytest.raises(KeyboardInterrupt),
        session_trials(LocalFile(path, "session01.nii.gz", Traffic()), None, voxels, tmp_path),
    ):
        raise KeyboardInterrupt  # killed: what was fetched stays
    [fetched] = tmp_path.glob("*.download")
    data = bytearray(fetched.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)  # as a power cut leaves it
    fetched.write_bytes(data)
    with pytest.raises(InputError, match="damaged or cut short"):
        read()
    assert np.array_equal(read(), trials(study)[:750])


def test_rows_of_files_that_have_changed_are_not_kept_when_all_is_begun_anew(copied: Path, tmp_path: Path) -> None:
    first, second = (copied / NAMES.betas(session, "hdf5") for session in (1, 2))
    whole = second.read_bytes()
    replace(second, whole[: len(whole) // 2])
    with pytest.raises(InputError, match="session02"):
        run(copied, tmp_path / "study")
    replace(second, whole)
    replace(first, first.read_bytes())
    with h5py.File(first, "r+") as file:
        file["betas"][...] = file["betas"][...] // 2
    found = run(copied, tmp_path / "study", overwrite=True)
    assert np.array_equal(trials(found), trials(run(copied, tmp_path / "fresh")))


def test_images_that_were_never_written_in_one_piece_are_named(copied: Path, tmp_path: Path) -> None:
    (copied / STIMULI).unlink()
    with h5py.File(copied / STIMULI, "w", libver="earliest") as file:
        file.create_dataset("imgBrick", (73_000, 2, 2, 3), np.uint8)
        file.create_dataset("another", data=np.zeros(73_000 * 2 * 2 * 3, np.uint8))
    with pytest.raises(InputError, match="lacks images that were shown"):
        run(copied, tmp_path / "study")


def test_voxels_cut_short_are_written_again(small_nsd: Path, study: Study, tmp_path: Path) -> None:
    mine = Study(tmp_path / "study")
    shutil.copytree(study.root, mine.root)
    mine.voxels.write_bytes(mine.voxels.read_bytes()[:200])
    run(small_nsd, mine.root)
    assert mine.voxels.read_bytes() == study.voxels.read_bytes()


def test_captions_of_earlier_images_go_when_a_study_is_begun_anew(small_nsd: Path, tmp_path: Path) -> None:
    mine = run(small_nsd, tmp_path, captions=str(small_nsd / "COCO_73k_annots_curated.npy"))
    run(small_nsd, tmp_path, overwrite=True)
    assert not any(mine.captions(split).exists() for split in ("train", "test"))


def test_voxels_of_another_kind_of_dataset_go_when_a_study_is_begun_anew(tmp_path: Path) -> None:
    mine = Study(tmp_path / "study")
    simulated = Simulated(SimulatedSettings(n_train=4, n_test=2, voxels=12, size=16))
    simulated.ingest(mine, base_dir=None, context=Context.of())
    for split, rows in (("train", 4), ("test", 2)):
        np.save(tmp_path / f"{split}.npy", np.random.default_rng(rows).normal(size=(rows, 12)))
    settings = ArraysSettings(betas_train=str(tmp_path / "train.npy"), betas_test=str(tmp_path / "test.npy"))
    Arrays(settings).ingest(mine, base_dir=None, context=Context.of(overwrite=True))
    with np.load(mine.voxels) as voxels:
        assert voxels.files == ["index"], "areas and ncsnr were those of the simulated subject"


class Halting(io.RawIOBase):
    """A file on a network drive, which gives less than it is asked for, or nothing any more."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)
        self.gone = False

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def readable(self) -> bool:
        return True

    def readinto(self, memory: Any) -> int:
        if self.gone:
            raise OSError(errno.EIO, "Input/output error")
        return self.file.readinto(memoryview(memory)[:1000])


def test_a_drive_that_gives_little_at_once_is_no_damaged_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "x").write_bytes(data)
    file = LocalFile(tmp_path / "x", "x", Traffic())
    file._file.close()
    file._file = Halting(data)
    assert file.fetch(5, 250_000) == data[5:250_000]
    with pytest.raises(InputError, match="x is truncated: it ends at byte 300000"):
        file.fetch(0, 300_001)
    file._file.gone = True
    with pytest.raises(InputError, match="x can't be read: Input/output error"):
        file.fetch(0, 10)


def test_what_may_not_be_read_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"x")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert Folder(tmp_path).find("x") is None


# The settings as any folder finds them


def test_a_folder_called_like_an_area_is_no_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("V1", "nsdgeneral"):
        (tmp_path / name).mkdir()  # as --study V1 makes one
    for roi in ("nsdgeneral", "V1", ["V1", "V2"], "V1 + V2"):
        settings = NSDSettings(root=".", roi=roi)
        assert settings.located(None).roi == roi
        assert deciding(settings.located(None), None)["roi"] == deciding(settings, None)["roi"]


def test_files_are_found_from_the_folder_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "nsd").mkdir()
    for name in ("mine.nii.gz", "captions.npy"):
        (tmp_path / name).write_bytes(b"")
    settings = NSDSettings(root="nsd", roi="V1 + mine.nii.gz", captions="captions.npy").located(tmp_path)
    assert settings.root == str(tmp_path / "nsd")
    assert settings.roi == ["V1", str(tmp_path / "mine.nii.gz")]
    assert settings.captions == str(tmp_path / "captions.npy")
    assert NSDSettings(root="gone", captions="gone.npy").located(tmp_path).root == "gone"
    far = NSDSettings()
    assert far.located(tmp_path) == far


def test_a_simulated_nsd_beside_its_settings_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "nsd").mkdir()
    (tmp_path / "nsd" / SIMULATED).write_text("{}")
    settings = check_settings({"dataset": {"kind": "nsd", "root": "nsd"}, "features": {"pixels": {}}})
    assert not os.path.samefile(tmp_path, os.getcwd())
    run = Run(settings, Study(tmp_path / "study"), tmp_path, False, Progress())
    figures = SimpleNamespace(folds=[], columns=["row"], metrics={"notes": []})
    write_figures(run, [], figures, [{"row": 0}], {}, "x", [])
    assert json.loads(run.study.metrics.read_text())["simulated"] is True
