import numpy as np
import pytest

torch = pytest.importorskip("torch")

from support.vdvae_models import SMALL, random_images, random_weights, recorded, recorded_config  # noqa: E402

from leanrecon.errors import InputError, SettingsError  # noqa: E402
from leanrecon.features.panels import PANEL  # noqa: E402
from leanrecon.features.vdvae import VDVAE, VDVAEConfig, network, noise, prove  # noqa: E402
from leanrecon.features.vdvae.config import decoding_weights, encoding_weights  # noqa: E402
from leanrecon.features.vdvae.proof import drawn_picture  # noqa: E402

pytestmark = pytest.mark.networks


@pytest.fixture
def narrow(monkeypatch):
    """The blocks of imagenet64 with 16 channels and random weights, and what the published code made of two images."""
    monkeypatch.setattr(network, "at_once_on_cpu", lambda config: 1)
    model = VDVAE.from_checkpoint(recorded("i64_narrow/i64n_model.th"), recorded_config("i64_narrow/i64n_hps.json"))
    return model, np.load(recorded("i64_narrow/i64n_arrays.npz"))


@pytest.fixture
def model():
    return VDVAE(SMALL, random_weights())


def assert_nearly_the_same_pixels(found, expected, share):
    """Values next to a whole number may be cut off to either side."""
    differences = np.abs(found.astype(int) - expected.astype(int))
    assert differences.max() <= 1
    assert np.mean(differences > 0) <= share


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.015), ("float16", 0.002)])
def test_lower_precision_stays_near(narrow, precision, error):
    model, published = narrow
    path, config = recorded("i64_narrow/i64n_model.th"), model.config
    lower = VDVAE.from_checkpoint(path, config, precision=precision)
    expected = published["flat31_mean"]
    # measured: 0.0076 and 0.0010 of the latents' standard deviation
    assert np.std(lower.encode(published["resized64"], 31) - expected) < error * expected.std()


# Rows


@pytest.mark.parametrize("latents", ["mean", "sample"])
def test_rows_do_not_depend_on_their_batch(model, latents):
    images = random_images(7)
    whole = model.encode(images, 5, latents=latents, seed=3, rows=range(10, 17))
    assert whole.dtype == np.float32
    for part in (slice(0, 1), slice(2, 7), slice(6, 7)):
        rows = np.arange(10, 17)[part]
        np.testing.assert_array_equal(model.encode(images[part], 5, latents=latents, seed=3, rows=rows), whole[part])


@pytest.mark.parametrize("rows", [[10, 11, 12, 16, 17, 31], [40, 3, 40, 39, 16, 0], [15, 14, 13, 12, 11, 10]])
def test_rows_depend_neither_on_their_order_nor_on_what_is_asked_for_beside_them(model, rows):
    images = random_images(41)
    every = {"latents": "sample", "seed": 2}
    whole = model.encode(images, 6, **every)
    pixels = model.decode(whole, temperature=1, sample_pixels=True)
    assert network.at_once_on_cpu(SMALL) == PANEL
    np.testing.assert_array_equal(model.encode(images[rows], 6, rows=rows, **every), whole[rows])
    decoded = model.decode(whole[rows], temperature=1, sample_pixels=True, rows=rows)
    np.testing.assert_array_equal(decoded, pixels[rows])


def test_images_of_a_large_network_go_alone():
    assert network.at_once_on_cpu(VDVAEConfig.imagenet64()) == 1


@pytest.mark.parametrize("together", [7, 64])
def test_images_that_go_through_the_network_together_give_the_same_rows(model, monkeypatch, together):
    images = random_images(70)
    options = {"latents": "sample", "seed": 1, "rows": np.arange(100, 170)}
    monkeypatch.setattr(network, "at_once_on_cpu", lambda config: 1)
    alone = model.encode(images, 6, **options)
    drawn = model.decode(alone, temperature=1, sample_pixels=True)
    monkeypatch.setattr(network, "at_once_on_cpu", lambda config: together)
    np.testing.assert_allclose(model.encode(images, 6, **options), alone, rtol=0, atol=1e-5)
    assert_nearly_the_same_pixels(model.decode(alone, temperature=1, sample_pixels=True), drawn, 0.01)


def test_noise_depends_on_seed_row_block_and_stream_alone():
    whole = noise.normals(0, range(20), 3, (4, 2, 2), noise.POSTERIOR)
    assert whole.shape == (20, 4, 2, 2)
    np.testing.assert_array_equal(noise.normals(0, [7], 3, (4, 2, 2), noise.POSTERIOR)[0], whole[7])
    np.testing.assert_array_equal(noise.normals(0, [7], 3, (4,), noise.POSTERIOR)[0], whole[7].ravel()[:4])
    others = [
        noise.normals(1, [7], 3, (4, 2, 2), noise.POSTERIOR),
        noise.normals(0, [8], 3, (4, 2, 2), noise.POSTERIOR),
        noise.normals(0, [7], 4, (4, 2, 2), noise.POSTERIOR),
        noise.normals(0, [7], 3, (4, 2, 2), noise.PRIOR),
    ]
    assert all(not np.isin(other, whole[7]).any() for other in others)


def test_noise_is_standard_normal_and_uniform():
    numbers = noise.normals(5, range(50), 0, (1000,), noise.PRIOR)
    assert abs(numbers.mean()) < 0.02
    assert abs(numbers.std() - 1) < 0.02
    uniform = noise.uniforms(5, range(50), (1000,), noise.PIXELS)
    assert 1e-5 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert np.isfinite(np.log(-np.log(uniform))).all()


def test_noise_stays_the_same_from_version_to_version():
    # Philox4x64 with ten rounds as in its authors' known-answer tests: counter and key of zeros, then one step on
    numbers = np.random.Philox(key=[0, 0], counter=[2**64 - 1] * 4).random_raw(1)
    assert numbers[0] == 0x16554D9ECA36314C
    drawn = noise.normals(0, [0], 0, (3,), noise.POSTERIOR)[0]
    np.testing.assert_allclose(drawn, [0.059911035, 0.015559634, -1.1644385], rtol=1e-6)  # as first drawn


def test_temperature_scales_the_noise_of_latents_that_were_not_given(model):
    flat = model.encode(random_images(3), 3)
    cold = model.decode(flat)
    assert (model.decode(flat, temperature=1e-6, seed=1) == cold).mean() > 0.99
    hot = model.decode(flat, temperature=1, seed=1)
    assert (hot != cold).mean() > 0.1
    np.testing.assert_array_equal(model.decode(flat[1:2], temperature=1, seed=1, rows=[1]), hot[1:2])
    assert (model.decode(flat, temperature=1, seed=2) != hot).any()
    whole = model.encode(random_images(3), 6)
    np.testing.assert_array_equal(model.decode(whole, temperature=1, seed=1), model.decode(whole))


def test_pixels_are_drawn_by_seed_and_row(model):
    flat = model.encode(random_images(3), 6)
    drawn = model.decode(flat, sample_pixels=True, seed=1, rows=[5, 6, 9])
    assert (drawn != model.decode(flat)).mean() > 0.1
    np.testing.assert_array_equal(model.decode(flat[1:], sample_pixels=True, seed=1, rows=[6, 9]), drawn[1:])


def test_arrays_that_can_not_be_written_are_taken(model, recwarn):
    images = random_images(2)[:, ::-1]
    images.flags.writeable = False
    flat = model.encode(images, 3)
    np.testing.assert_array_equal(flat, model.encode(images.copy(), 3))
    flat.flags.writeable = False
    np.testing.assert_array_equal(model.decode(flat), model.decode(flat.copy()))
    assert not recwarn.list


# No work for nothing


class Watched(dict):
    """Weights that remember which of them were used."""

    def __init__(self, weights):
        super().__init__(weights)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_encoding_stops_at_the_last_latent_that_is_wanted(n):
    weights = Watched(random_weights())
    VDVAE(SMALL, weights).encode(random_images(1), n)
    assert weights.used == set(encoding_weights(SMALL, n))


@pytest.mark.parametrize("n", [1, 4, 6])
def test_decoding_runs_neither_encoder_nor_posteriors(n):
    weights = Watched(random_weights())
    VDVAE(SMALL, weights).decode(np.zeros((1, SMALL.dims(n)), np.float32))
    assert weights.used == set(decoding_weights(SMALL))


def test_only_wanted_blocks_of_imagenet64_run(narrow, monkeypatch):
    model, published = narrow
    ran = {"posterior": [], "prior": []}
    for kind, blocks in ran.items():
        original = getattr(VDVAE, f"_{kind}")

        def counted(self, i, *given, original=original, blocks=blocks):
            blocks.append(i)
            return original(self, i, *given)

        monkeypatch.setattr(VDVAE, f"_{kind}", counted)
    model.encode(published["resized64"][:1], 31)
    assert ran == {"posterior": list(range(31)), "prior": list(range(30))}


def test_activations_that_no_latent_needs_are_dropped(model):
    with torch.inference_mode():
        pixels = torch.from_numpy(random_images(1)).permute(0, 3, 1, 2).float()
        assert set(model._activations(pixels, {1})) == {1}
        assert set(model._activations(pixels, {1, 8})) == {1, 8}


def test_a_model_of_one_direction_refuses_the_other():
    weights = random_weights()
    model = VDVAE(SMALL, {name: weights[name] for name in encoding_weights(SMALL, 3)})
    flat = model.encode(random_images(1), 3)
    with pytest.raises(SettingsError, match="weights were not loaded"):
        model.encode(random_images(1), 4)
    with pytest.raises(SettingsError, match="weights were not loaded"):
        model.decode(flat)


# Mistakes


def test_images_of_another_size_or_type_are_refused(model):
    for images in (random_images(1, 16), random_images(1).astype(np.float32), random_images(1)[..., :1]):
        with pytest.raises(InputError, match=r"uint8 \[n, 8, 8, 3\]"):
            model.encode(images, 1)


@pytest.mark.parametrize(
    ("use", "found"),
    [
        (lambda m: m.encode(random_images(2), 7), "7 latents of a VDVAE that has 6"),
        (lambda m: m.encode(random_images(2), 2, latents="median"), "latents = 'median'"),
        (lambda m: m.encode(random_images(2), 2, rows=[1]), "1 row numbers for 2 rows"),
        (lambda m: m.encode(random_images(1), 2, latents="sample", seed=-1), "noise for seed -1"),
        (lambda m: m.decode(np.zeros((1, 5), np.float32)), "such as 2 or 4"),
        (lambda m: m.decode(np.zeros(4, np.float32)), r"rows of shape \(4,\)"),
        (lambda m: m.decode(np.full((1, 4), np.nan, np.float32)), "NaN or infinite"),
        (lambda m: m.decode(np.zeros((1, 4), np.float32), temperature=-1), "temperature = -1"),
        (lambda m: m.decode(np.zeros((1, 4), np.float32), temperature=np.nan), "temperature = nan"),
    ],
)
def test_what_can_not_be_done_is_refused(model, use, found):
    with pytest.raises((InputError, SettingsError), match=found):
        use(model)


# The proof


def test_the_drawn_picture_has_neighbours_that_agree():
    picture = drawn_picture(64).astype(float)
    assert picture.std() > 40
    assert np.corrcoef(picture[:, 1:].ravel(), picture[:, :-1].ravel())[0, 1] > 0.95


def test_the_proof_measures_what_comes_back(model, monkeypatch):
    figures = prove(model)
    assert set(figures) == {"latents", "psnr_db", "correlation", "psnr_db_of_31", "correlation_of_31"}
    assert figures["latents"] == 6
    assert abs(figures["correlation"]) < 0.6  # random weights know nothing of pictures
    monkeypatch.setattr(VDVAE, "decode", lambda self, flat: drawn_picture(8)[None] // 2 * 2)
    figures = prove(model)
    assert figures["psnr_db"] > 50
    assert figures["correlation"] > 0.999
