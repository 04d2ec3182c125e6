"""A compiled U-Net computes the same; what it needs is said beforehand."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drawing.compiled import check_compiler, compile_unet
from tests.peer_settings import SMALL_UNET
from tests.test_prepared import make_unet

ROOT = Path(__file__).parents[1]
COMPILED = """
import torch
from drawing.compiled import compile_unet
from tests.test_prepared import SMALL_UNET, make_unet, randn
unet = make_unet(SMALL_UNET)

def draw(contexts):
    prepared = unet.prepare(randn(2 * contexts, 5, 24))
    times = (torch.tensor([t, t]) for t in (999, 500))
    return [unet(randn(2, 4, 8, 8, seed=1), t, prepared) for t in times]

with torch.no_grad():
    expected = draw(1) + draw(2)
    compile_unet(unet)
    for result, value in zip(draw(1) + draw(2), expected, strict=True):
        torch.testing.assert_close(result, value, rtol=0, atol=1e-5 * value.std().item())
"""


def test_without_a_compiler_for_a_cpu_the_message_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="g\\+\\+ or clang\\+\\+ or cl is not on the PATH"):
        check_compiler()
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(ValueError, match="but my-compiler is not on the PATH"):
        compile_unet(make_unet(SMALL_UNET))


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_unet_computes_the_same_for_every_number_of_rows():
    """Guidance brings more rows, which are compiled for anew. In a process of its own, since the
    compiler does not see through the checks of shapes in this one."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True, cwd=ROOT)
