"""What the report says of an end-to-end decoder: its comparator beside the judges, and numbers in place of betas."""

import pytest

from leanrecon.stages.figures import _settings_notes
from leanrecon.study.settings import check_settings
from leanrecon.weights.packaged import FOLDER

CLIP = str(FOLDER / "clip")
VISION = {"kind": "clip-vision", "model": CLIP, "form": "embedding"}
PLEASED = "that the decoder was trained on"


def notes(judge=None, **decode):
    judges = {"judges": {"own": judge}} if judge else {}
    tables = {"dataset": {"kind": "simulated"}, "decode": {"kind": "gan", **decode}, **judges}
    return " ".join(_settings_notes(check_settings(tables)))


@pytest.mark.parametrize(
    ("comparator", "judge", "told"),
    [
        (VISION, {"kind": "clip", "model": CLIP}, True),  # of one family
        (VISION, {"kind": "space", "space": VISION}, True),
        ("alexnet", {"kind": "torchvision", "model": "alexnet", "version": "IMAGENET1K_V1", "layer": "features.4"}, True),
        ("vgg16", {"kind": "torchvision", "model": "alexnet", "version": "IMAGENET1K_V1", "layer": "features.4"}, False),
        ("alexnet", {"kind": "clip", "model": CLIP}, False),
        ("none", {"kind": "clip", "model": CLIP}, False),
    ],
)  # fmt: skip
def test_a_judge_that_the_decoder_learned_to_please_is_told(comparator, judge, told):
    assert (PLEASED in notes(judge, comparator=comparator)) == told


def test_networks_of_imagenet_and_noise_are_told():
    assert "20 of the 50 natural test images" in notes(comparator="alexnet")
    assert "ImageNet" not in notes(comparator=VISION)
    assert "a baseline that no brain gave" in notes(inputs="noise")
    assert notes() == notes(inputs="betas")
    assert "baseline that no brain gave" not in notes()
