"""The harness itself: every kind of fault is seen, and so is what is right."""

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from foundation.errors import UserError
from tests.helpers.hostile import accepted, faults_of, refused, run_case, script
from tests.hostile.fuzz import FuzzTarget, fuzz, main


def hang() -> None:
    time.sleep(60)


def take_memory() -> None:
    kept = bytearray(400 * 10**6)
    time.sleep(60 * len(kept[:1]))


def fail() -> None:
    raise KeyError("missing")


def crash() -> None:
    import ctypes

    ctypes.string_at(0)


def write_and_refuse() -> None:
    Path("half").write_text("half")
    raise UserError("12 is wrong")


def say(text: str) -> int:
    print(text, file=sys.stderr)
    return 5


@pytest.mark.parametrize(
    ("work", "fault"),
    [
        (hang, "no end after"),
        (take_memory, "memory grew"),
        (fail, "a traceback"),
        (crash, "died of SIGSEGV"),
        (partial(say, "error: " + 5000 * "x"), "a message of 50"),
        (partial(say, "\x1b[31mred"), "control character"),
        (partial(say, "all is well"), None),
    ],
)
def test_every_fault_is_seen(work, fault, tmp_path):
    limit = 1.0 if work is hang else 60.0
    outcome = run_case(work, tmp_path, limit, memory=200 * 10**6)
    faults = faults_of(outcome)
    assert (fault in " ".join(faults)) if fault else not faults, (faults, outcome)
    if fault is None:
        assert outcome.value == 5
        accepted("all is well")(outcome, tmp_path)


def test_what_a_refused_case_wrote_is_seen(tmp_path):
    outcome = run_case(write_and_refuse, tmp_path, seconds=60.0)
    assert outcome.written == ["half"]
    with pytest.raises(AssertionError, match="half"):
        refused("12")(outcome, tmp_path)


def test_a_script_runs_as_users_run_it(tmp_path):
    outcome = run_case(script("check", "absent"), tmp_path, seconds=60.0)
    refused("absent")(outcome, tmp_path)
    assert not faults_of(outcome)


def seeds() -> list[bytes]:
    return [b"123"]


def read(file: Path) -> int:
    text = file.read_bytes()
    if b"9" in text:
        raise KeyError(text)
    if b"8" in text:
        time.sleep(60)
    try:
        return int(text)
    except ValueError as error:
        raise UserError("no number") from error


def change(rng, seeds) -> bytes:
    return b"12" + rng.choice([b"1", b"x", b"x", b"9", b"8"])


def test_a_fuzz_goes_on_after_what_fails(monkeypatch):
    monkeypatch.setattr("tests.hostile.fuzz.SECONDS", 1.5)  # of which a busy machine needs some
    findings = fuzz(FuzzTarget("number.txt", seeds, read, change), seed=0, inputs=12)
    assert findings.inputs == 12
    assert findings.accepted + findings.refused + len(findings.failures) == 12
    assert findings.accepted and findings.refused
    text = " ".join(findings.failures.values())
    assert "KeyError" in text and "no end after" in text


@pytest.mark.parametrize(
    ("flags", "pattern"),
    [(["--seconds", "0"], "nothing was read: prompts"), (["--target", "absent"], "absent")],
)
def test_a_fuzz_that_read_nothing_is_an_error(flags, pattern, capsys):
    with pytest.raises(SystemExit, match=pattern):
        main(["prompts", *flags])
