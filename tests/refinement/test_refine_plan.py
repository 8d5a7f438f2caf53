"""Schedules and memory, as arithmetic."""

import platform
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon import kinds
from leanrecon.refinement.diffusion.plan import Machine, Sizes, Work, plan_diffusion
from leanrecon.refinement.diffusion.precision import cpu_has_bfloat16, multiplies_bfloat16_in_vectors, precision_of
from leanrecon.refinement.diffusion.schedule import LCM, schedule_length
from leanrecon.refinement.diffusion.settings import DDIMSettings, DDPMSettings, LCMSettings
from leanrecon.refinement.none import NoRefinementSettings

SD15 = Sizes(unet=859_520_964, vae=83_653_863, largest=29_491_200, unet_state=8 * 320 * 64**2, vae_state=256 * 512**2)


@pytest.mark.parametrize(
    ("steps", "strength", "length"),
    [
        (37, 0.75, 50),  # as published by Brain-Diffuser
        (4, 1.0, 4),
        (2, 0.5, 4),
        (1, 0.01, 100),
        (4, 0.75, 6),
    ],
)
def test_schedules_are_as_long_as_diffusers_needs_them(steps, strength, length):
    assert schedule_length(steps, strength) == length


@given(st.integers(1, 200), st.floats(0.005, 1.0))
def test_just_the_steps_asked_for_are_left_by_the_cut(steps, strength):
    n = schedule_length(steps, strength)
    assert int(n * strength) == steps
    assert n == 1 or int((n - 1) * strength) < steps


def test_settings_know_the_usual_steps():
    table = {"base": "a/b", "text": "clip"}
    assert LCMSettings(**table).steps == 4
    assert DDIMSettings(**table).steps == 37
    assert DDIMSettings(steps=9, **table).steps == 9
    assert kinds.settings_of("generators", {}, "refine.", default="none") == NoRefinementSettings()
    settings = DDPMSettings(baselines=["prior", "prior"], **table)
    assert settings.baselines == ["prior"]
    written = settings.model_dump(mode="json", exclude_none=True)
    assert kinds.settings_of("generators", written, "refine.", default="none") == settings
    assert LCM.problem(4, 0.08) == ""
    assert LCM.problem(4, 0.07) != ""


def test_small_autoencoders_decode_the_images_of_a_batch_together():
    small = Sizes(unet=2_000_000, vae=100_000, largest=300_000, unet_state=8 * 64 * 16**2, vae_state=32 * 64**2)
    machine = Machine("cpu", 10**10)
    together = plan_diffusion(small, Work(20, "float32"), machine)
    alone = plan_diffusion(small, Work(20, "bfloat16"), machine)
    assert (together.batch, together.decoded) == (8, 8)
    assert (alone.batch, alone.decoded) == (8, 1)
    assert plan_diffusion(SD15, Work(20, "float32"), machine).decoded == 1
    assert plan_diffusion(small, Work(20, "float32"), Machine("cuda", 10**10, 10**10)).decoded == 1


def planned(free, *, device="cpu", precision="float32", offload="auto", batch=None, rows=10, guided=False, vram=0):
    converted = (SD15.unet + SD15.vae) * {"float32": 4, "float16": 2, "bfloat16": 2}[precision]
    work = Work(rows, precision, offload=offload, batch=batch, guided=guided, converted=converted)
    return plan_diffusion(SD15, work, Machine(device, int(free), vram))


@pytest.mark.parametrize(
    ("free", "precision", "mode"),
    [(10e9, "float32", "none"), (4e9, "float32", "stream"), (4e9, "bfloat16", "none"), (1e9, "bfloat16", "stream")],
)
def test_a_cpu_holds_the_weights_or_streams_them(free, precision, mode):
    plan = planned(free, precision=precision)
    assert (plan.mode, plan.batch) == (mode, 1)
    assert plan.work <= free
    assert plan.vram == 0


@pytest.mark.parametrize(
    ("vram", "ram", "mode", "batch"),
    [
        (15e9, 8e9, "none", 4),
        (2.95e9, 8e9, "none", 1),
        (2.6e9, 8e9, "model", 1),
        (1.2e9, 8e9, "sequential", 4),
        (1.2e9, 1.6e9, "disk", 4),
    ],
)
def test_a_gpu_holds_what_fits(vram, ram, mode, batch):
    plan = planned(ram, device="cuda", precision="float16", vram=int(vram))
    assert plan.mode == mode
    assert plan.work <= ram
    assert plan.vram <= vram
    assert plan.batch >= batch


@given(st.integers(0, 12_000_000_000), st.sampled_from(["auto", "none", "stream"]), st.booleans())
def test_a_plan_that_exceeds_what_is_free_is_the_least_there_is(free, offload, guided):
    plan = planned(free, offload=offload, guided=guided)
    if plan.work > free:
        least = planned(0, offload=offload, guided=guided)
        assert plan.work == least.work
        assert planned(plan.work, offload=offload, guided=guided).work <= plan.work


@pytest.mark.parametrize("free", [0, 10**9, 10**12])
def test_a_cpu_draws_several_images_of_a_small_network_at_once_whatever_is_free(free):
    small = Sizes(unet=5_000_000, vae=500_000, largest=500_000, unet_state=8 * 64 * 16**2, vae_state=32 * 64**2)
    batches = [plan_diffusion(small, Work(rows, "float32"), Machine("cpu", free)).batch for rows in (60, 3)]
    assert batches == [8, 3]
    assert planned(free).batch == 1  # Stable Diffusion 1.5


def test_what_is_set_is_kept():
    plan = planned(0, offload="disk", batch=8, rows=100)
    assert (plan.mode, plan.batch) == ("disk", 8)
    assert planned(1e12, batch=8, rows=3).batch == 3
    assert planned(1e12, device="mps").mode == "none"
    assert "weights mapped from disk" in planned(1e9).summary


def test_only_modes_that_read_from_disk_write_weights_to_scratch():
    converted = (SD15.unet + SD15.vae) * 4
    scratch = {mode: planned(1e12, offload=mode).scratch for mode in ("none", "model", "sequential", "disk", "stream")}
    assert scratch == {"none": 0, "model": 0, "sequential": 0, "disk": converted, "stream": converted}
    on_gpu = {"device": "cuda", "offload": "disk", "vram": 10**12, "precision": "float16", "rows": 1}
    work = Work(1, "float16", offload="disk")  # the files hold what is used
    as_stored = plan_diffusion(SD15, work, Machine("cuda", 10**12, 10**12))
    assert as_stored.scratch == 0
    assert planned(1e12, **on_gpu).work - as_stored.work == SD15.largest * 10  # merging: two in float32, one in float16


def test_precision_suits_the_device(tmp_path):
    assert precision_of("auto", "cuda") == "float16"
    assert precision_of("auto", "mps") == "float32"
    assert precision_of("float32", "cuda") == "float32"
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512_bf16")
    (tmp_path / "old").write_text("flags : avx2")
    assert not cpu_has_bfloat16(tmp_path / "old")
    assert not cpu_has_bfloat16(tmp_path / "none")


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="Linux on x86 names instructions")
def test_vectors_of_bfloat16_are_used_where_there_are_no_tiles(tmp_path):
    for name, flags in (("vectors", "avx512_bf16"), ("tiles", "avx512_bf16 amx_bf16"), ("old", "avx2")):
        (tmp_path / name).write_text(f"flags : avx2 {flags}")
    assert [cpu_has_bfloat16(tmp_path / name) for name in ("vectors", "tiles", "old")] == [True, True, False]
    found = [multiplies_bfloat16_in_vectors(tmp_path / name) for name in ("vectors", "tiles", "old", "none")]
    assert found == [True, False, False, False]
