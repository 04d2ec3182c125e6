"""Calls of sample.py in tests: generate into a folder, generate again from a file."""

from collections.abc import Sequence
from pathlib import Path

import pytest

import sample
from examples import tasks_in_diffusers
from tests.helpers.bad_calls import command
from tests.helpers.random_models import smooth_image


def run_sample(
    world: Path, out: Path, *flags: object, prompts: Sequence[str] = ("red",)
) -> list[Path]:
    """Generate from prompts with the model of `world`; return the files in the folder."""
    _, *arguments = command(sample, world, out, *flags)  # without its prompt
    sample.main([*prompts, *arguments])
    return sorted(path for path in out.iterdir() if path.is_file())


def reproduce_flags(file: Path, out: Path, *flags: object) -> list[str]:
    """Return the arguments that generate the image of a file again."""
    return [str(word) for word in ("--reproduce", file, "--out", out, "--device", "cpu", *flags)]


def reproduce(capsys: pytest.CaptureFixture[str], file: Path, out: Path, *flags: object) -> str:
    """Generate the image of a file again; return what was printed."""
    capsys.readouterr()
    sample.main(reproduce_flags(file, out, *flags))
    return capsys.readouterr().out


def difference_to_diffusers(run: Path, folder: Path, prompt: str) -> int:
    """Draw with a trained model by both libraries; return the largest difference in gray levels."""
    smooth_image().save(folder / "given.png")
    given = ["--image", folder / "given.png", "--prompt", prompt, "--out", folder / "drawn"]
    return tasks_in_diffusers.main([str(run), *map(str, given)])
