"""What a training says about its compiled code, and that a compiled step computes the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.acceleration import compiled
from training.acceleration.compiled import compile_and_time, describe_gain


def test_the_words_name_the_step_at_which_it_has_paid():
    # 144 s more at the start, 90 ms less in each step: 1,600 steps of 237 ms.
    text = describe_gain(plain=0.327, first=144.237, compiled=0.237)
    assert all(word in text for word in ("144 s", "0.237 s", "0.327 s", "1,600 steps", "6.3 min"))


def test_code_that_is_slower_is_named_as_such():
    text = describe_gain(plain=0.2, first=10, compiled=0.3)
    assert "gains nothing" in text and "0.3 s" in text and "0.2 s" in text


def test_plain_and_compiled_gradients_are_told_apart(capsys, monkeypatch):
    """With a backend that compiles nothing but counts its calls, and a clock that goes by them."""
    network, calls = nn.Linear(2, 2), []

    def backend(graph, inputs):
        return lambda *arguments: (calls.append(1), graph(*arguments))[1]

    def seconds(call, device):
        before = len(calls)
        call()
        return 0.3 if len(calls) > before else 0.2

    monkeypatch.setattr(compiled, "seconds", seconds)
    compile_and_time(
        lambda: network.compile(backend=backend),
        lambda: network(torch.ones(1, 2)),
        torch.device("cpu"),
    )
    assert len(calls) == 1 + compiled.ROUNDS
    assert describe_gain(0.2, 0.3, 0.3) in capsys.readouterr().out


# All of --compile but the code that inductor would make of the graphs, which takes minutes;
# tests/benchmarks/test_gpu_checks.py does that, for all stages.
TRACED_STEPS = """
import sys
import time
from dataclasses import replace
from functools import partial
import torch
torch.set_num_threads(1)
torch.compile = partial(torch.compile, backend="aot_eager")
from benchmarks.gpu_parts.job import Job
from benchmarks.gpu_parts.tiny_trainers import LOSS, tiny_trainer
folder = sys.argv[1]
job = Job(part="", device="cpu", rehearse=True, ends_at=0, folder=folder, out=folder, data=None)
losses = []
for compiled in (False, True):
    trainer = tiny_trainer(job, "vae", compiled, loss=replace(LOSS, perceptual="none"))
    metrics = [trainer.step(k) for k in (0, LOSS.discriminator_start, LOSS.adversarial_start)]
    losses.append([float(each["l1"]) for each in metrics])
    losses[-1] += [float(metrics[-1]["adaptive_weight"]), float(metrics[-1]["gradient_norm"])]
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=0)
"""


@pytest.mark.slow
def test_a_compiled_step_of_each_phase_of_stage_1_computes_the_same(tmp_path):
    """In a process of its own, as the compiler cannot trace through the shape checks of this one.

    That the adaptive weight is the same shows that the last convolution was not compiled.
    """
    command = [sys.executable, "-c", TRACED_STEPS, str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])
