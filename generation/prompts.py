"""Prompts with their options, from the command line or from a file, and the images they ask for.

A prompt file holds one prompt per line. If its name ends in .jsonl or .ndjson, each line is a JSON
object with "prompt" and any option by its name: {"prompt": "red heart", "seed": 7, "steps": 10}.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from conditioning.prompt_syntax import SubPrompt, is_plain, parse_prompt, plain_prompt
from conditioning.prompt_weighting import truncated_words
from foundation.errors import UserError, did_you_mean, one_line, shown
from foundation.files import BYTE_ORDER_MARKS, open_file
from foundation.json_reading import convert_value, load_json
from generation.limits import MAX_IMAGES, MAX_SEED, check_prompt
from generation.meaning import check_options
from generation.options import GenerationOptions, parse_seeds
from ldm import TextToImage
from ldm.pipeline.conditioning import (
    is_class_conditional,
    is_text_conditional,
    parse_classes,
)

OPTION_TYPES = get_type_hints(GenerationOptions)
JSON_LINES = (".jsonl", ".ndjson")
MAX_LINE = 200_000  # bytes of a line of a prompt file
MAX_KNOWN = 1000  # kinds of options that are kept after they were checked
MAX_PARTS = 32  # prompts that AND joins: each is a call of the network
LONGEST_NOTE = 300  # characters of a prompt in a note


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


def expand(entries: Iterable[PromptEntry]) -> Iterator[ImageSpec]:
    """Yield the images of all entries, in order.

    Image k of all uses seed + k. An entry with its own seed counts from there, and one with several
    seeds has one image for each.

    Raises:
        UserError: a seed would be above 2^63 - 1, or there are too many images.
    """
    done = 0
    shared: GenerationOptions | None = None  # lines without options of their own have one object
    options = GenerationOptions()
    for entry in entries:
        if entry.options is not shared:
            shared, options = entry.options, replace(entry.options, seed="0", count=1)
        seeds: Sequence[int] = parse_seeds(entry.options.seed, entry.options.count)
        if len(seeds) == 1:
            first = seeds[0] + (0 if entry.has_own_seed else done)
            seeds = range(first, first + entry.options.count)
        with error_location(entry.location):
            if seeds[-1] > MAX_SEED:
                raise UserError(
                    f"image {done + len(seeds)} would have the seed {seeds[-1]}, and 2^63 - 1 is "
                    "the highest. Give a lower --seed."
                )
            if done + len(seeds) > MAX_IMAGES:
                raise UserError(
                    f"more than {MAX_IMAGES:,} images are asked for in one call. Divide it."
                )
        for seed in seeds:
            yield ImageSpec(entry.prompt, seed, options, entry.location)
        done += len(seeds)


@dataclass(frozen=True)
class PromptFile:
    """The entries of a prompt file, which are read anew each time: so memory holds one line."""

    file: Path
    defaults: GenerationOptions  # values of the options that a line does not set

    def __post_init__(self):
        """Raise UserError for a file that is named as a kind that is not read."""
        if self.file.suffix.lower() == ".json":
            raise UserError(
                f"--prompts {one_line(self.file)} is named as one JSON document. Write one object "
                "per line and name the file .jsonl, or one prompt per line and name it .txt."
            )

    def __iter__(self) -> Iterator[PromptEntry]:
        """Yield the entries.

        Raises:
            UserError: the file cannot be read, is empty, or has a line that is malformed.
        """
        is_json = self.file.suffix.lower() in JSON_LINES
        known: dict[str, GenerationOptions] = {}
        empty = True
        for number, line in self.lines():
            empty, location = False, f"{one_line(self.file)}, line {number}"
            with error_location(location):
                if is_json:
                    entry = entry_from(parse_line(line), self.defaults, known)
                else:
                    check_is_no_json(line)
                    entry = PromptEntry(line, self.defaults)
                check_prompt(entry.prompt)
            yield replace(entry, location=location)
        if empty:
            raise UserError(f"{one_line(self.file)} contains no prompts; write one per line.")

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the lines that are not empty, without blanks at their ends, and their numbers."""
        number = 0
        try:
            with open_file(self.file) as stream:
                while content := stream.readline(MAX_LINE + 1):
                    if len(content) > MAX_LINE:
                        raise UserError(f"line {number + 1} has more than {MAX_LINE:,} bytes")
                    if number == 0:
                        content = without_mark(content)
                    ends = re.compile(rb"\r\n|\r|\n")
                    for part in ends.split(content.removesuffix(b"\n").removesuffix(b"\r")):
                        number += 1
                        if line := decoded(part, number).strip():
                            yield number, line
        except (OSError, UserError) as error:
            reason = getattr(error, "strerror", None) or str(error).removesuffix(".")
            raise UserError(
                f"--prompts {one_line(self.file)} cannot be read ({reason}). It must be a text "
                "file in UTF-8 with one prompt per line, or one JSON object per line if its name "
                "ends in .jsonl."
            ) from error


def decoded(line: bytes, number: int) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise UserError(f"line {number} is not UTF-8") from None
    if "\0" in text:
        raise UserError(f"line {number} has a zero byte, so it is not text")
    return text


def without_mark(content: bytes) -> bytes:
    """Remove the byte order mark of UTF-8; refuse those of other encodings."""
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise UserError(f"it is {name} text; save it as UTF-8")
    return content.removeprefix(b"\xef\xbb\xbf")


def check_is_no_json(line: str) -> None:
    """Refuse a line of a text file that is an object as a .jsonl file has them."""
    if line.startswith("{") and '"prompt"' in line:
        raise UserError(
            f"{shown(line)} is drawn as it stands, unless the file's name ends in .jsonl; then it "
            "is read as JSON. Rename the file."
        )


def parse_line(line: str) -> dict[str, Any]:
    """Parse a line of a JSON Lines file, which must be an object."""
    try:
        values = load_json(line, not_finite=True)
    except UserError as error:
        raise UserError(f"this {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("prompt", ""), str):
        raise UserError('a line must be an object such as {"prompt": "red heart", "seed": 7}.')
    return values


def entry_from(
    values: Mapping[str, Any],
    defaults: GenerationOptions,
    known: dict[str, GenerationOptions] | None = None,
) -> PromptEntry:
    """Make an entry of the prompt and the options in a JSON object.

    known: options that were checked before, to be kept between calls: checking takes much longer
        than all the rest.

    Raises:
        UserError: an option is unknown, has a value of another type, or makes no sense.
    """
    own = {name: value for name, value in values.items() if name not in ("prompt", "seed")}
    key = json.dumps(own) if known is not None else ""
    if known is None or key not in known:
        for name in own:
            if name not in OPTION_TYPES:
                raise unknown_option(name)
        options = replace(defaults, **{name: convert(name, value) for name, value in own.items()})
        check_options(replace(options, seed="0"))
        if known is not None:
            if len(known) >= MAX_KNOWN:
                known.clear()
            known[key] = options
    else:
        options = known[key]
    if "seed" in values:
        options = replace(options, seed=convert("seed", as_text(values["seed"])))
    parse_seeds(options.seed, options.count)
    return PromptEntry(values.get("prompt", ""), options, has_own_seed="seed" in values)


def as_text(seed: Any) -> Any:
    """Return a seed that is a whole number as text, as the command line gives it."""
    return str(seed) if isinstance(seed, int) and not isinstance(seed, bool) else seed


def unknown_option(name: str) -> UserError:
    hint = did_you_mean(name, OPTION_TYPES)
    names = ", ".join(["prompt", *OPTION_TYPES])
    return UserError(f"there is no option {shown(name)}.{hint} There are: {names}.")


def convert(name: str, value: Any, kind: Any = None) -> Any:
    """Convert a JSON value to the type of the option `name`; raise UserError if it is another.

    kind: the type; left out, that of the option.
    """
    return convert_value(value, OPTION_TYPES[name] if kind is None else kind, name)


@contextmanager
def error_location(location: str) -> Iterator[None]:
    """Begin the message of a UserError with the location, unless that is empty."""
    try:
        yield
    except UserError as error:
        if not location:
            raise
        raise UserError(f"{location}: {error}") from error


def check_syntax(image: ImageSpec) -> None:
    """Raise UserError for prompts that cannot be read, or are made of too many.

    The place of the prompt is in the message.
    """
    options = image.options
    if options.plain_prompts or (is_plain(image.prompt) and is_plain(options.negative_prompt)):
        return
    with error_location(image.location):
        parts = parse_prompt(image.prompt)
        if len(parts) > MAX_PARTS:
            raise UserError(
                f"{shown(image.prompt)} joins {len(parts)} prompts by AND; at most {MAX_PARTS} "
                "make one picture."
            )
        if len(parse_prompt(options.negative_prompt)) > 1:
            raise UserError(
                f"AND composes prompts, but {shown(options.negative_prompt)} is a negative prompt."
            )


def prompt_notes(pipeline: TextToImage, text: str, prompt_weights: bool) -> list[str]:
    """List what a user should know about how a prompt is read.

    A note says how weights and AND are understood, or which words do not fit the text encoder.

    Args:
        prompt_weights: whether brackets and AND have a meaning (`conditioning.prompt_syntax`).
    """
    encoder = pipeline.text_encoder
    notes: list[str] = []
    if is_text_conditional(pipeline.unet):
        parts = parse_prompt(text) if prompt_weights else plain_prompt(text)
        is_composed = prompt_weights and not is_plain(text)
    elif is_class_conditional(pipeline.unet) and prompt_weights:
        parts, encoder = parse_classes(pipeline.classes, text), None
        is_composed = len(parts) > 1
    else:
        return notes
    if is_composed:
        described = one_line(describe_parts(parts), 2 * LONGEST_NOTE)
        notes.append(
            f"read {shown(text, LONGEST_NOTE)} as {described}; use --plain-prompts to read it as "
            "it is written."
        )
    if encoder is None:
        return notes
    for part in parts:
        dropped = truncated_words(encoder, part.text, pipeline.chunks)
        if dropped:
            # Each further chunk has a start and an end token of its own.
            needed = encoder.count_tokens(part.text) + 2 * (pipeline.chunks - 1)
            notes.append(
                f"warning: this model reads {encoder.tokens * pipeline.chunks} tokens, and "
                f"{shown(part.text, LONGEST_NOTE)} has {needed}; ignored is "
                f"{shown(dropped, LONGEST_NOTE)}"
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
