"""What the libraries that read files take in memory, by the formats that settings name."""

from collections.abc import Iterator, Mapping
from typing import Any

LEAST = 12 * 10**6
"""Bytes that Zarr (9 MB) and Pillow (1 MB) take when they are loaded, with room for ids."""

LIBRARIES = {
    ("h5", "hdf5", "mat"): 12 * 10**6,  # h5py, and what unpacking chunks leaves: 11 MB measured
    ("zarr",): 20 * 10**6,  # zarr-python decodes several chunks at once: 19 MB more than a chunk each of two arrays
    ("nii", "gii", "mgh", "mgz", "img", "hdr"): 6 * 10**6,  # nibabel: 4.3 MB
}
"""Bytes of each library, with what it holds of a small file, by the endings of the names of the files that it reads."""

LIGHT = ("npy", "npz", "json", "txt", "csv", "tsv", "toml", "png", "jpg", "jpeg", "bmp", "gif", "webp")
"""Endings of files that need none of them."""


def loaded_nbytes(settings: Any) -> int:
    """Bytes of the libraries that reading the files of some settings loads; all of them for a file of another ending."""
    endings = {ending for text in _texts(settings.model_dump()) for ending in _endings(text)}
    others = not endings <= {*LIGHT, *(ending for of in LIBRARIES for ending in of)}
    return LEAST + sum(nbytes for of, nbytes in LIBRARIES.items() if others or endings & set(of))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _texts(part)


def _endings(text: str) -> Iterator[str]:
    """The endings in ``FILE:KEY``: of the file, and of what is taken for one in the key."""
    for part in text.replace("\\", "/").rpartition("/")[2].lower().split(":"):
        _, dot, ending = part.removesuffix(".gz").rpartition(".")
        if dot:
            yield ending
