"""Prompts with their options, from the command line or from a file, and the images they ask for.

A prompt file holds one prompt per line. If its name ends in .jsonl, each line is a JSON object with
"prompt" and any option by its name, such as {"prompt": "red heart", "seed": 7, "steps": 10}.
"""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from cattrs import Converter

from conditioning.prompt_syntax import SubPrompt, is_plain, parse_prompt, plain_prompt
from conditioning.prompt_weighting import truncated_words
from foundation.errors import UserError, did_you_mean
from generation.options import GenerationOptions, parse_seeds
from ldm import TextToImage
from ldm.pipeline.conditioning import is_text_conditional

OPTION_TYPES = get_type_hints(GenerationOptions)


@dataclass(frozen=True)
class PromptEntry:
    """A prompt with its options: one line of a prompt file, or one argument of the command."""

    prompt: str
    options: GenerationOptions
    has_own_seed: bool = False  # its first seed does not depend on the entries before it
    location: str = ""  # file and line, for error messages


@dataclass(frozen=True)
class ImageSpec:
    """One image to generate."""

    prompt: str
    seed: int
    options: GenerationOptions  # `seed` and `count` have no meaning here, and are the defaults
    location: str = ""  # file and line of the prompt, for error messages

    def name_fields(self) -> dict[str, Any]:
        """Return the values that may stand in a file name."""
        return {
            "seed": self.seed,
            "prompt": self.prompt,
            "sampler": self.options.sampler,
            "steps": self.options.steps,
        }


def expand(entries: Sequence[PromptEntry]) -> list[ImageSpec]:
    """List the images of all entries, in order.

    Image k of all uses seed + k. An entry with its own seed counts from there, and one with several
    seeds has one image for each.
    """
    images: list[ImageSpec] = []
    for entry in entries:
        seeds = parse_seeds(entry.options.seed, entry.options.count)
        if len(seeds) == 1:
            first = seeds[0] + (0 if entry.has_own_seed else len(images))
            seeds = tuple(range(first, first + entry.options.count))
        options = replace(entry.options, seed="0", count=1)
        images += [ImageSpec(entry.prompt, seed, options, entry.location) for seed in seeds]
    return images


def read_prompts(file: Path, defaults: GenerationOptions) -> list[PromptEntry]:
    """Read a prompt file.

    Args:
        defaults: values of the options that a line does not set.

    Raises:
        UserError: the file cannot be read, is empty, or has a line that is malformed.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_bad_line(error)
        raise UserError(
            f"--prompts {file} cannot be read ({reason}). It must be a text file in UTF-8 with one "
            "prompt per line, or one JSON object per line if its name ends in .jsonl."
        ) from error
    numbered = [(k, line.strip()) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise UserError(f"{file} contains no prompts; write one per line.")
    entries = []
    for number, line in numbered:
        location = f"{file}, line {number}"
        if file.suffix != ".jsonl":
            entries.append(PromptEntry(line, defaults, location=location))
            continue
        with error_location(location):
            entries.append(replace(entry_from(parse_line(line), defaults), location=location))
    return entries


def first_bad_line(error: UnicodeDecodeError) -> str:
    lines_before = error.object[: error.start].count(b"\n")
    return f"line {lines_before + 1} is not UTF-8"


def parse_line(line: str) -> dict[str, Any]:
    """Parse a line of a JSON Lines file, which must be an object."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"this is not JSON ({error}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("prompt", ""), str):
        raise UserError('a line must be an object such as {"prompt": "red heart", "seed": 7}.')
    return values


def entry_from(values: Mapping[str, Any], defaults: GenerationOptions) -> PromptEntry:
    """Make an entry of the prompt and the options in a JSON object.

    Raises:
        UserError: an option is unknown, has a value of another type, or makes no sense.
    """
    changes = {}
    for name, value in values.items():
        if name == "prompt":
            continue
        if name not in OPTION_TYPES:
            hint = did_you_mean(name, OPTION_TYPES)
            names = ", ".join(["prompt", *OPTION_TYPES])
            raise UserError(f"there is no option {name!r}.{hint} There are: {names}.")
        changes[name] = convert(name, str(value) if name == "seed" else value)
    options = replace(defaults, **changes)
    options.check()
    return PromptEntry(values.get("prompt", ""), options, has_own_seed="seed" in changes)


def convert(name: str, value: Any) -> Any:
    """Convert a JSON value to the type of the option `name`; raise UserError if it is another."""
    kind = OPTION_TYPES[name]
    try:
        return CONVERTER.structure(value, kind)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise UserError(
            f"{name} is {json.dumps(value)}, but it must be a {type_name(kind)}."
        ) from error


def number_from(value: Any, kind: type[int] | type[float]) -> int | float:
    """Structure hook: 3 and 3.0 are whole numbers, true and "3" are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
    return kind(value)


def text_from(value: Any, kind: type[str] | type[Path]) -> str | Path:
    """Structure hook for text and paths, which must be text in JSON."""
    if not isinstance(value, str):
        raise TypeError(value)
    return kind(value)


def bool_from(value: Any, _: type[bool]) -> bool:
    """Structure hook: only true and false."""
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def make_converter() -> Converter:
    """Make a converter from JSON values to options that accepts no value of another type."""
    converter = Converter(detailed_validation=False)
    for kind in (int, float):
        converter.register_structure_hook(kind, number_from)
    for kind in (str, Path):
        converter.register_structure_hook(kind, text_from)
    converter.register_structure_hook(bool, bool_from)
    return converter


CONVERTER = make_converter()


def type_name(kind: Any) -> str:
    """Name the type of an option in words, without the None that some options may be."""
    names = {str: "text", Path: "file name", int: "whole number", float: "number"}
    names |= {bool: "truth value (true or false)"}
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(member for member in get_args(kind) if member is not type(None))
    if kind in names:
        return names[kind]
    members = get_args(kind)
    return "list of numbers" if members[-1] is ... else f"list of {len(members)} numbers"


@contextmanager
def error_location(location: str) -> Iterator[None]:
    """Begin the message of a UserError with the location, unless that is empty."""
    try:
        yield
    except UserError as error:
        if not location:
            raise
        raise UserError(f"{location}: {error}") from error


def prompt_notes(pipeline: TextToImage, text: str, prompt_weights: bool) -> list[str]:
    """List what a user should know about how a prompt is read.

    A note says how weights and AND are understood, or which words do not fit the text encoder.

    Args:
        prompt_weights: whether brackets and AND have a meaning (`conditioning.prompt_syntax`).
    """
    encoder = pipeline.text_encoder
    if encoder is None or not is_text_conditional(pipeline.unet):
        return []
    notes = []
    parts = parse_prompt(text) if prompt_weights else plain_prompt(text)
    if prompt_weights and not is_plain(text):
        notes.append(
            f"read {text!r} as {describe_parts(parts)}; use --plain-prompts to read it as it is "
            "written."
        )
    for part in parts:
        dropped = truncated_words(encoder, part.text, pipeline.chunks)
        if dropped:
            # Each further chunk has a start and an end token of its own.
            needed = encoder.count_tokens(part.text) + 2 * (pipeline.chunks - 1)
            notes.append(
                f"warning: this model reads {encoder.tokens * pipeline.chunks} tokens, and "
                f"{part.text!r} has {needed}; ignored is {dropped!r}"
            )
    return notes


def describe_parts(parts: Sequence[SubPrompt]) -> str:
    """Describe prompts with their weights, such as "'a', 'cat' (weight 1.3)"."""
    described = []
    for part in parts:
        spans = []
        for text, weight in part.spans:
            if text.strip():
                suffix = "" if weight == 1 else f" (weight {weight:.3g})"
                spans.append(repr(text.strip()) + suffix)
        share = f" [share {part.share:.3g}]" if len(parts) > 1 else ""
        described.append(", ".join(spans) + share)
    return " AND ".join(described)
