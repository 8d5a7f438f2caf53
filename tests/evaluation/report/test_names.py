"""What metrics and sets of figures are called, whatever the judges' names."""

import pytest

from leanrecon.evaluation.report.names import LABELS, in_order, label, metric


@pytest.mark.parametrize(
    ("key", "name", "short"),
    [
        ("two_way_clip", "Two-way identification by CLIP", "CLIP two-way"),
        ("two_way_alexnet-5", "Two-way identification by alexnet-5", "Alexnet-5 two-way"),
        ("two_way_my_net_reverse", "Two-way identification by my_net, reverse", "My_net two-way rev."),
        ("two_way_pixels", "Two-way identification by pixels", "Pixels two-way"),
        ("top1_features", "Top-1 retrieval by features", "Features top-1"),
        ("top1_pixels_reverse", "Top-1 retrieval by pixels, reverse", "Pixels top-1 rev."),
        ("distance_swav", "Distance by SwAV", "SwAV distance"),
        ("perceptual_dists", "Perceptual distance by DISTS", "DISTS"),
        ("latent_r2_mean_reverse", "Variance explained, mean over features, reverse", "R² rev."),
        ("something_new", "Something new", "something new"),
    ],
)
def test_metrics_are_named_from_what_is_measured_and_by_whom(key: str, name: str, short: str) -> None:
    shown = metric(key)
    assert (shown.key, shown.name, shown.short) == (key, name, short)


def test_a_distance_is_a_number_and_lower_is_better_identification_is_a_percentage() -> None:
    assert metric("distance_swav").lower_is_better
    assert metric("perceptual_lpips").lower_is_better
    assert metric("distance_swav").write(0.4237) == "0.424"
    assert metric("two_way_anything").write(0.83) == "83.0 %"
    assert not metric("two_way_anything").lower_is_better


def test_metrics_stand_in_order_of_pixels_judges_features_and_unknown_ones() -> None:
    keys = ["new", "two_way_b", "top1_b", "distance_a", "latent_r2_mean", "two_way_features", "top1_pixels", "mse",
            "two_way_pixels_reverse", "two_way_pixels", "pixcorr", "mse"]  # fmt: skip
    assert in_order(keys) == [
        "pixcorr", "mse", "two_way_pixels", "two_way_pixels_reverse", "top1_pixels", "two_way_b", "top1_b", "distance_a",
        "latent_r2_mean", "two_way_features", "new",
    ]  # fmt: skip


def test_no_two_sets_of_figures_share_a_name_and_an_unknown_one_goes_by_its_key() -> None:
    assert len({entry.name for entry in LABELS.values()}) == len(LABELS)
    assert label("my_baseline").name == "My baseline"
    assert "best" not in " ".join(
        entry.meaning for entry in LABELS.values()
    )  # a bound of predictions is none of scores
