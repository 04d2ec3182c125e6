"""The memory estimate of a training step, against closed forms and against real steps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from benchmarks.memory_accuracy import Case, compare
from training.precision import Precision
from training.tools.memory_estimate import (
    GIB,
    AliveTensors,
    GPUPrecision,
    MemoryEstimate,
    StepWork,
    estimate_memory,
    without_data,
)

ROOT = Path(__file__).parents[3]
COMPILED = """
import sys
from benchmarks.memory_accuracy import Case, compare
case = Case(stage=int(sys.argv[1]), preset="tiny-32", batch_size=64, compiled=True)
print(*compare(case))
"""
CPU = torch.device("cpu")
FP32 = Precision(CPU, "fp32")


def alive_bytes(compute) -> int:
    """Return the most bytes that a function's tensors take, which are made without data."""
    with FakeTensorMode(), AliveTensors() as alive:
        compute()
    return alive.peak


def test_tensors_count_from_the_first_to_the_last_use():
    def compute():
        a = torch.empty(100)
        b = a + 1  # both are alive
        del a
        b.view(10, 10).add_(1)  # views and changes in place take nothing
        return b * 2  # again two

    assert alive_bytes(compute) == 2 * 100 * 4


def linear_work(given=lambda count: torch.empty(count, 32)) -> StepWork:
    def add_gradients(copies, images, parts, precision):
        for _ in range(min(parts, 2)):
            with precision:
                loss = copies[0](given(images)).sum()
            torch.autograd.backward(loss)

    layers = [nn.Linear(32, 64, bias=False), nn.Linear(8, 8, bias=False)]
    return StepWork(
        trained=layers[:1], frozen=layers[1:], averaged=8192, add_gradients=add_gradients
    )


def test_an_estimate_is_the_sum_of_its_parts():
    """Of one layer: input, output and loss are alive when there are no gradients yet."""
    weights = 4 * 32 * 64
    estimate = estimate_memory(linear_work(), 1000, 1, FP32)
    assert estimate.gradients == estimate.averages == weights and estimate.optimizer == 2 * weights
    assert estimate.weights == weights + 4 * 8 * 8
    given, result, loss = 4 * 1000 * 32, 4 * 1000 * 64, 4
    assert estimate.activations + estimate.gradients == given + result + loss
    assert estimate.buffers == (estimate.activations + weights) // 10 + 2 * weights
    assert estimate.total == sum(
        getattr(estimate, name)
        for name in ("weights", "gradients", "optimizer", "averages", "activations", "buffers")
    )
    assert "activations 0.376 MB" in estimate.describe("here")


def test_a_second_part_finds_gradients_of_the_first():
    one, two = (estimate_memory(linear_work(), 1000, parts, FP32) for parts in (1, 2))
    assert two.total > one.total
    assert estimate_memory(linear_work(), 1000, 9, FP32) == two


def test_weights_that_do_not_learn_have_no_gradients():
    work = linear_work(lambda count: torch.empty(count, 32, requires_grad=True))
    work.trained[0].requires_grad_(False)
    estimate = estimate_memory(work, 10, 1, FP32)
    assert estimate.gradients == estimate.optimizer == 0 and estimate.weights == 4 * (2048 + 64)


def test_estimating_changes_nothing():
    module = nn.BatchNorm1d(32)

    def add_gradients(copies, images, parts, precision):
        copies[0](torch.full((images, 32), 9.0)).sum().backward()

    estimate_memory(
        StepWork(trained=[module], frozen=[], averaged=0, add_gradients=add_gradients), 3, 1, FP32
    )
    assert torch.equal(module.running_mean, torch.zeros(32)) and module.weight.grad is None
    assert type(module.running_mean) is torch.Tensor


def test_a_copy_without_data_shares_weights_as_the_module_does():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    with FakeTensorMode(allow_non_fake_inputs=True):
        copied = without_data(module)
    assert copied[1].weight is copied[0].weight and copied[0].weight is not module[0].weight


def test_gradient_checkpointing_counts_what_is_computed_again():
    """Two blocks: less than both keep, but more than the inputs of both."""
    block = nn.Sequential(nn.Linear(32, 320), nn.GELU(), nn.Linear(320, 32))
    image, inner = 4 * 32, 4 * 320

    def activations(wrapped) -> float:
        def add_gradients(copies, images, parts, precision):
            x = torch.empty(images, 32)
            for each in copies[0]:
                x = wrapped(each, x)
            torch.autograd.backward(x.sum())

        blocks = nn.Sequential(block, block)
        work = StepWork(trained=[blocks], frozen=[], averaged=0, add_gradients=add_gradients)
        return estimate_memory(work, 10_000, 1, FP32).activations / 10_000

    plain = activations(lambda module, x: module(x))
    less = activations(lambda module, x: checkpoint(module, x, use_reentrant=False))
    assert plain > 4 * inner and 2 * inner + 2 * image < less < plain - inner


def test_on_a_gpu_norms_are_float32_and_attention_keeps_no_matrix():
    attention = nn.MultiheadAttention(64, 1, batch_first=True)
    norms = nn.Sequential(*[nn.GroupNorm(4, 64) for _ in range(6)])

    def work(module, forward) -> StepWork:
        def add_gradients(copies, images, parts, precision):
            with precision:
                result = forward(copies[0], torch.empty(images, 1024, 64, requires_grad=True))
            torch.autograd.backward(result.float().sum())

        return StepWork(trained=[module], frozen=[], averaged=0, add_gradients=add_gradients)

    attend = work(attention, lambda module, x: module(x, x, x, need_weights=False)[0])
    on_cpu, on_gpu = (
        estimate_memory(attend, 4, 1, precision).activations
        for precision in (Precision(CPU, "bf16"), GPUPrecision())
    )
    matrix = 2 * 4 * 1024 * 1024
    assert on_cpu > matrix > on_gpu
    normalize = work(norms, lambda module, x: module(x.bfloat16().transpose(1, 2)))
    half, gpu = (
        estimate_memory(normalize, 4, 1, precision).activations
        for precision in (Precision(CPU, "bf16"), GPUPrecision())
    )
    assert gpu > 1.3 * half


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            Case(stage=1, preset="tiny-32", batch_size=16, accumulate=4, discriminator=True),
            marks=pytest.mark.slow,
        ),
        Case(stage=2, preset="tiny-32", batch_size=16, accumulate=4, checkpointing=True),
    ],
    ids=str,
)
def test_an_estimate_is_a_little_above_the_peak_of_a_real_step(case):
    estimated, measured = compare(case)
    assert measured <= estimated <= 1.2 * measured


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_compiled_step_needs_no_more_than_the_estimate(stage):
    """In a process without the checks of shapes, which the compiler can't follow."""
    command = [sys.executable, "-c", COMPILED, str(stage)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    estimated, measured = map(float, done.stdout.splitlines()[-1].split())
    assert 0 < measured <= estimated


def gigabytes(gib: float) -> MemoryEstimate:
    quarter = int(gib * GIB) // 4
    return MemoryEstimate(
        weights=quarter,
        gradients=0,
        optimizer=2 * quarter,
        averages=quarter,
        activations=0,
        buffers=0,
    )


@pytest.mark.parametrize("gib, gpu", [(1, 8), (7, 12), (21, 24), (74, 80), (90, None)])
def test_the_smallest_gpu_that_suffices_is_named(gib, gpu):
    assert gigabytes(gib).gpu == gpu
