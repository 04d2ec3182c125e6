"""Memory of this process: what it is, and that freed memory stays in it."""

import ctypes
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from training.device import describe_peak_memory, total_memory
from training.memory import available_host_memory, format_bytes, peak_host_memory

ROOT = Path(__file__).parents[2]
FREED = """
import sys
from training.memory import keep_freed_memory, release_freed_memory
if sys.argv[1] != "return":
    keep_freed_memory()
import numpy

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
x = numpy.ones(2**24)  # 128 MiB
del x
if sys.argv[1] == "release":
    release_freed_memory()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_large_freed_block_is_kept_until_it_is_released():
    kept, released, returned = (
        int(subprocess.check_output([sys.executable, "-c", FREED, mode], cwd=ROOT))
        for mode in ("keep", "release", "return")
    )
    assert kept > 2**26 > max(released, returned)  # of 2**27 bytes


def test_the_memory_of_the_system_is_plausible():
    assert 10e6 < peak_host_memory() < 1e12
    assert available_host_memory() is None or available_host_memory() > 0


@pytest.mark.parametrize(("size", "text"), [(3.5e8, "350 MB"), (1.234e9, "1.23 GB")])
def test_bytes_as_text(size, text):
    assert format_bytes(size) == text


def test_peak_memory_as_text():
    assert re.match(r"memory \d", describe_peak_memory())


def test_windows_is_asked_for_its_memory(monkeypatch):
    """Its structures are filled in as GlobalMemoryStatusEx and GetProcessMemoryInfo do."""

    def status(pointer):
        given = pointer._obj
        if given.size != 64:
            return 0
        # Bytes at the offsets of MEMORYSTATUSEX.
        ctypes.memmove(ctypes.addressof(given) + 8, (17 * 10**9).to_bytes(8, "little"), 8)
        ctypes.memmove(ctypes.addressof(given) + 16, (5 * 10**9).to_bytes(8, "little"), 8)
        return 1

    def process(handle, pointer, size):
        if size != 72 or handle.value != 2**64 - 1:
            return 0
        ctypes.memmove(ctypes.addressof(pointer._obj) + 8, (3 * 10**9).to_bytes(8, "little"), 8)
        return 1

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status, K32GetProcessMemoryInfo=process)
    monkeypatch.setattr(ctypes, "WinDLL", {"kernel32": kernel}.get, raising=False)
    assert total_memory(torch.device("cpu")) == 17 * 10**9
    assert available_host_memory() == 5 * 10**9
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_host_memory() == 3 * 10**9 and describe_peak_memory().startswith("memory 3 GB")
    kernel.GlobalMemoryStatusEx = kernel.K32GetProcessMemoryInfo = lambda *given: 0
    assert peak_host_memory() is None and total_memory(torch.device("cpu"))
