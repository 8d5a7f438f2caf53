import io
import re

import pytest
from rich.console import Console

from leanrecon import progress
from leanrecon.progress import PlainProgress, Progress, RichProgress, counted, format_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_progress_shows_nothing_unless_asked(capfd):
    with Progress().task("betas", total=10, unit="rows") as advance:
        advance(10)
    Progress().say("hello")
    assert capfd.readouterr() == ("", "")


def test_plain_lines_come_every_few_seconds_with_rate_and_time_left(clock, capsys):
    with PlainProgress().task("pca, train", total=1000, unit="images") as advance:
        for _ in range(4):
            clock(2.0)
            advance(100)  # 50 images/s; lines after 6 s
        clock(12)
        advance(600)
    out, err = capsys.readouterr()
    assert out == "", "results go to stdout, progress does not"
    assert err.splitlines() == [
        "pca, train: 300/1000 images, 50 images/s, 0:14 left",
        "pca, train: 1000 images in 20.0 s (50/s)",
    ]


def test_what_an_earlier_run_did_counts_for_the_place_but_not_for_the_rate(clock, capsys):
    with PlainProgress().task("pca, train", total=1000, unit="images", done=600) as advance:
        clock(10)
        advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "pca, train: 700/1000 images, 10 images/s, 0:30 left",
        "pca, train: 100 images in 10.0 s (10/s)",
    ]


def test_a_task_that_had_nothing_to_do_says_nothing(clock, capsys):
    with PlainProgress().task("pca, train", total=1000, unit="images", done=1000):
        pass
    assert capsys.readouterr().err == ""


def test_a_task_that_fails_does_not_say_that_it_is_done(clock, capsys):
    with pytest.raises(ZeroDivisionError), PlainProgress().task("pca", total=10, unit="images") as advance:
        advance(5 // (advance(5) or 0))
    assert capsys.readouterr().err == ""


def test_hours_are_written_out(clock, capsys):
    with PlainProgress().task("vdvae", total=73_000, unit="images") as advance:
        clock(10)
        advance(100)
        clock(0)
    assert "0 left" in capsys.readouterr().err.splitlines()[0]
    assert progress._clock(7290) == "2:01:30"
    assert progress._clock(59.6) == "1:00"
    assert progress._clock(float("inf")) == "?"


def terminal() -> tuple[RichProgress, io.StringIO]:
    text = io.StringIO()
    return RichProgress(Console(file=text, force_terminal=True, width=120, color_system=None)), text


def shown(text: io.StringIO) -> list[str]:
    """What was on the lines of the terminal, one state after the other."""
    states = re.split(r"\r|\n|\x1b\[2K", text.getvalue())
    return [state for state in (re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", s).rstrip() for s in states) if state]


def test_a_terminal_gets_a_bar_that_starts_where_the_last_run_stopped():
    bar, text = terminal()
    with bar.task("pca, train", total=100, unit="images", done=40) as advance:
        advance(60)
    first, *_, last = shown(text)
    assert "40/100 images" in first
    assert re.search(r"pca, train .* 100/100 .* images/s", last)


def test_brackets_in_a_path_are_shown_as_they_are():
    bar, text = terminal()
    bar.say("/data/[sub-01]/[/x] is not finished")
    assert text.getvalue().strip() == "/data/[sub-01]/[/x] is not finished"


def test_lines_can_be_said_while_a_bar_runs():
    bar, text = terminal()
    with bar.task("pca", total=2, unit="images") as advance:
        advance(1)
        bar.say("2 voxels are left out")
        advance(1)
    assert "2 voxels are left out" in shown(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.00098, "< 0.01 s"),
        (0.04, "0.04 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (1e6, "11.6 days"),
    ],
)
def test_times_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 images"), (1, "1 image"), (60, "60 images")])
def test_one_thing_is_no_plural(n: int, text: str) -> None:
    assert counted(n, "images") == text
