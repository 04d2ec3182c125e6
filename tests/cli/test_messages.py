"""The whole text of what wrong calls print, in messages.txt; no other test checks the wording.

A block of that file is a line `$ script.py FLAGS` and the message. The call is one that works (see
tests/helpers/bad_calls.py) with these flags added. WORLD, OUT and REPO stand for folders. To add a
call, write its line; to write the messages anew and see in the diff what changed:

    UPDATE_MESSAGES=1 python -m pytest tests/cli/test_messages.py

What tyro and PyTorch say in their own words is left out.
"""

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.bad_calls import CONFIGS, command, refusal

FILE = Path(__file__).with_name("messages.txt")
REPO = Path(__file__).parents[2]
SCRIPTS = {f"{script.__name__}.py": script for script in CONFIGS}


def blocks() -> dict[str, str]:
    """Return the message of each call."""
    parts = re.split(r"^\$ (.*)\n", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    calls, messages = parts[::2], parts[1::2]
    return {call: message.strip("\n") for call, message in zip(calls, messages, strict=True)}


def write(messages: dict[str, str]) -> None:
    text = "\n\n".join(f"$ {call}\n{message}" for call, message in messages.items())
    FILE.write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("call", blocks())
def test_message(world, tmp_path, capsys, monkeypatch, call):
    monkeypatch.delenv("LATENTSMITH_TRACEBACK", raising=False)
    places = {"WORLD": world, "OUT": tmp_path / "out", "REPO": REPO}
    script, *words = shlex.split(call)
    for name, folder in places.items():
        words = [re.sub(rf"\b{name}\b", str(folder), word) for word in words]
    given = command(SCRIPTS[script], world, tmp_path / "out", *words)
    message = refusal(capsys, SCRIPTS[script], given).strip("\n")
    for name, folder in places.items():
        message = message.replace(str(folder), name)
    message = message.replace("\\", "/")  # of paths on Windows
    if os.environ.get("UPDATE_MESSAGES"):
        write(blocks() | {call: message})
    else:
        assert message == blocks()[call]
