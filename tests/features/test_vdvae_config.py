import json
import math

import pytest
from support.vdvae_models import SMALL, recorded, recorded_config

from leanrecon.errors import SettingsError
from leanrecon.features.vdvae import VDVAEConfig, latent_groups
from leanrecon.features.vdvae.checkpoint import weights_nbytes
from leanrecon.features.vdvae.config import DecoderBlock, decoding_weights, encoding_weights, weight_shapes

IMAGENET64 = VDVAEConfig.imagenet64()


def test_names_and_shapes_are_those_of_the_published_checkpoint():
    published = json.loads(recorded("imagenet64_keys.json").read_text())
    shapes = weight_shapes(IMAGENET64)
    assert {name: list(shape) for name, shape in shapes.items()} == published
    assert list(shapes) == list(published)


def test_the_published_model_has_125_million_weights():
    assert sum(math.prod(shape) for shape in weight_shapes(IMAGENET64).values()) == 125_005_860
    assert weights_nbytes(IMAGENET64) == pytest.approx(4 * 125_005_860, rel=1e-3)  # each starts at a multiple of 64
    assert weights_nbytes(IMAGENET64, "bfloat16") == pytest.approx(2 * 125_005_860, rel=0.03)


def test_block_strings_are_read_as_published():
    assert (len(IMAGENET64.encoder), len(IMAGENET64.decoder)) == (65, 75)
    assert [i for i, block in enumerate(IMAGENET64.encoder) if block.down > 1] == [11, 32, 42, 51, 59]
    mixing = {i: block for i, block in enumerate(IMAGENET64.decoder) if block.mix}
    assert mixing == {
        2: DecoderBlock(4, 1),
        6: DecoderBlock(8, 4),
        14: DecoderBlock(16, 8),
        30: DecoderBlock(32, 16),
        62: DecoderBlock(64, 32),
    }
    assert IMAGENET64.biased == (1, 4, 8, 16, 32, 64)
    bare = VDVAEConfig(image_size=2, enc_blocks="2,2d2,1", dec_blocks="1,2m1,2", width=4)
    assert (len(bare.encoder), len(bare.decoder)) == (3, 3)


@pytest.mark.parametrize(
    ("n", "dims"), [(1, 16), (2, 32), (6, 1056), (14, 9248), (30, 74784), (31, 91168), (75, 1451040)]
)
def test_rows_have_the_published_length(n, dims):
    assert IMAGENET64.dims(n) == dims


def test_latents_are_grouped_by_resolution():
    groups = latent_groups(IMAGENET64, 31)
    assert [(r, columns.start, columns.stop) for r, columns in groups] == [
        (1, 0, 32),
        (4, 32, 1056),
        (8, 1056, 9248),
        (16, 9248, 74784),
        (32, 74784, 91168),
    ]
    assert latent_groups(SMALL, 3) == [(1, slice(0, 4)), (4, slice(4, 36))]


def test_each_direction_takes_its_own_weights():
    to_encode, to_decode = set(encoding_weights(IMAGENET64, 75)), set(decoding_weights(IMAGENET64))
    rest = set(weight_shapes(IMAGENET64)) - to_encode - to_decode
    assert not rest
    assert not any(".enc." in name or name.startswith("encoder") for name in to_decode)
    few = set(encoding_weights(IMAGENET64, 31))
    assert few < to_encode
    assert "decoder.dec_blocks.30.enc.c4.weight" in few
    assert not {"decoder.dec_blocks.30.prior.c1.weight", "decoder.dec_blocks.31.enc.c1.weight"} & few
    assert "decoder.bias_xs.4" in few
    assert "decoder.bias_xs.5" not in few


def test_a_config_survives_its_table():
    for config in (IMAGENET64, SMALL, recorded_config("tiny_hps.json")):
        assert VDVAEConfig.from_table(config.as_table()) == config


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"enc_blocks": "8x1,8d2,4q1"}, "enc_blocks has '4q1'"),
        ({"enc_blocks": ""}, "enc_blocks has ''"),
        ({"enc_blocks": "8x1,8m4"}, "enc_blocks has '8m4'"),
        ({"enc_blocks": "8x0"}, "enc_blocks has '8x0'"),
        ({"enc_blocks": "4x1,4d4,1x1"}, "enc_blocks: block 0 is at 4, what it is given is 8 pixels wide"),
        ({"enc_blocks": "8x1,8d2,4x1,2x1"}, "enc_blocks: block 3 is at 2, what it is given is 4"),
        ({"enc_blocks": "8x1,8d3"}, "block 1 divides 8 pixels by 3, which leaves a remainder"),
        ({"dec_blocks": "1x2,4d1"}, "dec_blocks has '4d1'"),
        ({"dec_blocks": "1x2,2m1,4m2,8m4"}, "dec_blocks: block 2 is at 2, where the encoder has no output"),
        ({"dec_blocks": "1x2,8m4"}, "block 2 at 8 adds the state at 4"),
        ({"dec_blocks": "1x2,4m1,4x1"}, "dec_blocks end at 4"),
        ({"custom_width_str": "4:16,1-16"}, "custom_width_str has '1-16'"),
        ({"custom_width_str": "4:16"}, "16 channels at 4 and only 8 at 1"),
        ({"custom_width_str": "8:16,4:16,1:16"}, "custom_width_str gives 16 channels at image_size"),
        ({"custom_width_str": "2:16"}, "a width for 2, where there is no block"),
        ({"bottleneck_multiple": 0.1}, "leaves no channel in the middle"),
        ({"bottleneck_multiple": 2}, "bottleneck_multiple = 2"),
        ({"bottleneck_multiple": True}, "bottleneck_multiple = True"),
        ({"width": 0}, "width = 0"),
        ({"zdim": 1.5}, "zdim = 1.5"),
        ({"num_mixtures": "10"}, "num_mixtures = '10'"),
        ({"no_bias_above": -1}, "no_bias_above = -1"),
        ({"dec_blocks": 5}, "dec_blocks = 5"),
        ({"depth": 3}, "depth is unknown"),
    ],
)
def test_sizes_that_fit_no_network_are_refused(changed, found):
    with pytest.raises(SettingsError) as error:
        VDVAEConfig.from_table({**SMALL.as_table(), **changed})
    assert found in str(error.value)


def test_all_missing_sizes_are_named():
    with pytest.raises(SettingsError, match=r"image_size is not given; .*; width is not given"):
        VDVAEConfig.from_table({"dec_blocks": "1x1"})


@pytest.mark.parametrize("n", [0, -1, 76])
def test_a_number_of_latents_that_there_is_not_is_refused(n):
    with pytest.raises(SettingsError, match=f"{n} latents of a VDVAE that has 75"):
        IMAGENET64.dims(n)
