"""Prompts that are typed: the model stays loaded, seeds go on, a mistake does not end it."""

import json
import sys

import pytest
from PIL import Image

import sample
from commands import sample as program
from tests.helpers.bad_calls import command


@pytest.fixture
def typed(monkeypatch):
    """Return a function that sets what is typed."""

    def set_lines(*lines: str) -> None:
        rest = iter(lines)

        def read(text: str) -> str:
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)

    return set_lines


def test_typed_prompts_are_drawn_by_one_session(world, tmp_path, capsys, monkeypatch, typed):
    opened: list[object] = []
    open_session = program.open_session
    monkeypatch.setattr(
        program, "open_session", lambda config: opened.append(0) or open_session(config)
    )
    typed("", "red", "", "(red", "blue")
    _, *flags = command(sample, world, tmp_path / "out", "-n", 2, "--seed", 5)
    sample.main(flags)
    files = sorted((tmp_path / "out").glob("0*.png"))
    records = [json.loads(Image.open(file).text["latentsmith"]) for file in files]
    assert [(each["prompt"], each["seed"]) for each in records] == [
        *[("red", 5), ("red", 6), ("red", 7), ("red", 8), ("blue", 9), ("blue", 10)]
    ]
    assert len(opened) == 1
    assert "--plain-prompts" in capsys.readouterr().err


def test_nothing_is_asked_for_where_nobody_types(world, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    _, *flags = command(sample, world, tmp_path / "out")
    with pytest.raises(ValueError, match="no prompt given"):
        sample.main(flags)


def test_open_shows_the_grid(world, tmp_path, monkeypatch, capsys):
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address))
    words = command(sample, world, tmp_path / "out", "-n", 2, "--open")
    sample.main(words)
    assert shown == [(tmp_path / "out" / "grid-0000.png").as_uri()]
    assert "no browser was found" in capsys.readouterr().out  # it returned nothing
