"""A source file is known by its content: another one in its place, or of its name, is never taken for it."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.context import Context
from leanrecon.datasets.arrays.dataset import Arrays, ArraysSettings
from leanrecon.datasets.ingest import fill_store
from leanrecon.datasets.sidecars import LARGE, SourceFiles
from leanrecon.errors import InputError, StoreError
from leanrecon.stores import Store
from leanrecon.study.layout import Study


def contents(root: "os.PathLike[str]") -> dict[str, bytes]:
    root = Path(root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def two_subjects(tmp_path: Path) -> list[Path]:
    """Betas of two subjects in files of one name, size and time."""
    rng = np.random.default_rng(8)
    files = [tmp_path / name / "betas.npy" for name in ("s1", "s2")]
    for file in files:
        file.parent.mkdir()
        np.save(file, rng.standard_normal((12, 5)).astype(np.float32))
        os.utime(file, ns=(1_700_000_000 * 10**9, 1_700_000_000 * 10**9))
    return files


def ingest_betas(study: Study, file: Path, **how: Any) -> None:
    settings = ArraysSettings(betas=str(file), test_fraction=0.25)
    Arrays(settings).ingest(study, base_dir=None, context=Context.of("8GB", **how))


def test_files_of_equal_name_size_and_time_are_told_apart(tmp_path: Path) -> None:
    one, other = two_subjects(tmp_path)
    study = Study(tmp_path / "study")
    ingest_betas(study, one)
    with pytest.raises(StoreError, match=r"made with other settings: dataset\.betas\.file was .*--overwrite"):
        ingest_betas(study, other)
    ingest_betas(study, other, overwrite=True)
    ingest_betas(fresh := Study(tmp_path / "fresh"), other)
    assert Store.open(study.betas("train")).content == Store.open(fresh.betas("train")).content


@pytest.mark.parametrize("way", ["copied over with its time", "rewritten in place", "mounted elsewhere"])
def test_another_file_in_the_place_of_the_first_is_noticed(tmp_path: Path, way: str) -> None:
    one, other = two_subjects(tmp_path)
    study = Study(tmp_path / "study")
    ingest_betas(study, one)
    time = one.stat().st_mtime_ns
    if way == "copied over with its time":
        shutil.copy2(other, one)
    elif way == "rewritten in place":
        with one.open("r+b") as file:
            file.write(other.read_bytes())
        os.utime(one, ns=(time, time))
    else:
        one.parent.rename(tmp_path / "unmounted")
        other.parent.rename(one.parent)
    with pytest.raises(StoreError, match=r"made with other settings: dataset\.betas\.file was"):
        ingest_betas(study, one)


def test_a_file_of_the_same_content_counts_as_unchanged_wherever_it_lies(tmp_path: Path) -> None:
    one, _ = two_subjects(tmp_path)
    study = Study(tmp_path / "study")
    ingest_betas(study, one)
    before = {name: data for name, data in contents(study.root).items() if not name.endswith("sources.json")}
    one.parent.rename(tmp_path / "elsewhere")
    ingest_betas(study, tmp_path / "elsewhere" / "betas.npy")
    assert {name: data for name, data in contents(study.root).items() if not name.endswith("sources.json")} == before


def test_a_file_that_is_rewritten_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two_subjects(tmp_path)
    time = one.stat().st_mtime_ns

    def rewritten(*given: Any, **how: Any) -> None:
        fill_store(*given, **how)
        with one.open("r+b") as file:
            file.write(other.read_bytes())
        os.utime(one, ns=(time, time))

    monkeypatch.setattr("leanrecon.datasets.ingest.fill_store", rewritten)
    study = Study(tmp_path / "study")
    with pytest.raises(InputError, match=r"betas\.npy changed while it was read.*Run the same command again"):
        ingest_betas(study, one)
    monkeypatch.undo()
    ingest_betas(study, one)
    ingest_betas(fresh := Study(tmp_path / "fresh"), other)
    assert Store.open(study.betas("train")).content == Store.open(fresh.betas("train")).content


def test_a_large_file_is_known_by_its_size_and_samples_of_all_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sparse(size: int, at: int | None = None, changed: int = 10**9) -> str:
        path = tmp_path / f"{size}-{at}"
        with path.open("wb") as file:
            file.truncate(size)
            if at is not None:
                file.seek(at)
                file.write(b"x")
        os.utime(path, (changed, changed))
        return SourceFiles().content(path)

    size = LARGE + 2**20
    hashed: list[object] = []
    monkeypatch.setattr("leanrecon.datasets.sidecars.file_fingerprint", hashed.append)
    plain = sparse(size)
    others = [sparse(size, at) for at in (0, 512 * (size - 2**16) // 1023, size - 1)] + [sparse(size + 1)]
    assert len({plain, *others}) == 5
    assert sparse(size) == plain, "copied with its time kept"
    assert sparse(size, changed=2 * 10**9) != plain, "written again, perhaps between two samples"
    assert not hashed
    sparse(10)
    assert len(hashed) == 1, "a small file is hashed whole"
