"""Files and folders that appear whole or not at all, and outlast a power cut once they are there.

A rename may reach the disk before what the renamed file holds. So the content is waited for first,
then the name is given, then the folder that holds the name is waited for.
"""

import errno
import os
import shutil
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, has reached the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        sync_names(path)
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """Waits until the names in a folder have reached the disk, where a system can tell."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


def put_in_place(partial: Path, target: Path) -> None:
    """Gives a complete file or folder its name; what had the name before goes."""
    sync(partial)
    old = hidden(target)
    if target.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(partial, target)
    sync_names(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def discard(folder: Path) -> None:
    """Removes a folder that must not be mistaken for a whole one when half of it is gone."""
    os.replace(folder, hidden(folder))
    shutil.rmtree(hidden(folder))


def hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def partial_name(file: Path) -> str:
    """Of what a process that was killed may leave beside the file."""
    return file.name + ".partial"


def write_text(file: Path, text: str) -> None:
    """A crash leaves the old file or the new one."""
    partial = file.with_name(partial_name(file))
    try:
        partial.write_text(text, encoding="utf-8")
        put_in_place(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def append_line(file: Path, line: str) -> None:
    """Adds a line that is on the disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    sync_names(file.parent)
