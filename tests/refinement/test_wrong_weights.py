"""Weights that cannot work are refused by plan and by run, before any stage has begun."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch
from support import published_models as models
from support.diffusion_models import unet, write_lora
from support.refined_study import write_refined_study
from support.vdvae_models import random_weights

from leanrecon.api import plan, run
from leanrecon.errors import LeanreconError

pytestmark = [pytest.mark.slow, pytest.mark.networks]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_refined_study(folder, "s.toml", 'lora = "lora.safetensors"')
    write_lora(folder / "lora.safetensors", unet(width=models.WIDTH))
    return folder


def another_lora(folder: Path) -> None:
    write_lora(folder / "lora.safetensors", unet(width=2 * models.WIDTH))


def no_scheduler(folder: Path) -> None:
    shutil.rmtree(folder / "base" / "scheduler")


def no_unet(folder: Path) -> None:
    shutil.rmtree(folder / "base" / "unet")


def xl(folder: Path) -> None:
    path = folder / "base" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"addition_embed_type": "text_time"}))


def other_width(folder: Path) -> None:
    unet(width=2 * models.WIDTH).save_pretrained(folder / "base" / "unet")


def small_vdvae(folder: Path) -> None:
    weights = dict(random_weights())
    torch.save({name: value for k, (name, value) in enumerate(weights.items()) if k % 2}, folder / "vdvae.pth")


def folder_as_checkpoint(folder: Path) -> None:
    (folder / "vdvae.pth").unlink()
    (folder / "vdvae.pth").mkdir()


def test_sound_weights_are_planned(sound: Path) -> None:
    assert [stage.stage for stage in plan(sound / "s.toml")][-1].startswith("evaluate")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (another_lora, "lora"),
        (no_scheduler, "scheduler"),
        (no_unet, "unet"),
        (xl, "Stable Diffusion XL"),
        (other_width, "attn2|conv_in|unet|clip"),
        (small_vdvae, "vdvae"),
        (folder_as_checkpoint, "vdvae.pth"),
    ],
)
def test_weights_that_cannot_work_are_refused_before_the_first_stage(
    sound: Path, tmp_path: Path, damage: Callable[[Path], None], named: str
) -> None:
    folder = tmp_path / "w"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(LeanreconError, match=named) as planned:
        plan(folder / "s.toml")
    with pytest.raises(LeanreconError, match=named):
        run(folder / "s.toml", study=folder / "study")
    assert not (folder / "study" / "betas").exists()
    assert len(str(planned.value)) < 600
