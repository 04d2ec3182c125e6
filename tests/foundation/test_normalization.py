"""The group norm that keeps the memory format: equal to PyTorch's, also in its gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from foundation.normalization import GroupNorm, group_norm_of_pixels, is_channels_last

TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-12, torch.bfloat16: 8e-3}


def make(groups: int, per_group: int, side: int, dtype: torch.dtype, seed: int = 0):
    """Return features in channels_last, far from mean 0, and a norm with random weights."""
    random = torch.Generator().manual_seed(seed)
    channels = groups * per_group
    x = torch.randn(3, channels, side, side + 1, generator=random, dtype=torch.float64) * 2 + 5
    norm = GroupNorm(groups, channels, eps=1e-6).double()
    with torch.no_grad():
        for weight in norm.parameters():
            weight.copy_(torch.randn(channels, generator=random, dtype=torch.float64))
    norm = norm if dtype == torch.float64 else norm.float()  # as under autocast
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), norm


def apply(x, norm):
    return group_norm_of_pixels(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(3, 6),
    st.sampled_from(list(TOLERANCES)),
    st.integers(0, 100),
)
def test_values_and_gradients_are_those_of_pytorch_in_float64(groups, per_group, side, dtype, seed):
    x, norm = make(groups, per_group, side, dtype, seed)
    exact = copy.deepcopy(norm).double()
    wide = x.detach().double().requires_grad_()
    found = apply(x, norm)
    expected = F.group_norm(wide, groups, exact.weight, exact.bias, exact.eps)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found.backward(upstream)
    expected.backward(upstream.double())
    assert found.dtype == x.dtype
    for a, b in (
        (found, expected),
        (x.grad, wide.grad),
        (norm.weight.grad, exact.weight.grad),
        (norm.bias.grad, exact.bias.grad),
    ):
        bound = TOLERANCES[dtype] * (1 + b.abs().max().item())
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


def test_output_and_gradient_are_in_channels_last():
    x, norm = make(4, 8, 6, torch.float32)
    y = apply(x, norm)
    y.square().sum().backward()
    assert is_channels_last(y) and is_channels_last(x.grad)


def test_on_a_cpu_it_is_the_norm_of_pytorch_to_the_bit():
    x, norm = make(4, 8, 6, torch.float32)
    assert torch.equal(norm(x), F.group_norm(x, 4, norm.weight, norm.bias, norm.eps))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_keeps_the_format_and_the_values(dtype):
    x, norm = make(4, 8, 6, dtype)
    expected = apply(x.double(), copy.deepcopy(norm).double())
    x, norm = x.detach().cuda(), norm.cuda()
    assert x.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = norm(x)
    assert is_channels_last(found) and found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=8e-2)
