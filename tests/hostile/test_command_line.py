"""Every flag of every script with values that make no sense, or are made to do harm."""

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from tests.helpers.bad_calls import CONFIGS, command
from tests.helpers.hostile import HostileCase, Outcome, check_case, in_ci, script
from training.flags import flag_name

NUMBERS = ["-1", "0", "9" * 400, "1e999", "nan", "-inf", "1e30", "0x10", "1_0", "\u0661"]
TEXTS = ["", " ", "\x1b[31m", "\u202ered", "x" * 100_000, "a\udcffb", "../../x", "%s{0}", "-", "--"]
PATHS = [
    "/dev/zero",
    "fifo",
    "/dev/full",
    "folder",
    "loop",
    "file.txt",
    "file.txt/x",
    "/proc/1/mem",
]
PATHS += ["", "x" * 5000, "a\nb", "~nobody/x", "broken", "/", "closed"]
# Values that a flag may rightly take make the program work: these must be left out of a battery
# that expects an end within seconds.
LONG_RUNS = {("train_", "steps"), ("train_", "find-batch-size"), ("train_", "overfit")}
ARGUMENTS = {  # of calls that work, where tests.helpers.bad_calls has none
    "check": "world/data",
    "export": "world/ldm out",
    "evaluate autoencoder": "world/vae --data world/data --held-out 0 --out out --device cpu",
    "evaluate compare": "world/data world/ldm",
}


def flags_of(config: type) -> Iterator[tuple[str, Any]]:
    """Yield name and type of each flag."""
    hints = get_type_hints(config)
    for field in fields(config):
        kind = hints[field.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from flags_of(kind)
        else:
            yield field.name, kind


def values_for(kind: Any) -> list[str]:
    """Choose values by the type of a flag."""
    text = str(kind)
    if "bool" in text:
        return ["maybe"]
    if "Path" in text:
        return PATHS
    if "int" in text or "float" in text:
        return NUMBERS
    return TEXTS


def make_files(folder: Path) -> None:
    """What the paths name."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "broken").symlink_to("nowhere")
    (folder / "file.txt").write_text("text")
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0)


def sensible(outcome: Outcome, folder: Path) -> None:
    """Refused with a message and without a trace, or done; a picture is no more than was asked."""
    (folder / "closed").chmod(0o700)
    assert outcome.status in (0, 1, 2), outcome.text[-2000:]
    if outcome.status:
        assert len(outcome.errors.strip()) > 10 or outcome.output, outcome
        left = [name for name in outcome.written if not name.startswith(("world", "closed"))]
        assert not left, f"written in spite of the refusal: {left[:5]}"


def cases() -> list[HostileCase]:
    found = []
    programs = [
        (module, words, config)
        for module, configs in CONFIGS.items()
        for words, config in (configs if isinstance(configs, dict) else {"": configs}).items()
    ]
    for module, words, config in programs:
        name = module.__name__
        if name in ARGUMENTS or f"{name} {words}" in ARGUMENTS:
            good = [*words.split(), *ARGUMENTS[f"{name} {words}".strip()].split()]
        else:
            good = command(module, Path("world"), Path("out"))
        if name.startswith("train"):
            good.append("--dry-run")
        for field, kind in flags_of(config):
            flag = flag_name(field)
            if any(name.startswith(start) and flag == f"--{end}" for start, end in LONG_RUNS):
                continue
            for value in values_for(kind):
                work = script(name, *good, flag, value)
                label = f"{name} {words} {flag} {ascii(value)[:24]}"
                found.append(HostileCase(label, make_files, work, sensible))
    return found


CASES = cases()


def test_there_are_enough():
    assert len(CASES) > 150


@pytest.mark.parametrize("case", in_ci(CASES, 24))
def test_a_flag_with_a_value_that_makes_no_sense(case, world, tmp_path):
    check_case(case, world, tmp_path)
