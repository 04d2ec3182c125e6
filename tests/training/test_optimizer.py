"""The optimizer step: steps that are not finite are skipped and counted, and end a diverged run."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from tests.helpers.toy_training import Toy
from training.cli import run_main
from training.config import learning_rate
from training.loop import Plan
from training.optimizer import OptimizerStep, SkippedSteps, restore_buffers


def with_bad_batches(toy: Toy, steps: range | list[int], value: float = math.nan) -> Toy:
    """Multiply the batches of these steps by a value that is not finite."""
    batch = toy.batch
    toy.batch = lambda step: batch(step) * (value if step in steps else 1)
    return toy


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(tmp_path, value):
    """Weights, averaged weights and moments stay as they are; the next step goes on from them."""
    toy = with_bad_batches(Toy(tmp_path / "run"), [5], value)
    for step in range(5):
        toy.step(step)
    before = [tensor.clone() for tensor in toy.weights()]
    metrics = toy.step(5)
    assert metrics["step_applied"] == 0 and not metrics["gradient_norm"].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, toy.weights(), strict=True))
    assert all(weight.grad is None for weight in toy.model.parameters())
    assert toy.step(6)["step_applied"] == 1
    assert all(tensor.isfinite().all() for tensor in toy.weights())
    assert not any(torch.equal(a, b) for a, b in zip(before, toy.weights(), strict=True))


def test_a_step_is_skipped_if_only_the_loss_is_not_finite():
    """The gradient can be finite then, such as that of max(x, 0) at minus infinity."""
    weight = nn.Parameter(torch.ones(2))
    update = OptimizerStep({"optimizer": torch.optim.AdamW([weight], fused=True)})
    weight.sum().backward()
    assert update({"loss": torch.tensor(math.inf)}, {"optimizer": 0.1})["step_applied"] == 0
    assert torch.equal(weight, torch.ones(2))


def test_either_all_optimizers_apply_a_step_or_none():
    one, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizers = {
        "optimizer": torch.optim.Adam([one], fused=True),
        "adversary": torch.optim.Adam([other], fused=True),
    }
    update, rates = OptimizerStep(optimizers), {"optimizer": 0.1, "adversary": 0.1}
    (one.sum() + other.sum() * math.inf).backward()
    norms = update({}, rates)
    assert norms["gradient_norm"].isfinite() and norms["adversary_gradient_norm"].isinf()
    assert torch.equal(one, torch.ones(2))
    (one.sum() + other.sum()).backward()
    update({}, rates)
    assert (one < 1).all() and (other < 1).all()


def test_the_gradient_is_clipped_after_its_norm_is_measured():
    weight = nn.Parameter(torch.zeros(2))
    update = OptimizerStep({"optimizer": torch.optim.SGD([weight], fused=True)}, clip_norm=1.0)
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    assert update({}, {"optimizer": 1.0})["gradient_norm"] == 5
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))


def test_skipped_steps_are_counted_and_printed(tmp_path, capsys):
    toy = with_bad_batches(Toy(tmp_path / "run"), [1, 4, 5])
    toy.train()
    counts = [line["skipped_steps"] for line in toy.metrics() if "loss" in line]
    assert counts == [1, 3, 3, 3]
    assert all(line["loss"] is not None for line in toy.metrics() if "loss" in line)
    assert re.search(r"step 6: .* 2 steps .*3 so far", capsys.readouterr().out)


def test_a_run_with_skipped_steps_resumes_exactly(tmp_path):
    bad = [2, 6, 7, 8]
    straight = with_bad_batches(Toy(tmp_path / "straight"), bad)
    straight.train()
    first = with_bad_batches(Toy(tmp_path / "resumed"), bad)
    step = first.step

    def killed(number):
        if number == 8:
            raise MemoryError
        return step(number)

    first.step = killed
    with pytest.raises(MemoryError):
        first.train()
    second = with_bad_batches(Toy(tmp_path / "resumed"), bad)
    second.train()
    assert second.metrics() == straight.metrics()


LONG = Plan(steps=40, images_per_step=4, save_every=7, evaluate_every=40, log_every=5)


def test_ten_skipped_steps_in_a_row_end_the_run_with_its_state_saved(tmp_path, capsys):
    """At the next line of metrics, even if finite steps followed. Nine do not end it."""
    toy = with_bad_batches(Toy(tmp_path / "run"), range(6, 16))
    with pytest.raises(SystemExit):
        run_main(lambda: toy.train(LONG))
    message = capsys.readouterr().err
    assert "error: 10 steps" in message and "after step 20" in message
    for flag in ("--override learning-rate", "--override precision"):
        assert flag in message
    assert toy.run.saved_step == 20
    healthy = Toy(tmp_path / "run")  # the same command, on good data
    healthy.train(LONG)
    assert healthy.run.saved_step == 40

    nine = with_bad_batches(Toy(tmp_path / "nine"), range(6, 15))
    nine.train(LONG)
    assert nine.metrics()[-2]["skipped_steps"] == 9


def test_skipped_steps_in_a_row_are_counted_across_a_resume():
    """Nine before it, one after."""
    skipped = SkippedSteps()
    for _ in range(9):
        skipped.add(torch.tensor(0.0))
    assert skipped.read() == (9, 9, False)
    again = SkippedSteps()
    again.load_state_dict(copy.deepcopy(skipped.state_dict()))
    again.add(torch.tensor(0.0))
    assert again.read() == (10, 1, True)
    again.add(torch.tensor(1.0))
    assert again.read() == (10, 0, False)


def test_the_statistics_of_a_batch_norm_are_restored():
    norm = nn.BatchNorm1d(2)
    before = [buffer.clone() for buffer in norm.buffers()]
    norm(torch.full((4, 2), math.nan))
    restore_buffers(norm.buffers(), before, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    norm(torch.rand(4, 2))
    restore_buffers(norm.buffers(), before, torch.tensor(1.0))
    assert norm.num_batches_tracked == 1


# Loss scaling. The arithmetic is float32 here, and the scale itself makes an overflow.


def make_scaled(**options) -> tuple[nn.Parameter, OptimizerStep]:
    weight = nn.Parameter(torch.ones(2))
    scaler = GradScaler("cpu", **options)
    return weight, OptimizerStep({"optimizer": torch.optim.SGD([weight], fused=True)}, 1.0, scaler)


def descend(weight: nn.Parameter, update: OptimizerStep) -> float:
    """Do a step by a gradient of (8, 8), clipped to norm 1; return whether it was applied."""
    (8 * weight.sum() * update.scale).backward()
    scale = update.scale
    metrics = update({}, {"optimizer": 0.5})
    assert metrics["loss_scale"] == scale
    return metrics["step_applied"].item()


def test_the_scale_falls_after_an_overflow_and_rises_after_some_steps():
    """The largest float32 is just below 2^128 = 8 x 2^125."""
    weight, update = make_scaled(init_scale=2.0**127, growth_factor=2.0, growth_interval=3)
    applied = [descend(weight, update) for _ in range(8)]
    assert applied == [0, 0, 0, 1, 1, 1, 0, 1]
    assert update.scale == 2.0**124
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 4 * 0.5 / math.sqrt(2)))


def test_the_scale_is_part_of_the_state():
    weight, update = make_scaled(init_scale=2.0**10, growth_interval=3)
    descend(weight, update)
    again = make_scaled(init_scale=1.0, growth_interval=3)
    again[1].load_state_dict(copy.deepcopy(update.state_dict()))
    for _ in range(2):
        assert descend(weight, update) == descend(*again) == 1
    assert again[1].scale == update.scale == 2.0**11
    unscaled = OptimizerStep({"optimizer": torch.optim.SGD([weight], fused=True)})
    unscaled.load_state_dict(update.state_dict())  # of a run that goes on in another precision
    assert unscaled.scale == 1


# The learning rate


def test_the_learning_rate_rises_stays_and_falls():
    rates = [learning_rate(s, base=1.0, steps=100, warmup=10, cooldown=0.3) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:70] == [1.0] * 61
    assert rates[85] == pytest.approx(0.5) and 0 < rates[99] < 0.01
