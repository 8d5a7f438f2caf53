"""Every array that was recorded from the published code, told again by this one."""

import hashlib
import json
from collections import defaultdict

import numpy as np
import PIL
import pytest
from scipy.special import expit, logsumexp

torch = pytest.importorskip("torch")

from support.vdvae_models import recorded, recorded_config  # noqa: E402

from leanrecon.features.vdvae import VDVAE, VDVAESettings, VDVAESpace, mixture, network, noise  # noqa: E402
from leanrecon.images import resize  # noqa: E402

pytestmark = pytest.mark.networks

TINY_TOLERANCE = 1e-4  # float32 against float64 in the published code: 1e-6 for latents, 5e-6 for the state
NARROW_TOLERANCE = 2e-4  # likewise 5e-6 and 1.6e-5, of states up to 20

DRAWN = {f"eps_{i:02d}" for i in range(9)} | {f"first_k_eps_{i:02d}" for i in range(5, 9)} | {"dmol_eps", "dmol_u"}
"""The random numbers that the published code drew: given to ours, so that nothing depends on a generator."""


@pytest.fixture
def seen(monkeypatch):
    """What passes through the network's pieces, by their names, image after image as they go through it."""
    kept = defaultdict(list)

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*given, **options):
            result = original(*given, **options)
            kept[name].append((given, result))
            return result

        monkeypatch.setattr(owner, name, watched)

    for name in ("_convolution", "_activations", "_posterior", "_prior", "_with_latent", "_state"):
        watch(VDVAE, name)
    watch(mixture, "pixel_values")
    monkeypatch.setattr(network, "at_once_on_cpu", lambda config: 1)
    return kept


def blocks(calls, n):
    """The results of a piece that is called once a block, [block][number of the result], all images together."""
    by_block = defaultdict(list)
    for given, result in calls:
        by_block[given[1]].append(result if isinstance(result, tuple) else (result,))
    assert len(by_block) == n
    return [[np.concatenate(parts) for parts in zip(*by_block[i], strict=True)] for i in range(n)]


def together(calls):
    return np.concatenate([result for _, result in calls])


def divergence(q_mean, q_logstd, p_mean, p_logstd):
    """Kullback-Leibler divergence of two normal distributions, in nats, number by number."""
    squares = np.exp(2 * q_logstd) + (q_mean - p_mean) ** 2
    return p_logstd - q_logstd - 0.5 + 0.5 * squares / np.exp(2 * p_logstd)


def encoded_and_decoded(model, images, n, seen, **options):
    """Encode and decode again: the flat latents, and blockwise the posterior, the prior and the KL between them.

    Encoding stops at the last posterior; the way down with the same latents is the same, and tells the last prior too.
    """
    flat = model.encode(images, n, **options)
    posterior = blocks(seen["_posterior"], n)
    seen["_prior"].clear()
    seen["_with_latent"].clear()
    model.decode(flat)
    prior = blocks(seen["_prior"], n)
    kl = [divergence(*q, *p[:2]) for q, p in zip(posterior, prior, strict=True)]
    return flat, posterior, prior, kl


def nats_of_pixels(numbers, targets):
    """Mean negative log-likelihood of pixels from -1 to 1 under the mixture [n, h, w, 10·M], a pixel and colour.

    Salimans et al. 2017, section 2.1-2.2, in float64: a pixel has the probability of the 1/127.5 around it, the first
    and the last level all that is beyond them; where that is next to nothing, as published, the density is taken.
    """
    numbers, targets = numbers.astype(np.float64), targets.astype(np.float64)
    m = numbers.shape[-1] // 10
    logits, colours = numbers[..., :m], numbers[..., m:].reshape(*targets.shape, 3, m)
    means, log_scales = colours[..., 0, :].copy(), np.maximum(colours[..., 1, :], -7)
    coefficients, t = np.tanh(colours[..., 2, :]), targets[..., None]
    means[..., 1, :] += coefficients[..., 0, :] * t[..., 0, :]
    means[..., 2, :] += coefficients[..., 1, :] * t[..., 0, :] + coefficients[..., 2, :] * t[..., 1, :]
    upper, middle, lower = ((t + shift - means) / np.exp(log_scales) for shift in (1 / 255, 0, -1 / 255))
    inside = expit(upper) - expit(lower)
    density = middle - log_scales - 2 * np.logaddexp(0, middle) - np.log(127.5)
    nats = np.where(inside > 1e-5, np.log(np.maximum(inside, 1e-12)), density)
    nats = np.where(t < -0.999, -np.logaddexp(0, -upper), np.where(t > 0.999, -np.logaddexp(0, lower), nats))
    weights = logits - logsumexp(logits, -1, keepdims=True)
    return -logsumexp(weights + nats.sum(-2), -1).mean(axis=(1, 2)) / 3


def tiny(model, images, published, seen, monkeypatch):
    """All arrays of ``tiny_latents.npz`` under their names there."""
    drawn = {}
    monkeypatch.setattr(noise, "normals", lambda seed, rows, i, shape, stream: drawn[i][np.asarray(rows)])
    monkeypatch.setattr(
        noise,
        "uniforms",
        lambda seed, rows, shape, stream: published["dmol_eps" if stream == noise.MIXTURE else "dmol_u"][rows],
    )
    found = {}
    # The mean path
    flat, posterior, prior, kl = encoded_and_decoded(model, images, 9, seen)
    found["flat_all"], found["flat_first_k"] = flat, model.encode(images, 5)
    inputs = [given[1] for given, _ in seen["_convolution"] if given[2] == "encoder.in_conv"][:6]
    found["x_input"] = np.concatenate(inputs).transpose(0, 2, 3, 1)
    found["x_target"] = images.astype(np.float32) / np.float32(127.5) - 1
    hidden = blocks(seen["_with_latent"], 9)
    for i in range(9):
        found |= {f"q_mean_{i:02d}": posterior[i][0], f"q_logstd_{i:02d}": posterior[i][1]}
        found |= {f"p_mean_{i:02d}": prior[i][0], f"p_logstd_{i:02d}": prior[i][1]}
        found |= {f"kl_{i:02d}": kl[i], f"hidden0_{i:02d}": hidden[i][0][:1]}
    found["px_z_all"] = found["px_z_encoded"] = together(seen["_state"])
    found["dmol_params_all"] = np.concatenate([given[0] for given, _ in seen["pixel_values"]]).transpose(0, 2, 3, 1)
    distortion = nats_of_pixels(found["dmol_params_all"], found["x_target"])
    rate = sum(one.sum(axis=(1, 2, 3), dtype=np.float64) for one in kl) / (16 * 16 * 3)
    found["elbo_distortion_rate"] = np.array([(distortion + rate).mean(), distortion.mean(), rate.mean()])
    with torch.inference_mode():
        kept = model._activations(torch.from_numpy(images).permute(0, 3, 1, 2).float(), {16, 8, 2, 1})
    found |= {f"enc_act_{r}": activation.numpy() for r, activation in kept.items()}
    # Decoding the published latents
    uncond = published["p_mean_00"][:1].reshape(1, -1)  # the first prior sees no image: its mean is what t = 0 takes
    drawn |= {i: published[f"first_k_eps_{i:02d}"] for i in range(5, 9)}
    for state, image, rows, options in (
        (None, "all_half", published["flat_all"], {}),
        (None, "all_sampled", published["flat_all"], {"sample_pixels": True}),
        ("first_k_t0", "first_k_half", published["flat_first_k"], {}),
        ("first_k_t0.7", None, published["flat_first_k"], {"temperature": 0.7}),
        ("uncond_t0", None, uncond, {}),
    ):
        seen.clear()
        pixels = model.decode(rows, **options)
        if state:
            found[f"px_z_{state}"] = together(seen["_state"])
        if image:
            found |= {f"img_{image}": pixels, f"img_float_{image}": together(seen["pixel_values"])}
    # The sampled path
    seen.clear()
    drawn |= {i: published[f"eps_{i:02d}"] for i in range(9)}
    flat, _, _, kl = encoded_and_decoded(model, images, 9, seen, latents="sample")
    found |= {
        f"z_seed_{i:02d}": flat[:, model.config.columns(i)].reshape(6, *model.config.latent_shape(i)) for i in range(9)
    }
    found["kl_seed_sum"] = np.stack([one.sum(axis=(1, 2, 3)) for one in kl], 1)
    found["px_z_seed_encoded"] = together(seen["_state"])
    return found


def assert_as_published(found, published, name, tolerance, share):
    expected = published[name]
    assert found[name].shape == expected.shape, name
    if expected.dtype == np.uint8:  # values next to a whole number may be cut off to either side
        differences = np.abs(found[name].astype(int) - expected.astype(int))
        assert differences.max() <= 1, name
        assert np.mean(differences > 0) <= share, name
        return
    if name.startswith("kl") and name.count("_") > 1:  # sums over a block: as exact for their size
        np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance, err_msg=name)
        return
    np.testing.assert_allclose(found[name], expected, rtol=0, atol=tolerance, err_msg=name)


def test_every_array_of_the_tiny_network_is_as_published(seen, monkeypatch):
    model = VDVAE.from_checkpoint(recorded("tiny_model.th"), recorded_config("tiny_hps.json"))
    published = dict(np.load(recorded("tiny_latents.npz")))
    found = tiny(model, np.load(recorded("tiny_images.npy")), published, seen, monkeypatch)
    assert set(found) == set(published) - DRAWN
    for name in found:
        assert_as_published(found, published, name, TINY_TOLERANCE, 0.002)


def test_every_array_of_the_blocks_of_imagenet64_is_as_published(seen):
    config, path = recorded_config("i64_narrow/i64n_hps.json"), recorded("i64_narrow/i64n_model.th")
    published = dict(np.load(recorded("i64_narrow/i64n_arrays.npz")))
    table = {"config": config.as_table(), "latents": "mean"}
    space = VDVAESpace(VDVAESettings(checkpoint=str(path), **table))
    photographs = published["src_images"]
    found = {"src_images": photographs, "flat31_mean": space.encode(photographs, [0, 1])}
    found["resized64"] = np.stack([resize(image, (64, 64, 3)) for image in photographs])
    found["img31_half"] = space.decode(published["flat31_mean"], [0, 1], (100, 100, 3))
    found["img31_float_half"] = together(seen["pixel_values"])
    states = together(seen["_state"])
    found |= {"px_z_31_image0": states[:1], "px_z_31_image1_mean_per_channel": states[1].mean(axis=(1, 2))}
    seen.clear()
    model = VDVAE.from_checkpoint(path, config)
    _, _, _, kl = encoded_and_decoded(model, published["resized64"], 75, seen)
    found["kl_per_block_per_image"] = np.stack([one.sum(axis=(1, 2, 3)) for one in kl], 1)
    for name, images in (("up512", published["img31_half"]), ("resized64_up512", published["resized64"])):
        enlarged = [resize(image, (512, 512, 3), bicubic=True) for image in images]
        found[f"{name}_crop"] = np.stack([image[200:264, 200:264] for image in enlarged])
        known = json.loads(recorded("i64_narrow/i64n_hashes.json").read_text())
        if known["pillow"] == PIL.__version__:
            assert [hashlib.sha256(image.tobytes()).hexdigest() for image in enlarged] == known[f"{name}_sha256"]
    assert found["flat31_mean"].shape == (2, 91168)
    assert set(found) == set(published)
    for name in found:
        assert_as_published(found, published, name, NARROW_TOLERANCE, 0.001)
    for name in ("resized64", "resized64_up512_crop", "up512_crop"):
        np.testing.assert_array_equal(found[name], published[name])
