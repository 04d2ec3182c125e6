"""Progress: a bar in a terminal, a line every half minute in a log file."""

import io
import math
import re
import sys

import pytest

from training.logging import progress
from training.logging.progress import (
    SPARKS,
    TrainingProgress,
    format_duration,
    progress_bar,
    progress_counter,
    sparkline,
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run(clock: Clock, steps: int, seconds: float) -> None:
    """Do steps of 10 images that take `seconds` each, and show each of them."""
    bar = TrainingProgress("train", 0, steps, 10)
    for _ in range(steps):
        clock.now += seconds
        bar.advance()
        bar.show({"loss": 0.5})
    bar.close()


def test_a_log_file_gets_a_line_every_half_minute(clock, capsys):
    run(clock, steps=100, seconds=2.0)
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 8
    assert "step 15 of 100, 5 images/s, 2:50 min left" in lines[0]
    assert re.search(r"memory \d[\d.]* [MG]B", lines[0]) and "loss 0.5" in lines[0]
    assert "step 100 of 100" in lines[-1] and "0 s left" in lines[-1]


def test_a_terminal_gets_one_bar(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run(clock, steps=100, seconds=0.01)
    text = terminal.getvalue()
    assert "\r" in text and "images/s" in text and "step 100 of 100" not in text
    assert text.count("\n") <= 1


GREEN = "\x1b[32m"


@pytest.mark.parametrize(("variables", "has_color"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colors_and_the_course_of_the_loss(
    clock, monkeypatch, variables, has_color
):
    for name, value in {"TERM": "xterm", "NO_COLOR": "", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bar = TrainingProgress("train", 0, 3, 10)
    for loss in (3.0, math.nan, 1.0):
        bar.show({"loss": loss, "gradient_norm": 9.0})
    bar.bar.refresh()
    bar.close()
    text = terminal.getvalue()
    assert (GREEN in text) == has_color and "█ ▁ loss 1" in text


@pytest.mark.parametrize(("term", "is_tty"), [("dumb", True), ("xterm", False)])
def test_files_and_simple_terminals_get_lines_without_codes(clock, monkeypatch, term, is_tty):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(terminal, "isatty", lambda: is_tty)
    run(clock, steps=40, seconds=2.0)
    list(progress_bar(range(3), "reading", 3))
    assert "step 15 of 40" in terminal.getvalue()
    assert not {"\r", "\x1b", "█"} & set(terminal.getvalue())


def test_a_sparkline_is_relative_to_its_numbers():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == SPARKS
    assert sparkline([2, 2]) == SPARKS[0] * 2
    assert sparkline([1.0, math.inf, 0.5]) == f"{SPARKS[-1]} {SPARKS[0]}"
    assert sparkline([1.0]) == sparkline([math.nan, 1.0]) == ""


def test_a_resumed_run_measures_its_speed_from_where_it_resumed(clock, capsys):
    bar = TrainingProgress("train", 90, 100, 10)
    clock.now += 40
    bar.advance()
    bar.show({})
    assert "step 91 of 100, 0.25 images/s, 6:00 min left" in capsys.readouterr().err
    bar.close()


def test_other_long_work_prints_lines_unless_it_is_quick(clock, capsys):
    def slow(count):
        for k in range(count):
            clock.now += 20
            yield k

    assert list(progress_bar(slow(7), "reading", 7)) == list(range(7))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "reading: 1 of 7" in lines[0]
    assert list(progress_bar(range(5), "quick", 5)) == list(range(5))
    assert not capsys.readouterr().err


def test_results_of_an_evaluation_are_printed(capsys):
    bar = TrainingProgress("train", 0, 10, 1)
    bar.print_results(5, {"psnr": 21.0, "verdict": "balanced"})
    bar.close()
    assert capsys.readouterr().out == "step 5: psnr 21\nstep 5: balanced\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (200, "3:20 min"), (18_420, "5:07 h"), (59.7, "1:00 min")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_a_counter_shows_in_lines_or_a_bar(clock, monkeypatch, capsys):
    with progress_counter("sampling", 100, "image steps") as update:
        for _ in range(25):
            clock.now += 2.0
            update(4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sampling: 60 of 100 image steps, 2 per second, 20 s left"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_counter("sampling", 8, "image steps") as update:
        update(8)
    assert "8/8" in terminal.getvalue() and "image steps/s" in terminal.getvalue()
