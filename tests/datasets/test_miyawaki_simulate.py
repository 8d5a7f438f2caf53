"""A simulated subject in the layout of nilearn's fetch_miyawaki2008."""

import numpy as np
import pytest

from leanrecon.datasets.layouts.blocks import detrended, percent_change, stimulus_blocks
from leanrecon.datasets.layouts.miyawaki import AREAS, RINGS
from leanrecon.datasets.layouts.miyawaki_figures import KINDS, figures
from leanrecon.datasets.layouts.miyawaki_simulate import (
    _volumes,
    draw_voxels,
    labels_of,
    patterns_of,
    simulate_miyawaki,
)
from leanrecon.errors import SettingsError

nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel")


def test_runs_are_as_long_as_the_real_ones():
    random, figure = (labels_of(session, patterns_of(session, 1, 0)) for session in ("random", "figure"))
    assert len(random) == 145
    assert len(figure) == 130
    blocks = [len(stimulus_blocks(labels, 2, by_volume=False).rows) for labels in (random, figure)]
    assert blocks == [22, 10]
    assert (random[:10] == -1).all()
    assert (random[-6:] == -1).all()


def test_twelve_figure_runs_show_twenty_images_as_often_as_the_real_ones():
    shown = np.array([p.reshape(-1) for run in range(1, 13) for p in patterns_of("figure", run, 0)])
    _, counts = np.unique(shown, axis=0, return_counts=True)
    assert sorted(counts) == [4] * 10 + [8] * 10
    assert 0.2 < shown.mean() < 0.28  # 23.9 % of pixels are lit in the real session


def test_random_patterns_are_half_lit_and_never_repeated():
    shown = np.array([p.reshape(-1) for run in range(1, 21) for p in patterns_of("random", run, 0)])
    assert len(np.unique(shown, axis=0)) == 440
    assert shown.mean() == pytest.approx(0.5, abs=0.01)


def test_every_kind_has_five_figures_that_differ():
    for kind in KINDS:
        assert len({figure.tobytes() for figure in figures(kind)}) == 5
    assert 0.1 < np.mean(figures("thin")) < 0.14  # 12.2 % in the real session


def test_voxels_are_as_many_as_the_real_ones_and_see_their_side():
    voxels = draw_voxels(1.0, 0)
    assert voxels.mask.sum() == pytest.approx(5438, rel=0.05)
    assert np.isin(voxels.area, ["V1d", "V1v"]).sum() == pytest.approx(967, rel=0.05)
    assert set(voxels.area) == set(AREAS)
    peak = voxels.fields.argmax(axis=1) % 10  # columns, from left to right
    inner = (voxels.eccentricity > 1) & (voxels.eccentricity < 4)
    assert np.corrcoef(peak[inner], voxels.left[inner])[0, 1] > 0.8  # the left hemisphere sees the right half


@pytest.mark.slow
def test_repeats_are_as_alike_as_in_the_real_v1():
    """r = 0.33 over 797 voxels of V1, less the mean response: measured in the figure session of Miyawaki et al. (2008)."""
    voxels = draw_voxels(1.0, 0)
    v1 = np.isin(voxels.area, ["V1d", "V1v"])
    rows, shown = [], []
    for run in range(1, 13):
        patterns = patterns_of("figure", run, 0)
        labels = labels_of("figure", patterns)
        raw = _volumes(voxels, labels, np.random.default_rng(run))[voxels.mask].T.astype(float)
        rows.append(percent_change(detrended(raw), stimulus_blocks(labels, 2, by_volume=False))[:, v1])
        shown += [pattern.tobytes() for pattern in patterns]
    responses = np.concatenate(rows)
    r = np.corrcoef(responses - responses.mean(axis=0))
    same = np.array([[a == b for b in shown] for a in shown]) & ~np.eye(len(shown), dtype=bool)
    assert r[same].mean() == pytest.approx(0.34, abs=0.02)
    assert r[~same].mean() < 0.02


def test_the_folder_is_nilearns(tmp_path):
    simulate_miyawaki(tmp_path, scale=0.3, random_runs=2, figure_runs=1)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "simulated.json",
        "bg.nii.gz",
        *(f"func/data_random_run{k:02}.nii.gz" for k in (1, 2)),
        *(f"label/data_random_run{k:02}_label.csv" for k in (1, 2)),
        "func/data_figure_run01.nii.gz",
        "label/data_figure_run01_label.csv",
        "mask/mask.nii.gz",
        *(f"mask/{side}{name}.nii.gz" for side in ("LH", "RH") for name in (*AREAS, *RINGS)),
    }
    labels = np.loadtxt(tmp_path / "label" / "data_random_run02_label.csv", delimiter=",")
    first = patterns_of("random", 2, 0)[0]
    np.testing.assert_array_equal(labels[10].reshape(10, 10, order="F"), first)
    masks = [nibabel.load(tmp_path / "mask" / f"{side}{name}.nii.gz").get_fdata() for side in ("LH", "RH") for name in AREAS]  # fmt: skip
    np.testing.assert_array_equal(np.sum(masks, axis=0), nibabel.load(tmp_path / "mask" / "mask.nii.gz").get_fdata())


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        simulate_miyawaki(tmp_path / name, scale=0.25, random_runs=1, figure_runs=1, seed=3)
    for path in (tmp_path / "a").rglob("*.gz"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize("given", [{"scale": 0.1}, {"random_runs": 0}, {"figure_runs": 13}, {"seed": -1}])
def test_what_is_out_of_range_is_refused(tmp_path, given):
    with pytest.raises(SettingsError, match=next(iter(given))):
        simulate_miyawaki(tmp_path, **given)
