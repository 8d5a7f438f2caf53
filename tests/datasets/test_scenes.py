import re
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from leanrecon.datasets.simulated.canvas import Canvas
from leanrecon.datasets.simulated.scenes import (
    BACKDROPS,
    GROUNDS,
    HELD_OUT,
    MODELS_SEED,
    SKIES,
    TEST,
    WORDS,
    Scene,
    compose,
    content_words,
    describe,
    draw_scene,
    paint,
)
from leanrecon.datasets.simulated.things import COLOURS, KINDS, Thing, paint_thing

SCENES = [compose(0, i) for i in range(400)]


def test_a_scene_depends_on_its_two_numbers_alone():
    first = [draw_scene(5, i) for i in range(6)]
    again = {i: draw_scene(5, i) for i in (4, 0, 5, 2, 1, 3)}
    for i, (image, caption) in enumerate(first):
        assert (image.dtype, image.shape) == (np.dtype(np.uint8), (64, 64, 3))
        np.testing.assert_array_equal(again[i][0], image)
        assert again[i][1] == caption


def test_scenes_differ_between_indices_and_seeds():
    images = [draw_scene(seed, i, 32)[0].tobytes() for seed in (0, 1) for i in range(30)]
    assert len(set(images)) == 60


RECORDED = {
    1: "A purple boat on the left and a green balloon on the right, on the sea at night.",
    2: "A green pine on the left and a black sheep on the right, on a meadow in the morning.",
    TEST + 1: "A red balloon on the left, a brown duck in the middle and a green boat on the right, on the sea "
    "in front of mountains by day.",
}


@pytest.mark.parametrize("index", RECORDED)
def test_a_scene_keeps_its_caption_from_version_to_version(index):
    assert draw_scene(0, index, 16)[1] == RECORDED[index]


# What models learn from, and what they are tested on


@pytest.fixture(scope="module")
def learnt() -> list[Scene]:
    return [compose(seed, i) for seed in (0, MODELS_SEED) for i in (*range(1500), *range(TEST - 500, TEST))]


@pytest.fixture(scope="module")
def tested() -> list[Scene]:
    return [compose(0, i) for i in range(TEST, TEST + 4000)]


def things_in(scenes: list[Scene]) -> Counter[tuple[str, str]]:
    return Counter((thing.kind, thing.colour) for scene in scenes for thing in scene.things)


@pytest.mark.slow
def test_what_is_held_out_is_in_no_scene_to_learn_from_and_in_many_to_test_on(learnt, tested):
    assert not HELD_OUT & things_in(learnt).keys()
    shown = things_in(tested)
    assert min(shown[pair] for pair in HELD_OUT) > 50
    some = np.mean([any((thing.kind, thing.colour) in HELD_OUT for thing in scene.things) for scene in tested])
    assert 0.3 < some < 0.45, "a scene to test on in three has a thing of a colour that its kind never had"


def test_every_kind_and_every_colour_that_is_tested_can_be_learnt(learnt):
    pairs = things_in(learnt).keys()
    assert {kind for kind, _ in HELD_OUT} <= {kind for kind, _ in pairs}, "in another colour"
    assert {colour for _, colour in HELD_OUT} <= {colour for _, colour in pairs}, "on another thing"
    assert {(kind, colour) for kind, what in KINDS.items() for colour in what.colours} == pairs | HELD_OUT


def test_scenes_to_learn_from_and_to_test_on_differ_in_nothing_else(learnt, tested):
    def alike(*of: Callable[[Scene], Hashable]) -> float:
        """Least p of chi-square tests on the counts of each thing told of a scene."""
        found = []
        for told in of:
            counts = [Counter(told(scene) for scene in scenes) for scenes in (learnt, tested)]
            names = sorted(counts[0].keys() | counts[1].keys(), key=repr)
            found.append(chi2_contingency([[count[name] for name in names] for count in counts]).pvalue)
        return min(found)

    whole = alike(
        lambda scene: (scene.time, scene.ground), lambda scene: (scene.ground, scene.backdrop),
        lambda scene: len(scene.things), lambda scene: round(scene.horizon, 1), lambda scene: scene.orb is None,
        lambda scene: len(scene.clouds),
    )  # fmt: skip
    assert whole > 0.01
    assert alike(*(lambda scene, kind=kind: kind in content_words(scene) for kind in KINDS)) > 0.01
    assert alike(lambda scene: round(max(thing.size for thing in scene.things), 1)) > 0.01
    shown = [things_in(scenes) for scenes in (learnt, tested)]
    for kind, what in KINDS.items():
        left = [colour for colour in dict.fromkeys(what.colours) if (kind, colour) not in HELD_OUT]
        if len(left) > 1:
            counts = [[count[kind, colour] for colour in left] for count in shown]
            assert chi2_contingency(counts).pvalue > 0.01, f"colours of a {kind}"


@pytest.mark.slow
def test_no_scene_of_the_models_is_one_of_another_subject():
    of_models = {draw_scene(MODELS_SEED, i, 16)[0].tobytes() for i in range(300)}
    of_subjects = {
        draw_scene(seed, first + i, 16)[0].tobytes() for seed in (0, 1) for first in (0, TEST) for i in range(150)
    }
    assert len(of_models) == 300
    assert not of_models & of_subjects


@pytest.mark.parametrize("index", range(8))
def test_every_size_shows_the_same_scene(index):
    small, large = (draw_scene(2, index, size)[0].astype(float) for size in (48, 96))
    shrunk = large.reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 5
    assert np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("scene", SCENES[:40], ids=lambda scene: describe(scene))
def test_the_sentence_names_what_is_there(scene):
    sentence = describe(scene)
    assert re.fullmatch(r"[A-Z][a-z ,]+\.", sentence)
    for thing in scene.things:
        where = ["on the left", "in the middle", "on the right"][int(thing.x * 3)]
        assert re.search(rf"\b[Aa]n? {thing.colour} {thing.kind} {where}", sentence)
    named = {word for word in WORDS if re.search(rf"\b{word}\b", sentence)}
    assert named - {"day"} == content_words(scene) - {"day"}  # an overcast day is named by both words


def test_scenes_vary_in_all_that_they_are_made_of():
    shown = Counter(word for scene in SCENES for word in content_words(scene))
    assert set(shown) == set(WORDS)
    assert min(shown.values()) >= 10
    assert {scene.backdrop for scene in SCENES} == set(BACKDROPS)
    assert {(scene.time, scene.ground) for scene in SCENES} == {(time, ground) for time in SKIES for ground in GROUNDS}
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3}
    horizons, places = [scene.horizon for scene in SCENES], [thing.x for scene in SCENES for thing in scene.things]
    assert np.std(horizons) > 0.08
    assert np.histogram(places, 5, (0, 1))[0].min() > len(places) / 10


def test_things_stand_where_they_belong_and_are_not_repeated():
    for scene in SCENES:
        kinds = [thing.kind for thing in scene.things]
        assert len(set(kinds)) == len(kinds)
        assert all(scene.ground in KINDS[kind].grounds for kind in kinds)
        for thing in scene.things:
            assert (thing.y < scene.horizon) == (thing.kind == "balloon")
            assert thing.colour in KINDS[thing.kind].colours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("details", [0.05, 0.5, 0.95])
def test_a_thing_is_painted_at_its_place_and_in_its_colour(kind, details):
    rgb = []
    for colour in ("red", "blue"):
        canvas = Canvas.blank(64, np.ones(3, np.float32))
        canvas.rgb[:] = 0.5
        paint_thing(canvas, Thing(kind, colour, 0.4, 0.8, 0.4, (details,) * 6), night=False)
        rgb.append(canvas.rgb)
    assert all(picture.min() >= 0 and picture.max() <= 1.2 for picture in rgb)
    y, x = np.nonzero(np.abs(rgb[0] - 0.5).max(-1) > 0.05)
    assert abs(x.mean() / 64 - 0.4) < 0.08
    assert 0.5 < y.mean() / 64 < 0.82
    assert y.min() / 64 > 0.8 - 1.25 * 0.4
    assert len(x) > 0.02 * 64**2
    difference = (rgb[0] - rgb[1])[np.abs(rgb[0] - rgb[1]).max(-1) > 0.1]
    toward = np.array(COLOURS["red"]) - np.array(COLOURS["blue"])
    assert len(difference) > 0.3 * len(x)
    assert np.corrcoef(difference.mean(0), toward)[0, 1] > 0.9


def test_a_window_is_painted_like_the_whole():
    whole, part = (Canvas.blank(40, np.ones(3, np.float32)) for _ in range(2))
    whole.cover(whole.ellipse(0.3, 0.6, 0.1, 0.2), (1, 0.5, 0))
    window = part.window(0.2, 0.4, 0.4, 0.8)
    window.cover(window.ellipse(0.3, 0.6, 0.1, 0.2), (1, 0.5, 0))
    np.testing.assert_array_equal(part.rgb, whole.rgb)
    assert whole.rgb[..., 0].mean() == pytest.approx(np.pi * 0.1 * 0.2, rel=0.02)  # edges share pixels by area
    outside = part.window(1.2, 1.2, 1.4, 1.4)
    outside.cover(outside.box(1.2, 1.2, 1.4, 1.4), (1, 1, 1))
    np.testing.assert_array_equal(part.rgb, whole.rgb)


def test_night_is_darker_than_day():
    brightness = {
        time: np.mean([paint(replace(scene, time=time), 24).mean() for scene in SCENES[:12]]) for time in SKIES
    }
    assert min(brightness, key=lambda time: brightness[time]) == "night"
    assert brightness["night"] < 0.5 * brightness["day"]
