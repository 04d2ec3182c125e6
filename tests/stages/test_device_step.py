"""What a step of stage 2 does on the device: no value is read on the host.

On a CPU nothing waits, so a mode in which reading a value fails stands in for a GPU.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_parts.denoiser_speed import TINY, Workload, our_trainer
from training.ema import EMA

# Operators whose result the host must know: a value, or how many elements there are.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "equal"}


class NoWaiting(TorchDispatchMode):
    """Fail where a value of a tensor is read on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def job(rehearsal):
    return rehearsal(seconds=600)


def make_trainer(job, compiled=False):
    """Return the trainer of a tiny U-Net, which `our_trainer` makes with data of its own."""
    return our_trainer(job, Workload(TINY, 64, (4,), tokens=8), 4, compiled)


def as_on_a_gpu(ema, module, rate, step_applied=None):
    ema._interpolate(module, rate * step_applied)


def test_the_mode_notices_a_value_that_is_read():
    with pytest.raises(AssertionError, match="wait"), NoWaiting():
        torch.ones(()).item()


@pytest.mark.parametrize("as_tensors", [False, True])
def test_no_value_is_read_on_the_host_in_a_step(job, monkeypatch, as_tensors):
    """Also with rates as tensors, as a CUDA graph has them; then the result is the same."""
    trainer, other = make_trainer(job), make_trainer(job)
    rates = trainer.config.rate(1), trainer.ema.rate(1)
    given = tuple(map(torch.tensor, rates)) if as_tensors else rates
    batch = trainer.batches(1)
    monkeypatch.setattr(EMA, "move", as_on_a_gpu)
    with NoWaiting():
        metrics = trainer.train_on(*given, *batch)
    assert metrics["step_applied"] == 1
    monkeypatch.undo()
    other.train_on(*rates, *batch)
    for a, b in zip(trainer.unet.parameters(), other.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    for name, average in trainer.ema.state_dict().items():
        torch.testing.assert_close(average, other.ema.state_dict()[name], rtol=1e-5, atol=1e-6)
