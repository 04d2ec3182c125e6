"""Prompt files."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from generation.options import GenerationOptions
from generation.prompts import PromptFile, expand
from tests.hostile.fuzz import FuzzTarget

LINES = [
    b'{"prompt": "red heart", "seed": 7, "steps": 10}\n{"prompt": "a cat", "count": 2}\n',
    b'{"prompt": "x", "guidance_interval": [0.1, 0.9], "seed": "1,5,10-20", "times": [999, 5]}\n',
    b'{"prompt": "\\u2764", "sampler": "ddim", "eta": 0.5, "height": 64, "width": null}\n',
]


def lines() -> Sequence[bytes]:
    return LINES


def texts() -> Sequence[bytes]:
    return [b"red heart\n\na (cat:1.3)\r\n", "\ufeffein Herz ❤\n".encode()]


def read(file: Path) -> object:
    return sum(1 for _ in islice(expand(PromptFile(file, GenerationOptions())), 1000))


TARGETS = [FuzzTarget("prompts.jsonl", lines, read), FuzzTarget("prompts.txt", texts, read)]
