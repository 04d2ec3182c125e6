"""Errors that a user can cause and mend, and helpers for their messages.

Scripts print these errors in one line. Every other exception is a bug and keeps its traceback.
Messages contain what users and files give: it is shortened and made printable here.
"""

import re
import reprlib
from collections.abc import Collection, Sequence
from difflib import get_close_matches

LONGEST_MESSAGE = 4000  # characters
LONGEST_VALUE = 120  # characters of one value in a message
# Control characters, line separators, changes of direction, halves of surrogate pairs. A line break
# and a tab are kept; the joiners of emoji and of Persian words are harmless.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class UserError(ValueError):
    """Bad input. The message says what was given, what is needed, why, and what to do."""

    def __str__(self) -> str:
        return shortened(super().__str__(), LONGEST_MESSAGE)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class FileInUseError(UserError, PermissionError):
    """Windows does not replace or remove a file that a program has open."""


class NotFiniteError(UserError, FloatingPointError):
    """A computation gave infinity or NaN because the weights or the settings do not suit it."""


def did_you_mean(name: str, known: Collection[str], count: int = 1) -> str:
    """Return " Did you mean 'x'?" with up to `count` similar names, or "" if none is similar."""
    by_lower_case = {other.lower(): other for other in known}
    matches = get_close_matches(name[:LONGEST_VALUE].lower(), by_lower_case, n=count)
    if not matches:
        return ""
    return f" Did you mean {' or '.join(shown(by_lower_case[match]) for match in matches)}?"


def unknown_name(name: str, known: Collection[str], kind: str) -> UserError:
    """Return the error for a name that is not in `known`.

    kind: what the name is a name of, such as "preset".
    """
    hint = did_you_mean(name, known)
    return UserError(f"unknown {kind} {shown(name)}.{hint} Choose one of: {', '.join(known)}.")


def listed(items: Sequence[object], limit: int = 5) -> str:
    """Join items with commas; show the first `limit` and, if there are more, the total count."""
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(one_line(item, LONGEST_VALUE) for item in items[:limit]) + more


def shortened(text: str, limit: int = LONGEST_VALUE) -> str:
    """Return a text of at most about `limit` characters; the middle of a longer one is left out."""
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end]} ... ({len(text):,} characters) ... {text[-end:]}"


def printable(text: str) -> str:
    """Return a text with escapes in place of characters that would steer the terminal.

    Line breaks are kept. What comes from files (captions, names) passes through here, or through
    `shown` or `one_line`, before it is printed.
    """
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(value: object, limit: int = LONGEST_MESSAGE) -> str:
    """Return a name or a text of a file, printable, on one line, and not longer than `limit`."""
    return printable(shortened(str(value), limit)).replace("\n", "\\n").replace("\t", " ")


class _ShortRepr(reprlib.Repr):
    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = limit

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 10_000:  # Python refuses to write it, or takes long
            return f"an integer of {x.bit_length():,} bits"
        return super().repr_int(x, level)


def shown(value: object, limit: int = LONGEST_VALUE) -> str:
    """Return a value of any type and size as messages show it: in quotes, short, printable."""
    return one_line(shortened(_ShortRepr(limit).repr(value), limit), 2 * limit)
