"""The report as a file: complete in itself, safe, honest about what it shows, and small in memory."""

import dataclasses
import re
import tracemalloc
import weakref
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.report_data import AREAS, VOXELS, study_page

from leanrecon.errors import InputError
from leanrecon.evaluation import scores
from leanrecon.evaluation.fold import ORACLE, TRUE_FEATURES
from leanrecon.evaluation.report import plots, tables, thumbnails
from leanrecon.evaluation.report.gallery import score_columns, shown_rows, strip_rows
from leanrecon.evaluation.report.names import LABELS
from leanrecon.evaluation.report.page import render
from leanrecon.evaluation.report.thumbnails import thumbnail

pytestmark = pytest.mark.slow


def test_what_a_check_said_is_shown_where_there_was_one(tmp_path):
    render(study_page(), tmp_path / "plain.html")
    assert "Do the data carry" not in (tmp_path / "plain.html").read_text()
    checked = {"verdict": "Yes: the betas carry the images.", "lines": ["two-way 90 % <b>", "repeats"]}
    render(replace(study_page(), checked=checked), tmp_path / "checked.html")
    text = (tmp_path / "checked.html").read_text()
    assert "Yes: the betas carry the images." in text
    assert "<li>two-way 90 % &lt;b&gt;</li>" in text


VOID = {"meta", "img", "input", "br", "hr", "link"}


class Parsed(HTMLParser):
    """The page as a parser sees it: well nested, or the test fails."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):  # <circle/> within SVG
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack:
            self.texts.setdefault(self.stack[-1], []).append(data)

    def all(self, tag, **attributes):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in attributes.items())]

    @property
    def text(self):
        return " ".join(data for tag, found in self.texts.items() if tag not in ("script", "style") for data in found)


@pytest.fixture
def rendered(tmp_path):
    def made(page):
        out = tmp_path / "report.html"
        render(page, out)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]  # nothing is left beside it
        return Parsed(out.read_text(encoding="utf-8"))

    return made


VARIETIES = [
    {"rows": 60, "side": 64},
    {"rows": 40, "side": 28, "channels": 1, "folds": 10, "simulated": True, "refined": False, "captions": False},
    {"rows": 12, "side": 200, "works": False},
    {"rows": 3, "side": 16, "refined": False, "works": False},
    {"rows": 1, "side": 16, "simulated": True},
]


@pytest.mark.parametrize("variety", VARIETIES, ids=str)
def test_page_is_well_formed_and_complete_in_itself(rendered, variety):
    page = rendered(study_page(**variety))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert "src" not in attributes or attributes["src"].startswith("data:image/")
        assert not any(name.startswith("on") for name in attributes)
        assert "href" not in attributes
        assert "url(" not in attributes.get("style", "")
    assert not re.search(r"url\(|@import|https?://", "".join(page.texts["style"] + page.texts["script"]))
    assert len(page.all("article")) == variety["rows"]
    of_each = 3 if variety.get("refined", True) else 2
    shown = variety["rows"] + sum(len(rows) for _, rows in strip_rows(study_page(**variety).scores))
    assert len(page.all("img")) == of_each * shown
    assert all(image["alt"] and int(image["width"]) and int(image["height"]) for image in page.all("img"))


def test_page_works_without_scripts(rendered):
    page = rendered(study_page(rows=12))
    assert not any("hidden" in card for card in page.all("article"))
    assert "hidden" in page.all("div", id="controls")[0]


def test_only_the_report_s_own_script_may_run(rendered):
    page = rendered(study_page(rows=3))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", policy)


EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}</title>&amp;"


def test_hostile_names_are_only_text(rendered):
    page = study_page(rows=12, folds=3)
    evil_figures = {EVIL: {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.5}}
    metrics = page.metrics | {
        "preset": EVIL,
        "notes": [EVIL],
        "final": page.metrics["final"] | evil_figures,
        "baselines": {EVIL: page.metrics["final"] | evil_figures},
        "features": {EVIL: evil_figures},
        "folds": 3,
    }
    page = dataclasses.replace(
        page,
        study=EVIL,
        metrics=metrics,
        scores=[s | {"stimulus": EVIL, "captions": [EVIL], "fold": EVIL, EVIL: 0.5} for s in page.scores],
        settings={EVIL: {EVIL: EVIL}},
        records={"stages": {EVIL: {"seconds": 1, EVIL: EVIL}}},
        variants={EVIL: {"stages": {EVIL: {"seconds": 1}}}},
        versions={EVIL: EVIL},
        latent_r2={EVIL: np.linspace(0, 1, 40)},
        latent_groups={EVIL: {EVIL: slice(0, 20)}},
    )
    found = rendered(page)
    assert len(found.all("script")) == 1
    assert all(image["src"].startswith("data:") for image in found.all("img"))
    assert "alert" not in "".join(found.texts["script"])
    assert found.text.count(EVIL) > 30
    assert "49" not in "".join(found.texts["h1"])  # nothing in a name is a template


def test_a_simulated_subject_can_not_pass_for_a_real_one(rendered):
    page = rendered(study_page(rows=12, simulated=True))
    assert len(page.all("span", **{"class": "badge"})) == 1  # beside the title, above a sentence that says so
    assert "No one was measured" in page.text
    assert page.texts["title"][0].startswith("SIMULATED SUBJECT")
    assert "simulated subject" in page.texts["h2"][0]
    assert "No one was measured" in page.text


def test_metrics_alone_can_say_that_a_subject_is_simulated(rendered):
    page = study_page(rows=3)
    found = rendered(dataclasses.replace(page, metrics=page.metrics | {"simulated": True}))
    assert found.texts["title"][0].startswith("SIMULATED SUBJECT")


def test_a_real_subject_is_not_called_simulated(rendered):
    page = rendered(study_page(rows=12))
    assert "simulated" not in page.text.lower()
    assert not page.all("span", **{"class": "badge"})


@pytest.mark.parametrize("simulated", [True, False])
def test_noise_ceilings_say_whether_they_are_known_or_estimated(rendered, simulated):
    page = rendered(dataclasses.replace(study_page(rows=12, simulated=simulated), voxels=VOXELS))
    assert page.all("h2", id="voxels")
    assert len(page.all("span", **{"class": "badge"})) == simulated
    assert ("Known, because the subject is simulated" in page.text) == simulated
    assert ("As published with the dataset" in page.text) != simulated
    whence = "known" if simulated else "published estimate"
    assert page.texts["small"].count(whence) == 2
    for cell in ("1,205", "0.50", "42.9 %", "2,300", "0.25", "15.8 %"):
        assert cell in page.texts["td"]
    assert {"V1", "All voxels"} <= set(page.texts["th"])
    assert "ncsnr² / (ncsnr² + 1/3)" in page.text
    mixed = rendered(dataclasses.replace(study_page(rows=12), voxels=VOXELS | {"repeats": [1, 3]}))
    assert "the mean of 1 to 3 trials" in mixed.text
    assert "1/n averaged over the images" in mixed.text


def test_areas_stand_in_their_own_order_beside_all_voxels_in_a_table_and_in_plots(rendered):
    page = rendered(study_page(rows=12, areas=True))
    assert page.all("h2", id="areas")
    named = [text for text in page.texts["th"] if text in (*AREAS, "All voxels")]
    assert named == [*AREAS, "All voxels"]
    for cell in ("700", "1,205", "90", "2,300"):
        assert cell in page.texts["td"]
    assert {"0.300", "0.400", "0.100", "65.0 %", "70.0 %"} <= set(page.texts["b"])
    for title in ("V1: 0.40 (0.36 to 0.44)", "a quite long name of an area: 55 % (51 % to 59 %)"):
        assert title in page.texts["title"]
    assert not rendered(study_page(rows=12)).all("h2", id="areas")


def test_metrics_of_every_judge_are_plotted_and_listed_by_its_name(rendered):
    page = study_page(rows=12, areas=True)
    judged = {
        "two_way_mine": {"value": 0.8, "low": 0.7, "high": 0.9, "chance": 0.5},
        "distance_swav": {"value": 0.41, "low": 0.4, "high": 0.42, "chance": 0.6},
    }
    for figures in (page.metrics["final"], page.metrics["stage1"], page.metrics["areas"]["V1"]["final"]):
        figures |= judged
    found = rendered(page)
    for name in ("Two-way identification by mine", "Distance by SwAV"):
        assert [a for a in found.all("svg") if a["aria-label"] == name]
        assert name in found.text


def test_a_long_label_of_a_plot_is_wrapped_or_shrunk_and_never_cut(rendered):
    name = "Upper bound: true features, refined"
    svg = plots.dots("x", [plots.Dot(name, 0.5), plots.Dot("a" * 40, 0.4), plots.Dot("short", 0.3)], str)
    texts = re.findall(r'<text class="label end"[^>]*>([^<]*)</text>', svg)
    assert texts == ["Upper bound: true", "features, refined", "a" * 40, "short"]
    size = float(re.search(r"font-size:([\d.]+)px", svg)[1])
    assert 40 * size * 0.6 < 135  # letters are about 0.6 of their size wide; labels have 122 units, and 8 to spare
    assert "…" not in svg


def test_names_of_the_dataset_are_titles_even_where_they_are_numbers(rendered):
    page = study_page(rows=3)
    names = ["000000391895", "n01518878_5958.JPEG", "scene 7"]
    scores = [score | {"stimulus": name} for score, name in zip(page.scores, names, strict=True)]
    assert set(names) <= set(rendered(dataclasses.replace(page, scores=scores)).texts["span"])


def test_an_image_whose_id_is_a_hash_is_called_by_its_number_and_still_found_by_the_hash(rendered):
    page = study_page(rows=3)
    scores = [s | {"stimulus": f"{k:016x}"} for k, s in enumerate(page.scores)]
    found = rendered(dataclasses.replace(page, scores=scores))
    assert {"Test image 0", "Test image 1", "Test image 2"} <= set(found.texts["span"])
    assert [card["data-stimulus"] for card in found.all("article")] == [s["stimulus"] for s in scores]
    assert not [text for text in found.texts["span"] if re.fullmatch("[0-9a-f]{16}", text)]
    assert "nsd-10000" in rendered(study_page(rows=3)).texts["span"]


def test_voxels_of_unknown_noise_are_not_told_of(rendered):
    assert not rendered(study_page(rows=12)).all("h2", id="voxels")


def test_null_and_missing_figures_are_left_open(rendered):
    page = study_page(rows=12)
    null = {"value": None, "low": None, "high": None, "chance": None}
    metrics = {
        "n_test": 12,
        "folds": None,
        "final": {
            "pixcorr": null,
            "ssim": {"value": 0.4, "low": None, "high": None},
            "something_new": {"value": 0.123},
        },
        "baselines": {"mean_train_image": {"pixcorr": None, "ssim": {"value": float("nan")}}},
        "upper_bounds": None,
        "features": None,
        "margins": None,
        "notes": None,
    }
    scores = [
        {"stimulus": s["stimulus"], "final.pixcorr": None, "final.ssim": None if i else 0.4}
        for i, s in enumerate(page.scores)
    ]
    nothing = dataclasses.replace(
        page, metrics=metrics, scores=scores, settings={}, records={}, latent_r2={"pca": np.full(5, np.nan)}
    )
    found = rendered(nothing)
    assert "Something new" in found.text
    assert "0.123" in found.text
    assert "Too few scores to say" in found.text
    for word in ("None", "nan", "undefined"):
        assert word not in found.text


def test_scores_of_no_kind_at_all_still_make_a_page(rendered):
    page = study_page(rows=4)
    scores = [{"row": s["row"], "stimulus": s["stimulus"]} for s in page.scores]
    found = rendered(dataclasses.replace(page, metrics={}, scores=scores))
    assert len(found.all("article")) == 4
    assert not found.all("select", id="score")


def test_figures_stand_in_order_with_their_intervals_and_the_better_ones_marked(rendered):
    page = rendered(study_page(rows=60))
    text = page.text
    assert (
        text.index("Pixel correlation") < text.index("Structural similarity (SSIM)") < text.index("Mean squared error")
    )
    # The margins of pixel correlation, error and two-way lie clear of zero, those of SSIM do not.
    assert len(page.all("span", **{"class": "mark", "title": "Clearly better than the best baseline"})) == 3
    assert not rendered(study_page(rows=60, works=False)).all("span", **{"class": "mark"})


def test_folds_are_said_to_be_averaged_and_where_each_lies(rendered):
    text = rendered(study_page(rows=20, folds=5)).text
    assert "averages over 5 folds" in text
    assert "variants/fold00/evaluation/metrics.json" in text
    assert "fold04" in text


def test_strip_shows_best_middle_and_worst_once_each():
    def named(n):
        return strip_rows([{"final.pixcorr": (7 * i) % n} for i in range(n)])

    assert [(name, len(rows)) for name, rows in named(60)] == [("Best", 5), ("Middle", 3), ("Worst", 3)]
    assert [name for name, _ in named(1)] == ["The only one"]
    assert [name for name, _ in named(2)] == ["Best", "Worst"]
    assert named(0) == []
    for n in range(1, 30):
        rows = [row for _, found in named(n) for row in found]
        values = [(7 * row) % n for row in rows]
        assert len(rows) == len(set(rows))
        if n % 7:
            assert values == sorted(values, reverse=True)
    assert strip_rows([{"final.pixcorr": None}, {"final.pixcorr": float("nan")}, {"stage1.pixcorr": 0.5}]) == [
        ("The only one", [2])
    ]


def test_the_first_stage_has_scores_of_its_own_only_where_they_differ():
    same = [{"row": 0, "stage1.pixcorr": 0.5, "final.pixcorr": 0.5, "final.zeta": 1.0}]
    assert [c.key for c in score_columns(same)] == ["final.pixcorr", "final.zeta"]
    other = [{"row": 0, "stage1.pixcorr": 0.4, "final.pixcorr": 0.5, "stage1.ssim": 0.2}]
    assert [c.key for c in score_columns(other)] == ["final.pixcorr", "stage1.pixcorr", "stage1.ssim"]


def test_many_rows_pass_through_one_at_a_time(tmp_path):
    rows = 600
    page = study_page(rows=12, side=16)
    alive: list[weakref.ref] = []
    rng = np.random.default_rng(0)

    def pictures():
        for _ in range(rows):
            assert all(picture() is None for picture in alive), "a row of pictures was kept"
            made = tuple(rng.integers(0, 256, (48, 48, 3), np.uint8) for _ in range(3))
            alive[:] = [weakref.ref(picture) for picture in made]
            yield made
            del made

    scores = [page.scores[i % 12] | {"row": i} for i in range(rows)]
    page = dataclasses.replace(page, scores=scores, pictures=pictures())
    render(study_page(rows=12), tmp_path / "warm.html")  # what stays in memory once libraries are loaded is not counted
    tracemalloc.start()
    render(page, tmp_path / "report.html")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "report.html").stat().st_size
    assert size > 15_000_000
    assert peak < size / 4, (peak, size)


def test_a_thousand_rows_stay_small():
    """Noise packs worst: a thousand rows of it, three pictures each, still fit a page of about 25 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (425, 425, 3), np.uint8)
    assert 3000 * len(thumbnail(noise, 1000).uri) < 25_000_000
    assert 3000 * len(thumbnail(noise[:64, :64], 1000).uri) < 25_000_000


@pytest.mark.parametrize(
    ("shape", "rows", "size", "kind"),
    [
        ((28, 28, 1), 10, (28, 28), "png"),
        ((64, 48, 3), 10, (48, 64), "png"),
        ((425, 425, 3), 10, (192, 192), "webp"),
        ((425, 425, 3), 301, (128, 128), "webp"),
        ((100, 300, 1), 10, (192, 64), "webp"),
    ],
)
def test_thumbnails_have_the_size_for_their_page(shape, rows, size, kind):
    made = thumbnail(np.full(shape, 90, np.uint8), rows)
    assert (made.width, made.height) == size
    assert made.uri.startswith(f"data:image/{kind};base64,")
    assert made.pixelated == (max(size) < 48)


def test_jpeg_stands_in_for_webp(monkeypatch):
    monkeypatch.setattr(thumbnails, "_lossy", lambda: "JPEG")
    assert thumbnail(np.full((200, 200, 1), 90, np.uint8), 1).uri.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)])
def test_pictures_of_another_kind_are_refused(bad):
    with pytest.raises(InputError, match="a picture of the report is .* Expected uint8"):
        thumbnail(bad, 1)


@pytest.mark.parametrize("pictures", [11, 13])
def test_rows_and_pictures_must_agree_and_the_old_report_stays(tmp_path, pictures):
    out = tmp_path / "report.html"
    out.write_text("before")
    page = study_page(rows=12, side=16)
    other = study_page(rows=pictures, side=16).pictures
    with pytest.raises(InputError, match="scores of 12 test rows but pictures of"):
        render(dataclasses.replace(page, pictures=other), out)
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_same_study_makes_the_same_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        render(study_page(rows=5, side=70), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("refined", [True, False])
def test_the_time_of_refining_an_image_stands_beside_the_images_and_the_stage(rendered, refined):
    page = rendered(study_page(rows=3, side=16, refined=refined))
    assert ("Refinement took 5.3 s an image." in page.text) == refined
    noted = "precision float16, 5.3 s an image, 1 drawn again in float32"  # and none that stayed black
    assert (noted in page.texts["td"]) == refined


def test_what_a_stage_noted_stands_in_words_and_never_as_json() -> None:
    noted = {
        "form": {"kernel": "rbf", "gamma": 0.5, "voxel_weights": None},
        "choice": {"rows": 400, "tried": [{"kernel": "linear", "r2": 0.8}, {"kernel": "rbf", "r2": 0.9}]},
        "image": [64, 64, 3],
        "steps_tried": list(range(40)),
        "waited": {},
        "used": True,
        "notes": ["This sentence stands above the table."],
    }
    run = {"stages": {"stage1": {"seconds": 3.0, **noted}}}
    (stage,) = tables.record("", run, scale=1.0).stages
    assert stage.notes == (
        "form (kernel rbf, gamma 0.5), choice (rows 400, tried 2 in run.json), image 64, 64, 3, "
        "steps tried 40 in run.json, used yes"
    )


def test_every_set_of_figures_is_named_in_words():
    named = {*scores.BASELINES, *scores.REFINED.values(), TRUE_FEATURES, ORACLE}
    assert named <= set(LABELS)


def test_a_page_shows_the_best_the_worst_and_others_at_even_distances() -> None:
    likeness = np.random.default_rng(0).random(5000).tolist()
    shown = shown_rows(likeness, 100)
    assert 100 <= len(shown) <= 111
    ranked = np.argsort(likeness)
    assert {*ranked[-5:].tolist(), *ranked[:3].tolist()} <= set(shown)
    assert np.diff(shown).max() <= 51
    assert shown_rows(likeness[:100], 100) == list(range(100))


def test_a_page_of_some_rows_says_so_and_draws_all_their_scores(tmp_path: Path) -> None:
    page = study_page(rows=12)
    metrics = {**page.metrics, "n_test": 9000}
    likeness = [0.5] * 9000
    render(replace(page, metrics=metrics, likeness=likeness), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "12 of 9,000 test images are shown" in text
    assert "9000 images; lines are means" in text
    assert text.count("<article") == 12
