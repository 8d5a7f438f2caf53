"""A plan of NSD without a network: from published shapes, each at its largest.

Allen et al. (2022), Nature Neuroscience 25, 116-126: 750 trials a session, 10,000 images of 425 pixels a subject, of
which every tenth was shown to all subjects.
"""

import warnings

import numpy as np

from leanrecon.datasets.nsd.dataset import NSDSettings, plan_fetch
from leanrecon.datasets.nsd.files import Prepared
from leanrecon.datasets.nsd.hdf5_index import Layout
from leanrecon.datasets.nsd.layout import BUCKET, GENERAL, STIMULI, TRIALS, Design, SubjectFiles, chosen_sessions
from leanrecon.datasets.nsd.voxels import Voxels
from leanrecon.datasets.plan import DatasetPlan
from leanrecon.errors import LeanreconWarning, NetworkError
from leanrecon.net.ranges import HELD, Found, RangeFile

VOXELS = (15724, 14278, 15226, 13153, 13039, 17907, 12682, 14386)
"""Voxels in nsdgeneral of subjects 1 to 8, as MindEye2's files of betas have them (Scotti et al. 2024)."""

IMAGES, SHOWN, SIDE = 73_000, 10_000, 425
"""Images of the collection, images that a subject saw in 40 sessions, and pixels along a side."""

_SESSION = 10**9  # bytes of a session's .hdf5, about; of which the voxels' are fetched


def published_plan(settings: NSDSettings, chunk: int, free: int, error: NetworkError) -> DatasetPlan:
    """The plan if the network can't be reached, with a warning; raises ``error`` if no shapes are published.

    None are published for another bucket, other areas than nsdgeneral, and .nii.gz files.
    """
    known = settings.root.rstrip("/") == BUCKET and settings.endpoint_url is None
    if not known or settings.roi != GENERAL or settings.betas_format == "nii.gz":
        raise NetworkError(
            error.found,
            expected="the headers and masks of the data, which tell how much there is",
            todo=error.todo,
        ) from error
    sessions = chosen_sessions(settings.subject, settings.sessions)
    warnings.warn(
        f"{settings.root} can't be reached: this plan uses the published sizes of NSD, at their largest",
        LeanreconWarning,
        stacklevel=2,
    )
    trial = np.concatenate([np.arange((session - 1) * TRIALS, session * TRIALS) for session in sessions])
    image = np.arange(len(trial)) % SHOWN  # no image twice before all were seen: most images
    names = SubjectFiles(settings.subject)
    betas = {session: names.betas(session, "hdf5") for session in sessions}
    index = np.arange(VOXELS[settings.subject - 1])
    nothing = np.zeros(0)
    voxels = Voxels((1, 1, len(index)), np.eye(4), index, nothing, nothing, {})
    shape = (IMAGES, SIDE, SIDE, 3)
    found = {name: Found(_SESSION, "") for name in betas.values()}
    prepared = Prepared(Design(sessions, trial, image, image % 10 == 0), voxels, betas, shape, found)
    file = RangeFile(STIMULI, int(np.prod(shape)), "")
    file.held = HELD
    images = Layout(file, STIMULI, shape, np.dtype(np.uint8), None, 0, 0, 0)
    return plan_fetch(settings, prepared, images, chunk, free=free)
