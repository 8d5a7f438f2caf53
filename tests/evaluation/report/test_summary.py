"""The main scores at the end of a run: reconstructions beside baselines and chance, in columns."""

from leanrecon.evaluation.report.summary import main_scores
from leanrecon.evaluation.report.tables import OPENING, columns, figure_rows, split_rows


def of(value: float, chance: float = 0.5) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "chance": chance}


METRICS = {
    "final": {"pixcorr": of(0.7, 0.0), "two_way_pixels": of(0.9), "two_way_clip": of(0.8)},
    "stage1": {"pixcorr": of(0.75, 0.0), "two_way_pixels": of(0.95), "two_way_clip": of(0.7)},
    "baselines": {
        "mean_train_image": {"pixcorr": of(0.4, 0.0), "two_way_pixels": of(0.5)},
        "random_train_image": {"pixcorr": of(0.1, 0.0)},
    },
}


def test_scores_stand_in_columns_under_their_names() -> None:
    head, *lines = main_scores(METRICS)
    assert head.split("  ")[0] == "score"
    assert [name for name in ("Final image", "First image", "Mean train image", "chance") if name in head] == [
        "Final image", "First image", "Mean train image", "chance"
    ]  # fmt: skip
    assert "Random" not in head
    assert len(lines) == 3
    for text, name in (("0.700 (0.690–0.710)", "Final image"), ("0.750", "First image"), ("0.400", "Mean train image")):
        assert lines[0].index(text) == head.index(name)
    assert "80.0 % (79.0–81.0 %)" in lines[2]


def test_features_alone_have_none() -> None:
    assert list(main_scores({"features": {"pca": {"two_way_features": of(0.9)}}})) == []


def test_the_report_opens_with_few_scores_and_folds_kinds_of_ssim_and_reverse_ones() -> None:
    keys = ["pixcorr", "ssim", "ssim_1d", "ssim_7x7", "mse", "two_way_pixels", "two_way_pixels_reverse", "top1_pixels"]
    keys += [f"{kind}_{judge}" for judge in ("clip", "a", "b") for kind in ("two_way", "top1")]
    rows = figure_rows(columns({"final": {key: of(0.6) for key in keys}}), {})
    opening, further = split_rows(rows)
    assert len(opening) == OPENING
    assert sorted(row.metric.key for row in opening + further) == sorted(keys)
    assert {"ssim_1d", "ssim_7x7", "two_way_pixels_reverse"} <= {row.metric.key for row in further}
    alone, _ = split_rows(figure_rows(columns({"final": {"ssim_7x7": of(0.6)}}), {}))
    assert [row.metric.key for row in alone] == ["ssim_7x7"]
