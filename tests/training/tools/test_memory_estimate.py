"""The memory estimate of a training step, against closed forms and against real tensors."""

import json

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from training.tools.memory_estimate import MemoryEstimate, estimate_memory, saved_for_backward


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())


def test_a_linear_layer_saves_its_input():
    layer = nn.Linear(32, 64)
    assert saved_for_backward(lambda: layer(torch.empty(10, 32))) == 10 * 32 * 4


def test_a_forward_pass_on_fake_tensors_saves_what_a_real_one_does():
    module, kept = network(), {}
    weights = {weight.data_ptr() for weight in module.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    x = torch.randn(7, 32)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(x).square().sum()
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    without = saved_for_backward(lambda: module(torch.empty(7, 32)).square().sum())
    assert without == real and loss.requires_grad


def test_estimating_does_not_change_statistics_of_the_network():
    module = nn.BatchNorm1d(4)
    saved_for_backward(lambda: module(torch.full((3, 4), 9.0)))
    assert torch.equal(module.running_mean, torch.zeros(4))


def test_gradient_checkpointing_saves_less():
    module = network()
    plain = saved_for_backward(lambda: module(torch.empty(100, 32)))
    less = saved_for_backward(
        lambda: checkpoint(module, torch.empty(100, 32, requires_grad=True), use_reentrant=False)
    )
    assert less < plain / 2


def test_an_estimate_is_the_sum_of_its_parts():
    module, frozen = network(), nn.Linear(8, 8, bias=False)
    weights = 4 * (33 * 64 + 65 * 64)
    estimate = estimate_memory(
        [module],
        [frozen],
        lambda count: module(torch.empty(count, 32)),
        batch_size=16,
        averaged=weights,
    )
    assert estimate.gradients == estimate.averages == weights and estimate.optimizer == 2 * weights
    assert estimate.weights == weights + 256 and estimate.constant == 0
    assert estimate.per_image == 4 * (32 + 64 + 64 + 64)  # both inputs, and both before the GELU
    assert estimate.total == 5 * weights + 256 + 16 * estimate.per_image
    assert "activations 0.0143 MB" in estimate.describe()


def test_the_estimate_is_near_the_peak_of_a_training_step(tmp_path):
    """The peak as the profiler counts it: an autoencoder's second step, with Adam and EMA."""
    from autoencoder import PRESETS, Autoencoder
    from training.ema import EMA

    def forward(autoencoder, count):
        images = torch.zeros(count, 3, 32, 32)
        again, posterior = autoencoder(images, torch.zeros(autoencoder.latent_shape(images)))
        return (images - again).square().mean() + 1e-6 * posterior.kl().mean()

    with torch.profiler.profile(profile_memory=True) as profile:
        autoencoder = Autoencoder(PRESETS["tiny-32"])
        optimizer = torch.optim.Adam(autoencoder.parameters(), fused=True)
        ema = EMA(autoencoder, 10)
        for step in range(2):
            forward(autoencoder, 4).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(autoencoder, step)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    peak = max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]")
    size = sum(weight.nbytes for weight in autoencoder.parameters())
    estimate = estimate_memory(
        [autoencoder],
        [],
        lambda count: forward(autoencoder, count),
        batch_size=4,
        averaged=size,
    )
    assert estimate.total == pytest.approx(peak, rel=0.2)


@pytest.mark.parametrize(
    "gib, words", [(1, "8 GB"), (7, "12 GB"), (21, "24 GB"), (74, "80 GB"), (90, "--accumulate")]
)
def test_the_smallest_gpu_that_suffices_is_named(gib, words):
    bytes_each = int(gib * 2**30) // 4
    estimate = MemoryEstimate(
        weights=bytes_each,
        gradients=bytes_each,
        optimizer=bytes_each,
        averages=bytes_each,
        constant=0,
        per_image=0,
        batch_size=1,
    )
    assert words in estimate.describe_gpu()
