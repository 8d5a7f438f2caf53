"""Repeats of an image are told from different images, and unrelated data are found to be at chance."""

import numpy as np
import pytest

from leanrecon.datasets.nsd.simulate import draw_design
from leanrecon.datasets.reliability import CLEAR, FEWEST, repeat_pairs, repeat_reliability

TRIALS, VOXELS = 1500, 80


@pytest.fixture(scope="module")
def stimulus() -> np.ndarray:
    return draw_design(0)[0][:TRIALS]


SESSION = np.repeat([1, 2], TRIALS // 2)


def responses(stimulus: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((stimulus.max() + 1, VOXELS))
    return images[stimulus] + noise * rng.standard_normal((len(stimulus), VOXELS))


def test_pairs_are_those_of_a_plain_loop(stimulus):
    shown: dict[int, list[int]] = {}
    for trial, image in enumerate(stimulus.tolist()):
        shown.setdefault(image, []).append(trial)
    expected = {(trials[0], trials[1]) for trials in shown.values() if len(trials) > 1}
    first, second, other = repeat_pairs(stimulus)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert (stimulus[other] != stimulus[first]).all()
    assert np.abs(other - second).max() <= 3


@pytest.mark.parametrize(
    ("stimulus", "pairs"),
    [([], []), ([4], []), ([4, 5, 6], []), ([4, 5, 4], [(0, 2, 1)]), ([4, 4, 4], []), ([4, 4, 5], [(0, 1, 2)])],
)
def test_pairs_of_few_trials(stimulus, pairs):
    found = repeat_pairs(np.array(stimulus, int))
    assert list(zip(*(part.tolist() for part in found), strict=True)) == pairs


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_repeats_correlate_as_their_noise_ceiling_says(stimulus, noise):
    found = repeat_reliability(responses(stimulus, noise), stimulus, SESSION)
    ceiling = 1 / (1 + noise**2)  # r of two repeats of signal variance 1 and noise variance noise²
    assert found.matched == pytest.approx(ceiling, abs=0.03)
    assert found.mismatched == pytest.approx(0, abs=0.02)
    assert found.above_chance


def test_unrelated_trials_are_at_chance_as_often_as_theory_says(stimulus):
    scores = []
    for seed in range(60):
        data = responses(stimulus, 1.0, seed)
        wrong = np.random.default_rng(seed).permutation(stimulus)
        found = repeat_reliability(data, wrong, SESSION)
        scores.append((found.matched - found.mismatched) / found.error)
    assert np.abs(np.mean(scores)) < 4 / np.sqrt(len(scores))
    assert np.std(scores) == pytest.approx(1, abs=0.3)
    assert sum(score > CLEAR for score in scores) <= 1


@pytest.mark.parametrize("shift", [1, -1, 10, 750])
def test_trials_that_are_shifted_against_their_images_are_at_chance(stimulus, shift):
    """Off by one trial, by some, by a session: what a wrong file or a lost trial does."""
    found = repeat_reliability(np.roll(responses(stimulus, 1.0), shift, axis=0), stimulus, SESSION)
    assert found.judged
    assert not found.above_chance


def test_a_slow_drift_is_not_taken_for_reliability(stimulus):
    rng = np.random.default_rng(4)
    drift = np.cumsum(rng.standard_normal((TRIALS, VOXELS)), axis=0) * 0.3
    level = np.repeat(rng.standard_normal((2, VOXELS)) * 20, TRIALS // 2, axis=0)
    found = repeat_reliability(rng.standard_normal((TRIALS, VOXELS)) + drift + level, stimulus, SESSION)
    assert not found.above_chance


def test_constant_voxels_count_for_nothing(stimulus):
    data = responses(stimulus, 1.0)
    padded = np.concatenate([data, np.zeros((TRIALS, 30)), np.full((TRIALS, 5), 7.0)], axis=1)
    found, plain = (repeat_reliability(x, stimulus, SESSION) for x in (padded, data))
    assert found.above_chance
    assert found.matched == pytest.approx(plain.matched, abs=0.02)


def test_integers_are_taken_as_they_are(stimulus):
    data = np.rint(responses(stimulus, 1.0) * 300)
    whole, real = (repeat_reliability(data.astype(t), stimulus, SESSION) for t in (np.int16, np.float32))
    assert whole == real


def test_too_few_repeats_are_not_judged():
    stimulus = np.r_[np.arange(50), np.arange(FEWEST - 1)]
    found = repeat_reliability(responses(stimulus, 1.0), stimulus, np.ones(len(stimulus)))
    assert (found.pairs, found.judged) == (FEWEST - 1, False)
    none = repeat_reliability(responses(stimulus[:50], 1.0), stimulus[:50], np.ones(50))
    assert (none.pairs, none.judged, none.above_chance) == (0, False, False)
    assert str(none) == "no image was shown twice"
