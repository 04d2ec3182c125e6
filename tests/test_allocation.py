"""Freed memory stays in the process, where glibc would return it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FREED = """
import sys
from training.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = resident()
x = torch.ones(2**25)
del x
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_a_large_block_is_kept_when_freed():
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", FREED, mode], cwd=ROOT))
        for mode in ("keep", "return")
    )
    assert kept > 2**26 > returned  # of 2**27 bytes
