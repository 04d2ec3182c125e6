"""Errors that a user can cause and mend, and what their messages share.

Scripts print these in one line. Every other exception is a bug and keeps its traceback.
"""

from collections.abc import Collection, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: the message says what was given, what is needed, why, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was asked for is not there."""


class NotFiniteError(UserError, FloatingPointError):
    """A computation gave infinity or NaN, by weights or settings that do not suit it."""


def did_you_mean(name: str, known: Collection[str], count: int = 1) -> str:
    """Return " Did you mean 'x'?" with the known names nearest to `name`, or "" if none is near."""
    by_lower_case = {other.lower(): other for other in known}
    near = get_close_matches(name.lower(), by_lower_case, n=count)
    return f" Did you mean {' or '.join(repr(by_lower_case[x]) for x in near)}?" if near else ""


def unknown_name(name: str, known: Collection[str], kind: str) -> UserError:
    """Make the error for a name that is not one of `known`; kind: of what, such as "preset"."""
    hint = did_you_mean(name, known)
    return UserError(f"unknown {kind} {name!r}.{hint} Choose one of: {', '.join(known)}.")


def listed(items: Sequence[object], limit: int = 5) -> str:
    """Join the first items by commas; more than `limit` are counted, not shown."""
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more
