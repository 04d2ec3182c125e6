"""Data-parallel training on two processes: gradients, and batches that do not divide evenly."""

import pytest
import torch
from torch import nn

from foundation import collectives
from tests.helpers.processes import on_ranks
from training import distributed


def uneven() -> None:
    with pytest.raises(ValueError, match=r"batch of 9 .* among 2 processes.*multiple of 2,.* 8"):
        distributed.check_batch_size(9)
    with pytest.raises(ValueError, match=r"into 2 parts.* multiple of 4"):
        distributed.check_batch_size(10, accumulate=2)
    distributed.check_batch_size(12, accumulate=3)


def test_a_batch_that_does_not_divide_is_refused():
    on_ranks(uneven)
    distributed.check_batch_size(9, accumulate=3)


def gradients(parts: int) -> list[torch.Tensor]:
    """Of a mean over 8 rows, computed by all ranks, each in `parts`."""
    torch.manual_seed(collectives.rank())  # the weights are those of rank 0
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    rows = torch.linspace(-1, 1, 24).view(8, 3)[collectives.rank_share(0, 8)]
    called = distributed.data_parallel(network)
    for k, part in enumerate(rows.chunk(parts)):
        with distributed.gradient_sync(called, now=k == parts - 1):
            (called(part).square().mean() / parts).backward()
    return [weight.grad for weight in network.parameters()]


def test_gradients_are_those_of_the_whole_batch():
    whole = gradients(1)
    for parts in (1, 2):
        for found in on_ranks(gradients, parts):
            for one, other in zip(found, whole, strict=True):
                torch.testing.assert_close(one, other)


def test_one_process_needs_no_wrapper():
    module = nn.Linear(2, 2)
    assert distributed.data_parallel(module) is module
