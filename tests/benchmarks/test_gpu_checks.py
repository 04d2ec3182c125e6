"""What must be right on a GPU: pytest -m gpu."""

import time

import pytest
import torch

from benchmarks.gpu_parts import correctness
from benchmarks.gpu_parts.job import Job, read_records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("check", correctness.CHECKS, ids=lambda check: check.__name__)
def test_the_gpu_path(tmp_path, check):
    job = Job(
        part="",
        device="cuda",
        rehearse=False,
        ends_at=time.time() + 600,
        folder=str(tmp_path),
        out=str(tmp_path),
        data=None,
    )
    check(job)
    assert read_records(job.records)
