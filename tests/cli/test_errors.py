"""An error of a user ends a script with one line; a bug shows its traceback and what to report."""

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import train_ldm
from foundation import __version__
from foundation.errors import MissingFileError, NotFiniteError, UserError
from tests.helpers.bad_calls import command
from training.cli import run_main

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    *("foundation", "interop", "autoencoder", "conditioning", "ldm", "dataset", "evaluation"),
)
# Whole commands in messages of libraries: they say how to train or draw what is missing.
COMMANDS = {
    "conditioning/clip.py": {"--data", "--out"},
    "conditioning/open_clip_weights.py": {"--data", "--out"},
    "conditioning/prompt_syntax.py": {"--plain-prompts"},
}


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "runs/a/x.png")


def error_line(capsys: pytest.CaptureFixture[str], error: BaseException) -> str:
    """Return the one line that a script prints if its main raises this error."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_main(main)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_scripts_print_parameters_of_libraries_as_flags(capsys):
    def main() -> None:
        raise UserError(
            "batch_size is 7, size is 5: give caption_dropout=0, not batch_sizes. "
            "runs/batch_size.png"
        )

    with pytest.raises(SystemExit):
        run_main(main, train_ldm.DiffusionTrainingConfig)
    line = capsys.readouterr().err
    assert "--batch-size is 7, size is 5: give --caption-dropout=0, not batch_sizes" in line
    assert "runs/batch_size.png" in line


@pytest.fixture(autouse=True)
def without_traceback_variable(monkeypatch):
    monkeypatch.delenv("LATENTSMITH_TRACEBACK", raising=False)


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (UserError("channels is 5, not 1, 3 or 4."), "channels is 5"),
        (MissingFileError("no model in runs/a."), "runs/a"),
        (NotFiniteError("the latents are not finite."), "latents"),
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "runs/a/x.png"),
            "runs/a/x.png",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/x.png"), "runs/a/x.png"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "runs/a/x.png"), "runs/a/x.png"),
        (SafetensorError("No space left on device (os error 28)"), os.strerror(errno.ENOSPC)),
        (torch.OutOfMemoryError("CUDA out of memory."), "--batch-size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_user_can_mend_is_one_line(capsys, error, content):
    assert content in error_line(capsys, error)


def test_memory_that_does_not_suffice_is_one_line(capsys):
    with pytest.raises(MemoryError) as raised:
        np.empty(2**57)
    assert "--batch-size" in error_line(capsys, raised.value)


def test_a_variable_shows_where_an_error_comes_from(monkeypatch):
    monkeypatch.setenv("LATENTSMITH_TRACEBACK", "1")

    def main() -> None:
        raise UserError("channels is 5.")

    with pytest.raises(UserError) as raised:
        run_main(main)
    assert not getattr(raised.value, "__notes__", [])


@pytest.mark.parametrize("kind", [ValueError, KeyError, AssertionError, RuntimeError])
def test_a_bug_keeps_its_traceback_and_says_what_to_report(kind):
    def main() -> None:
        raise kind("zip() argument 2 is shorter than argument 1")

    with pytest.raises(kind) as raised:
        run_main(main)
    (note,) = raised.value.__notes__
    for content in ("bug", __version__, torch.__version__):
        assert content in note


def test_processes_show_one_line_or_a_traceback(world, tmp_path):
    """Both processes at the same time, since imports take most of theirs."""
    wrong = command(train_ldm, world, tmp_path, "--vae", world / "clip")
    bug = "from training.cli import run_main\nrun_main(lambda: [][0])"
    calls = ([ROOT / "train_ldm.py", *wrong], ["-c", bug])
    processes = [
        subprocess.Popen([sys.executable, *call], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for call in calls
    ]
    mistake, traceback = (process.communicate()[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 1]
    assert mistake.startswith("error: ") and mistake.count("\n") == 1, mistake
    assert traceback.startswith("Traceback") and f"Latentsmith {__version__}" in traceback
    assert not any(tmp_path.iterdir())


def flags_in(file: Path) -> set[str]:
    """Return the flags in the strings of a module, docstrings included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value))
    return found


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_name_parameters_and_no_flags(library):
    files = sorted((ROOT / library).rglob("*.py"))
    assert files
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        extra = flags_in(file) - COMMANDS.get(name, set())
        assert not extra, f"{name} names flags of scripts: {', '.join(sorted(extra))}"
