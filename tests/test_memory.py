"""What a training step will need, against closed forms and against real tensors."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from training.memory import estimate, host_available, host_peak, in_words, saved_for_backward


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())


def test_a_linear_layer_keeps_its_input():
    layer = nn.Linear(32, 64)
    assert saved_for_backward(lambda: layer(torch.empty(10, 32))) == 10 * 32 * 4


def test_the_pass_without_data_keeps_what_a_real_one_does():
    module, kept = network(), {}

    def keep(tensor):
        if not tensor.is_leaf:
            kept[tensor.data_ptr()] = tensor
        return tensor

    x = torch.randn(7, 32)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(x).square().sum()
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    without = saved_for_backward(lambda: module(torch.empty(7, 32)).square().sum())
    assert without == real + x.nbytes  # x is a leaf
    assert loss.requires_grad


def test_nothing_is_computed_or_changed():
    module = nn.BatchNorm1d(4)
    saved_for_backward(lambda: module(torch.empty(3, 4)))
    assert module.num_batches_tracked == 0 and torch.equal(module.running_mean, torch.zeros(4))


def test_checkpointing_shows():
    module = network()
    plain = saved_for_backward(lambda: module(torch.empty(100, 32)))
    less = saved_for_backward(
        lambda: checkpoint(module, torch.empty(100, 32, requires_grad=True), use_reentrant=False)
    )
    assert less < plain / 2


def test_the_parts_of_an_estimate():
    module, frozen = network(), nn.Linear(8, 8, bias=False)
    weights = 4 * (33 * 64 + 65 * 64)
    found = estimate(
        [module],
        [frozen],
        lambda count: module(torch.empty(count, 32)),
        batch_size=16,
        averaged=weights,
    )
    assert found.gradients == found.averages == weights and found.optimizer == 2 * weights
    assert found.weights == weights + 256 and found.constant == 0
    assert found.per_image == 4 * (32 + 64 + 64 + 64)  # both inputs, and both before the GELU
    assert found.total == 5 * weights + 256 + 16 * found.per_image
    assert "activations 0.0143 MB" in found.describe()


def test_the_system_tells_its_memory():
    assert 10e6 < host_peak() < 1e12
    assert host_available() is None or host_available() > 0


@pytest.mark.parametrize(("size", "text"), [(3.5e8, "350 MB"), (1.234e9, "1.23 GB")])
def test_sizes_in_words(size, text):
    assert in_words(size) == text
