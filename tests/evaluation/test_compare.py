"""Comparing studies: means, intervals and differences by hand, protocols kept apart, tables in four formats."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from leanrecon.errors import InputError, SettingsError
from leanrecon.evaluation import compare_tables
from leanrecon.evaluation.compare import RESAMPLES, compare_studies
from leanrecon.evaluation.compare_tables import csv_of, markdown_of, text_of, write_table
from leanrecon.evaluation.plan import resamples_at_once
from leanrecon.places.files import write_json, write_text
from leanrecon.stores.store import Store
from leanrecon.study.layout import Study
from leanrecon.study.protocols import PROTOCOLS
from leanrecon.study.rows import Rows, SplitRows

RNG = np.random.default_rng(2)
IMAGES = [f"image{k}" for k in range(12)]


def study(
    root: Path, name: str, stimuli: list[str], *, preset: str = "native", average: bool = False, **about: object
) -> dict:
    values = RNG.normal(0.5, 0.2, size=(len(stimuli), 2))
    lines = ["row,stimulus,subject,stage1.pixcorr,final.pixcorr,final.ssim"]
    for row, (image, own) in enumerate(zip(stimuli, values, strict=True)):
        lines.append(f"{row},{image},s,0.1,{float(own[0])!r},{float(own[1])!r}")
    if average:
        lines.append("99,image0,average,0.1,100,100")
    write_text(Study(root / name).scores, "\n".join(lines) + "\n")
    final = {
        metric: {"value": float(values[:, k].mean()), "low": 0.0, "high": 1.0, "chance": 0.0}
        for k, metric in enumerate(("pixcorr", "ssim"))
    }
    write_json(Study(root / name).metrics, {"preset": preset, "folds": None, "final": final, **about})
    return dict(zip(stimuli, values, strict=True))


def line(found, name: str):
    return next(one for one in found.lines if one.name == name)


def draws(n: int, fold: int = 0) -> np.ndarray:
    """Images drawn as all figures draw them: some resamples at once, each lot from (seed, fold, its first)."""
    at_once = resamples_at_once(n)
    lots = range(0, RESAMPLES, at_once)
    return np.concatenate(
        [np.random.default_rng([0, fold, k]).integers(0, n, (min(at_once, RESAMPLES - k), n)) for k in lots]
    )


def test_means_and_paired_intervals_are_those_by_hand(tmp_path: Path) -> None:
    orders = [RNG.permutation(IMAGES).tolist() for _ in range(4)]
    scores = [study(tmp_path, f"s{k}", order) for k, order in enumerate(orders)]
    found = compare_studies([tmp_path / f"s{k}" for k in range(4)])
    mean = line(found, "mean of 4 studies")
    names = sorted(IMAGES)
    table = np.mean([[of[name] for name in names] for of in scores], axis=0)  # images by metrics, over subjects
    resampled = table[draws(12)].mean(axis=1)
    for k, metric in enumerate(("pixcorr", "ssim")):
        value, low, high = mean.figures[metric]
        assert value == pytest.approx(np.mean([np.mean([of[name][k] for name in names]) for of in scores]))
        np.testing.assert_allclose((low, high), np.percentile(resampled[:, k], [2.5, 97.5]), atol=1e-12)
    assert mean.images == 12
    less = line(found, "s2 less s0")
    both = np.array([scores[2][name] - scores[0][name] for name in names])
    expected = np.percentile(both[draws(12)].mean(axis=1)[:, 0], [2.5, 97.5])
    np.testing.assert_allclose(less.figures["pixcorr"], (both[:, 0].mean(), *expected), atol=1e-12)
    assert found.common == orders[0]


def test_differences_are_taken_on_common_images_alone(tmp_path: Path) -> None:
    one = study(tmp_path, "one", IMAGES[:8])
    two = study(tmp_path, "two", IMAGES[5:])
    three = study(tmp_path, "three", ["x", "y"])
    found = compare_studies([tmp_path / "one", tmp_path / "two", tmp_path / "three"])
    less = line(found, "two less one")
    assert less.images == 3
    expected = np.mean([two[name] - one[name] for name in IMAGES[5:8]], axis=0)
    assert less.figures["ssim"][0] == pytest.approx(expected[1])
    assert not any(other.name == "three less one" for other in found.lines)
    assert any("three and one share 0 test images" in note for note in found.notes)
    mean = line(found, "mean of 3 studies")  # other images: each is resampled by itself
    parts = []
    for fold, (of, names) in enumerate(((one, IMAGES[:8]), (two, IMAGES[5:]), (three, ["x", "y"]))):
        values = np.array([of[name][0] for name in sorted(names)])
        parts.append(values[draws(len(values), fold)].mean(axis=1))
    expected_interval = np.percentile(np.mean(parts, axis=0), [2.5, 97.5])
    np.testing.assert_allclose(mean.figures["pixcorr"][1:], expected_interval, atol=1e-12)
    assert mean.images is None


def test_protocols_are_never_averaged(tmp_path: Path) -> None:
    study(tmp_path, "a", IMAGES)
    study(tmp_path, "b", IMAGES, preset="bd2023")
    found = compare_studies([tmp_path / "a", tmp_path / "b"])
    assert [one.kind for one in found.lines] == ["study", "study"]
    assert any("2 protocols" in note for note in found.notes)


def test_means_over_subjects_of_a_group_are_no_test_rows_of_their_own(tmp_path: Path) -> None:
    one = study(tmp_path, "a", IMAGES, average=True)
    two = study(tmp_path, "b", IMAGES)
    mean = line(compare_studies([tmp_path / "a", tmp_path / "b"]), "mean of 2 studies")
    assert mean.figures["pixcorr"][0] == pytest.approx(np.mean([[o[n][0] for n in IMAGES] for o in (one, two)]))


def test_published_tables_stand_beside_with_protocol_and_source(tmp_path: Path) -> None:
    study(tmp_path, "a", IMAGES)
    found = compare_studies([tmp_path / "a"], against="all")
    published = [one for one in found.lines if one.kind == "published"]
    assert len(published) == 5
    assert all(one.source and one.protocol and len(one.figures) == 8 for one in published)
    assert all(0 < value < 1 for one in published for value, _, _ in one.figures.values())
    one = compare_studies([tmp_path / "a"], against="mindeye2")
    assert line(one, "MindEye2 (subjects 1, 2, 5, 7)").figures["pixcorr"] == (0.322, None, None)
    with pytest.raises(SettingsError, match=r"mindeye3 is not a table .*did you mean mindeye"):
        compare_studies([tmp_path / "a"], against="mindeye3")


def names_under(found, heading: str) -> list[str]:
    return [one.name for key, _, lines in found.sections() for one in lines if key == heading]


def test_published_figures_stand_under_their_own_protocol_alone(tmp_path: Path) -> None:
    study(tmp_path, "as_paper", IMAGES, preset="mindeye2")
    study(tmp_path, "other", IMAGES)
    found = compare_studies([tmp_path / "as_paper", tmp_path / "other"], against="all")
    assert names_under(found, "mindeye2") == ["as_paper", "MindEye2 (subjects 1, 2, 5, 7)"]
    assert names_under(found, "native") == ["other"]
    assert len(names_under(found, "unstated")) == 4
    said = " ".join(found.notes)
    assert "Brain-IT was not checked: no study can be judged as it was" in said
    assert "mindeye2 has 1000 test images, as_paper 12" in said
    assert "No study here was judged" not in said
    assert "No study here was judged as MindEye2: set preset" in " ".join(
        compare_studies([tmp_path / "other"], against="mindeye2").notes
    )


@pytest.mark.parametrize(
    ("about", "heading"),
    [
        ({"blend": 0.25}, "mindeye2, 25% of first images mixed in"),
        ({"folds": 5}, "mindeye2, 5 folds"),
        ({"departures": {"inception": ["size = 299 instead of 342"]}}, "mindeye2, with another inception"),
    ],
)
def test_a_study_that_departs_from_a_protocol_stands_under_a_heading_of_its_own(
    tmp_path: Path, about: dict, heading: str
) -> None:
    study(tmp_path, "as_paper", IMAGES, preset="mindeye2")
    study(tmp_path, "departs", IMAGES, preset="mindeye2", **about)
    judges = {"alexnet2": {"content": "x"}}
    study(tmp_path, "judged", IMAGES, preset="mindeye2", judges=judges)
    found = compare_studies([tmp_path / name for name in ("as_paper", "departs", "judged")], against="mindeye2")
    assert names_under(found, heading) == ["departs"]
    assert names_under(found, "mindeye2") == ["as_paper", "judged", "MindEye2 (subjects 1, 2, 5, 7)"]
    assert {one.kind for one in found.lines} == {"study", "published"}  # nothing is averaged or subtracted


def test_every_table_names_its_protocol_above_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, "a", IMAGES)
    found = compare_studies([tmp_path / "a"], against="mindeye2")
    text = text_of(found)
    assert text.index("# protocol: native") < text.index("# protocol: mindeye2")
    assert [line for line in markdown_of(found).splitlines() if line.startswith("## ")] == ["## native", "## mindeye2"]
    monkeypatch.setattr(compare_tables, "_pictures", lambda found: "")  # of whole studies
    write_table(found, tmp_path / "table.html")
    page = (tmp_path / "table.html").read_text()
    ours, theirs = page.partition("<h2>mindeye2</h2>")[::2]
    assert "<h2>native</h2>" in ours
    assert "MindEye2 (subjects" not in ours
    assert "two_way_clip" in theirs
    assert "two_way_clip" not in ours  # no column that none of its lines has


def test_the_ssim_of_a_published_table_is_its_protocol_s(tmp_path: Path) -> None:
    study(tmp_path, "a", IMAGES)
    published = [one for one in compare_studies([tmp_path / "a"], against="all").lines if one.kind == "published"]
    checked = [one for one in published if one.heading in PROTOCOLS]
    assert checked
    assert all(PROTOCOLS[one.heading].ssim in one.figures for one in checked)


def test_published_figures_have_the_names_that_studies_give_theirs(tmp_path: Path) -> None:
    networks = PROTOCOLS["mindeye2"].judges
    named = {"pixcorr", "ssim", *(f"{form}_{name}" for name in networks for form in ("two_way", "distance"))}
    study(tmp_path, "a", IMAGES)
    found = compare_studies([tmp_path / "a"], against="mindeye2")
    assert set(line(found, "MindEye2 (subjects 1, 2, 5, 7)").figures) <= named


def test_scores_that_some_rows_lack_and_blends_are_told_apart(tmp_path: Path) -> None:
    study(tmp_path, "a", IMAGES)
    study(tmp_path, "b", IMAGES)
    scores = Study(tmp_path / "b").scores
    lines = scores.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ","
    write_text(scores, "\n".join(lines) + "\n")
    mean = line(compare_studies([tmp_path / "a", tmp_path / "b"]), "mean of 2 studies")
    assert set(mean.figures) == {"pixcorr"}
    metrics = Study(tmp_path / "b").metrics
    write_json(metrics, json.loads(metrics.read_text()) | {"blend": 0.25})
    found = compare_studies([tmp_path / "a", tmp_path / "b"])
    assert not any(one.kind == "mean" for one in found.lines)
    assert "25% of first images mixed in" in line(found, "b").protocol


def test_studies_without_images_are_refused(tmp_path: Path) -> None:
    study(tmp_path, "a", IMAGES)
    write_text(Study(tmp_path / "a").scores, "row,stimulus,r\n0,x,0.1\n")
    with pytest.raises(InputError, match="a has no scores of images"):
        compare_studies([tmp_path / "a"])


def test_tables_hold_every_figure(tmp_path: Path) -> None:
    for name in ("a", "b"):
        study(tmp_path, name, IMAGES)
    found = compare_studies([tmp_path / "a", tmp_path / "b"], against="all")
    rows = list(csv.DictReader(io.StringIO(csv_of(found))))
    assert len(rows) == sum(len(one.figures) for one in found.lines)
    assert {row["name"] for row in rows} == {one.name for one in found.lines}
    markdown = [part for part in markdown_of(found).split("## ") if part]
    assert len(markdown) == 3
    for part in markdown:
        rows = [row for row in part.splitlines() if row.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1
    assert any("source: Scotti" in text for text in text_of(found))
    write_table(found, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == csv_of(found)
    with pytest.raises(SettingsError, match="has no ending of a table"):
        write_table(found, tmp_path / "table.pdf")


def test_what_has_no_figures_is_refused(tmp_path: Path) -> None:
    study(tmp_path, "a", IMAGES)
    with pytest.raises(InputError, match=r"nobody has no scores.*run to its end"):
        compare_studies([tmp_path / "a", tmp_path / "nobody"])
    with pytest.raises(InputError, match="a is named twice"):
        compare_studies([tmp_path / "a", tmp_path / "a"])


@pytest.mark.parametrize("how", ["the same", "another", "of another size"])
def test_different_pictures_of_one_name_are_told(tmp_path: Path, how: str) -> None:
    pictures = RNG.integers(0, 256, (12, 6, 6, 3)).astype(np.uint8)
    others = pictures.copy() if how != "of another size" else pictures[:, :4]
    if how == "another":
        others[7] = others[7, :, ::-1]
    for name, images, order in (("one", pictures, np.arange(12)), ("other", others, np.arange(12)[::-1])):
        names = [IMAGES[k] for k in order]
        study(tmp_path, name, names)
        of = Study(tmp_path / name)
        store = Store.create(of.stimuli("test"), images.shape, np.uint8, made_of={}, chunk="1KB")
        for group in range(store.row_groups):
            store.write_rows(group, images[order][store.group_rows(group)])
        store.finish()
        rows = SplitRows(np.arange(12), [[k] for k in range(12)], [1] * 12)
        Rows({"train": rows, "test": rows}, {"train": names, "test": names}).write(of)
    found = compare_studies([tmp_path / "one", tmp_path / "other"])
    told = [note for note in found.notes if "may pair different ones" in note]
    assert [note.partition(" ")[0] for note in told] == (["image7"] if how == "another" else [])


def write_study(root: Path, name: str, rows: list[dict], final: dict[str, float], **about: object) -> None:
    """A study of given rows of scores.csv and figures of metrics.json."""
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    write_text(Study(root / name).scores, "\n".join(lines) + "\n")
    figures = {metric: {"value": value, "low": 0.0, "high": 1.0, "chance": 0.0} for metric, value in final.items()}
    write_json(Study(root / name).metrics, {"preset": "native", "folds": None, "final": figures} | about)


def test_means_and_differences_are_those_of_the_studies_own_figures_with_folds_of_unequal_size(tmp_path: Path) -> None:
    """A figure is the mean over folds of each fold's mean: 12 images in folds of 2, 3 and 7."""
    folds = np.repeat([0, 1, 2], [2, 3, 7])
    own = []
    for name in ("a", "b"):
        values = RNG.normal(size=12)
        own.append(float(np.mean([values[folds == k].mean() for k in range(3)])))
        rows = [
            {"row": k, "stimulus": IMAGES[k], "fold": folds[k], "final.pixcorr": repr(float(values[k]))}
            for k in range(12)
        ]
        write_study(tmp_path, name, rows, {"pixcorr": own[-1]}, folds=3)
        assert own[-1] != pytest.approx(values.mean())
    found = compare_studies([tmp_path / "a", tmp_path / "b"])
    assert line(found, "mean of 2 studies").figures["pixcorr"][0] == pytest.approx(np.mean(own))
    value, low, high = line(found, "b less a").figures["pixcorr"]
    assert value == pytest.approx(own[1] - own[0])
    assert low < value < high


def test_an_image_that_is_tested_more_often_counts_more_often_in_a_difference_too(tmp_path: Path) -> None:
    shown = ["x", "x", "x", "y", "z"]
    own = []
    for name in ("a", "b"):
        values = RNG.normal(size=5)
        own.append(float(values.mean()))
        rows = [{"row": k, "stimulus": shown[k], "final.pixcorr": repr(float(values[k]))} for k in range(5)]
        write_study(tmp_path, name, rows, {"pixcorr": own[-1]})
    less = line(compare_studies([tmp_path / "a", tmp_path / "b"]), "b less a")
    assert less.figures["pixcorr"][0] == pytest.approx(own[1] - own[0])
    assert less.images == 3


def test_of_several_test_sets_the_one_that_the_figures_are_of_is_compared(tmp_path: Path) -> None:
    for name, first in (("a", 0.2), ("b", 0.3)):
        rows = [
            {"row": k, "stimulus": f"{of}{k}", "test_set": of, "final.pixcorr": first if of == "seen" else 0.9}
            for k, of in enumerate(["seen"] * 4 + ["imagined"] * 8)
        ]
        write_study(tmp_path, name, rows, {"pixcorr": first}, test_set="seen")
    found = compare_studies([tmp_path / "a", tmp_path / "b"])
    assert {one.images for one in found.lines} == {4}
    assert line(found, "mean of 2 studies").figures["pixcorr"][0] == pytest.approx(0.25)
    assert line(found, "b less a").figures["pixcorr"][0] == pytest.approx(0.1)
    assert "Of a the test set seen is compared, its first." in found.notes


def test_pixels_that_were_compared_at_another_size_are_another_protocol(tmp_path: Path) -> None:
    for name, shape in (("a", [64, 64, 3]), ("b", [64, 64, 3]), ("c", [32, 48, 3]), ("d", [64, 64, 1])):
        rows = [{"row": k, "stimulus": IMAGES[k], "final.pixcorr": 0.5} for k in range(3)]
        write_study(tmp_path, name, rows, {"pixcorr": 0.5}, shape=shape)
    found = compare_studies([tmp_path / name for name in "abcd"])
    assert names_under(found, "native, 64 × 64") == ["a", "b", "mean of a, b", "b less a"]
    assert names_under(found, "native, 32 × 48") == ["c"]
    assert names_under(found, "native, 64 × 64 grey") == ["d"]
    assert any("3 protocols" in note for note in found.notes)


def test_top1_among_other_numbers_of_images_is_neither_averaged_nor_subtracted(tmp_path: Path) -> None:
    metrics = ["two_way_pixels", "top1_pixels", "top1_pixels_reverse", "top1_of_300_features"]
    for name, n in (("a", 12), ("b", 9), ("c", 12)):
        scores = {f"final.{metric}": 0.5 for metric in metrics}
        rows = [{"row": k, "stimulus": IMAGES[k], **scores} for k in range(n)]
        write_study(tmp_path, name, rows, dict.fromkeys(metrics, 0.5))
    found = compare_studies([tmp_path / "a", tmp_path / "b"])
    for name in ("mean of 2 studies", "b less a"):
        assert set(line(found, name).figures) == {"two_way_pixels", "top1_of_300_features"}
    assert any("top-1 scores are neither averaged nor subtracted" in note for note in found.notes)
    assert set(line(compare_studies([tmp_path / "a", tmp_path / "c"]), "c less a").figures) == set(metrics)
