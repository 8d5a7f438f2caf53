"""The command line within a notebook, and what cells show of a study."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("IPython")

from leanrecon.app import notebook
from leanrecon.errors import StoreError
from leanrecon.memory import parse_bytes

pytestmark = pytest.mark.slow

SMALL = "--set dataset.n_train=60 --set dataset.n_test=12 --set features.pca.components=10"


class Handle:
    """What IPython's display gives back: keeps what it was told to show."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, shown: dict[str, str], *, raw: bool, display_id: bool) -> "Handle":
        assert raw
        assert display_id
        self.update(shown, raw=raw)
        return self

    def update(self, shown: dict[str, str], *, raw: bool) -> None:
        assert shown["text/html"].startswith("<pre>")
        self.shown.append(shown["text/plain"])


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()
    monkeypatch.setattr("IPython.display.display", handle.display)
    return handle


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook")
    command = [sys.executable, "-m", "leanrecon", "demo", "--fast", "--study", str(folder / "demo"), *SMALL.split()]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "demo"


def test_the_magic_is_the_command_line(
    meter: Handle, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as kernels do
    notebook.run("plan demo-fast --memory 3GB")
    said = capfd.readouterr().out
    assert "plan, 3 GB of memory allowed" in said
    assert "\x1b" not in said
    seconds, memory = meter.shown[-1].split(", memory: ")
    assert seconds.endswith(" s")
    peak, _, allowed = memory.partition(" at most of ")
    assert allowed == "3 GB"
    assert 20e6 < parse_bytes(peak) < 400e6


def test_time_left_is_shown_in_place_and_everything_else_is_kept(
    meter: Handle, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leanrecon").mkdir()
    (tmp_path / "leanrecon" / "__init__.py").touch()
    lines = ["betas: 3/40 sessions, 0.1 sessions/s, 6:10 left", "repeat reliability: fine", "betas: 40 sessions in 400.0 s (0.1/s)"]  # fmt: skip
    program = f"import time\nfor line in {lines!r}:\n    print(line, flush=True)\n    time.sleep(0.6)\n"
    (tmp_path / "leanrecon" / "__main__.py").write_text(program)
    monkeypatch.chdir(tmp_path)  # `python -m` looks here first
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook.run("run anything --memory=1GB")
    assert capfd.readouterr().out.splitlines() == lines[1:]
    assert any(shown.endswith("6:10 left") and "▯" in shown for shown in meter.shown)


def test_a_command_that_fails_stops_the_notebook_without_a_traceback(
    meter: Handle, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(notebook.CommandError, match=r"`leanrecon run nothing` ended with code 2.*See above") as found:
        notebook.run("run nothing")
    assert "nothing is neither a settings file nor a recipe" in capfd.readouterr().out
    assert found.value._render_traceback_() == [str(found.value)]


RUNNING = """
import sys
import IPython.display
from leanrecon.app import notebook

class Silent:
    def update(self, *_, **__): pass

IPython.display.display = lambda *_, **__: Silent()
notebook.run("run demo-fast --study study --set dataset.n_train=20000")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death reaches its programs on Linux")
def test_a_command_ends_with_the_kernel_so_that_its_study_is_free(tmp_path: Path) -> None:
    kernel = subprocess.Popen([sys.executable, "-c", RUNNING], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / "study" / "stimuli").exists():
        assert kernel.poll() is None
        time.sleep(0.05)
    (command,) = psutil.Process(kernel.pid).children()
    os.kill(kernel.pid, signal.SIGKILL)
    kernel.wait()
    command.wait(timeout=20)
    assert not command.is_running()


def test_the_gallery_shows_the_verdict_and_the_best_middle_and_worst(study: Path) -> None:
    shown = notebook.gallery(study)
    metrics = json.loads((study / "evaluation" / "metrics.json").read_text())
    assert metrics["simulated"]
    page = shown._repr_html_()
    assert "Simulated subject: no one was measured." in page
    assert page.count("<img src='data:image/") == 2 * (4 + 3 + 3)  # a third of the twelve at most
    scores = sorted(
        float(line.split(",")[k])
        for lines in [(study / "evaluation" / "scores.csv").read_text().splitlines()]
        for k in [lines[0].split(",").index("final.pixcorr")]
        for line in lines[1:]
    )
    assert f"<figcaption>{scores[-1]:.2f}</figcaption>" in page
    assert f"<figcaption>{scores[0]:.2f}</figcaption>" in page
    assert "Picks out its own image" in repr(shown)


def test_the_pictures_of_the_gallery_are_those_of_its_rows(study: Path) -> None:
    import base64
    import io
    import re

    import numpy as np
    from PIL import Image

    from leanrecon.evaluation.report.gallery import strip_rows
    from leanrecon.stages.scores import read_scores
    from leanrecon.stores import Store
    from leanrecon.study.layout import Study

    order = [row for _, rows in strip_rows(read_scores(Study(study))) for row in rows]
    found = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r"data:image/png;base64,([^']+)'", notebook.gallery(study)._repr_html_())
    ]
    stimuli = Store.open(study / "stimuli" / "test.zarr")
    for k, row in enumerate(order):
        np.testing.assert_array_equal(found[2 * k], stimuli[row : row + 1][0])
        drawn = np.asarray(Image.open(study / "reconstructions" / "final" / f"{row:05d}.png"))
        np.testing.assert_array_equal(found[2 * k + 1], drawn)


def test_a_study_without_figures_has_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"metrics\.json.*run the study to its end|metrics\.json.*Run the study"):
        notebook.gallery(tmp_path)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "Too few images were shown twice"),
        ({"pairs": 12, "matched": 0.2, "mismatched": 0.1, "error": None}, "Too few images were shown twice"),
        ({"pairs": 300, "matched": 0.2, "mismatched": 0.1, "error": 0.01}, "Betas and images belong together: "),
        ({"pairs": 300, "matched": 0.11, "mismatched": 0.1, "error": 0.01}, "BETAS AND IMAGES DO NOT MATCH: "),
    ],
)
def test_the_alignment_is_that_of_the_repeats(tmp_path: Path, record: dict[str, object] | None, said: str) -> None:
    with pytest.raises(StoreError, match="stage dataset"):
        notebook.alignment(tmp_path)
    (tmp_path / "betas").mkdir()
    (tmp_path / "betas" / "rows.json").write_text("{}")
    if record:
        (tmp_path / "betas" / "reliability.json").write_text(json.dumps(record))
    assert repr(notebook.alignment(tmp_path)).startswith(said)
