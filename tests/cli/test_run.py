"""run.py, which does what the Makefile names where there is no make."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run
import train_clip
import train_ldm
import train_vae
from training.cli import parse

ROOT = Path(run.__file__).parent
TRAININGS = {
    "train_clip.py": (train_clip, train_clip.ClipTrainingConfig),
    "train_vae.py": (train_vae, train_vae.AutoencoderTrainingConfig),
    "train_ldm.py": (train_ldm, train_ldm.DiffusionTrainingConfig),
}


@pytest.fixture
def commands(monkeypatch):
    """The commands that a target would run; none is run."""
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(run, "call", lambda *command: found.append(command))
    monkeypatch.setattr(run.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(run, "READY", ROOT / "setup.cfg")  # nothing has to be installed
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return found


def test_the_makefile_has_the_same_targets_and_calls_this_program():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^TARGETS := (.*)$", text, flags=re.MULTILINE) == [" ".join(run.TARGETS)]
    assert re.findall(r"^\t@\$\(PYTHON\) (.*)$", text, flags=re.MULTILINE) == [
        "run.py $@ --workers $(WORKERS)"
    ]
    assert all(re.search(rf"^{name}\s+\w", run.__doc__, flags=re.MULTILINE) for name in run.TARGETS)


def test_the_demo_draws_then_trains_the_three_stages_with_flags_that_exist(commands):
    run.demo(workers=2)
    files = [command[1] for command in commands]
    recipe = [] if (ROOT / run.DATA / "metadata.jsonl").exists() else ["recipes/openmoji.py"]
    assert files == ["sample.py", *recipe, "check.py", *TRAININGS, "sample.py"]
    assert {command[0] for command in commands} == {str(run.PYTHON)}
    for _, file, *flags in commands:
        if file in TRAININGS:
            script, config = TRAININGS[file]
            assert parse(config, flags, script.__doc__, script.PRESETS).preset == "demo"


def test_the_tests_come_after_style_and_types(commands):
    run.test(workers=3)
    tools = [command[2:4] for command in commands]
    assert tools == [("ruff", "check"), ("ruff", "format"), ("pyright",), ("pytest", "-n")]
    assert commands[-1][4] == "3"


def test_an_environment_is_made_once_and_again_when_the_requirements_change(
    commands, tmp_path, monkeypatch
):
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(run, "READY", tmp_path / "ready")
    monkeypatch.setattr(run, "REQUIREMENTS", tmp_path / "setup.cfg")
    (tmp_path / "setup.cfg").touch()
    run.install(workers=2)
    assert [command[2] for command in commands] == ["venv", "pip"]
    assert commands[0][0] == sys.executable and commands[1][0] == str(run.PYTHON)
    run.install(workers=2)
    assert len(commands) == 2
    later = time.time() + 10
    os.utime(tmp_path / "setup.cfg", (later, later))
    run.install(workers=2)
    assert len(commands) == 4


def started(folder: Path, code: str) -> "subprocess.Popen[str]":
    """A copy of run.py in a folder with a space, whose `call` runs Python code."""
    folder.mkdir()
    shutil.copy(run.__file__, folder)
    start = f"import sys, run; run.call(sys.executable, '-c', {code!r}); print('after')"
    command = [sys.executable, "-c", start]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_failing_command_ends_it_with_its_status(tmp_path):
    process = started(tmp_path / "with a space", "import sys; sys.exit(7)")
    out, _ = process.communicate()
    assert process.returncode == 7 and "after" not in out


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_is_left_to_the_command_which_may_take_its_time(tmp_path):
    """A training saves its state before it ends."""
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (time.sleep(1), print('saved'), exit(130)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    process = started(tmp_path / "with a space", code)
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    os.killpg(process.pid, signal.SIGINT)  # to both, as a terminal does
    out, _ = process.communicate()
    assert out == "saved\n" and process.returncode == 130


def test_an_old_python_is_told_so(monkeypatch):
    monkeypatch.setattr(run.sys, "version_info", (3, 8, 0))
    with pytest.raises(SystemExit, match=r"3\.11 .* 3\.8"):
        run.main()
