"""The report in a real browser: its controls do what they say, and it fits a narrow screen."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import pytest
from support.report_data import VOXELS, study_page

from leanrecon.evaluation.report.page import render

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    page = study_page(rows=24, side=32, folds=3, simulated=True, areas=True)
    render(dataclasses.replace(page, voxels=VOXELS), out)
    return out


# A window is never narrower than 500 pixels, a frame may be.
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin: 0">
<iframe src="shown.html" style="width: {width}px; height: 900px; border: 0"
  onload="document.body.dataset.result = contentDocument.body.dataset.result"></iframe></body>"""


def browse(path, tmp_path, script="", *, width=1280):
    """The page's DOM after its scripts and what ``script`` returned; nothing may reach the console."""
    text = path.read_text(encoding="utf-8")
    if script:
        text = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", text)
        run = f"<script>document.body.dataset.result = JSON.stringify((() => {{ {script} }})())</script>"
        text = text.replace("</body>", run + "</body>")
    shown = tmp_path / "shown.html"
    shown.write_text(text, encoding="utf-8")
    if width < 500:
        shown = tmp_path / "frame.html"
        shown.write_text(FRAME.format(width=width), encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr",
            "--allow-file-access-from-files", f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", shown.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    return done.stdout, json.loads(html.unescape(found[1])) if found else None


def test_the_page_as_it_is_runs_its_script(report, tmp_path):
    dom, _ = browse(report, tmp_path)
    assert re.search(r'<div id="controls" class="controls"[^>]*>', dom)[0].endswith('images">'), "still hidden"
    assert "24 of 24 shown" in dom


USE = """
const $ = (id) => document.getElementById(id);
const set = (id, value) => {
  $(id).value = value;
  $(id).dispatchEvent(new Event("input", { bubbles: true }));
  $(id).dispatchEvent(new Event("change", { bubbles: true }));
};
const shown = () => [...document.querySelectorAll(".card")].filter((c) => c.getClientRects().length);
const rows = () => shown().map((c) => Number(c.dataset.row));
const scores = (i) => shown().map((c) => Number(c.dataset.scores.split(",")[i]));
const option = (label) => [...$("score").options].find((o) => o.textContent === label).value;
const seen = {};
"""


def test_sorting_and_filtering(report, tmp_path):
    script = (
        USE
        + """
set("order", "back"); seen.back = rows();
set("order", "best"); seen.best = scores(option("Pixel correlation"));
set("order", "worst"); seen.worst = scores(option("Pixel correlation"));
set("score", option("Mean squared error")); set("order", "best");
seen.errors = scores(option("Mean squared error"));
seen.bound = $("bound").textContent;
set("least", "50"); seen.halfErrors = scores(option("Mean squared error")); seen.limit = $("limit").textContent;
set("score", option("Pixel correlation")); set("order", "row"); seen.row = rows();
set("least", "50"); seen.half = scores(option("Pixel correlation")); seen.count = $("count").textContent;
set("least", "0"); set("fold", "1"); seen.fold = rows(); set("fold", "");
set("find", "HARBOUR boats"); seen.found = rows();
set("find", "nsd-10037"); seen.stimulus = rows();
set("find", "zebra"); seen.none = [rows().length, $("nothing").hidden]; $("reset").click(); seen.reset = rows().length;
const width = () => document.querySelector(".card img").getBoundingClientRect().width;
const before = width();
document.querySelector('input[value="L"]').click(); seen.larger = width() / before;
document.querySelector('input[value="S"]').click(); seen.smaller = width() / before;
set("score", option("Top-1 retrieval by pixels"));
seen.chip = getComputedStyle(document.querySelector(`.scores [data-i="${$("score").value}"]`)).display;
return seen;
"""
    )
    _, seen = browse(report, tmp_path, script)
    assert seen["back"] == list(range(24))[::-1]
    assert seen["row"] == list(range(24))
    assert seen["best"] == sorted(seen["best"], reverse=True)
    assert seen["worst"] == seen["best"][::-1]
    assert seen["errors"] == sorted(seen["errors"])
    assert seen["bound"] == "At most"
    middle = (seen["errors"][0] + seen["errors"][-1]) / 2
    assert seen["halfErrors"] == [e for e in seen["errors"] if e <= middle]
    assert seen["limit"] == f"{middle:.3f}"
    bound = (seen["best"][0] + seen["best"][-1]) / 2
    assert sorted(seen["half"]) == sorted(v for v in seen["best"] if v >= bound)
    assert seen["count"] == f"{len(seen['half'])} of 24 shown"
    assert seen["fold"] == list(range(8, 16))
    assert seen["found"] == list(range(1, 24, 2))
    assert seen["stimulus"] == [1]
    assert seen["none"] == [0, False]
    assert seen["reset"] == 24
    assert seen["larger"] > 1.2
    assert seen["smaller"] < 0.8
    assert seen["chip"] != "none"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_of_the_page(report, tmp_path, width):
    script = """
for (const details of document.querySelectorAll("details")) details.open = true;
return [innerWidth, document.documentElement.scrollWidth, document.querySelectorAll("h1 .badge").length];
"""
    _, (inner, scroll, badges) = browse(report, tmp_path, script, width=width)
    assert inner == width
    assert scroll <= inner
    assert badges == 1


@pytest.mark.parametrize("width", [390, 1280, 3000])
def test_a_table_says_that_it_scrolls_where_it_does_until_its_end_is_reached(report, tmp_path, width):
    script = """
const hints = () => [...document.querySelectorAll(".hint + .scroll")].map((table) => {
  const hint = table.previousElementSibling;
  return [table.scrollWidth > table.clientWidth + 2, getComputedStyle(hint).display !== "none"];
});
const before = hints();
const table = document.querySelector(".scroll");
table.scrollLeft = table.scrollWidth;
table.dispatchEvent(new Event("scroll"));
return [before, hints()[0]];
"""
    _, (before, after) = browse(report, tmp_path, script, width=width)
    assert all(wider == hinted for wider, hinted in before)
    assert any(wider for wider, _ in before) == (width < 1000)
    assert after[1] is False
