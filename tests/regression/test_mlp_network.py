"""The network and its losses beside formulas written out by hand."""

import math

import numpy as np
import pytest
import torch

from leanrecon.regression.mlp.network import loss_of, n_weights, residual_mlp, soft_clip, weight_shapes

pytestmark = pytest.mark.networks


def by_hand(x, w, blocks):
    """The network in NumPy, in float64."""

    def norm(h, name):
        centred = h - h.mean(axis=1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    def gelu(h):
        return h / 2 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))

    h = gelu(norm(x @ w["enter.weight"].T + w["enter.bias"], "enter_norm"))
    for k in range(blocks):
        h = h + gelu(norm(h, f"blocks.{k}.norm") @ w[f"blocks.{k}.linear.weight"].T + w[f"blocks.{k}.linear.bias"])
    return norm(h, "head_norm") @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_network_computes_its_formula(blocks):
    torch.manual_seed(blocks)
    network = residual_mlp(7, 5, hidden=6, blocks=blocks, dropout=0.4).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)  # norms of one and biases of zero would hide mistakes
    weights = {name: tensor.detach().numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    assert {name: array.shape for name, array in weights.items()} == weight_shapes(7, 5, 6, blocks)
    assert sum(a.size for a in weights.values()) == n_weights(7, 5, 6, blocks)
    x = np.random.default_rng(0).standard_normal((9, 7))
    with torch.no_grad():
        found = network(torch.from_numpy(x).float()).numpy()
    np.testing.assert_allclose(found, by_hand(x, weights, blocks), rtol=2e-5, atol=2e-5)


def test_dropout_is_at_work_while_learning_alone():
    network = residual_mlp(7, 5, hidden=64, blocks=2, dropout=0.5)
    x = torch.ones(2, 7)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_a_head_of_zeros_answers_zero_and_still_learns():
    network = residual_mlp(7, 5, hidden=6, blocks=1, dropout=0.0, zero_head=True)
    out = network(torch.randn(4, 7))
    assert not out.any()
    (out - 1).square().sum().backward()
    assert network.head.weight.grad.abs().sum() > 0


def soft_clip_by_hand(p, t, temperature):
    p, t = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (p, t))
    n, total = len(p), 0.0
    for i in range(n):
        like = [math.exp(t[i] @ t[j] / temperature) for j in range(n)]
        forward = [math.exp(p[i] @ t[j] / temperature) for j in range(n)]
        backward = [math.exp(p[j] @ t[i] / temperature) for j in range(n)]
        for j in range(n):
            share = like[j] / sum(like)
            total -= share * (math.log(forward[j] / sum(forward)) + math.log(backward[j] / sum(backward))) / 2
    return total / n


@pytest.mark.parametrize("temperature", [0.05, 0.125, 1.0])
def test_soft_clip_is_its_formula(temperature):
    rng = np.random.default_rng(3)
    p, t = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    found = soft_clip(torch.from_numpy(p), torch.from_numpy(t), temperature).item()
    assert found == pytest.approx(soft_clip_by_hand(p, t, temperature), rel=1e-9)


def test_soft_clip_is_least_where_predictions_are_the_truth():
    rng = np.random.default_rng(4)
    t = torch.from_numpy(rng.standard_normal((8, 5)))
    p = t.clone().requires_grad_()
    soft_clip(p, t, 0.125).backward()
    assert p.grad.abs().max() < 1e-12  # the cross-entropy of a distribution with itself is its minimum
    assert soft_clip(torch.roll(t, 1, 0), t, 0.125) > soft_clip(t, t, 0.125)


def test_the_contrastive_loss_compares_in_the_units_of_the_targets():
    rng = np.random.default_rng(5)
    p, t = (torch.from_numpy(rng.standard_normal((6, 4))).float() for _ in range(2))
    spread = torch.tensor([3.0, 1.0, 0.5, 0.1])
    found = loss_of("softclip", spread, temperature=0.2, contrast=0.7)(p, t).item()
    error = float(((p - t) ** 2).mean())
    assert found == pytest.approx(
        error + 0.7 * soft_clip_by_hand((p * spread).numpy(), (t * spread).numpy(), 0.2), rel=1e-5
    )
    assert loss_of("mse", spread, temperature=0.2, contrast=0.7)(p, t).item() == pytest.approx(error, rel=1e-6)
