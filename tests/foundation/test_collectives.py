"""Operations over the ranks of a training, on two processes and on one."""

import torch

from foundation import collectives
from tests.helpers.processes import on_ranks


def work_on_rows(total: int) -> dict:
    indices = collectives.rank_rows(total)
    rows = torch.stack([indices.float(), indices.float() ** 2], dim=1)
    return {
        "share": list(collectives.rank_share(20, 10)),
        "indices": indices.tolist(),
        "gathered": collectives.gather_rows(rows, total),
        "mean": collectives.mean_metrics(
            {"a": torch.tensor(1.0 + collectives.rank()), "b": torch.tensor(2.0)}
        ),
        "any": [collectives.any_rank(collectives.rank() == 1), collectives.any_rank(False)],
    }


def test_rows_are_divided_among_the_ranks_and_gathered_in_order():
    first, second = on_ranks(work_on_rows, 5)
    assert first["share"] == [20, 22, 24, 26, 28] and second["share"] == [21, 23, 25, 27, 29]
    assert first["indices"] == [0, 1, 2] and second["indices"] == [
        3,
        4,
        4,
    ]  # three each
    for found in (first, second):
        assert torch.equal(found["gathered"][:, 0], torch.arange(5.0))
        assert torch.equal(found["gathered"][:, 1], torch.arange(5.0) ** 2)
        assert found["mean"] == {"a": 1.5, "b": 2.0}
        assert found["any"] == [True, False]


def test_without_torchrun_one_rank_has_everything():
    assert (collectives.rank(), collectives.world_size()) == (0, 1)
    assert list(collectives.rank_share(5, 3)) == [5, 6, 7]
    assert collectives.rank_rows(3).tolist() == [0, 1, 2] and len(collectives.rank_rows(0)) == 0
    rows = torch.arange(3.0)[:, None]
    for same in (collectives.sum_ranks(rows), collectives.mean(rows)):
        assert same is rows
    assert collectives.gather_rows(rows, 3) is rows
    assert collectives.mean_metrics({"a": torch.tensor(2.0)}) == {"a": 2.0}
    assert collectives.any_rank(True) and not collectives.any_rank(False)
    collectives.barrier()  # returns at once


def in_order(file) -> str:
    with collectives.rank_zero_first():
        if not collectives.rank():
            file.write_text("made by rank 0")
        return file.read_text()  # which rank 1 would not find if it came first


def test_rank_zero_goes_first(tmp_path):
    assert on_ranks(in_order, tmp_path / "file") == ["made by rank 0"] * 2


def sums() -> list[torch.Tensor]:
    value = torch.tensor([1.0, 2.0]) * (1 + collectives.rank())
    return [collectives.sum_ranks(value), collectives.mean(value), value]


def test_sums_and_means_leave_their_input_alone():
    for number, (total, mean, value) in enumerate(on_ranks(sums)):
        assert total.tolist() == [3.0, 6.0] and mean.tolist() == [1.5, 3.0]
        assert value.tolist() == [1.0 + number, 2.0 + 2 * number]
