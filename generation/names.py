"""Names of the files that sample.py writes: patterns, what a name may be, and names that are free.

A name must be valid on Linux, macOS and Windows, and lie in the folder that was asked for. The
pattern and every finished name are checked.
"""

import re
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.images.write import write_new_files
from foundation.errors import UserError, one_line, shown
from foundation.files import explain_full_disk
from foundation.paths import check_new_path, name_problem

Part = tuple[str, str, str]  # a text, the field after it, and its format

NUMBERS, TEXTS = ("number", "seed", "steps"), ("prompt", "sampler")
NAME_FIELDS = ("number", "seed", "prompt", "sampler", "steps")
FORMATS = {  # what may stand after the colon: zeros in front of a number, the length of a text
    **dict.fromkeys(NUMBERS, re.compile(r"d?|0[1-9]d?|0[12]\dd?")),
    **dict.fromkeys(TEXTS, re.compile(r"|\.[1-9]\d?s?")),
}
LONGEST_PATTERN = 1000  # characters
LONGEST_NAME = 200  # bytes with the suffix; file systems take 255, and names aside are longer
HIDDEN = 18  # characters more, in the hidden name that a file has while it is written
MAX_PROMPT_LENGTH = 80  # characters of a prompt in a file name
MAX_PROMPT_BYTES = 120


class FileNames:
    """Gives each image a name that is free, in the order in which they are written."""

    def __init__(self, folder: Path, pattern: str, suffixes: Sequence[str]):
        """Check the pattern, and find the first number.

        Args:
            pattern: such as "{number:05d}" or "{prompt}-{seed}". Numbers continue from the highest
                one in the folder.
            suffixes: of the files that each image has.

        Raises:
            UserError: the pattern is malformed.
        """
        self.folder, self.pattern, self.suffixes = folder, pattern, suffixes
        self.parts = parse_pattern(pattern)
        self.numbered = any(field == "number" for _, field, _ in self.parts)
        self.number = next_number(folder, self.parts, suffixes) if self.numbered else 0

    def check(self, images: Iterable[Mapping[str, Any]]) -> None:
        """Check the names of all images before the first is drawn.

        Numbers make names different. Without them, all names are kept as hashes, some 100 bytes
        each.

        Raises:
            UserError: a name is not allowed, a file exists, or two images have the same name.
        """
        seen: set[int] = set()
        for k, image in enumerate(images):
            name = self.filled_in(image, self.number + k)
            check_name(name, self.pattern, self.suffixes)
            check_new_path(self.folder / (name + max(self.suffixes, key=len)), room=HIDDEN)
            if self.numbered:
                continue
            conflict = ""
            if hash(name.casefold()) in seen:
                conflict = "is that of several images"
            elif any((self.folder / (name + suffix)).exists() for suffix in self.suffixes):
                conflict = "exists"
            if conflict:
                raise UserError(
                    f"the name {one_line(name)} {conflict} (--name {shown(self.pattern)}); nothing "
                    "is overwritten. Put {number} or {seed} into it, or choose another --out."
                )
            seen.add(hash(name.casefold()))

    def planned(self, images: Iterable[Mapping[str, Any]]) -> list[Path]:
        """Return the paths without suffix that the next images get, if they are still free then."""
        names = [self.filled_in(image, self.number + k) for k, image in enumerate(images)]
        return [self.folder / name for name in names]

    def write(self, image: Mapping[str, Any], contents: Mapping[str, bytes]) -> Path:
        """Write the files of an image under its name, and return its path without suffix.

        If another process has taken the name meanwhile, the next one that is free is used, with a
        note: what is drawn is never lost.

        Args:
            image: values of the pattern's fields.
            contents: by suffix; that of the image itself is the last one.
        """
        first = name = self.filled_in(image, self.number)
        for copy in range(2, sys.maxsize):
            files = {self.folder / (name + x): text for x, text in contents.items()}
            try:
                with explain_full_disk(next(reversed(files)), self.after_full_disk):
                    write_new_files(files)
                break
            except FileExistsError:
                if self.numbered:
                    following = next_number(self.folder, self.parts, self.suffixes)
                    self.number = max(following, self.number + 1)
                    name = self.filled_in(image, self.number)
                else:
                    name = f"{first}-{copy}"
        self.number += 1
        if name != first:
            taken = f"{one_line(first)} has been taken meanwhile"
            print(f"note: {taken}, so this is {one_line(name)}.", file=sys.stderr)
        return self.folder / name

    @property
    def after_full_disk(self) -> str:
        """Say what to do when there is space again."""
        again = "the same command gives all images again, under the next numbers"
        if not self.numbered:
            again = "give the same command another --out, since names in this one are taken now"
        return (
            f"Images that were whole before stay, and nothing else. Free some space; then {again}."
        )

    def filled_in(self, image: Mapping[str, Any], number: int) -> str:
        """Return the name of an image."""
        values = {**image, "number": number}
        words = []
        for text, field, spec in self.parts:
            words.append(text)
            if field == "prompt":
                words.append(format(slug(values["prompt"]), spec))
            elif field:
                words.append(format(values[field], spec))
        return "".join(words)


def parse_pattern(pattern: str) -> list[Part]:
    """Divide a pattern into texts, each with the field after it and its format; "" for none.

    Raises:
        UserError: it is not a pattern, or has fields or formats that are not allowed.
    """
    if not pattern or len(pattern) > LONGEST_PATTERN or "/" in pattern or "\\" in pattern:
        raise UserError(
            f"--name {shown(pattern)} must be a file name without a folder, which may contain "
            f"{', '.join('{' + name + '}' for name in NAME_FIELDS)}, and at most {LONGEST_PATTERN} "
            "characters."
        )
    parts: list[Part] = []
    try:
        for text, field, spec, conversion in string.Formatter().parse(pattern):
            if field is not None and (conversion or not FORMATS[field].fullmatch(spec or "")):
                raise ValueError(f"{{{field}}} cannot have the format {shown(spec)}")
            if field is not None and field in [other for _, other, _ in parts]:
                raise ValueError(f"{{{field}}} stands there twice")
            parts.append((text, field or "", spec or ""))
    except (ValueError, KeyError) as error:
        reason = f"there is no field {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"--name {shown(pattern)} is not a pattern ({one_line(reason)}). It may contain "
            f"{', '.join('{' + name + '}' for name in NAME_FIELDS)}; numbers may be filled up with "
            "zeros, as in {number:05d}, and texts be shortened, as in {prompt:.20}."
        ) from None
    return parts


def check_name(name: str, pattern: str, suffixes: Sequence[str]) -> None:
    """Raise UserError unless a finished name is one for a file of any system."""
    reason = name_problem(name)
    longest = max(suffixes, key=len)
    if not reason and name != name.lstrip(" ."):
        reason = "begins with a dot or a space"
    elif not reason and len((name + longest).encode()) > LONGEST_NAME:
        reason = f"has with {longest} more than {LONGEST_NAME} bytes"
    if reason:
        raise UserError(f"--name {shown(pattern)} gives the name {shown(name)}, which {reason}.")


def next_number(
    folder: Path, parts: Sequence[tuple[str, str, str]], suffixes: Sequence[str]
) -> int:
    """Return the number after the highest one among the files that match the pattern."""
    expressions: list[str] = []
    for text, field, _ in parts:
        expressions.append(re.escape(text))
        if field:
            kinds = {"number": r"(\d+)", "seed": r"\d+", "steps": r"\d+"}
            expressions.append(kinds.get(field, ".*"))
    endings = "|".join(map(re.escape, suffixes))
    expression = re.compile("".join(expressions) + f"({endings})")
    files = folder.iterdir() if folder.is_dir() else ()
    matches = (expression.fullmatch(file.name) for file in files)
    return max((int(match[1]) for match in matches if match), default=-1) + 1


def slug(prompt: str) -> str:
    """Replace what is not safe in a file name by hyphens, and shorten it."""
    short = re.sub(r"[^\w-]+", "-", prompt[: 10 * MAX_PROMPT_LENGTH]).strip("-")
    while len(short.encode()) > MAX_PROMPT_BYTES or len(short) > MAX_PROMPT_LENGTH:
        short = short[:-1]
    return short.strip("-") or "no-prompt"
