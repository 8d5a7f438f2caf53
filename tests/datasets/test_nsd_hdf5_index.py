"""Chunks are found where HDF5 itself says they are, and little of a file is read to find them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from leanrecon.datasets.nsd.hdf5_index import UNWRITTEN, UnknownLayoutError, locate_chunks, read_layout
from leanrecon.errors import InputError
from leanrecon.net.ranges import LocalFile, RangeFile, Traffic


def opened(path: Path, traffic: Traffic | None = None) -> RangeFile:
    return LocalFile(path, str(path), traffic or Traffic())


def write(path: Path, shape, chunks, *, some=1.0, order=None, dtype="<i2", key="betas", **how) -> None:
    rng = np.random.default_rng(3)
    with h5py.File(path, "w", **({"libver": "earliest"} | how)) as file:
        data = file.create_dataset(key, shape, dtype, chunks=chunks)
        corners = np.array(list(np.ndindex(*(-(-n // c) for n, c in zip(shape, chunks, strict=True)))))
        for corner in rng.permutation(corners) if order == "random" else corners:
            if rng.random() < some:
                data.id.write_direct_chunk(
                    tuple(corner * chunks), rng.bytes(int(np.prod(chunks)) * data.dtype.itemsize)
                )


def by_hdf5(path: Path, key="betas") -> dict[tuple[int, ...], int]:
    with h5py.File(path) as file:
        data = file[key].id
        infos = [data.get_chunk_info(k) for k in range(data.get_num_chunks())]
        return {tuple(info.chunk_offset): info.byte_offset for info in infos}


@pytest.mark.parametrize(
    ("shape", "chunks", "how"),
    [
        ((6, 17, 13, 11), (6, 1, 1, 1), {}),  # 2431 chunks: three levels
        ((6, 17, 13, 11), (6, 1, 1, 1), {"order": "random"}),
        ((6, 17, 13, 11), (6, 1, 1, 1), {"some": 0.4}),
        ((50, 8, 8, 3), (7, 5, 8, 2), {}),  # chunks that reach beyond the edge
        ((5, 1, 1, 1), (5, 1, 1, 1), {}),  # one chunk
        ((300,), (1,), {"dtype": ">f8"}),
        ((6, 9, 5, 4), (6, 1, 1, 1), {"userblock_size": 512}),
    ],
)
def test_chunks_lie_where_hdf5_says(tmp_path, shape, chunks, how):
    path = tmp_path / "x.hdf5"
    write(path, shape, chunks, **how)
    known = by_hdf5(path)
    layout = read_layout(opened(path), "betas")
    assert (layout.shape, layout.chunk) == (shape, chunks)
    corners = np.array(list(np.ndindex(*(-(-n // c) for n, c in zip(shape, chunks, strict=True))))) * chunks
    for wanted in (corners, corners[::-1], corners[5:6] if len(corners) > 5 else corners):
        found = locate_chunks(layout, wanted)
        assert found.tolist() == [known.get(tuple(corner), UNWRITTEN) for corner in wanted.tolist()]


def test_a_file_without_any_chunk_has_none(tmp_path):
    write(tmp_path / "x.hdf5", (4, 3), (1, 3), some=0)
    layout = read_layout(opened(tmp_path / "x.hdf5"), "betas")
    assert locate_chunks(layout, np.array([[2, 0]])).tolist() == [UNWRITTEN]


def test_only_the_nodes_on_the_way_are_read(tmp_path):
    write(tmp_path / "x.hdf5", (2, 30, 30, 30), (2, 1, 1, 1))
    traffic = Traffic()
    file = opened(tmp_path / "x.hdf5", traffic)
    layout = read_layout(file, "betas")
    locate_chunks(layout, np.array([[0, 12, 14, 3], [0, 12, 14, 4]]))
    assert traffic.nbytes < 0.1 * file.size
    assert traffic.requests <= 8


def test_contiguous_numbers_are_found(tmp_path):
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["imgBrick"] = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    file = opened(tmp_path / "x.hdf5")
    layout = read_layout(file, "imgBrick")
    assert layout.chunk is None
    assert bytes(file.fetch(layout.address, layout.address + 24)) == bytes(range(24))


def test_other_layouts_are_named(tmp_path):
    write(tmp_path / "new.hdf5", (4, 30), (1, 30), libver="latest")
    with pytest.raises(UnknownLayoutError, match=r"expected version 0 or 1|version"):
        read_layout(opened(tmp_path / "new.hdf5"), "betas")
    with h5py.File(tmp_path / "zip.hdf5", "w") as file:
        file.create_dataset("betas", (4, 30), "i2", chunks=(1, 30), compression="gzip")
    with pytest.raises(UnknownLayoutError, match="compressed.*h5repack"):
        read_layout(opened(tmp_path / "zip.hdf5"), "betas")
    with pytest.raises(InputError, match="no dataset 'trials'.*betas"):
        read_layout(opened(tmp_path / "zip.hdf5"), "trials")


@pytest.mark.parametrize("kept", [0, 100, 0.3, 0.6, 0.999])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "x.hdf5"
    write(path, (6, 17, 13, 11), (6, 1, 1, 1))
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 or kept == 0 else int(kept * len(data))])
    with pytest.raises(InputError, match=r"x\.hdf5 is damaged or cut short"):
        read_layout(opened(path), "betas")


def test_a_damaged_index_is_named(tmp_path):
    path = tmp_path / "x.hdf5"
    write(path, (6, 17, 13, 11), (6, 1, 1, 1))
    layout = read_layout(opened(path), "betas")
    data = bytearray(path.read_bytes())
    corners = np.array([[0, 12, 4, 3], [0, 0, 0, 1]])
    for at, junk in ((0, b"EERT"), (6, b"\xff\xff"), (24 + 48, (2**60).to_bytes(8, "little"))):
        broken = data.copy()
        broken[layout.address + at : layout.address + at + len(junk)] = junk
        path.write_bytes(broken)
        with pytest.raises(InputError, match="damaged or cut short"):
            locate_chunks(read_layout(opened(path), "betas"), corners)


def test_a_flipped_byte_is_an_error_in_words_or_changes_nothing_that_is_read(tmp_path):
    path = tmp_path / "x.hdf5"
    write(path, (6, 4, 5, 9), (6, 1, 1, 1))
    data = path.read_bytes()
    corners = np.array([[0, 1, 4, 3], [0, 3, 0, 8]])
    rng = np.random.default_rng(0)
    heads = np.flatnonzero(np.frombuffer(data[:6000], np.uint8))  # zeros are mostly unused
    for at in rng.choice(heads, 300, replace=False).tolist():
        broken = bytearray(data)
        broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(broken)
        try:
            layout = read_layout(opened(path), "betas")
            if layout.chunk is not None and len(layout.shape) == 4:
                assert (locate_chunks(layout, corners) < len(data)).all()
        except InputError:
            continue  # anything else would be no error in words


def test_any_byte_of_a_header_may_be_wrong(tmp_path):
    path = tmp_path / "x.hdf5"
    write(path, (5, 1, 1, 1), (5, 1, 1, 1))
    data = path.read_bytes()
    corners, refused = np.zeros((1, 4), np.int64), 0
    for at in range(800, 960):  # what says of which shape, type and layout the dataset is
        for wrong in (0, 20, 255):
            path.write_bytes(data[:at] + bytes([wrong]) + data[at + 1 :])
            with opened(path) as file:
                try:
                    layout = read_layout(file, "betas")
                    if layout.chunk is not None and len(layout.shape) == 4:
                        locate_chunks(layout, corners)
                except InputError:  # anything else would be no error in words
                    refused += 1
    assert refused > 50
