"""Pictures of a gallery that are nearest to predictions: against brute force, from folders and stores, killed and continued."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import leanrecon
from leanrecon.errors import InputError, LeanreconError, SettingsError
from leanrecon.features.pca import PCA
from leanrecon.images import resize
from leanrecon.places import Location
from leanrecon.stages.retrieve import retrieve
from leanrecon.stores import Store
from leanrecon.study.layout import LAYOUT, Role, item_of

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

K = 3
STUDY: dict[str, Any] = {
    "dataset": {"kind": "simulated", "n_train": 40, "n_test": 12, "voxels": 60, "size": 24},
    "features": {"pca": {"components": 8}, "pixels": {"size": [6, 6]}},
    "regression": {"alpha": 10.0},
    "stores": {"chunk": "500B"},
    "evaluate": {"permutations": 0, "resamples": 100},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "study"
    leanrecon.run(STUDY, study=folder)
    return folder


@pytest.fixture(scope="module")
def pictures(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The train images as files of a folder."""
    folder = tmp_path_factory.mktemp("gallery")
    for number, image in enumerate(leanrecon.open(study).stimuli("train")):
        (folder / f"of {number % 3}").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"of {number % 3}" / f"{number:03d}.png")
    return folder


def brute_force(study: Path, space: str) -> tuple[Array, Array]:
    results = leanrecon.open(study)
    predicted, train = results.predictions(space), results.features(space, "train")
    r = np.corrcoef(predicted, train)[: len(predicted), len(predicted) :]
    best = np.argsort(-r, axis=1, kind="stable")[:, :K]
    return best, np.take_along_axis(r, best, axis=1)


def read(table: Location) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


@pytest.mark.parametrize("space", ["pca", "pixels"])
@pytest.mark.parametrize("of", ["folder", "images", "features"])
def test_the_nearest_are_those_of_brute_force(study: Path, pictures: Path, tmp_path: Path, space: str, of: str) -> None:
    gallery = {
        "folder": pictures,
        "images": study / "stimuli/train.zarr",
        "features": study / f"features/{space}/train.zarr",
    }[of]
    table, page = retrieve(study, gallery, k=K, space=space, out=tmp_path)
    best, r = brute_force(study, space)
    rows = read(table)
    assert [int(row["rank"]) for row in rows] == [1, 2, 3] * 12
    found = [int(Path(row["picture"]).stem) for row in rows]
    np.testing.assert_array_equal(np.reshape(found, (12, K)), best)
    np.testing.assert_allclose(np.reshape([float(row["r"]) for row in rows], (12, K)), r, atol=2e-6)
    text = page.read_text()
    assert text.count("<img") == (12 * (K + 1) if of != "features" else 12)


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    study: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retrieve(study, pictures, k=K, out=tmp_path / "whole")
    features = study / "retrieval/pca/features.zarr"
    kept = {path.name: path.read_bytes() for path in features.rglob("*") if path.is_file()}
    (next(iter(pictures.rglob("*.png")))).touch()  # another gallery, by its times
    encoded: list[int] = []
    own = PCA.encode

    def stopped(self: PCA, images: Array, rows: Any) -> Array:
        encoded.append(len(images))
        if sum(encoded) > 20 and len(encoded) < 1000:
            raise KeyboardInterrupt
        return own(self, images, rows)

    monkeypatch.setattr(PCA, "encode", stopped)
    with pytest.raises(KeyboardInterrupt):
        retrieve(study, pictures, k=K, out=tmp_path / "again")
    done = sum(encoded)
    encoded[:] = [0] * 1000
    again = retrieve(study, pictures, k=K, out=tmp_path / "again")
    assert 0 < sum(encoded) < 40
    assert sum(encoded) + done <= 40 + done
    assert again[0].read_bytes() == whole[0].read_bytes()
    now = {path.name: path.read_bytes() for path in features.rglob("*") if path.is_file() and path.name != "zarr.json"}
    assert now == {name: data for name, data in kept.items() if name != "zarr.json"}
    encoded[:] = [0] * 1000
    retrieve(study, pictures, k=1, out=tmp_path / "third")
    assert sum(encoded) == 0


def test_what_is_no_gallery_is_refused(study: Path, pictures: Path, tmp_path: Path) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    for gallery, said in (
        (tmp_path / "nowhere", "there is no"),
        (empty, "holds no pictures"),
        (broken, "can't be read as an image"),
        (study / "betas/train.zarr", "expected: images, or features of pca|images, or features of pca"),
        (study / "features/pixels/train.zarr", r"float32 \[rows, 8\]"),
    ):
        with pytest.raises(InputError, match=said):
            retrieve(study, gallery, out=tmp_path)
    with pytest.raises(SettingsError, match="from 1 to 100"):
        retrieve(study, pictures, k=0)
    with pytest.raises(SettingsError, match="pcaa is not a feature space of this study"):
        retrieve(study, pictures, space="pcaa")
    with pytest.raises(LeanreconError, match="needs at least"):
        retrieve(study, pictures, memory="1MB", out=tmp_path / "b")


def test_pictures_are_read_as_the_images_of_a_dataset_are(study: Path, tmp_path: Path) -> None:
    train = leanrecon.open(study).stimuli("train")
    folder = tmp_path / "gallery"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # shown a quarter turn clockwise
    Image.fromarray(np.rot90(train[0]).copy()).save(folder / "0 turned.png", exif=turned)
    alpha = np.where(np.arange(24)[:, None, None] < 12, 255, 0) * np.ones((24, 24, 1))
    Image.fromarray(np.dstack([train[1], alpha.astype(np.uint8)])).save(folder / "1 clear.png")
    Image.fromarray(np.pad(train[2], ((0, 0), (12, 12), (0, 0)))).save(folder / "2 wide.png")
    Image.fromarray(train[3]).quantize(256).save(folder / "3 palette.gif")
    retrieve(study, folder, k=4, space="pixels", out=tmp_path)
    found = Store.open(study / "retrieval/pixels/features.zarr")[0:4]
    white = train[1].copy()
    white[12:] = 255
    shown = np.stack([train[0], white, train[2], np.asarray(Image.open(folder / "3 palette.gif").convert("RGB"))])
    truth = [resize(image, (6, 6, 3)).reshape(-1) / 255 for image in shown]
    np.testing.assert_allclose(found, truth, atol=1e-6)


def test_names_of_pictures_are_only_text_in_the_page(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    folder.mkdir()
    Image.new("L", (9, 5), 7).save(folder / "<script>alert(1)<b>.png")
    Image.new("RGBA", (5, 9), (1, 2, 3, 4)).save(folder / "b.png")
    _, page = retrieve(study, folder, out=tmp_path)
    assert "<script>" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


def test_what_is_kept_of_a_gallery_is_made_again_when_it_is_missed() -> None:
    item = item_of("retrieval/pca/features.zarr")
    assert item is LAYOUT["retrieval/**"]
    assert item.role is Role.SCRATCH
