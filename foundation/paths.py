"""Names that every system can have, and what several paths have in common."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from foundation import system
from foundation.errors import UNPRINTABLE, UserError, listed, one_line, shown

FORBIDDEN = re.compile('[\t\n/\\\\<>:"|?*]')
# Windows has these names for devices, with any suffix.
DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)
LONGEST_PATH = 259  # characters on Windows, unless its setting for long paths is on
ROOM = 100  # characters of the longest name of a file below a folder, while it is written
DRIVE = re.compile(r"[A-Za-z]:/")  # the beginning of an absolute path


def name_problem(name: str) -> str:
    """Return why a file or folder cannot have this name on every system; "" if it can.

    The text continues "<name> ...".
    """
    if found := UNPRINTABLE.search(name) or FORBIDDEN.search(name):
        return f"has the character {found[0]!a}"
    if not name or name != name.rstrip(" ."):
        return "is empty, or ends with a dot or a space"
    if DEVICE.fullmatch(name):
        return "is the name of a device on Windows"
    return ""


def check_new_path(path: Path, room: int = 0) -> None:
    """On Windows, refuse to make what would get another name, be no file, or have too long a path.

    `CON` is the console there, `a:b` a hidden part of the file `a`, and `a.` the same as `a`.

    room: characters that must be left for the files in this folder.

    Raises:
        UserError: a folder or file in the path has such a name, or the path is too long.
    """
    if not system.ON_WINDOWS:
        return
    for part in path.parts:
        reason = "" if part == path.anchor or part in (".", "..") else name_problem(part)
        if reason:
            raise UserError(
                f"{one_line(path)} cannot be made on Windows: {shown(part)} {reason}. Choose "
                "another name."
            )
    length = len(str(path.absolute()))
    if length + room > LONGEST_PATH and not system.takes_long_paths():
        inside = f", and files in it need {room} more" if room else ""
        raise UserError(
            f"{one_line(path)} cannot be made on Windows: the whole path has {length} characters"
            f"{inside}. Windows takes {LONGEST_PATH}. Choose a folder nearer to the root of the "
            "drive, or turn on long paths (the value LongPathsEnabled in the registry, see "
            "docs/long-runs.md)."
        )


def common_folder(paths: Sequence[Path]) -> Path:
    """Return the folder that all paths lie in.

    Raises:
        UserError: there is none, because they are on several drives of Windows.
    """
    absolute = any(path.is_absolute() for path in paths)
    try:
        return Path(os.path.commonpath([path.absolute() if absolute else path for path in paths]))
    except ValueError:
        drives = sorted({path.absolute().drive for path in paths})
        raise UserError(
            f"the files lie on several drives ({listed(drives)}). Put them into one folder, such "
            f"as that of {one_line(paths[0])}."
        ) from None


def is_below(path: str, folder: str) -> bool:
    """Return whether a path with slashes begins with a folder; a drive's case does not matter."""
    start = path[: len(folder)]
    same = start.casefold() == folder.casefold() if DRIVE.match(path) else start == folder
    return same and path[len(folder) :].startswith("/")
