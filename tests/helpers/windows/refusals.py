"""What Windows refuses, refused on Linux.

- A file that was opened for reading cannot be flushed; a folder cannot be opened.
- What is open or mapped into memory can be neither renamed, replaced nor removed; nor can a folder
  around it. This process alone is looked at.
- A folder does not replace another one. Names that differ in case are the same name.
- No file has a name with < > : " | ? or *.
- Nothing can be forked. There is no /proc, and no module fcntl or resource (for our packages).
- SIGTERM ends a process at once.
- Text files have the encoding of Western Europe if none is stated, and line ends of two characters.

Not simulated: drive letters, backslashes, forbidden names, files that other processes have open.
"""

import builtins
import errno
import importlib
import io
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

OURS = {
    *("foundation", "interop", "autoencoder", "conditioning", "ldm", "dataset", "training"),
    *("evaluation", "stages", "generation", "recipes", "__main__", "check", "evaluate", "export"),
    *("sample", "train_clip", "train_ldm", "train_vae"),
}
MISSING = {"fcntl", "resource", "pwd", "grp", "termios"}
SHARING_VIOLATION = 32
REAL = SimpleNamespace(
    open=builtins.open,
    os_open=os.open,
    stat=os.stat,
    lstat=os.lstat,
    scandir=os.scandir,
    fsync=os.fsync,
    replace=os.replace,
    unlink=os.unlink,
    mkdir=os.mkdir,
    link=os.link,
    kill=os.kill,
    readlink=os.readlink,
    realpath=os.path.realpath,
    listdir=os.listdir,
    import_module=importlib.import_module,
    import_=builtins.__import__,
)


def install() -> None:
    """Put the refusals in the places of the functions of this process."""
    builtins.open = io.open = open_file
    os.open = open_descriptor
    os.fsync = flush
    os.replace = replace
    os.rename = rename
    os.unlink = os.remove = remove
    os.mkdir = make_folder
    os.link = link
    os.stat = folding(REAL.stat)
    os.lstat = folding(REAL.lstat)
    os.scandir = folding(REAL.scandir)
    os.symlink = refuse_symlink
    os.kill = kill
    os.fork = refuse_fork
    shutil._use_fd_functions = False
    importlib.import_module = import_module
    builtins.__import__ = import_by_statement
    multiprocessing.set_start_method("spawn", force=True)
    multiprocessing.context._concrete_contexts = {"spawn": multiprocessing.get_context("spawn")}
    from foundation import system

    system.ON_WINDOWS = True
    system.c_function = lambda name: None


def refusal(path: object, number: int = errno.EACCES) -> PermissionError:
    error = PermissionError(number, "The process cannot access the file", os.fspath(path))
    error.winerror = SHARING_VIOLATION
    return error


# Files --------------------------------------------------------------------------------------------


def folded(path: Any) -> Any:
    """Return the path as the disk has it, if it differs in case."""
    if not isinstance(path, str | os.PathLike) or exists(path):
        return path
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        return path
    head, tail = os.path.split(text)
    if not tail:
        return path
    head = folded(head) if head else head
    try:
        names = REAL.listdir(head or ".")
    except OSError:
        return path
    same = [name for name in names if name.casefold() == tail.casefold()]
    return os.path.join(head, same[0] if same else tail)


def exists(path: Any) -> bool:
    try:
        REAL.lstat(path)
    except (OSError, ValueError):
        return False
    return True


def folding(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any = ".", *args: Any, **options: Any) -> Any:
        return function(path if options.get("dir_fd") else folded(path), *args, **options)

    return call


def refuse_name(path: Any) -> None:
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if isinstance(text, str) and set(os.path.basename(text)) & set('<>:"|?*'):
        raise OSError(errno.EINVAL, "The filename, directory name, or label is incorrect", text)


def refuse_missing(path: Any) -> None:
    if isinstance(path, str | os.PathLike) and str(os.fspath(path)).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", os.fspath(path))


def open_file(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    if not isinstance(file, int):
        refuse_missing(file)
        refuse_name(file)
        file = folded(file)
    if "b" not in mode:
        encoding = "cp1252" if encoding in (None, "locale") else encoding
        if newline is None and set(mode) & set("wax+"):
            newline = "\r\n"
    return REAL.open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def open_descriptor(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    refuse_missing(path)
    unnamed = flags & os.O_TMPFILE == os.O_TMPFILE  # as Windows has it: gone when it is closed
    if dir_fd is None and not unnamed:
        path = folded(path)
        if os.path.isdir(path):
            raise refusal(path)
    return REAL.os_open(path, flags, mode, dir_fd=dir_fd)


def flush(descriptor: Any) -> None:
    import fcntl

    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    REAL.fsync(number)


def paths_in_use() -> set[str]:
    """The files that this process has open or mapped."""
    found = set()
    for number in REAL.listdir("/proc/self/fd"):
        try:
            found.add(REAL.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    with REAL.open("/proc/self/maps", errors="surrogateescape") as lines:
        found |= {line.split(maxsplit=5)[5].rstrip("\n") for line in lines if " /" in line}
    return found


def refuse_in_use(path: Any) -> None:
    real = REAL.realpath(path)
    if any(used == real or used.startswith(real + "/") for used in paths_in_use()):
        raise refusal(path)


def replace(source: Any, target: Any, **options: Any) -> None:
    source, target = folded(source), folded(target)
    refuse_name(target)
    refuse_in_use(source)
    refuse_in_use(target)
    if os.path.isdir(target) and REAL.realpath(source) != REAL.realpath(target):
        raise refusal(target)
    REAL.replace(source, target, **options)


def rename(source: Any, target: Any, **options: Any) -> None:
    if exists(folded(target)):
        raise FileExistsError(errno.EEXIST, "The file exists", os.fspath(target))
    replace(source, target, **options)


def remove(path: Any, **options: Any) -> None:
    path = folded(path)
    refuse_in_use(path)
    REAL.unlink(path, **options)


def make_folder(path: Any, mode: int = 0o777, **options: Any) -> None:
    refuse_name(path)
    REAL.mkdir(folded(path), mode, **options)


def link(source: Any, target: Any, **options: Any) -> None:
    REAL.link(folded(source), folded(target), **options)


def refuse_symlink(*args: Any, **options: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")


# Processes ----------------------------------------------------------------------------------------


def refuse_fork() -> int:
    raise AttributeError("module 'os' has no attribute 'fork'")


def kill(process: int, number: int) -> None:
    REAL.kill(process, signal.SIGKILL if number == signal.SIGTERM else number)


def is_ours(depth: int) -> bool:
    name = sys._getframe(depth).f_globals.get("__name__", "")
    return name.partition(".")[0] in OURS


def import_module(name: str, package: str | None = None) -> Any:
    if is_ours(2) and name == "msvcrt":
        return SimpleNamespace(locking=lock, LK_NBLCK=2)
    if is_ours(2) and name in MISSING:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return REAL.import_module(name, package)


def import_by_statement(name: str, *args: Any, **options: Any) -> Any:
    if name in MISSING and is_ours(2):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return REAL.import_(name, *args, **options)


def lock(descriptor: int, mode: int, count: int) -> None:
    """Lock bytes from the current position on, as msvcrt does, or raise PermissionError."""
    import fcntl

    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, position)
    except OSError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error
