from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanrecon.memory import parse_bytes
from leanrecon.stores import Store

Array = np.ndarray[Any, Any]


@pytest.fixture
def smooth_images() -> Callable[..., Array]:
    """Random images whose neighbouring pixels agree, as those of photographs do."""

    def draw(n: int, height: int = 12, width: int = 12, channels: int = 3, seed: int = 0) -> Array:
        rng = np.random.default_rng(seed)
        coarse = rng.random((n, height // 4 + 1, width // 4 + 1, channels))
        fine = np.kron(coarse, np.ones((1, 4, 4, 1)))[:, :height, :width]
        return (fine * 200 + rng.random((n, height, width, channels)) * 55).astype(np.uint8)

    return draw


@pytest.fixture
def store_of(tmp_path: Path) -> Callable[..., Store]:
    """Writes rows into a complete store under the test's own folder."""

    def write(rows: Array, path: str = "stimuli/train.zarr", *, chunk: str | int = "8MB") -> Store:
        store = Store.create(
            tmp_path / path, rows.shape, rows.dtype, made_of={"test": "rows"}, chunk=parse_bytes(chunk)
        )
        for i in range(store.row_groups):
            group = store.group_rows(i)
            store.write_rows(i, rows[group.start : group.stop])
        store.finish()
        return store

    return write


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """All files under a folder with their bytes: two stores are equal, and nothing is left half-written."""

    def read(path: Path) -> dict[str, bytes]:
        folder = Path(path)
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read
