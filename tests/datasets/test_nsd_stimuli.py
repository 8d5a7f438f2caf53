"""Images are found in every layout of their file, with no byte moved twice and few that were not asked for."""

from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from leanrecon.datasets.nsd.stimuli import captions_of, read_images, stimuli_layout
from leanrecon.errors import InputError
from leanrecon.images import resize
from leanrecon.net.ranges import Bytes, LocalFile, Traffic

SHAPE = (200, 12, 10, 3)
SHOWN = np.unique(np.random.default_rng(0).integers(0, SHAPE[0], 60))
IMAGES = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)


class Recorded(LocalFile):
    """Remembers which ranges it was asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, str(path), Traffic())
        self.spans: list[tuple[int, int]] = []

    def fetch(self, start: int, stop: int, into: memoryview | None = None) -> Bytes:
        self.spans.append((start, stop))
        return super().fetch(start, stop, into)


def written(path: Path, chunks: tuple[int, ...] | None) -> Recorded:
    with h5py.File(path, "w", libver="earliest") as file:
        bricks = file.create_dataset("imgBrick", SHAPE, np.uint8, chunks=chunks)
        for image in SHOWN.tolist():
            bricks[image] = IMAGES[image]
    return Recorded(path)


def fetched(file: Recorded, shape: tuple[int, int, int]) -> dict[int, np.ndarray]:
    layout = stimuli_layout(file)
    file.spans.clear()
    out = np.empty((len(SHOWN), *shape), np.uint8)
    there = [k for part in read_images(layout, SHOWN, shape, out.__getitem__) for k in part]
    assert len(there) == len(set(there))
    return {int(SHOWN[k]): out[k] for k in there}


@pytest.mark.parametrize(
    "chunks", [None, (1, 12, 10, 3), (1, 5, 10, 2), (16, 12, 10, 3), (7, 5, 4, 2), (200, 3, 10, 3)]
)
@pytest.mark.parametrize("shape", [SHAPE[1:], (4, 4, 3)])
def test_images_are_the_same_in_any_layout(tmp_path, chunks, shape) -> None:
    found = fetched(written(tmp_path / "x.hdf5", chunks), shape)
    assert sorted(found) == SHOWN.tolist()
    for image, values in found.items():
        assert np.array_equal(values, resize(IMAGES[image], shape))


@pytest.mark.parametrize("chunks", [(1, 5, 10, 2), (16, 12, 10, 3), (7, 5, 4, 2), (200, 3, 10, 3)])
def test_no_chunk_is_read_twice(tmp_path, chunks) -> None:
    file = written(tmp_path / "x.hdf5", chunks)
    fetched(file, SHAPE[1:])
    size = int(np.prod(chunks))
    counts = Counter(start for start, stop in file.spans if stop - start == size)
    tiles = int(np.prod([-(-n // c) for n, c in zip(SHAPE[1:], chunks[1:], strict=True)]))
    assert set(counts.values()) == {1}
    assert len(counts) == tiles * len(np.unique(SHOWN // chunks[0]))


@pytest.mark.parametrize("chunks", [None, (1, 12, 10, 3)])
def test_images_of_their_own_are_all_that_is_moved(tmp_path, chunks, monkeypatch) -> None:
    monkeypatch.setattr("leanrecon.datasets.nsd.stimuli._NEAR", 0)
    file = written(tmp_path / "x.hdf5", chunks)
    fetched(file, SHAPE[1:])
    numbers = [span for span in file.spans if (span[1] - span[0]) % 360 == 0]
    assert sum(stop - start for start, stop in numbers) == 360 * len(SHOWN)


def test_other_arrays_are_refused(tmp_path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["imgBrick"] = np.zeros((4, 5, 5, 3), np.float32)
    with pytest.raises(
        InputError, match=r"float32 of shape \(4, 5, 5, 3\). Expected uint8 \[images, height, width, 3\]"
    ):
        stimuli_layout(Recorded(tmp_path / "x.hdf5"))


def test_images_beyond_the_end_are_refused(tmp_path) -> None:
    file = written(tmp_path / "x.hdf5", None)
    with pytest.raises(InputError, match="holds 200 images, and number 200 is needed"):
        list(
            read_images(
                stimuli_layout(file), np.array([200]), SHAPE[1:], np.empty((1, *SHAPE[1:]), np.uint8).__getitem__
            )
        )


# Captions


@pytest.mark.parametrize("form", ["npy", "npy of bytes", "npy of one", "json", "txt"])
def test_captions_are_those_of_the_images(tmp_path, form) -> None:
    every = [[f"image {n}", f"number {n}"] for n in range(50)]
    if form.startswith("npy"):
        array = np.array(every)
        array = array[:, 0] if "one" in form else array.astype("S") if "bytes" in form else array
        np.save(tmp_path / "c.npy", array)
        path = tmp_path / "c.npy"
    else:
        import json

        path = tmp_path / f"c.{form}"
        path.write_text(json.dumps(every) if form == "json" else "\n".join("\t".join(row) for row in every))
    found = captions_of(str(path), [40, 3, 17], 50, None)
    expected = [every[40], every[3], every[17]]
    assert found == ([row[:1] for row in expected] if form == "npy of one" else expected)


def test_captions_of_another_number_of_images_or_none_are_refused(tmp_path) -> None:
    np.save(tmp_path / "c.npy", np.array([["a"], ["b"], [" "]]))
    with pytest.raises(InputError, match="has 3 rows. Expected one for each of 4 images"):
        captions_of(str(tmp_path / "c.npy"), [0], 4, None)
    with pytest.raises(InputError, match=r"row 2 of .*c\.npy has no caption"):
        captions_of(str(tmp_path / "c.npy"), [2], 3, None)
    assert captions_of(str(tmp_path / "c.npy"), [1, 0], 3, None) == [["b"], ["a"]]
    np.save(tmp_path / "n.npy", np.zeros((3, 2)))
    with pytest.raises(InputError, match="holds float64. Expected captions"):
        captions_of(str(tmp_path / "n.npy"), [1], 3, None)
