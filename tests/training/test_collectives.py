"""What the processes of one training do together, on two of them."""

import pytest
import torch
from torch import nn

from foundation import collectives
from tests.helpers.processes import on_ranks
from training import distributed


def shared_out(total: int) -> dict:
    places = collectives.rank_rows(total)
    rows = torch.stack([places.float(), places.float() ** 2], dim=1)
    return {
        "share": list(collectives.rank_share(20, 10)),
        "places": places.tolist(),
        "gathered": collectives.gather_rows(rows, total),
        "mean": collectives.mean_metrics(
            {"a": torch.tensor(1.0 + collectives.rank()), "b": torch.tensor(2.0)}
        ),
        "any": [collectives.any_rank(collectives.rank() == 1), collectives.any_rank(False)],
    }


def test_work_is_shared_out_by_place_and_comes_back_in_order():
    first, second = on_ranks(shared_out, 5)
    assert first["share"] == [20, 22, 24, 26, 28] and second["share"] == [21, 23, 25, 27, 29]
    assert first["places"] == [0, 1, 2] and second["places"] == [3, 4, 4]  # equally many
    for found in (first, second):
        assert torch.equal(found["gathered"][:, 0], torch.arange(5.0))
        assert torch.equal(found["gathered"][:, 1], torch.arange(5.0) ** 2)
        assert found["mean"] == {"a": 1.5, "b": 2.0}
        assert found["any"] == [True, False]


def test_without_torchrun_there_is_one_rank_that_has_everything():
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    assert list(collectives.rank_share(5, 3)) == [5, 6, 7]
    assert collectives.rank_rows(3).tolist() == [0, 1, 2] and len(collectives.rank_rows(0)) == 0
    module = nn.Linear(2, 2)
    assert distributed.data_parallel(module) is module


def uneven() -> None:
    with pytest.raises(ValueError, match=r"batch of 9 .* among 2 processes.*multiple of 2,.* 8"):
        distributed.check_batch_size(9)
    with pytest.raises(ValueError, match=r"into 2 parts.* multiple of 4"):
        distributed.check_batch_size(10, parts=2)
    distributed.check_batch_size(12, parts=3)


def test_a_batch_that_does_not_divide_is_refused():
    on_ranks(uneven)
    distributed.check_batch_size(9, parts=3)


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
