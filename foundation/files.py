"""Write files and folders that appear whole or not at all, and read small ones within bounds.

New content is written next to the target, under a hidden name. When it is complete it is flushed
to the disk (fsync), then it is renamed to the target, then the folder that contains the name is
flushed. A folder replaces an older one by one system call that exchanges the two names. Where there
is no such call (Windows, some network file systems), the older folder is first renamed to a second
hidden name; if the process is killed right then, `restore` renames it back. So nothing is seen
half-written, even after a kill or a power cut.

Windows renames and removes nothing that is open or mapped into memory. This is tried several times,
since virus scanners open new files; then it is a `FileInUseError`.

Only one process at a time may write a target. A target that is a symbolic link stays a link: the
file or folder that it points to is replaced.
"""

import errno
import json
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from foundation import system
from foundation.errors import FileInUseError, MissingFileError, UserError, one_line
from foundation.json_reading import load_object
from foundation.paths import check_new_path
from foundation.system import exchange_names, is_in_use, patiently

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNREADABLE = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG)
MEGABYTE = 2**20
O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
O_BINARY = getattr(os, "O_BINARY", 0)  # Windows would change line ends
BYTE_ORDER_MARKS = {  # a longer mark that begins with a shorter one goes first
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# Characters of the longest path below a folder that is written: of a U-Net in a pipeline.
ROOM_IN_MODEL = len(".partial/.unet.partial/.diffusion_pytorch_model.safetensors.partial")
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


# Writing ------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(target: Path) -> Generator[Path, None, None]:
    """Yield a path to write to; that file becomes `target` if the block succeeds.

    Missing folders above `target` are made. After an error nothing is left of either.
    """
    target = _resolved(target, len("..partial"))
    partial = partial_path(target)
    with naming(target), _make_parents(target):
        try:
            yield partial
            put_in_place(partial, target)
        finally:
            remove(partial)


@contextmanager
def atomic_folder(target: Path, *, keep_others: bool = False) -> Generator[Path, None, None]:
    """Yield an empty folder to write into; it becomes `target` if the block succeeds.

    After an error nothing is left. After a kill `target` is the complete old folder or the complete
    new one; a hidden `.<name>.partial` may remain next to it, which the next attempt removes.

    keep_others: keep the other entries of the old folder, as hard links where possible.

    Raises:
        UserError: `target` cannot be replaced, because it is the current folder or a mount point,
            or contains one.
    """
    target = _resolved(target, ROOM_IN_MODEL)
    _check_movable(target)
    partial = partial_path(target)
    with _make_parents(target):
        restore(target)
        remove(partial)
        partial.mkdir()
        try:
            yield partial
            if target.is_dir():
                shutil.copymode(target, partial)
                if keep_others:
                    _link_missing(target, partial)
            put_in_place(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a complete file or folder to `target`, and remove what had that name before.

    Raises:
        IsADirectoryError: `partial` is a file and `target` a folder.
        FileInUseError: Windows, and a program has `target` or something in it open.
    """
    sync(partial)
    if not partial.is_dir() or not target.is_dir():
        rename(partial, target)
    elif not exchange_names(partial, target):
        old = _old_path(target)
        remove(old)
        try:
            rename(target, old)
            rename(partial, target)
        except BaseException:
            restore(target)
            raise
        partial = old
    sync_names(target.parent)
    remove(partial)


def rename(source: Path, target: Path) -> None:
    """Give a file or a folder another name; a file may replace another one.

    Raises:
        FileInUseError: Windows, and a program has one of them open.
    """
    try:
        patiently(os.replace, source, target)
    except OSError as error:
        if not is_in_use(error) or (target.is_dir() and not source.is_dir()):
            raise
        raise FileInUseError(
            f"{one_line(target)} cannot be written ({error.strerror}). Another program has it, or "
            "a file in it, open: a viewer, a virus scanner, a second run. Or the right is missing. "
            "What was there is untouched. Close that program, and run the same command again."
        ) from error


def restore(*targets: Path) -> None:
    """Rename old folders back whose replacement was interrupted between two renames.

    Call this before reading a folder that `atomic_folder` writes. It does nothing unless a target
    is missing and the system has no call that exchanges names.
    """
    for target in map(_resolved, targets):
        old = _old_path(target) if target.name else target  # the root has no name
        if old.exists() and not target.exists():
            rename(old, target)


def remove_folder(folder: Path) -> None:
    """Remove a folder in such a way that nobody ever sees half of it under its name.

    Raises:
        FileInUseError: Windows, and a program has something in it open; it is still whole.
    """
    partial = partial_path(_resolved(folder))
    remove(partial)
    rename(folder, partial)
    shutil.rmtree(partial)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def append_line(file: Path, line: str) -> None:
    """Append a line to a text file, and return when it is on the disk."""
    with file.open("a", encoding="utf-8", newline="\n") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    sync_names(file.parent)


def partial_path(target: Path) -> Path:
    """Return the hidden path at which `target` is written before it is renamed."""
    return target.with_name(f".{target.name}.partial")


def _old_path(target: Path) -> Path:
    """Return the hidden path of the folder that `target` is about to replace."""
    return target.with_name(f".{target.name}.old")


def _resolved(path: Path, room: int = 0) -> Path:
    """Return the absolute path without symbolic links, so that it has a name and a parent.

    room: characters that Windows must take behind this path.
    """
    check_new_path(path, room)
    return Path(os.path.realpath(path))


@contextmanager
def _make_parents(target: Path) -> Generator[None, None, None]:
    """Make the folders above `target`; after an error, remove those that were made."""
    missing = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty: something else was put there meanwhile
                folder.rmdir()
        raise


def _check_movable(folder: Path) -> None:
    """Refuse a folder that cannot be renamed, or whose renaming would surprise its user."""
    if os.path.ismount(folder):
        raise UserError(
            f"{folder} is a mount point, which cannot be replaced as a whole. Choose a folder "
            "inside it."
        )
    if Path.cwd().is_relative_to(folder):
        raise UserError(
            f"{folder} contains the current folder, so it cannot be replaced as a whole. Choose a "
            "folder inside it, or run the command from somewhere else."
        )


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            patiently(path.unlink, missing_ok=True)
        except OSError as error:
            if not is_in_use(error):
                raise


def _link_missing(source: Path, destination: Path) -> None:
    """Link the entries of `source` that `destination` lacks; skip leftovers of killed writes."""
    for entry in source.iterdir():
        leftover = entry.name.startswith(".") and entry.name.endswith((".partial", ".old"))
        if not leftover and not os.path.lexists(destination / entry.name):
            _link(entry, destination / entry.name)


def _link(source: Path, destination: Path) -> None:
    """Make a second name for a file, or for every file in a folder."""
    if source.is_symlink():
        os.symlink(os.readlink(source), destination)
    elif source.is_dir():
        if os.path.ismount(source):  # removing the old folder would empty what is mounted there
            raise UserError(
                f"{source} is a mount point, so the folder around it cannot be replaced. Choose "
                "another folder."
            )
        destination.mkdir()
        for entry in source.iterdir():
            _link(entry, destination / entry.name)
        shutil.copystat(source, destination)
    else:
        try:
            os.link(source, destination)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            shutil.copy2(source, destination)


# Flushing -----------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Wait until a file, or a folder with everything in it, has reached the disk."""
    if path.is_symlink():
        return
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        sync_names(path)
    else:
        with _open_to_sync(path) as file:
            os.fsync(file.fileno())


def _open_to_sync(file: Path) -> BinaryIO:
    """Open a file so that it can be flushed: on Windows only one that is open for writing can."""
    if system.ON_WINDOWS:
        return patiently(file.open, "r+b")
    return file.open("rb")


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder have reached the disk, where the system can do that."""
    if system.ON_WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
            raise
    finally:
        os.close(descriptor)


# Reading ------------------------------------------------------------------------------------------


def open_file(file: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device, which may never end, is refused.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not a regular file, or may not be read.
    """
    try:
        # The mode first: to open a device can already have an effect. Without O_NONBLOCK a pipe
        # that takes the file's place meanwhile would be waited for.
        _require_regular(file, os.stat(file).st_mode)
        descriptor = os.open(file, os.O_RDONLY | O_NONBLOCK | O_BINARY)
        stream = os.fdopen(descriptor, "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"there is no file {one_line(file)}.") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{one_line(file)} cannot be the name of a file ({error}).") from error
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        reason = error.strerror
        if error.errno == errno.ELOOP:
            reason = "it is a link that leads to itself"
        raise UserError(f"{one_line(file)} cannot be read ({reason}).") from error
    try:
        _require_regular(file, os.fstat(stream.fileno()).st_mode)
    except BaseException:
        stream.close()
        raise
    return stream


def read_bytes(file: Path, limit: int = 64 * MEGABYTE) -> bytes:
    """Read a small file.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not a regular file, may not be read, or has more than `limit` bytes.
    """
    with open_file(file) as stream:
        content = stream.read(limit + 1)
        if len(content) > limit:
            raise UserError(
                f"{one_line(file)} has {os.fstat(stream.fileno()).st_size:,} bytes, and at most "
                f"{limit:,} are expected there. Is it another kind of file?"
            )
    return content


def read_text(file: Path, limit: int = 64 * MEGABYTE) -> str:
    """Read a small UTF-8 file, with or without the byte order mark that Windows programs write.

    Line ends become line feeds.

    Raises:
        MissingFileError: there is no such file.
        UserError: as `read_bytes`, or it is not UTF-8 text.
    """
    content = read_bytes(file, limit)
    try:
        return decode_text(content)
    except UserError as error:
        raise UserError(f"{one_line(file)} {error}") from None


def decode_text(content: bytes, first_line: int = 1) -> str:
    """Decode UTF-8, with or without a byte order mark; line ends become line feeds.

    first_line: number of the line that `content` begins with; only the first can have a mark.

    Raises:
        UserError: it is not UTF-8 text. The message continues "<file> ...".
    """
    for mark, name in BYTE_ORDER_MARKS.items():
        if first_line == 1 and content.startswith(mark):
            raise UserError(f"is {name} text; save it as UTF-8.")
    try:
        text = content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + first_line
        raise UserError(
            f"is not UTF-8 text: byte 0x{content[error.start]:02x} in line {line}. Save it as "
            "UTF-8 (files of older Windows programs are often Windows-1252)."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + first_line
        raise UserError(f"is not text: it has a zero byte in line {line}.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _require_regular(file: Path, mode: int) -> None:
    """Refuse what is not a regular file, by its mode."""
    if not stat.S_ISREG(mode):
        kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
        kind = next((name for test, name in kinds.items() if test(mode)), "a device")
        raise UserError(f"{one_line(file)} is {kind}, and a file is needed there.")


# JSON ---------------------------------------------------------------------------------------------


def read_json(
    file: Path, default: dict[str, Any] | None = None, limit: int = 64 * MEGABYTE
) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Args:
        default: returned if there is no such file; without it that is an error.
        limit: bytes that the file may have.

    Raises:
        MissingFileError: there is no such file.
        UserError: it is not JSON, or not an object; see `load_json`.
    """
    try:
        text = read_text(file, limit)
    except MissingFileError as error:
        if default is not None:
            return default
        raise MissingFileError(
            f"{one_line(file)} is missing. Copy the whole folder again."
        ) from error
    return load_object(text, file, raw_bytes=True)


def to_json(value: Any) -> str:
    """Return a value as the text of a JSON file: indented, with a line break at the end."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # File names may contain bytes that are not UTF-8; as JSON escapes they survive a round trip.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(file, to_json(value))


@contextmanager
def naming(target: Path) -> Generator[None, None, None]:
    """Let errors of the system name what is written: they name a hidden file, or none at all."""
    try:
        yield
    except OSError as error:
        is_plain = error.errno is not None and error.strerror == os.strerror(error.errno)
        hidden = error.filename is None or os.fsdecode(error.filename).endswith(".partial")
        if not is_plain or not hidden:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error


# Checks -------------------------------------------------------------------------------------------


@contextmanager
def explain_full_disk(target: Path, advice: str) -> Generator[None, None, None]:
    """Reword a "no space left" error of the block, so that it names `target` and what to do.

    advice: sentences that say what was kept of the files written so far, and what to do.
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
    """Refuse to replace files that are not a folder of the same kind.

    mark: name of a file that every folder of this kind contains.

    Raises:
        UserError: `target` is a file, or a folder with other content.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, and a folder is needed there. Choose another name.")
    if target.is_dir() and any(target.iterdir()) and not (target / mark).is_file():
        raise UserError(
            f"{target} is not empty and has no {mark}, so it contains something else. Choose "
            "another folder, or empty this one."
        )
