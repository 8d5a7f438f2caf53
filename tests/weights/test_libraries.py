"""Libraries are counted once: where they are imported, and where a plan counts them as held."""

import subprocess
import sys
from pathlib import Path

import pytest

from leanrecon.stages.pipeline import plan_study
from leanrecon.study.settings import check_settings
from leanrecon.weights.libraries import (
    AFTER_TRANSFORMERS,
    IMPORTS_NBYTES,
    beside_torch_nbytes,
    count_held,
    counting,
    imports_nbytes,
)


@pytest.fixture(autouse=True)
def _nothing_is_imported(monkeypatch):
    for name in ("torch", "transformers", "transformers.modeling_utils", "diffusers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_library_that_a_plan_counts_as_held_is_not_planned_again():
    before = imports_nbytes("diffusers")
    assert before == imports_nbytes() + IMPORTS_NBYTES["diffusers"] > IMPORTS_NBYTES["diffusers"]
    with counting():
        assert imports_nbytes("diffusers") == before
        count_held("sklearn")
        count_held(None)
        assert imports_nbytes("diffusers") == before
        count_held("torch")
        assert imports_nbytes() == 0
        assert imports_nbytes("diffusers") == IMPORTS_NBYTES["diffusers"]
        count_held("transformers")
        assert imports_nbytes("transformers") == 0
        assert imports_nbytes("diffusers") == beside_torch_nbytes("diffusers") == AFTER_TRANSFORMERS
        count_held("diffusers")
        assert imports_nbytes("diffusers") == 0
    count_held("diffusers")  # no plan is being made
    assert imports_nbytes("diffusers") == before


def planned(*spaces: str) -> dict[str, int]:
    tables = {
        "dataset": {"kind": "simulated", "n_train": 200, "n_test": 20},
        "features": {name: {"kind": "pca", "components": 8, "size": 32} for name in spaces},
        "regression": {"kind": "mlp", "hidden": 16, "components": 8},
        "stage1": {"space": "a"},
        "memory": "4GB",
    }
    return {line.stage: line.memory for line in plan_study(check_settings(tables), base_dir=Path())}


def test_networks_of_several_feature_spaces_hold_pytorch_once():
    one, two = planned("a"), planned("a", "b")
    assert abs(two["stage1"] - one["stage1"]) < 20_000_000
    assert two["regression b"] < two["regression a"] + 20_000_000


IMPORTS = """
from leanrecon.memory import process_memory
import torch
torch.nn.functional.linear(torch.zeros(4, 64), torch.zeros(8, 64))
import transformers
transformers.CLIPVisionModelWithProjection, transformers.CLIPTextModelWithProjection
before = process_memory()
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
print(process_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.networks
def test_diffusers_takes_little_where_transformers_is_imported():
    done = subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True, text=True)
    assert 0.6 * AFTER_TRANSFORMERS < int(done.stdout.split()[-1]) <= AFTER_TRANSFORMERS
