"""Losses equal a hand computation, and the gradient of each reaches every layer of the generator."""

import math

import numpy as np
import pytest

from leanrecon.decoders.gan.losses import (
    GENERATED,
    REAL,
    Losses,
    Pausing,
    cross_entropy,
    published_factors,
    relative_factors,
)
from leanrecon.decoders.gan.network import discriminator, generator
from leanrecon.decoders.gan.settings import GANSettings
from leanrecon.decoders.gan.training import Colours, Networks, one_step

SMALL = {"size": 32, "width": 8, "hidden": 12, "discriminator_width": 8}


def compare(images):
    """A comparator of 4 × 4 squares of pixels, squared, so that it is not linear."""
    from torch.nn import functional

    return functional.avg_pool2d(images, 8).flatten(1) ** 2


def networks_of(losses, discriminates=True, **changes):
    import torch

    torch.manual_seed(3)
    settings = GANSettings(**SMALL | changes)
    made = generator(10, hidden=settings.hidden, size=32, width=8)
    told = discriminator(32, 8) if discriminates else None
    return Networks(made, told, Colours(np.full(3, 0.4), 0.25, 32, "cpu"), losses, settings, "cpu")


def batch_of(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 10)).astype(np.float32), rng.random((n, 3, 32, 32), np.float32)


@pytest.mark.slow
def test_published_losses_are_half_of_sums_of_squares_over_images():
    import torch

    rng = np.random.default_rng(0)
    made, true = rng.random((2, 5, 3, 32, 32))
    weights = {"image": 2e-6, "feature": 0.01, "adversarial": 100.0}
    losses = Losses(**published_factors(weights, 32, 48), compare=compare)
    found = losses.of_images(torch.from_numpy(made), torch.from_numpy(true))
    assert found["image"].item() == pytest.approx(2e-6 * np.sum((255 * (made - true)) ** 2) / (2 * 5), rel=1e-9)
    squares = [np.square(a.reshape(5, 3, 4, 8, 4, 8).mean(axis=(3, 5))) for a in (made, true)]
    assert found["feature"].item() == pytest.approx(0.01 * np.sum((squares[0] - squares[1]) ** 2) / (2 * 5), rel=1e-9)
    logits = rng.standard_normal((7, 2))
    for label in (REAL, GENERATED):
        expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, label])
        assert cross_entropy(torch.from_numpy(logits), label).item() == pytest.approx(expected, rel=1e-9)


def test_the_published_weights_in_mean_squared_errors():
    found = published_factors({"image": 2e-6, "feature": 0.01, "adversarial": 100.0}, 227, 9216)
    assert found["image"] / 255**2 == pytest.approx(0.155, abs=5e-4)
    assert found["feature"] == pytest.approx(46.08)
    assert found["adversarial"] == 100


def test_relative_losses_are_one_for_a_constant_guess():
    found = relative_factors({"image": 1.0, "feature": 0.5, "adversarial": 0.1}, 0.04, 7.0)
    assert found == {"image": 25.0, "feature": pytest.approx(0.5 / 7), "adversarial": 0.1}
    assert relative_factors({"image": 1.0, "feature": 0.0, "adversarial": 0.0}, 0.04, 0.0)["feature"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "feature", "adversarial"])
def test_gradients_of_each_loss_are_finite_differences_in_every_layer(name):
    import torch

    factors = {"image": 0.0, "feature": 0.0, "adversarial": 0.0} | {name: 2.0}
    networks = networks_of(Losses(**factors, compare=compare))
    networks.together.double().eval()
    networks.colours.mean = networks.colours.mean.double()
    x, true = (torch.from_numpy(array).double() for array in batch_of())

    def loss():
        made = networks.generate(x)
        found = networks.losses.of_images(made, true)
        found["adversarial"] = networks.losses.adversarial * networks.tell(made, REAL)
        return found[name]

    loss().backward()
    rng = np.random.default_rng(1)
    for layer, parameter in networks.learning.named_parameters():
        direction = torch.from_numpy(rng.standard_normal(parameter.shape))
        wanted = (parameter.grad * direction).sum().item()
        values = []
        for step in (1e-7, -2e-7):  # small, for few kinks of activations between
            parameter.data += step * direction
            values.append(loss().item())
        parameter.data += 1e-7 * direction
        assert (values[0] - values[1]) / 2e-7 == pytest.approx(wanted, rel=1e-3, abs=1e-9), layer
        assert abs(wanted) > 1e-9, layer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "feature", "adversarial"])
def test_a_step_by_any_one_loss_moves_every_layer_of_the_generator(name):
    factors = {"image": 0.0, "feature": 0.0, "adversarial": 0.0} | {name: 1.0}
    networks = networks_of(Losses(**factors, compare=compare), discriminates=name == "adversarial")
    before = {key: value.clone() for key, value in networks.together.state_dict().items()}
    seen = one_step(networks, *batch_of(), networks.optimizer(), Pausing(), 0, 0)
    assert seen[name] > 0
    after = networks.together.state_dict()
    assert all((after[key] != before[key]).any() for key in before if "weight" in key)


@pytest.mark.slow
def test_the_discriminator_sees_levels_less_the_mean_colour():
    networks, seen = networks_of(Losses(1.0, 0.0, 1.0)), []
    networks.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().numpy()))
    given, true = batch_of()
    one_step(networks, given, true, networks.optimizer(), Pausing(), 0, 0)
    assert len(seen) == 3
    np.testing.assert_allclose(seen[0], 255 * true - 0.4 * 255, atol=1e-3)
    np.testing.assert_array_equal(seen[1], seen[2])
    assert 10 < seen[1].std() < 200


@pytest.mark.slow
def test_who_waits_does_not_learn():
    networks = networks_of(Losses(1.0, 0.0, 1.0))
    optimizer = networks.optimizer()
    for pausing, still, moving in (
        (Pausing(discriminator=False), "discriminator", "generator"),
        (Pausing(generator=False), "generator", "discriminator"),
    ):
        before = {key: value.clone() for key, value in networks.together.state_dict().items()}
        one_step(networks, *batch_of(), optimizer, pausing, 0, 1)
        after = networks.together.state_dict()
        assert all((after[key] == before[key]).all() for key in before if key.startswith(still))
        assert any((after[key] != before[key]).any() for key in before if key.startswith(moving))


@pytest.mark.slow
def test_parts_of_a_batch_give_the_step_of_the_batch():
    import torch

    weights = []
    for at_once in (None, 4, 1):
        networks = networks_of(Losses(1.0, 1.0, 0.0, compare), discriminates=False, at_once=at_once)
        optimizer = torch.optim.SGD(networks.learning.parameters(), lr=1.0)
        one_step(networks, *batch_of(), optimizer, Pausing(), 0, 0)
        weights.append(networks.learning.state_dict())
    for other in weights[1:]:
        for name, value in weights[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_discriminator_learns_by_adam_with_decay_and_the_generator_without():
    networks = networks_of(Losses(1.0, 0.0, 1.0), weight_decay=0.25)
    groups = networks.optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.25]
    assert {group["betas"] for group in groups} == {(0.9, 0.999)}


RULES = [
    # before (discriminator, generator), real, generated, fooled, after
    ((True, True), 0.02, 0.02, 1.0, (False, True)),  # ratio .04: the discriminator is ahead
    ((True, True), 0.2, 0.2, 1.0, (True, True)),
    ((False, True), 0.2, 0.2, 1.0, (False, True)),  # .4: it still waits
    ((False, True), 0.3, 0.3, 1.0, (True, True)),  # .6
    ((True, True), 3.0, 8.0, 1.0, (True, False)),  # 11: the generator is ahead
    ((True, False), 3.0, 3.0, 1.0, (True, False)),  # it comes back by the first two rules alone
    ((True, False), 0.02, 0.02, 1.0, (False, True)),
    ((False, True), 8.0, 8.0, 1.0, (True, False)),  # both rules in turn
    ((True, True), 0.5, 0.5, 0.0, (True, False)),
]


@pytest.mark.parametrize(("before", "real", "made", "fooled", "after"), RULES)
def test_the_one_that_is_ahead_waits(before, real, made, fooled, after):
    pausing = Pausing(*before)
    pausing.after(real, made, fooled)
    assert (pausing.discriminator, pausing.generator) == after


def test_the_losses_told_are_those_of_the_parts():
    assert math.isclose(sum(GANSettings(comparator="none").weights.values()), 1.1)
