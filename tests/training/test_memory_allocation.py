"""Freed memory stays in the process, where glibc would return it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FREED = """
import sys
from training.memory import release_freed_memory, keep_freed_memory
if sys.argv[1] != "return":
    keep_freed_memory()
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
x = torch.ones(2**25)
del x
if sys.argv[1] == "give back":
    release_freed_memory()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_large_block_is_kept_when_freed_until_all_is_given_back():
    kept, given_back, returned = (
        int(subprocess.check_output([sys.executable, "-c", FREED, mode], cwd=ROOT))
        for mode in ("keep", "give back", "return")
    )
    assert kept > 2**26 > max(given_back, returned)  # of 2**27 bytes
