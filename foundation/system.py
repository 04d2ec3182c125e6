"""What differs between systems: the C library, forks, consoles, browsers, and files in use."""

import ctypes
import errno
import functools
import io
import os
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")

ON_WINDOWS = os.name == "nt"
FILE_IS_MAPPED = 1224  # error of Windows that Python does not make a PermissionError
WAITS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between attempts


def c_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library that this process runs on; None if it has none."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except TypeError:  # Windows, where None names no library
        return None
    return getattr(library, name, None)


def windows_function(library: str, name: str) -> Callable[..., int] | None:
    """Return a function of a library of Windows; None elsewhere."""
    load: Callable[[str], Any] | None = getattr(ctypes, "WinDLL", None)
    return None if load is None else getattr(load(library), name, None)


def takes_long_paths() -> bool:
    """Return whether paths may have more than 259 characters; on Windows it is a setting."""
    is_enabled = windows_function("ntdll", "RtlAreLongPathsEnabled")
    return not ON_WINDOWS or (is_enabled is not None and bool(is_enabled() & 0xFF))


def exchange_names(a: os.PathLike[str], b: os.PathLike[str]) -> bool:
    """Exchange the names of two paths atomically; return False where the system cannot."""
    call = exchange_call()
    if call is None:
        return False
    sys.audit("latentsmith.exchange", str(a), str(b))  # for tests that kill before every change
    if call(os.fsencode(a), os.fsencode(b)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(a), None, str(b))


@functools.cache
def exchange_call() -> Callable[[bytes, bytes], int] | None:
    """Find renameat2 with RENAME_EXCHANGE (Linux) or renamex_np with RENAME_SWAP (macOS)."""
    current_folder, exchange = -100, 2  # AT_FDCWD; both systems use 2 for the flag
    if (renameat2 := c_function("renameat2")) is not None:
        return lambda a, b: renameat2(current_folder, a, current_folder, b, exchange)
    if (renamex_np := c_function("renamex_np")) is not None:
        return lambda a, b: renamex_np(a, b, exchange)
    return None


def after_fork(function: Callable[[], None]) -> None:
    """Call a function in every process that is forked from this one; never where none can be."""
    register = getattr(os, "register_at_fork", None)
    if register is not None:
        register(after_in_child=function)


def print_any_character() -> None:
    """Let stdout and stderr write escapes for characters that their encoding lacks.

    A file or a pipe of Windows often has an encoding of 256 characters, in which `print` of a
    caption would raise UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def open_result(file: Path) -> None:
    """Open a file in the browser, which shows pictures and pages; print its path if there is none.

    No window is opened by a command that was not asked for one.
    """
    open_address(file.resolve().as_uri(), str(file))


def open_address(address: str, name: str) -> None:
    """Open an address in the browser; say its name if there is none."""
    try:
        opened = webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        print(f"note: no browser was found to open {name} with.")


def is_in_use(error: OSError) -> bool:
    """Return whether Windows refused something because a file is open or mapped into memory.

    It says the same where the right is missing.
    """
    is_mapped = getattr(error, "winerror", None) == FILE_IS_MAPPED
    return ON_WINDOWS and (isinstance(error, PermissionError) or is_mapped)


def patiently(
    function: Callable[Given, Result], *args: Given.args, **options: Given.kwargs
) -> Result:
    """Call a function on files; if Windows says that one is in use, try again, for two seconds.

    Virus scanners and indexers open every new file for a moment.
    """
    for wait in WAITS:
        try:
            return function(*args, **options)
        except OSError as error:
            if not is_in_use(error):
                raise
        time.sleep(wait)
    return function(*args, **options)
