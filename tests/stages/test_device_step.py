"""What a step of each stage does on the device: no value is read on the host.

On a CPU nothing waits, so modes in which reading a value fails stand in for a GPU: with numbers on
the CPU, and without any on the meta device, where tensors of the host are told apart.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import stages.diffusion
from benchmarks.gpu_parts.tiny_trainers import LOSS, tiny_trainer
from conditioning.clip import Clip
from stages.autoencoder import AutoencoderTrainer
from stages.clip import ClipTrainer
from training.optimizer import OptimizerStep
from training.weights.ema import EMA
from training.weights.muon import Muon

CASES = [("clip", 1), ("vae", 0), ("vae", 6), ("vae", 12), ("ldm", 1)]  # a step of each phase
LAST_PHASES = [("clip", 1), ("vae", 12), ("ldm", 1)]
# Operators whose result the host must know: a value, or how many elements there are.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"}
# Methods that copy to the host, of which a CPU tensor does nothing to be noticed.
COPYING = {"tolist", "numpy", "__array__", "cpu"}
MAKING = {"tensor", "as_tensor", "from_numpy"}  # from numbers on the host


class NoWaiting(TorchDispatchMode):
    """Fail where a value of a tensor is read, or a tensor of the host meets one of the device.

    device: "cpu" to compute, where nothing shows which tensors a GPU would have; "meta" to see
        that, without numbers.
    """

    def __init__(self, device="cpu"):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"{name} makes the host wait for the device"
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        masks = name.startswith("index") and any(x.dtype == torch.bool for x in given[1:])
        assert not masks, f"{name} by a mask makes the host wait for the device"
        if self.device != "cpu":
            elsewhere = [x for x in given if x.device.type != self.device]
            assert not elsewhere, f"{name} has tensors of the host: {elsewhere}"
            if name.startswith("_fused_adam"):  # in place; meta tensors have no kernel for it
                return None
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        assert all(x.device.type == self.device for x in made), f"{name} makes a tensor of the host"
        return result


class NoCopies(TorchFunctionMode):
    """Fail where tensors are copied to the host, or made of its numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        is_copy = name in COPYING or (name in MAKING and func is getattr(torch, name))
        assert not is_copy, f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device="cpu"):
    """Go the ways of a GPU, and fail where the host would wait for it."""
    real = torch.autocast

    def autocast(device, *rest, **options):
        return nullcontext() if device == "meta" else real(device, *rest, **options)

    def move(self, module, rate, step_applied):  # the way of a GPU
        self._interpolate(module, rate * step_applied)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "autocast", autocast)
        patched.setattr(EMA, "move", move)
        patched.setattr(Clip, "text_features", Clip.padded_text_features)
        with NoWaiting(device), NoCopies():
            yield


def make_trainer(job, stage, whole=False):
    """Return a tiny trainer. whole: with LPIPS, and batches that are computed in parts."""
    loss = LOSS if whole else replace(LOSS, perceptual="none")
    return tiny_trainer(job, stage, loss=loss, accumulate=2 if whole else 1)


def train_on(trainer, step, batch, convert=float):
    """Do what is recorded of a step on a GPU. convert: numbers to what the step gets."""
    rate = trainer.config.rate(step)
    if isinstance(trainer, ClipTrainer):
        return trainer.train_on(convert(rate), *batch)
    rates = [rate, trainer.ema.rate(step)]
    settings = {}
    if isinstance(trainer, AutoencoderTrainer):
        loss = trainer.networks.loss
        rates += [loss.adversarial_weight(step)]
        settings["phase"] = loss.phase(step)
    return trainer.train_on(*map(convert, rates), *batch, **settings)


def trained(trainer):
    """Return all weights and averages by name."""
    modules = {k: v for k, v in trainer.state.items() if isinstance(v, torch.nn.Module)}
    modules |= {"ema": trainer.ema.module} if hasattr(trainer, "ema") else {}
    return {f"{k} {n}": x.detach() for k, m in modules.items() for n, x in m.named_parameters()}


@pytest.fixture
def job(rehearsal):
    return rehearsal(seconds=600)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1.0], device=x.device),
    ],
)
def test_the_modes_notice_a_value_that_is_read(device, read):
    x = torch.zeros(2, device=device)
    with pytest.raises((AssertionError, NotImplementedError)), no_waiting(device):
        read(x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_value_is_read_on_the_host_when_muon_moves_matrices(device):
    weights = [torch.nn.Parameter(torch.ones(*shape, device=device)) for shape in ((4, 3), (2, 9))]
    update = OptimizerStep({"matrices": Muon(weights, weight_decay=0.1)}, clip_norm=1.0)
    sum(weight.square().sum() for weight in weights).backward()
    rate = torch.full((), 0.1, device=device)
    with no_waiting(device):
        update({}, {"matrices": rate})


@pytest.mark.parametrize(("stage", "step"), LAST_PHASES)
def test_no_value_is_read_on_the_host_in_a_step(job, stage, step):
    """With numbers as tensors, as a CUDA graph has them, the result is that of a plain step."""
    trainer, other = make_trainer(job, stage), make_trainer(job, stage)
    prefetched = trainer.batches if stage == "ldm" else trainer.prefetched
    batch, before = prefetched(step), {k: x.clone() for k, x in trained(trainer).items()}
    with no_waiting():
        metrics = train_on(trainer, step, batch, lambda x: torch.full((), x))
    assert metrics["step_applied"] == 1
    expected = train_on(other, step, batch)
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    # Adam's first step follows the sign of a gradient, also where that is mere rounding.
    error, moved, expected_weights = 0.0, 0.0, trained(other)
    for name, now in trained(trainer).items():
        error += (now - expected_weights[name]).square().sum().item()
        moved += (now - before[name]).square().sum().item()
    assert error < 1e-2 * moved, (error, moved)


@pytest.mark.parametrize(("stage", "step"), CASES)
def test_no_tensor_of_the_host_takes_part_in_a_step(job, monkeypatch, stage, step):
    no_validation = SimpleNamespace(baseline=lambda *rest: 1.0)  # it has numbers to read
    monkeypatch.setattr(stages.diffusion, "make_validation", lambda *rest: no_validation)
    whole = step == LOSS.adversarial_start
    trainer = make_trainer(replace(job, device="meta"), stage, whole)
    prefetched = trainer.batches if stage == "ldm" else trainer.prefetched
    batch = prefetched(step)
    with no_waiting("meta"):
        metrics = train_on(trainer, step, batch, lambda x: torch.full((), x, device="meta"))
    assert all(value.is_meta and value.shape == () for value in metrics.values())
