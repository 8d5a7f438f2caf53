"""The verdict: what the intervals allow to say, and no more."""

import math

import pytest

from leanrecon.evaluation.report.verdict import MIN_TEST_IMAGES, verdict


def study(two_way=(0.93, 0.90, 0.96), mean=(0.16, 0.12, 0.20), shuffled=(0.5, 0.4, 0.6), key="pixcorr", **others):
    """metrics.json with a two-way figure and the margins over the mean train image and shuffled responses."""

    def margin(values):
        return {} if values is None else {key: dict(zip(("value", "low", "high"), values, strict=True))}

    final = {key: {"value": 0.71, "low": 0.68, "high": 0.74, "chance": None}}
    if two_way is not None:
        final["two_way_pixels"] = dict(zip(("value", "low", "high"), two_way, strict=True)) | {"chance": 0.5}
    return {
        "n_test": 100,
        "final": final,
        "baselines": {
            "mean_train_image": {key: {"value": 0.55}},
            "random_train_image": {key: {"value": 0.31}},
            "nearest_train_image": {key: {"value": 0.69}},
        },
        "margins": {"mean_train_image": margin(mean), "shuffled_betas": margin(shuffled)},
    } | others


UP, ZERO, DOWN = (0.1, 0.05, 0.15), (0.02, -0.03, 0.07), (-0.1, -0.15, -0.05)
CHANCE, BELOW, NULL = (0.52, 0.45, 0.59), (0.4, 0.35, 0.45), (0.7, None, None)
ABOVE = (0.93, 0.90, 0.96)

CASES = [
    # two-way, over the mean train image, over shuffled responses → level
    (ABOVE, UP, UP, "worked"),
    (ABOVE, UP, None, "worked"),
    (ABOVE, None, UP, "worked"),
    (None, UP, UP, "worked"),
    (NULL, UP, UP, "worked"),  # a value without an interval shows nothing, the rest does
    (ABOVE, ZERO, UP, "mixed"),
    (ABOVE, UP, ZERO, "mixed"),
    (ABOVE, DOWN, DOWN, "mixed"),
    (CHANCE, UP, UP, "mixed"),
    (BELOW, UP, UP, "mixed"),
    (ABOVE, None, None, "mixed"),  # above chance, but nothing without a brain stands beside it
    (None, UP, None, "mixed"),
    (CHANCE, ZERO, ZERO, "failed"),
    (BELOW, DOWN, DOWN, "failed"),
    (CHANCE, ZERO, None, "failed"),
    (CHANCE, None, None, "failed"),
    (None, ZERO, None, "failed"),
    (None, None, None, "unclear"),
    (NULL, None, None, "unclear"),
    ((0.6, 0.5, 0.7), ZERO, ZERO, "failed"),  # an interval that begins at chance is not above it
    (ABOVE, (0.1, 0.0, 0.2), UP, "mixed"),
    (ABOVE, (0.1, math.nan, math.nan), UP, "worked"),  # not a number is not measured
]


@pytest.mark.parametrize(("two_way", "mean", "shuffled", "level"), CASES)
def test_levels_follow_from_whole_intervals(two_way, mean, shuffled, level):
    found = verdict(study(two_way, mean, shuffled))
    assert found.level == level
    assert found.text.startswith(found.headline)
    assert found.text.endswith(".")
    assert "None" not in found.text
    assert "nan" not in found.text


def test_the_sentence_says_the_figures():
    assert verdict(study()).text == (
        "The decoding worked: a reconstruction picks out its own image from a pair in 93 % of cases (95 % interval "
        "90–96 %; chance 50 %), and correlates with it at 0.71, where the best "
        "baseline without brain data, the mean train image, reaches 0.55."
    )


def test_a_failure_is_called_one():
    assert verdict(study(CHANCE, ZERO, ZERO)).text.startswith("No better than without a brain: ")
    assert verdict(study(CHANCE, None, None)).text.startswith("At chance: ")


def test_a_mixed_verdict_says_what_is_missing():
    assert verdict(study(ABOVE, ZERO, UP)).text.endswith(
        "It is better than chance and shuffled betas, but not clearly better than the mean train image."
    )
    assert verdict(study(ABOVE, None, None)).text.endswith(
        "It is better than chance. It was not compared with the mean train image or shuffled betas."
    )


def test_a_simulated_subject_is_named_in_every_verdict():
    for case in ((ABOVE, UP, UP), (ABOVE, ZERO, UP), (CHANCE, ZERO, ZERO)):
        assert "simulated subject" in verdict(study(*case, simulated=True)).headline


@pytest.mark.parametrize("n", [1, 4, MIN_TEST_IMAGES - 1])
def test_few_images_say_nothing_however_good(n):
    found = verdict(study(n_test=n))
    assert found.level == "unclear"
    assert found.text.startswith("Too few test images to say: ")
    assert [check.passed for check in found.checks] == [None] * 3
    assert verdict(study(n_test=MIN_TEST_IMAGES)).level == "worked"


def test_lower_is_better_for_errors():
    good, bad = (-0.02, -0.03, -0.01), (0.02, 0.01, 0.03)
    assert verdict(study(ABOVE, good, good, key="mse")).level == "worked"
    assert verdict(study(CHANCE, bad, bad, key="mse")).level == "failed"
    text = verdict(study(ABOVE, good, good, key="mse")).text
    assert (
        "squared error of 0.71, where the best baseline without brain data, a random train image, reaches 0.31" in text
    )


def test_pixel_correlation_goes_before_error_and_ssim():
    metrics = study(ABOVE, ZERO, ZERO)
    for margin in metrics["margins"].values():
        margin["ssim"] = {"value": 0.1, "low": 0.05, "high": 0.15}
    assert verdict(metrics).level == "mixed"
    for margin in metrics["margins"].values():
        margin["pixcorr"] = {"value": None, "low": None, "high": None}  # constant images correlate with nothing
    assert verdict(metrics).level == "worked"


def test_features_stand_in_for_pixels_in_identification():
    metrics = study(None, UP, UP)
    metrics["final"]["two_way_features"] = {"value": 0.8, "low": 0.7, "high": 0.9, "chance": 0.5}
    found = verdict(metrics)
    assert found.checks[0].passed
    assert "80 % of cases" in found.text


def test_close_figures_are_told_apart():
    metrics = study()
    metrics["baselines"]["mean_train_image"]["pixcorr"]["value"] = 0.7144
    assert (
        "0.710, where the best baseline without brain data, the mean train image, reaches 0.714"
        in verdict(metrics).text
    )
    metrics["final"]["two_way_pixels"] |= {"value": 0.997, "low": 0.99, "high": 1.0}
    assert "99.7 % of cases (95 % interval 99–100 %" in verdict(metrics).text


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"final": None, "stage1": None, "baselines": None, "margins": None},
        {"n_test": 100, "final": {"pixcorr": None}, "margins": {"mean_train_image": None}},
        {"n_test": None, "final": {"two_way_pixels": {"value": None, "low": None, "high": None, "chance": None}}},
    ],
)
def test_nothing_measured_is_unclear(metrics):
    assert verdict(metrics).level == "unclear"


def test_without_a_final_stage_the_first_one_counts():
    metrics = study()
    metrics["stage1"] = metrics.pop("final")
    assert verdict(metrics).level == "worked"


def test_chance_that_is_not_given_is_one_of_two():
    metrics = study((0.48, 0.45, 0.49), ZERO, ZERO)
    metrics["final"]["two_way_pixels"]["chance"] = None
    assert verdict(metrics).level == "failed"


def test_an_ssim_below_the_mean_image_s_is_said_whatever_the_verdict():
    for case in ((ABOVE, UP, UP), (ABOVE, ZERO, UP), (CHANCE, ZERO, ZERO)):
        metrics = study(*case)
        metrics["final"]["ssim"] = {"value": 0.314}
        metrics["baselines"]["mean_train_image"]["ssim"] = {"value": 0.52}
        assert verdict(metrics).text.endswith("Its SSIM, 0.31, is below that of the mean train image, 0.52.")
        metrics["baselines"]["mean_train_image"]["ssim"] = {"value": 0.3135}
        assert "SSIM" not in verdict(metrics).text
        metrics["baselines"]["mean_train_image"]["ssim"] = {"value": 0.3142}
        assert "Its SSIM, 0.314, is below that of the mean train image, 0.314" in verdict(metrics).text


def test_pixel_metrics_that_refinement_made_worse_are_named_with_both_values():
    metrics = study()
    metrics["stage1"] = {"pixcorr": {"value": 0.8}, "ssim": {"value": 0.4}, "mse": {"value": 0.05}}
    metrics["final"] |= {"ssim": {"value": 0.5}, "mse": {"value": 0.07}}
    assert verdict(metrics).text.endswith(
        "Refinement made pixel metrics worse: pixel correlation from 0.80 to 0.71, squared error from 0.05 to 0.07."
    )
    metrics["stage1"] = {key: dict(figure) for key, figure in metrics["final"].items()}
    assert "Refinement" not in verdict(metrics).text  # nothing was refined
    metrics["stage1"] = {"pixcorr": {"value": 0.5}, "mse": {"value": 0.09}}
    assert "Refinement" not in verdict(metrics).text  # it made them better
