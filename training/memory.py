"""Memory of this process: how much it uses, how much is free, and what malloc does with it.

By default glibc hands large blocks back to the system at once, so that every training step begins
with page faults. Keeping them, in huge pages, makes training a CLIP on a CPU 1.4 times as fast;
with smaller tensors no gain was seen beyond the noise. It changes no result.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from foundation.system import c_function, windows_function

NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory"
    r"|ALLOC_FAILED|Storage size calculation overflowed|Invalid buffer size|std::bad_alloc",
    re.IGNORECASE,
)
LOST_WORKER = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:exited unexpectedly|is killed by signal)"
)
CONTAINER_LIMITS = (  # of control groups, versions 2 and 1
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
NO_SHARED_MEMORY = re.compile(r"bus error|insufficient shared memory|shm", re.IGNORECASE)
MEMORY_ADVICE = (
    "the memory does not suffice. Use smaller images, or fewer at once (--batch-size); "
    "trainings also have --accumulate, and --find-batch-size measures what fits."
)

# Parameters of mallopt, from malloc.h of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1


def peak_host_memory() -> int | None:
    """Return the most bytes of RAM that this process had; None where the system does not say."""
    try:
        resource: Any = import_module("resource")
    except ModuleNotFoundError:  # Windows
        return windows_peak_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_host_memory() -> int | None:
    """Return the bytes of RAM that are free without swapping; None if the system says nothing."""
    if (status := windows_memory()) is not None:
        return status.free
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return None


def total_host_memory() -> int | None:
    """Return the bytes of RAM, or what a container may use of it; None if the system is silent."""
    if (status := windows_memory()) is not None:
        return status.total
    sysconf: Callable[[str], int] | None = getattr(os, "sysconf", None)  # Windows has none
    try:
        if sysconf is None:
            return None
        sizes = [sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return None
    for file in CONTAINER_LIMITS:
        try:
            sizes.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return min(sizes)


class WindowsMemory(ctypes.Structure):
    """What Windows says of its memory (MEMORYSTATUSEX), in bytes."""

    total: int
    free: int
    _fields_ = (
        ("size", ctypes.c_uint32),  # of this structure
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "free", "total_paged", "free_paged")),
        *((name, ctypes.c_uint64) for name in ("total_virtual", "free_virtual", "extended")),
    )


class WindowsProcessMemory(ctypes.Structure):
    """What Windows says of the memory of a process (PROCESS_MEMORY_COUNTERS), in bytes."""

    peak: int
    _fields_ = (
        ("size", ctypes.c_uint32),  # of this structure
        ("page_faults", ctypes.c_uint32),
        *((name, ctypes.c_size_t) for name in ("peak", "now", "peak_paged_pool", "paged_pool")),
        *((name, ctypes.c_size_t) for name in ("peak_pool", "pool", "paged", "peak_paged")),
    )


def windows_memory() -> WindowsMemory | None:
    """Ask Windows for its memory; None elsewhere, or if it does not answer."""
    ask = windows_function("kernel32", "GlobalMemoryStatusEx")
    status = WindowsMemory(size=ctypes.sizeof(WindowsMemory))
    return status if ask is not None and ask(ctypes.byref(status)) else None


def windows_peak_memory() -> int | None:
    """Ask Windows for the most bytes of RAM that this process had; None if it does not answer."""
    ask = windows_function("kernel32", "K32GetProcessMemoryInfo")
    if ask is None:
        return None
    counters = WindowsProcessMemory(size=ctypes.sizeof(WindowsProcessMemory))
    this_process = ctypes.c_void_p(-1)
    answered = ask(this_process, ctypes.byref(counters), ctypes.sizeof(counters))
    return counters.peak if answered else None


def format_bytes(size: float) -> str:
    """Return a number of bytes as text: 350 MB, 1.2 GB."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def keep_freed_memory() -> None:
    """Make malloc keep what is freed. Call it before the first tensor is made.

    It does nothing where malloc is not that of glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's: huge pages for large tensors
    mallopt = c_function("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap, too ...
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)  # ... which does not shrink ...
        mallopt(M_TOP_PAD, 2**28)  # ... and grows in large pieces


def release_freed_memory() -> None:
    """Hand what is free now back to the system; what is freed later is kept again.

    It does nothing where malloc is not that of glibc.
    """
    malloc_trim = c_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def describe_failure(error: BaseException) -> str:
    """Return the message for an error that a lack of memory caused, or "" for every other one.

    PyTorch says with a RuntimeError that memory ran out, or that a process which decodes images is
    no more. Both are nothing that we can mend, and no bugs either.
    """
    if isinstance(error, MemoryError):
        return MEMORY_ADVICE
    if not isinstance(error, RuntimeError):
        return ""
    text = str(error)
    if lost := LOST_WORKER.search(text):
        cause = "the memory was full, and the system ended it; or somebody else did"
        advice = "Use fewer (--workers), or smaller images."
        if NO_SHARED_MEMORY.search(text):
            cause = "the shared memory (/dev/shm) was full"
            advice = "Use fewer (--workers), or give the container more shared memory."
        return (
            f"a process that decodes images has ended (process {lost[1]}). The usual cause: "
            f"{cause}. {advice} The last saved state is whole: the same command again goes on "
            "from it."
        )
    return MEMORY_ADVICE if NO_MEMORY.search(text) else ""
