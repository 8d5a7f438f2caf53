"""Schedules and memory, as arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanrecon.refinement.diffusion.plan import Sizes, plan_refine
from leanrecon.refinement.diffusion.precision import cpu_has_bfloat16, precision_of
from leanrecon.refinement.diffusion.schedule import problem_of, schedule_length
from leanrecon.refinement.diffusion.settings import RefineSettings

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
    assert RefineSettings(kind="lcm", **table).steps == 4
    assert RefineSettings(kind="ddim", **table).steps == 37
    assert RefineSettings(kind="ddim", steps=9, **table).steps == 9
    assert RefineSettings().kind == "none"
    settings = RefineSettings(kind="ddpm", baselines=["prior", "prior"], **table)
    assert RefineSettings(**settings.model_dump(mode="json", exclude_none=True)) == settings
    assert problem_of("lcm", 4, 0.08) == ""
    assert problem_of("lcm", 4, 0.07) != ""


def planned(free, *, device="cpu", precision="float32", offload="auto", batch=None, rows=10, **how):
    return plan_refine(
        SD15, device=device, precision=precision, offload=offload, batch=batch, rows=rows, free=int(free), **how
    )


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


def test_what_is_set_is_kept():
    plan = planned(0, offload="disk", batch=8, rows=100)
    assert (plan.mode, plan.batch) == ("disk", 8)
    assert planned(1e12, batch=8, rows=3).batch == 3
    assert planned(1e12, device="mps").mode == "none"
    assert "weights mapped from disk" in planned(1e9).blocks


def test_precision_suits_the_device(tmp_path):
    assert precision_of("auto", "cuda") == "float16"
    assert precision_of("auto", "mps") == "float32"
    assert precision_of("float32", "cuda") == "float32"
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512_bf16")
    (tmp_path / "old").write_text("flags : avx2")
    assert not cpu_has_bfloat16(tmp_path / "old")
    assert not cpu_has_bfloat16(tmp_path / "none")
