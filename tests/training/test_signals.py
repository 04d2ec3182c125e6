"""SIGINT and SIGTERM at any moment: the first ends a run cleanly, the second at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train_clip
import train_ldm
from conditioning import TextEncoder
from conditioning.clip import Clip
from tests.helpers.bad_calls import command, tree
from tests.helpers.toy_training import Toy
from training.checkpoint import saved_states
from training.cli import run_main

ROOT = Path(__file__).parents[2]


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def names(run: Path) -> list[str]:
    return [folder.name for folder in saved_states(run / "state")]


def test_a_signal_during_a_step_stops_after_it(tmp_path):
    toy = Toy(tmp_path / "run")
    whole_step = toy.step

    def step(number):
        if number == 6:
            send()
        return whole_step(number)

    toy.step = step
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="step 7"):
        toy.train()
    assert names(toy.run.path) == ["step-0000005", "step-0000007"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_during_an_evaluation_stops_after_it(tmp_path):
    """Its numbers belong to the step that is saved."""
    toy = Toy(tmp_path / "run")
    evaluate = toy.evaluate
    toy.evaluate = lambda step: (send(signal.SIGINT), evaluate(step))[1]
    with pytest.raises(KeyboardInterrupt, match="step 6"):
        toy.train()
    assert names(toy.run.path)[-1] == "step-0000006"
    assert toy.metrics()[-1] == {"step": 6, "evaluated": 6.0}


def test_a_signal_during_a_save_stops_after_one_more_step(tmp_path):
    """That step is saved, too."""
    toy = Toy(tmp_path / "run")
    state = toy.ema.state_dict
    toy.ema.state_dict = lambda: (send() if not names(toy.run.path) else None, state())[1]
    with pytest.raises(KeyboardInterrupt, match="step 6"):
        toy.train()
    assert names(toy.run.path) == ["step-0000005", "step-0000006"]


def message_of_stopped(capsys: pytest.CaptureFixture, main) -> str:
    """Run a script, expect the exit status of a stopped one, and return its message."""
    with pytest.raises(SystemExit) as status:
        run_main(main)
    assert status.value.code == 130
    return capsys.readouterr().err


def test_a_signal_while_the_cache_is_built(world, tmp_path, capsys, monkeypatch):
    """What is done is kept in a folder of its own, and the same command builds the rest."""
    given = command(train_ldm, world, tmp_path / "run")
    rows = iter(range(1))
    whole = TextEncoder.encode

    def interrupted(encoder, ids):
        if next(rows, None) is not None:
            send()
        return whole(encoder, ids)

    with monkeypatch.context() as patched:
        patched.setattr("conditioning.TextEncoder.encode", interrupted)
        message = message_of_stopped(capsys, lambda: train_ldm.main(given))
    assert "SIGTERM" in message
    assert {path.split("/")[1] for path in tree(tmp_path)} == {"config.json", "cache.partial"}
    train_ldm.main(given)
    assert (tmp_path / "run" / "cache").is_dir()
    assert not (tmp_path / "run" / "cache.partial").exists()


def test_a_signal_while_the_model_is_written(world, tmp_path, capsys, monkeypatch):
    given = command(train_clip, world, tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(Clip, "save", lambda clip, folder: send(signal.SIGINT))
        assert "SIGINT" in message_of_stopped(capsys, lambda: train_clip.main(given))
    assert not [path for path in (tmp_path / "run").iterdir() if "model" in path.name]
    train_clip.main(given)
    assert "is finished" not in capsys.readouterr().out
    train_clip.main(given)
    assert "is finished" in capsys.readouterr().out


def run_child(code: str) -> subprocess.CompletedProcess:
    code = f"import os, signal, time\nfrom training.signals import *\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("context", ["stop_requests", "interruptible"])
def test_the_second_signal_ends_the_process_at_once(context):
    done = run_child(f"""
with {context}():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        pass
    print("first", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("second", flush=True)
""")
    assert done.stdout == "first\n" and done.returncode == -signal.SIGINT
    assert ("SIGTERM" in done.stderr) == (context == "stop_requests"), "the first one is announced"


def test_worker_processes_ignore_the_first_signal():
    """Ctrl-C reaches them, too. They go on until their parent ends them, and print nothing."""
    done = run_child("""
with stop_requests() as stop:
    worker = os.fork()
    if not worker:
        os.kill(os.getpid(), signal.SIGINT)
        print("worker goes on", stop.requested, flush=True)
        os._exit(0)
    os.waitpid(worker, 0)
print("parent", stop.requested)
""")
    assert done.stdout == "worker goes on False\nparent False\n"
    assert done.stderr == ""
