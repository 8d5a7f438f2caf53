"""What a variant tells of its rows and voxels."""

from pathlib import Path

import numpy as np
import pytest

from leanrecon.study.layout import Study
from leanrecon.study.rows import Rows, SplitRows
from leanrecon.study.variants import Variant

NCSNR = np.array([0.0, 0.5, 1.0, np.nan, np.nan])


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    """Four train rows that are means of 1, 1, 3 and 3 trials, and five voxels of which three have an ncsnr."""
    study = Study(tmp_path)
    (tmp_path / "betas").mkdir()
    np.savez(str(study.voxels), ncsnr=NCSNR)
    repeats = [1, 1, 3, 3]
    rows = SplitRows(np.arange(4), trials=[[k] * n for k, n in enumerate(repeats)], repeats=repeats)
    return Variant(study, Rows({"train": rows}, {"train": list("abcd")}))


def test_signal_in_means_of_unequally_many_trials_is_that_of_the_noise_ceiling(variant: Variant) -> None:
    """ncsnr² / (ncsnr² + mean of 1/n): Allen et al. 2022, of whose test images some were shown once."""
    squared = NCSNR**2
    np.testing.assert_allclose(variant.reliability(), squared / (squared + (1 + 1 + 1 / 3 + 1 / 3) / 4))


def test_an_area_whose_noise_is_unknown_has_no_reliability(variant: Variant) -> None:
    known = Variant(variant.parent, variant.rows, area="V1", voxels=(2, 3)).reliability()
    assert known is not None
    assert np.isfinite(known).tolist() == [True, False]
    assert Variant(variant.parent, variant.rows, area="V2", voxels=(3, 4)).reliability() is None
