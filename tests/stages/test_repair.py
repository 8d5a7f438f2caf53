"""A damaged file that is all a stage left when it was killed is made again, with the rest of its stage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kills import StoppedError, stopping

import leanrecon
from leanrecon.stages.repair import mend
from leanrecon.stores.pictures import Pictures
from leanrecon.study.verify import find_damage

pytestmark = pytest.mark.slow

RECORDS = {
    "features": ("dataset", "features/pca/train.zarr/zarr.json"),
    "regression": ("features", "predictions/pca/test.zarr/zarr.json"),
    "stage1": ("regression", "reconstructions/stage1.json"),
    "refine": ("stage1", "reconstructions/final.json"),
}
"""The last stage that is done, and the record that the next one begins with."""


@pytest.mark.parametrize("stage", RECORDS)
def test_the_first_record_of_a_stage(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "betas.npy", rng.standard_normal((30, 12), dtype=np.float32))
    np.save(tmp_path / "stimuli.npy", rng.integers(0, 256, (30, 8, 8, 3), np.uint8))
    settings: dict[str, Any] = {
        "memory": "4GB",
        "dataset": {
            "betas": str(tmp_path / "betas.npy"),
            "stimuli": str(tmp_path / "stimuli.npy"),
            "test_fraction": 0.2,
        },
        "features": {"pca": {"components": 4}},
        "evaluate": {"permutations": 0, "resamples": 100},
    }
    before, record = RECORDS[stage]
    leanrecon.run(settings, study=tmp_path / "whole")
    leanrecon.run(settings, study=tmp_path / "study", until=before)

    def stop(*given: Any, **options: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch, stopping(0, StoppedError), pytest.raises(StoppedError):
        patch.setattr(Pictures, "write", stop)
        patch.setattr(Pictures, "link", stop)
        leanrecon.run(settings, study=tmp_path / "study", until=stage)
    path = tmp_path / "study" / record
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    damaged = find_damage(tmp_path / "study")
    assert damaged
    mend(tmp_path / "study", damaged)
    assert path.read_bytes() == (tmp_path / "whole" / record).read_bytes()
    assert find_damage(tmp_path / "study") == {}
