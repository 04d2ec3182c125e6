"""What to draw, picture by picture: prompts of the command line, of a file, or of a picture.

A file holds a prompt a line. If its name ends in .jsonl a line is an object: "prompt", and any of
the options of a picture by their names, such as {"prompt": "red heart", "seed": 7, "steps": 10}.
"""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from foundation.errors import UserError, did_you_mean
from generation.options import Options
from generation.seeds import parse_seeds

HINTS = get_type_hints(Options)


@dataclass(frozen=True)
class Line:
    prompt: str
    options: Options
    own_seed: bool = False  # counts its pictures from a seed of its own
    where: str = ""  # it stands; said in errors


@dataclass(frozen=True)
class Picture:
    prompt: str
    seed: int
    options: Options  # shared by pictures that can be drawn together: without seed and such
    where: str = ""


def pictures_of(lines: Sequence[Line]) -> list[Picture]:
    """Picture k of all uses seed + k; a line's own seed, and a list, hold for that prompt alone."""
    pictures: list[Picture] = []
    for line in lines:
        seeds = parse_seeds(line.options.seed, line.options.count)
        if len(seeds) == 1:
            first = seeds[0] + (0 if line.own_seed else len(pictures))
            seeds = tuple(range(first, first + line.options.count))
        options = replace(line.options, seed="0", count=1)
        pictures += [Picture(line.prompt, seed, options, line.where) for seed in seeds]
    return pictures


def read_lines(file: Path, options: Options) -> list[Line]:
    """options: of what a line does not say itself."""
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else where_not_utf8(error)
        raise UserError(
            f"--prompts {file} cannot be read ({reason}). It must be a text file in UTF-8 with one "
            "prompt a line, or one JSON object a line if its name ends in .jsonl."
        ) from error
    numbered = [(k, line.strip()) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise UserError(f"{file} has no prompts in it; write one a line.")
    lines = []
    for number, line in numbered:
        where = f"{file}, line {number}"
        if file.suffix != ".jsonl":
            lines.append(Line(line, options, where=where))
            continue
        with told(where):
            lines.append(replace(line_of(parsed(line), options), where=where))
    return lines


def where_not_utf8(error: UnicodeDecodeError) -> str:
    lines_before = error.object[: error.start].count(b"\n")
    return f"line {lines_before + 1} is not UTF-8"


def parsed(line: str) -> dict[str, Any]:
    try:
        entries = json.loads(line)
    except ValueError as error:
        raise UserError(f"this is not JSON ({error}).") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("prompt", ""), str):
        raise UserError('a line must be an object such as {"prompt": "red heart", "seed": 7}.')
    return entries


def line_of(entries: Mapping[str, Any], options: Options) -> Line:
    """entries: the prompt, and options by name."""
    changes = {}
    for name, value in entries.items():
        if name == "prompt":
            continue
        if name not in HINTS:
            hint = did_you_mean(name, HINTS)
            known = ", ".join(["prompt", *HINTS])
            raise UserError(f"there is no option {name!r}.{hint} There are: {known}.")
        changes[name] = of_kind(name, str(value) if name == "seed" else value, HINTS[name])
    options = replace(options, **changes)
    options.check()
    return Line(entries.get("prompt", ""), options, "seed" in changes)


def of_kind(name: str, value: Any, kind: Any) -> Any:
    """The value that JSON has for it, as the option has it."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        kind = next(part for part in parts if part is not type(None))
        parts = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        if len(kinds) == len(value):
            return tuple(of_kind(name, one, part) for one, part in zip(value, kinds, strict=True))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return float(value)
    if kind is int and number and value == int(value):
        return int(value)
    if kind in (str, Path) and isinstance(value, str):
        return kind(value)
    if kind is bool and isinstance(value, bool):
        return value
    raise UserError(f"{name} is {json.dumps(value)}, which is not of the kind {spelled(kind)}.")


def spelled(kind: Any) -> str:
    words = {str: "text", Path: "file name", int: "whole number", float: "number"}
    words |= {bool: "true or false"}
    return words.get(kind) or f"list of {len(get_args(kind))} numbers".replace("2 n", "n", 1)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Says in an error where it was made, if that has a name."""
    try:
        yield
    except ValueError as error:
        if not where:
            raise
        raise UserError(f"{where}: {error}") from error
