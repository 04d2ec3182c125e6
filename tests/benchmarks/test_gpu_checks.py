"""What must be right on a GPU: pytest -m gpu.

Each check runs in a process of its own, where shapes are not checked: such checks cannot be
compiled.
"""

import subprocess
import sys
import time

import pytest
import torch

from benchmarks.gpu_parts import correctness
from benchmarks.gpu_parts.job import ROOT, Job, read_records
from benchmarks.gpu_parts.tiny_trainers import LOSSES


def run(folder, check, device):
    """Run a check, and return what it recorded."""
    job = Job(
        part=f"correctness:{check}",
        device=device,
        rehearse=device == "cpu",
        ends_at=time.time() + 1200,
        folder=str(folder),
        out=str(folder),
        data=None,
    )
    command = [sys.executable, "-m", "benchmarks.gpu_parts.worker", job.to_json()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    return read_records(job.records)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("check", correctness.CHECKS)
def test_the_gpu_path(tmp_path, check):
    assert run(tmp_path, check, "cuda")


@pytest.mark.slow  # the compiler takes minutes
@pytest.mark.parametrize("stage", LOSSES)
def test_compiled_training_steps_equal_plain_ones(tmp_path, stage):
    found = run(tmp_path, f"compiled:{stage}", "cpu")
    assert found[f"compiled training, {stage}"]["difference"] <= 1e-3
