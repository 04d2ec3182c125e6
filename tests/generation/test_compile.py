"""A compiled U-Net computes the same, is compiled once, and says what it needs."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import generation.compile
from foundation.errors import UserError
from generation.compile import AheadCompiledForward, compile_unet
from ldm.unet import CachedUNet
from tests.helpers.peer_settings import SMALL_UNET
from tests.helpers.sampling import make_unet, randn
from training.acceleration.compiled import check_compiler

ROOT = Path(__file__).parents[2]
COMPILED = """
import sys
import torch
from generation.compile import compile_unet
from ldm.unet import CachedUNet
from tests.helpers.peer_settings import SMALL_UNET
from tests.helpers.sampling import make_unet, randn
unet = make_unet(SMALL_UNET)

def draw(forward):
    results = []
    for contexts in sys.argv[1:]:
        cached = CachedUNet(unet, randn(2 * int(contexts), 5, 24), forward)
        times = (torch.tensor([t, t]) for t in (999, 500))
        results += [cached(randn(2, 4, 8, 8, seed=1), t) for t in times]
    return results

def compare():
    for result, value in zip(draw(compiled), expected, strict=True):
        torch.testing.assert_close(result, value, rtol=0, atol=1e-5 * value.std().item())

with torch.inference_mode():
    expected = draw(None)
    compiled = compile_unet(unet)
    compare()
    unet.conv_out.weight = torch.nn.Parameter(torch.zeros_like(unet.conv_out.weight))
    compare()  # the code has weights of its own
    assert (draw(None)[0] == unet.conv_out.bias[:, None, None]).all()
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="clang"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(ValueError, match="my-compiler"):
        compile_unet(make_unet(SMALL_UNET))


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.slow  # minutes; tests/ldm/unet/test_cached_unet.py compiles a network in seconds
@pytest.mark.parametrize("contexts", ["2", "1 3"])
def test_a_compiled_unet_computes_the_same(contexts):
    """Each number of rows is compiled once; the next process loads the code from the disk."""
    command = [sys.executable, "-c", COMPILED, *contexts.split()]
    first, second = (
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
        for _ in range(2)
    )
    assert first.count("compiling the U-Net for 2 latents of 8x8") == len(contexts.split())
    assert not second


def test_code_is_kept_by_weights_shapes_and_threads(monkeypatch):
    made, used = [], []
    monkeypatch.setattr(
        generation.compile,
        "compile_in_subprocess",
        lambda job, file: (made.append(str(file)), file.touch()),
    )
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda file: partial(pretend, file))

    def pretend(file, *arguments):
        used.append(file)
        return arguments[0]

    def run(unet, rows=2):
        compiled[unet](unet, randn(rows, 4, 8, 8), [], [])
        return used[-1]

    same = make_unet(SMALL_UNET), make_unet(SMALL_UNET)
    other = make_unet(SMALL_UNET)
    torch.nn.init.ones_(other.conv_in.bias)
    half = make_unet(SMALL_UNET).bfloat16()
    compiled = {unet: AheadCompiledForward(unet) for unet in (*same, other, half)}
    assert run(same[0]) == run(same[1]) == run(same[0]) == made[0]
    assert len(made) == 1
    files = [run(same[0], rows=4), run(other), run(half)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 123)
    files += [run(same[1], rows=4)]
    assert files == made[1:]
    assert len(set(made)) == 5


def test_the_weights_of_a_compiled_unet_are_mapped_from_a_file(tmp_path):
    unet = make_unet(SMALL_UNET)
    weights = {name: weight.clone() for name, weight in unet.state_dict().items()}
    compile_unet(unet)
    (stored,) = tmp_path.rglob("*.safetensors")
    assert str(stored) in Path("/proc/self/maps").read_text()
    for name, weight in unet.state_dict().items():
        assert weight.equal(weights[name])


@pytest.mark.slow  # half a minute
def test_a_failing_compiler_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    unet = make_unet(SMALL_UNET)
    cached = CachedUNet(unet, randn(2, 5, 24), compile_unet(unet))
    with torch.no_grad(), pytest.raises(UserError):
        cached(randn(2, 4, 8, 8), torch.tensor([5, 5]))
    assert not list((tmp_path / "latentsmith").rglob("*.pt2"))
