"""Errors that a user can cause and mend, and helpers for their messages.

Scripts print these errors in one line. Every other exception is a bug and keeps its traceback.
"""

from collections.abc import Collection, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message says what was given, what is needed, why, and what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named does not exist."""


class NotFiniteError(UserError, FloatingPointError):
    """A computation gave infinity or NaN because the weights or the settings do not suit it."""


def did_you_mean(name: str, known: Collection[str], count: int = 1) -> str:
    """Return " Did you mean 'x'?" with up to `count` similar names, or "" if none is similar."""
    by_lower_case = {other.lower(): other for other in known}
    matches = get_close_matches(name.lower(), by_lower_case, n=count)
    if not matches:
        return ""
    return f" Did you mean {' or '.join(repr(by_lower_case[match]) for match in matches)}?"


def unknown_name(name: str, known: Collection[str], kind: str) -> UserError:
    """Return the error for a name that is not in `known`.

    kind: what the name is a name of, such as "preset".
    """
    hint = did_you_mean(name, known)
    return UserError(f"unknown {kind} {name!r}.{hint} Choose one of: {', '.join(known)}.")


def listed(items: Sequence[object], limit: int = 5) -> str:
    """Join items with commas; show the first `limit` and, if there are more, the total count."""
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more
