"""Names for new pictures, never those of older ones, and writing them whole or not at all."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset.images.write import write_new_file
from foundation.errors import UserError

FIELDS = ("number", "seed", "prompt", "sampler", "steps")
LONGEST = 80  # characters of a prompt in a name


def plan_names(
    folder: Path, pattern: str, suffixes: Sequence[str], pictures: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """A path without suffix for each picture, all of them free with every suffix.

    pattern: such as "{number:05d}" or "{prompt}-{seed}". The number goes on from the highest in the
        folder, so that a deleted file frees no name in use.
    """
    fields = fields_of(pattern)
    number = next_number(folder, pattern, suffixes) if "number" in fields else 0
    names = []
    for k, picture in enumerate(pictures):
        values = {**picture, "number": number + k, "prompt": slug(picture.get("prompt", ""))}
        try:
            names.append(pattern.format(**{name: values[name] for name in fields}))
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"--name {pattern} cannot be filled in ({error}).") from error
    twice = [name for name, times in Counter(names).items() if times > 1]
    taken = [
        name for name in names if any((folder / (name + suffix)).exists() for suffix in suffixes)
    ]
    for found, why in ((twice, "would be that of several pictures"), (taken, "is there already")):
        if found:
            raise UserError(
                f"the name {found[0]} {why} (--name {pattern}); nothing is overwritten. Put "
                "{number} or {seed} in it, or choose another --out."
            )
    return [folder / name for name in names]


def fields_of(pattern: str) -> set[str]:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise UserError(f"--name {pattern} is not a pattern ({error}).") from error
    unknown = fields - set(FIELDS)
    if unknown or not pattern or "/" in pattern or "\\" in pattern:
        raise UserError(
            f"--name {pattern} must be the name of a file, without a folder, with any of "
            f"{', '.join('{' + name + '}' for name in FIELDS)} in it."
        )
    return fields


def next_number(folder: Path, pattern: str, suffixes: Sequence[str]) -> int:
    parts = []
    for text, name, _, _ in string.Formatter().parse(pattern):
        parts.append(re.escape(text))
        if name is not None:
            parts.append(r"(\d+)" if name == "number" and r"(\d+)" not in parts else ".*")
    like = re.compile("".join(parts) + "(" + "|".join(map(re.escape, suffixes)) + ")")
    found = folder.iterdir() if folder.is_dir() else ()
    return max((int(m[1]) for file in found if (m := like.fullmatch(file.name))), default=-1) + 1


def slug(prompt: str) -> str:
    """What of a prompt may stand in a file name anywhere."""
    return re.sub(r"[^\w-]+", "-", prompt).strip("-")[:LONGEST] or "no-prompt"


def write_new(path: Path, suffix: str, content: bytes) -> Path:
    path = path.with_name(path.name + suffix)
    write_new_file(path, content)
    return path
