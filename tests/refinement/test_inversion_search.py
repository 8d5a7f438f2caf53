"""The search: Adam as PyTorch has it, minima in closed form, restarts, first images, and what is not finite."""

import contextlib

import numpy as np
import pytest
from pydantic import BaseModel

pytest.importorskip("torch")

import torch

from leanrecon import kinds
from leanrecon.errors import InputError, SettingsError
from leanrecon.features.plan import Cost
from leanrecon.refinement.inversion.batch import Look, Searcher
from leanrecon.refinement.inversion.distance import ByFeatures, ByResponses, distance_of, whitened
from leanrecon.refinement.inversion.networks import added, loaded
from leanrecon.refinement.inversion.search import Problem, search

RNG = np.random.default_rng(5)


def problem(distance, d, scale=None):
    scale = torch.ones(d) if scale is None else torch.tensor(scale)
    return Problem(lambda z: z, distance, torch.zeros(d), scale, contextlib.nullcontext)


def test_steps_are_those_of_adam():
    target, start = torch.tensor(RNG.standard_normal((3, 4))), torch.tensor(RNG.standard_normal((3, 4)))

    def distance(images):
        return (images - target).pow(4).sum(1)

    found = search(problem(distance, 4), start, steps=25, rate=0.05, penalty=0.3)
    z = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=0.05)
    for _ in range(25):
        adam.zero_grad()
        (distance(z) + 0.3 * z.square().mean(1)).sum().backward()
        adam.step()
    assert torch.allclose(found.latents, z.detach(), atol=1e-9)
    assert [len(curve) for curve in found.curve] == [26] * 3
    assert found.distance.tolist() == pytest.approx([curve[-1] for curve in found.curve])


def test_the_prior_shrinks_the_minimum_as_a_ridge_does():
    target = torch.tensor(RNG.standard_normal((2, 5)))
    scale = np.array([1.0, 2.0, 0.5, 1.0, 3.0])
    found = search(
        problem(lambda x: (x - target).square().mean(1), 5, scale),
        torch.zeros(2, 5),
        steps=3000,
        rate=0.02,
        penalty=0.5,
    )
    assert found.latents.numpy() == pytest.approx((target / (1 + 0.5 / torch.tensor(scale) ** 2)).numpy(), abs=5e-3)


def test_no_image_depends_on_the_others_in_its_batch():
    target = torch.tensor(RNG.standard_normal((4, 3)))
    start = torch.tensor(RNG.standard_normal((4, 3)))
    whole = search(problem(lambda x: (x - target).square().sum(1), 3), start, steps=9, rate=0.1, penalty=0.1)
    for k in range(4):
        one = search(
            problem(lambda x, k=k: (x - target[k]).square().sum(1), 3), start[k : k + 1], steps=9, rate=0.1, penalty=0.1
        )
        assert torch.allclose(one.latents[0], whole.latents[k], atol=1e-12)


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (
            lambda x: x.sum(1) * float("nan"),
            "the distance from what was predicted and its gradient is not finite after 0",
        ),
        (lambda x: (x.square().sum(1)).sqrt(), "its gradient is not finite after 0 steps"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_step(distance, words):
    with pytest.raises(InputError, match=words):
        search(problem(distance, 2), torch.zeros(1, 2), steps=3, rate=0.1, penalty=0.0)


# Distances


def test_features_are_compared_by_how_well_they_are_predicted():
    mean, deviation = np.array([1.0, 2, 0]), np.array([2.0, 4, 0])
    carried = np.array([0.5, 0.25, 0])
    f, y = np.array([[2.0, 4, 9]]), np.array([[4.0, 0, 1]])
    learned = {"mean": mean, "deviation": deviation, "carried": carried}
    squared, cosine = (distance_of(learned, cosine=value, device="cpu") for value in (False, True))
    assert isinstance(squared, ByFeatures)
    by_hand = (0.5 * (2 / 2) ** 2 + 0.25 * (4 / 4) ** 2) / 0.75
    assert squared(torch.tensor(f), torch.tensor(y)).item() == pytest.approx(by_hand)
    a, b = np.array([0.5 * 0.5**0.5, 0.5 * 0.5]), np.array([1.5 * 0.5**0.5, -0.5 * 0.5])
    by_hand = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine(torch.tensor(f), torch.tensor(y)).item() == pytest.approx(by_hand)


def test_responses_are_compared_as_they_were_whitened():
    learned = {
        "map": RNG.standard_normal((3, 2)).astype(np.float32), "offset": np.array([1, -1], np.float32),
        "voxels": np.array([4, 7]), "beta_mean": np.array([1, 2], np.float32),
        "beta_deviation": np.array([2, 4], np.float32), "whiten": np.array([[1, 0.5], [0, 2]], np.float32),
    }  # fmt: skip
    betas = RNG.standard_normal((2, 9)).astype(np.float32)
    measured = whitened(learned, betas)
    assert measured == pytest.approx(
        np.stack([(betas[:, 4] - 1) / 2, (betas[:, 4] - 1) / 4 + (betas[:, 7] - 2) / 2], 1)
    )
    distance, f = distance_of(learned, cosine=False, device="cpu"), RNG.standard_normal((2, 3)).astype(np.float32)
    assert isinstance(distance, ByResponses)
    by_hand = ((np.array([1, -1]) + f @ learned["map"] - measured) ** 2).mean(1)
    assert distance(torch.tensor(f), torch.tensor(measured)).numpy() == pytest.approx(by_hand, rel=1e-5)


# Images


class LinearSettings(BaseModel):
    kind: str = "linear"
    precision: str = "float16"


class Linear:
    """Images of 4 × 4 pixels, half of whose 16 latents are their upper rows; its decoder can't draw lower ones."""

    library, differentiable, decodes = "torch", True, True

    def __init__(self, settings, *, name="linear", seed=0, device="cpu"):
        self.settings, self.name, self.seed, self.device = settings, name, seed, device

    def rows_of(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels, (4, 4)).mean(1)[:, :2].reshape(len(pixels), -1)

    def pixels_of(self, rows):
        top = rows.reshape(-1, 1, 2, 4).expand(-1, 3, -1, -1)
        return torch.cat([top, torch.full_like(top, 0.5)], 2)

    def dims(self, shape):
        return 8

    def gradient_cost(self, use):
        return Cost(0, 100, 1)

    def decoded_shape(self, shape):
        return 4, 4, 3

    def made_of(self):
        return {"kind": "linear"}

    def decode_made_of(self):
        return {}


def settings_of(**table):
    table = {"kind": "inversion", "decoder": "linear", "features": "linear"} | table
    return kinds.settings_of("generators", table, "refine.", default="none")


LEARNED = {
    "centre": np.full(8, 0.4, np.float32), "scale": np.full(8, 0.2, np.float32), "mean": np.full(8, 0.4, np.float32),
    "deviation": np.full(8, 0.2, np.float32), "carried": np.ones(8, np.float32),
}  # fmt: skip


def searcher(seed=1, **table):
    space = Linear(LinearSettings())
    return Searcher(settings_of(**table), loaded(space, space), LEARNED, seed)


FIRST = [RNG.integers(30, 220, (4, 4, 3), np.uint8) for _ in range(3)]
TARGET = RNG.uniform(0.2, 0.8, (3, 8)).astype(np.float32)


def test_networks_are_searched_in_float32():
    space = Linear(LinearSettings())
    networks = loaded(space, space)
    assert {one.settings.precision for one in (networks.decoder, networks.encoder, networks.features)} == {"float32"}
    assert networks.encoder is networks.features is not networks.decoder


def test_without_a_step_first_images_stay_as_they_are():
    found = searcher()([0, 1, 2], FIRST, TARGET, 0)
    assert all(np.array_equal(image, first) for image, first in zip(found.images, FIRST, strict=True))
    through = searcher(keep=False)([0, 1, 2], FIRST, TARGET, 0)
    assert (through.images[0][2:] == 128).all()  # what the decoder does not draw is lost


def test_a_search_adds_what_it_changed_and_reaches_the_target():
    found = searcher(penalty=0.0, rate=0.1)([0, 1, 2], FIRST, TARGET, 60)
    for image, first, target in zip(found.images, FIRST, TARGET, strict=True):
        assert np.array_equal(image[2:], first[2:])
        assert image[:2].mean(2) / 255 == pytest.approx(target.reshape(2, 4), abs=0.02)
    assert all(curve[-1] < 1e-3 < curve[0] for curve in found.distance)


def test_a_large_penalty_leaves_first_images_and_random_starts_go_to_the_mean():
    found = searcher(penalty=1e5)([0, 1, 2], FIRST, TARGET, 20)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(found.images, FIRST, strict=True)) <= 2
    found = searcher(penalty=1e5, start="random", rate=0.05)([0], FIRST[:1], TARGET[:1], 80)
    assert found.images[0][:2] / 255 == pytest.approx(0.4, abs=0.02)


def test_the_restart_of_the_least_distance_is_kept_whatever_its_prior():
    every = [searcher(start="random", restarts=k, penalty=50.0)([0, 1, 2], FIRST, TARGET, 4) for k in (1, 2, 5)]
    ends = np.array([[curve[-1] for curve in found.distance] for found in every])
    assert (np.diff(ends, axis=0) <= 0).all()
    assert ends[2].sum() < ends[0].sum()
    assert max(every[2].restart) > 0
    again = searcher(start="random", restarts=5, penalty=50.0)([1], FIRST[1:2], TARGET[1:2], 4)
    assert np.array_equal(again.images[0], every[2].images[1])  # drawn from the seed and the row
    other = searcher(seed=2, start="random", restarts=5, penalty=50.0)([1], FIRST[1:2], TARGET[1:2], 4)
    assert other.distance != again.distance


def test_images_are_seen_at_the_steps_that_are_asked_for():
    seen = {}
    searcher()([0, 1, 2], FIRST, TARGET, 5, Look((0, 3), lambda step, images: seen.update({step: images})))
    assert list(seen) == [0, 3]
    assert np.array_equal(seen[0][1], FIRST[1])
    assert np.array_equal(seen[3][1], searcher()([0, 1, 2], FIRST, TARGET, 3).images[1])


def test_a_change_is_enlarged_to_larger_first_images_and_grey_ones_stay_grey():
    first = np.full((8, 8, 1), 100, np.uint8)
    assert (added(first, np.full((3, 4, 4), 0.1, np.float32)) == 126).all()
    assert added(first, np.full((3, 4, 4), 1.0, np.float32)).max() == 255
    grey = searcher()([0], [first], TARGET[:1], 2).images[0]
    assert grey.shape == (8, 8, 1)


# Settings


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"match": "responses", "baselines": ["oracle"]}, "oracle draws from true features"),
        ({"match": "responses", "measure": "cosine"}, "compares features"),
        ({"steps": -1}, "refine.steps"),
        ({"rate": 0}, "refine.rate"),
        ({"restarts": 0}, "refine.restarts"),
        ({"decoder": None}, "refine.decoder"),
        ({"stepps": 3}, "refine.stepps is unknown"),
    ],
)
def test_settings_that_can_not_work_are_refused(table, words):
    with pytest.raises(SettingsError, match=words):
        settings_of(**table)


def test_every_setting_has_one_sentence():
    for name, field in kinds.get("generators", "inversion").Settings.model_fields.items():
        assert field.description, name
        assert field.description.rstrip().endswith("."), name
        assert len(field.description.split()) <= 25, name


def test_spaces_without_gradients_or_decoder_are_refused():
    generator = kinds.get("generators", "inversion")(settings_of())
    space = Linear(LinearSettings())
    space.decodes = False
    generator.use({"linear": space})
    with pytest.raises(SettingsError, match="which has no decoder"):
        generator.check()
    space.differentiable = False
    with pytest.raises(SettingsError, match="gives no gradients"):
        generator.check()
