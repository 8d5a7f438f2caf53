"""Chunks of a file are what HDF5 itself reads, whatever the order in which they were written."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from leanrecon.datasets.nsd.chunks import locate, read_chunks
from leanrecon.datasets.nsd.hdf5_index import UNWRITTEN, Layout, locate_chunks, node_nbytes, read_layout
from leanrecon.errors import InputError
from leanrecon.net.ranges import LocalFile, Traffic

TRIALS = 750  # HDF5 puts smaller chunks in blocks of their own
SHAPE, CHUNK = (TRIALS, 16, 17, 15), (TRIALS, 1, 1, 1)
N = 16 * 17 * 15  # 4,080 chunks: three levels
NBYTES = 2 * TRIALS

Order = Callable[[np.random.Generator], np.ndarray]


def in_order(rng: np.random.Generator) -> np.ndarray:
    return np.arange(N)


def shuffled(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(N)


def backwards(rng: np.random.Generator) -> np.ndarray:
    return np.arange(N)[::-1]


def with_holes(rng: np.random.Generator) -> np.ndarray:
    return np.flatnonzero(rng.random(N) < 0.9)


def with_a_hole(rng: np.random.Generator) -> np.ndarray:
    return np.delete(np.arange(N), slice(2000, 2004))


def with_swaps(rng: np.random.Generator) -> np.ndarray:
    """Neighbours within a leaf, here and there: its address is still that of a file written in order."""
    order = np.arange(N)
    for k in range(300, N - 300, 57 * 5):
        order[[k, k + 1]] = order[[k + 1, k]]
    return order


def write(path: Path, order: Order, **how: object) -> np.ndarray:
    """Write the chunks in this order; returns what the file holds, [chunks, trials]."""
    rng = np.random.default_rng(7)
    values = rng.integers(-900, 900, (N, TRIALS)).astype("<i2")
    numbers = order(rng)
    with h5py.File(path, "w", libver="earliest", **how) as file:
        data = file.create_dataset("betas", SHAPE, "<i2", chunks=CHUNK)
        for k in numbers.tolist():
            data.id.write_direct_chunk((0, *np.unravel_index(k, SHAPE[1:])), values[k].tobytes())
    kept = np.zeros_like(values)
    kept[numbers] = values[numbers]
    return kept


def opened(path: Path) -> tuple[Layout, Traffic]:
    traffic = Traffic()
    return read_layout(LocalFile(path, path.name, traffic), "betas"), traffic


def corners_of(numbers: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(numbers), *np.unravel_index(numbers, SHAPE[1:])], axis=1)


def read(layout: Layout, numbers: np.ndarray) -> np.ndarray:
    out = np.full((len(numbers), NBYTES), 77, np.uint8)
    read_chunks(locate(layout, corners_of(numbers)), out)
    return out.view("<i2")


@pytest.mark.parametrize("how", [{}, {"userblock_size": 1024}], ids=["plain", "behind a user block"])
@pytest.mark.parametrize("order", [in_order, shuffled, backwards, with_holes, with_a_hole, with_swaps])
def test_chunks_are_those_of_hdf5(tmp_path: Path, order: Order, how: dict[str, object]) -> None:
    kept = write(tmp_path / "x.hdf5", order, **how)
    layout, _ = opened(tmp_path / "x.hdf5")
    rng = np.random.default_rng(1)
    for numbers in (np.arange(N), rng.permutation(N)[:500], np.arange(1990, 2010), np.array([N - 1, 0])):
        assert np.array_equal(read(layout, numbers), kept[numbers])


@pytest.mark.parametrize("order", [in_order, with_a_hole, with_swaps])
def test_chunks_written_in_order_are_expected_where_they_lie(tmp_path: Path, order: Order) -> None:
    write(tmp_path / "x.hdf5", order)
    layout, _ = opened(tmp_path / "x.hdf5")
    numbers = np.arange(N)
    located = locate(layout, corners_of(numbers))
    assert located.leaves is not None
    off = located.address != locate_chunks(layout, corners_of(numbers))
    assert off.sum() == 0 if order is in_order else 0 < off.sum() < 0.02 * N


@pytest.mark.parametrize("order", [shuffled, backwards])
def test_leaves_of_another_order_are_read_first(tmp_path: Path, order: Order) -> None:
    write(tmp_path / "x.hdf5", order)
    layout, _ = opened(tmp_path / "x.hdf5")
    located = locate(layout, corners_of(np.arange(0, N, 3)))
    assert located.leaves is None
    assert (located.address == locate_chunks(layout, corners_of(np.arange(0, N, 3)))).all()


def test_leaves_and_chunks_of_one_place_are_one_request(tmp_path: Path) -> None:
    write(tmp_path / "x.hdf5", in_order)
    layout, traffic = opened(tmp_path / "x.hdf5")
    numbers = np.arange(2000, 2100)  # of two or three leaves
    located = locate(layout, corners_of(numbers))
    before = traffic.requests, traffic.nbytes
    read_chunks(located, np.empty((len(numbers), NBYTES), np.uint8))
    assert traffic.requests == before[0] + 1
    assert traffic.nbytes - before[1] < len(numbers) * NBYTES + 4 * node_nbytes(layout)


def test_a_chunk_that_was_never_written_is_zero(tmp_path: Path) -> None:
    write(tmp_path / "x.hdf5", with_a_hole)
    layout, _ = opened(tmp_path / "x.hdf5")
    numbers = np.arange(1998, 2006)
    found = read(layout, numbers)
    assert not found[2:6].any()
    assert found[[0, 1, 6, 7]].any(axis=1).all()
    assert locate_chunks(layout, corners_of(numbers))[2] == UNWRITTEN


def test_a_leaf_that_is_no_leaf_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    write(path, in_order)
    layout, _ = opened(path)
    located = locate(layout, corners_of(np.arange(2000, 2100)))
    assert located.leaves is not None
    with path.open("r+b") as file:
        file.seek(int(located.leaves.address[0]))
        file.write(b"TREX")
    with pytest.raises(InputError, match="its index holds something else"):
        read_chunks(located, np.empty((100, NBYTES), np.uint8))


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.hdf5"
    write(path, in_order)
    whole = path.read_bytes()
    layout, _ = opened(path)
    layout.file.size -= 4  # as if its last chunk were cut
    with pytest.raises(InputError, match="damaged or cut short"):
        read(layout, np.arange(N - 60, N))
    assert len(whole) == layout.file.size + 4
