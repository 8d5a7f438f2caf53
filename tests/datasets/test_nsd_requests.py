"""What a fetch is planned to ask a bucket for is what the bucket is asked for, in requests and in bytes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io as sio
from support.nsd_server import proxied, serving

from leanrecon.context import Context
from leanrecon.datasets.nsd.dataset import NSD, NSDSettings
from leanrecon.datasets.nsd.layout import DESIGN, STIMULI_KEY, TRIALS, SubjectFiles
from leanrecon.datasets.nsd.requests import images_traffic
from leanrecon.datasets.nsd.simulate import IMAGES
from leanrecon.datasets.nsd.stimuli import read_images, stimuli_layout
from leanrecon.net.ranges import LocalFile, Traffic
from leanrecon.progress import Progress
from leanrecon.study.layout import Study

nibabel = pytest.importorskip("nibabel", reason="NSD's masks are NIfTI files: pip install nibabel")

pytestmark = pytest.mark.slow

CHUNK = 1_000_000


@pytest.fixture(scope="module", params=[(0.15, 1), (0.2, 2), (0.3, 3)], ids=["small", "two sessions", "three sessions"])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:
    """A small NSD of some size and number of sessions on a server."""
    from leanrecon.datasets.nsd.simulate import simulate_nsd

    (scale, sessions), folder = request.param, tmp_path_factory.mktemp("nsd")
    simulate_nsd(folder, sessions=sessions, scale=scale)
    with serving(folder) as url:
        yield folder, sessions, url


def masks(folder: Path) -> dict[str, np.ndarray]:
    """A compact one, a scattered one, and one of many voxels."""
    general = nibabel.load(folder / SubjectFiles(1).roi("nsdgeneral"))
    rng, shape = np.random.default_rng(3), general.shape
    box = np.zeros(shape, bool)
    box[tuple(slice(n // 3, 2 * n // 3) for n in shape)] = True
    found = {"box": box, "scattered": rng.random(shape) < 0.02, "many": rng.random(shape) < 0.3}
    for name, mask in found.items():
        nibabel.save(nibabel.Nifti1Image(mask.astype("u1"), general.affine), folder / f"{name}.nii.gz")
    return found


def planned_and_counted(url: str, folder: Path, chunk: int = CHUNK, **changes: Any) -> list[tuple[int, int]]:
    """Requests and bytes, as planned and as the server has them."""
    with proxied(url) as proxy:
        settings = NSDSettings(endpoint_url=proxy.url, accept_terms=True, check="warn", **changes)
        plan = NSD(settings).plan(base_dir=None, chunk=chunk, free=0)
        proxy.answers.clear()
        NSD(settings).ingest(Study(folder), base_dir=None, context=Context.of(chunk=chunk, progress=Progress()))
        return [(plan.requests, plan.download), (proxy.requests(), proxy.nbytes())]


@pytest.mark.filterwarnings("ignore:trials and images don't match")
@pytest.mark.parametrize("roi", ["nsdgeneral", "box", "scattered", "many"])
def test_requests_and_bytes_are_those_that_are_counted(bucket, roi: str, tmp_path: Path) -> None:
    folder, sessions, url = bucket
    masks(folder)
    chosen = roi if roi == "nsdgeneral" else str(folder / f"{roi}.nii.gz")
    planned, counted = planned_and_counted(url, tmp_path, roi=chosen, sessions=sessions)
    print(roi, planned, counted)
    assert planned[0] == pytest.approx(counted[0], rel=0.01)
    assert planned[1] == pytest.approx(counted[1], rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [{"sessions": [2]}, {"sessions": 1}, {"betas_format": "nii.gz"}, {"repeats": "single"}, {"image_size": 16}],
    ids=str,
)
def test_requests_of_a_part_and_of_other_forms_are_those_that_are_counted(
    small_nsd: Path, changes, tmp_path: Path
) -> None:
    """Of two sessions' images a part is asked for, so that where the others lie is not known."""
    with serving(small_nsd) as url:  # all of moto's servers share one bucket, which other tests fill with more
        planned, counted = planned_and_counted(url, tmp_path, chunk=100_000, **({"sessions": 2} | changes))
    print(changes, planned, counted)
    assert planned[0] == pytest.approx(counted[0], rel=0.05)
    assert planned[1] == pytest.approx(counted[1], rel=0.02)


SIDE = 24


def in_order(bricks: Any, shown: np.ndarray) -> None:
    """Every image, those of NSD that nobody was shown among them."""
    for number in range(len(bricks)):
        bricks.id.write_direct_chunk((number, 0, 0, 0), bytes(SIDE * SIDE * 3))


def as_hdf5_will(bricks: Any, shown: np.ndarray) -> None:
    """The images that were shown; HDF5 holds back what lies in chunks."""
    for number in shown.tolist():
        bricks[number] = number % 256


@pytest.mark.parametrize(
    ("chunks", "fill", "off"),
    [
        ((1, SIDE, SIDE, 3), in_order, 0.02),
        (None, as_hdf5_will, 0.0),
        ((16, SIDE, SIDE, 3), as_hdf5_will, 0.05),
        ((1, SIDE, SIDE, 3), as_hdf5_will, 0.3),
    ],
    ids=["all images", "contiguous", "several in a chunk", "small images that HDF5 wrote out of order"],
)
def test_requests_of_images_in_any_layout_are_near_those_that_are_counted(
    small_nsd: Path, tmp_path: Path, chunks: Any, fill: Any, off: float
) -> None:
    """Those of images alone, whose file is on this disk: each range is read at once there, too."""
    design = sio.loadmat(small_nsd / DESIGN)
    order, images = design["masterordering"][0, :TRIALS].astype(int), design["subjectim"][0].astype(int)
    shown = np.unique(images[order - 1] - 1)
    with h5py.File(tmp_path / "stimuli.hdf5", "w", libver="earliest") as file:
        fill(file.create_dataset(STIMULI_KEY, (IMAGES, SIDE, SIDE, 3), np.uint8, chunks=chunks), shown)
    traffic = Traffic()
    with LocalFile(tmp_path / "stimuli.hdf5", "stimuli.hdf5", traffic) as file:
        layout, groups = stimuli_layout(file), np.arange(len(shown)) // 16
        before = traffic.requests, traffic.nbytes
        out = np.empty((len(shown), SIDE, SIDE, 3), np.uint8)
        assert sum(map(len, read_images(layout, shown, (SIDE, SIDE, 3), out.__getitem__, groups))) == len(shown)
        counted = traffic.requests - before[0], traffic.nbytes - before[1]
        planned = images_traffic(layout, shown, shown, groups)
    print(planned, counted)
    assert planned.requests == pytest.approx(counted[0], rel=off)
    assert planned.nbytes == pytest.approx(counted[1], rel=off)
