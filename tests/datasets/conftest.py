from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_nsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of a small NSD: a volume of 16x21x17 voxels and images of 64 pixels. Not to be changed by tests."""
    pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")
    from leanrecon.datasets.nsd.simulate import simulate_nsd

    folder = tmp_path_factory.mktemp("nsd")
    simulate_nsd(folder, sessions=2, scale=0.2)
    return folder


@pytest.fixture(scope="session")
def s3_url(small_nsd: Path) -> Iterator[str]:
    """moto's S3 server with the small NSD."""
    from support.nsd_server import serving

    with serving(small_nsd) as url:
        yield url
