"""Files and folders that appear whole or not at all, also after a kill or a power cut.

New content is written beside its place, under a hidden name. When it is complete it is flushed to
the disk (fsync), then it takes the name, then the folder that holds the name is flushed. A folder
takes the place of an older one by one atomic exchange of the two names; where the system has no
such call (Windows), the older one is renamed aside first, and `restore` undoes an interruption.
"""

import ctypes
import errno
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foundation.errors import MissingFileError, UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# Writing ------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; the file written there becomes `target` if the block succeeds."""
    partial = partial_path(target)
    with _parents_made(target):
        try:
            yield partial
            put_in_place(partial, target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path, *, keep_others: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `target` if the block succeeds.

    After an error nothing is left. After a kill the old folder or the new one lies under the name,
    whole; a hidden `.<name>.partial` may lie beside it, which the next attempt removes.

    keep_others: what else lies in the old folder is kept, as hard links where possible.
    """
    target = Path(target)
    partial = partial_path(target)
    with _parents_made(target):
        restore(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            if keep_others and target.is_dir():
                _link_missing(target, partial)
            put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a complete file or folder its name; what had the name before is removed."""
    sync(partial)
    if not target.is_dir():
        os.replace(partial, target)
        sync_names(target.parent)
    elif _exchange(partial, target):
        sync_names(target.parent)
        shutil.rmtree(partial, ignore_errors=True)
    else:
        old = _old_path(target)
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(partial, target)
        sync_names(target.parent)
        shutil.rmtree(old, ignore_errors=True)


def restore(target: Path) -> None:
    """Undo a replacement of a folder that was interrupted on a system without atomic exchange."""
    old = _old_path(target)
    if old.exists() and not target.exists():
        os.replace(old, target)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half-removed one is ever seen under its name."""
    old = _old_path(folder)
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    shutil.rmtree(old)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def append_line(file: Path, line: str) -> None:
    """Add a line to a text file; it is on the disk when this returns."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    sync_names(file.parent)


@contextmanager
def _parents_made(target: Path) -> Iterator[None]:
    """Make the folders above `target`; after an error those that were made are removed again."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty: something else was put there meanwhile
                folder.rmdir()
        raise


def partial_path(target: Path) -> Path:
    """Return the hidden path at which `target` is written before it takes its name."""
    return target.with_name(f".{target.name}.partial")


def _old_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _link_missing(source: Path, destination: Path) -> None:
    """Fill `destination` with what lies in `source` and not in it; not with hidden leftovers."""
    for entry in source.iterdir():
        copy = destination / entry.name
        leftover = entry.name.startswith(".") and entry.name.endswith((".partial", ".old"))
        if leftover or copy.exists():
            continue
        if entry.is_dir():
            shutil.copytree(entry, copy, copy_function=_link)
        else:
            _link(entry, copy)


def _link(source: Path | str, destination: Path | str) -> None:
    try:
        os.link(source, destination)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange the names of two paths atomically; False where the system cannot."""
    call = _exchange_call()
    if call is None:
        return False
    sys.audit("latentsmith.exchange", str(a), str(b))  # for tests that kill at every change
    if call(os.fsencode(a), os.fsencode(b)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))


@functools.cache
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    """Find renameat2 with RENAME_EXCHANGE (Linux) or renamex_np with RENAME_SWAP (macOS)."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    here, exchange = -100, 2  # AT_FDCWD; the flag has the value 2 in both systems
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda a, b: library.renameat2(here, a, here, b, exchange)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda a, b: library.renamex_np(a, b, exchange)
    return None


# Flushing -----------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, has reached the disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        sync_names(path)
    else:
        with path.open("rb" if os.name == "posix" else "r+b") as file:
            os.fsync(file.fileno())


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder have reached the disk, where the system can do that."""
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


# JSON ---------------------------------------------------------------------------------------------


def read_json(file: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    default: returned if the file is not there; without it, that is an error.

    Raises:
        MissingFileError: the file is not there.
        UserError: it is not JSON, or not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if default is not None:
            return default
        raise MissingFileError(f"{file} is missing. Copy the whole folder again.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}). Copy or download it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object. Copy or download it again.")
    return content


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# Borders ------------------------------------------------------------------------------------------


@contextmanager
def explain_full_disk(target: Path, advice: str) -> Iterator[None]:
    """Turn "no space left" inside the block into an OSError that says so for the whole target.

    advice: what is left of what was written, and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(
            error.errno,
            f"the disk is full, or a limit is reached, while writing {target} "
            f"({error.strerror}). {advice}",
        ) from error


def check_replaceable(target: Path, mark: str) -> None:
    """Refuse to put a folder in the place of files that are not of its kind.

    mark: name of a file that every folder of this kind holds.

    Raises:
        UserError: `target` is a file, or a folder that holds something else.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; a folder is to be written there. Choose another.")
    if target.is_dir() and any(target.iterdir()) and not (target / mark).is_file():
        raise UserError(
            f"{target} is not empty, and it has no {mark}, so it holds something else. "
            "Choose another folder, or empty this one."
        )
