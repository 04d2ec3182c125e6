"""What is not finite moves nothing, is counted, and ends the run when it does not cease."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from tests.helpers.toy_training import Toy
from training.cli import run_main
from training.ema import EMA
from training.logging.metrics import RunningMeans
from training.loop import Plan
from training.optimizer import OptimizerStep, SkippedSteps, restore_buffers
from training.precision import Precision


def spoiled(toy: Toy, steps: range | list[int], value: float = math.nan) -> Toy:
    """The batches of these steps hold something that is not finite."""
    batch = toy.batch
    toy.batch = lambda step: batch(step) * (value if step in steps else 1)
    return toy


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_moves_nothing(tmp_path, value):
    """Weights, averaged weights and moments stay as they are; the next step goes on from them."""
    toy = spoiled(Toy(tmp_path / "run"), [5], value)
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


def test_a_loss_alone_suffices():
    """The gradient may be finite where the loss is not: that of max(x, 0) at minus infinity."""
    weight = nn.Parameter(torch.ones(2))
    update = OptimizerStep({"optimizer": torch.optim.AdamW([weight], fused=True)})
    weight.sum().backward()
    assert update({"loss": torch.tensor(math.inf)}, {"optimizer": 0.1})["step_applied"] == 0
    assert torch.equal(weight, torch.ones(2))


def test_all_optimizers_take_a_step_or_none():
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


def test_the_gradient_is_clipped_after_its_norm_is_taken():
    weight = nn.Parameter(torch.zeros(2))
    update = OptimizerStep({"optimizer": torch.optim.SGD([weight], fused=True)}, clip_norm=1.0)
    (weight * torch.tensor([3.0, 4.0])).sum().backward()
    assert update({}, {"optimizer": 1.0})["gradient_norm"] == 5
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))


def test_skipped_steps_are_counted_and_told(tmp_path, capsys):
    toy = spoiled(Toy(tmp_path / "run"), [1, 4, 5])
    toy.train()
    counts = [line["skipped_steps"] for line in toy.metrics() if "loss" in line]
    assert counts == [1, 3, 3, 3]
    assert all(line["loss"] is not None for line in toy.metrics() if "loss" in line)
    assert re.search(r"step 6: .* 2 steps .*3 so far", capsys.readouterr().out)


def test_a_run_with_skipped_steps_resumes_exactly(tmp_path):
    straight, first = (spoiled(Toy(tmp_path / name), [2, 6, 7, 8]) for name in ("whole", "parts"))
    straight.train()
    step = first.step

    def killed(number):
        if number == 8:
            raise MemoryError
        return step(number)

    first.step = killed
    with pytest.raises(MemoryError):
        first.train()
    second = spoiled(Toy(tmp_path / "parts"), [2, 6, 7, 8])
    second.train()
    assert second.metrics() == straight.metrics()


LONG = Plan(steps=40, images_per_step=4, save_every=7, evaluate_every=40, log_every=5)


def test_ten_in_a_row_end_the_run_with_the_state_saved(tmp_path, capsys):
    """Noticed at the next line, even if finite ones have followed; nine are borne."""
    toy = spoiled(Toy(tmp_path / "run"), range(6, 16))
    with pytest.raises(SystemExit):
        run_main(lambda: toy.train(LONG))
    message = capsys.readouterr().err
    assert "10 steps in a row" in message and "stopped after step 20" in message
    for cause in ("learning rate too high", "float16", "images"):
        assert cause in message
    assert toy.run.saved_step == 20
    healthy = Toy(tmp_path / "run")  # the same command, on data that were mended
    healthy.train(LONG)
    assert healthy.run.saved_step == 40

    nine = spoiled(Toy(tmp_path / "nine"), range(6, 15))
    nine.train(LONG)
    assert nine.metrics()[-2]["skipped_steps"] == 9


def test_a_row_is_counted_across_a_stop(tmp_path):
    """Nine before, one after."""
    skips = SkippedSteps()
    for _ in range(9):
        skips.add(torch.tensor(0.0))
    assert skips.read() == (9, 9, False)
    again = SkippedSteps()
    again.load_state_dict(copy.deepcopy(skips.state_dict()))
    again.add(torch.tensor(0.0))
    assert again.read() == (10, 1, True)
    again.add(torch.tensor(1.0))
    assert again.read() == (10, 0, False)


def test_means_are_of_what_was_finite():
    averages = RunningMeans()
    averages.add({"a": torch.tensor(1.0)})
    averages.add({"a": torch.tensor(math.inf), "b": torch.tensor(3.0)})
    averages.add({"a": torch.tensor(2.0), "c": torch.tensor(math.nan)})
    again = RunningMeans()
    again.load_state_dict(averages.state_dict())
    means = again.pop()
    assert (means["a"], means["b"]) == (1.5, 3.0) and math.isnan(means["c"])
    assert again.pop() == {}


def test_averaged_weights_stay_without_a_wait_for_the_device(monkeypatch):
    """The way taken on a GPU, here on tensors that say they are on none that may be read."""
    model = nn.Linear(2, 2)
    expected, given = EMA(model, halflife=10), EMA(model, halflife=10)
    nn.init.ones_(model.weight)
    expected.update(model, 100)
    towards = 1 - min(given.decay, 101 / 110)
    given._interpolate(model, towards * torch.tensor(1.0))
    torch.testing.assert_close(given.module.weight, expected.module.weight)
    before = given.module.weight.clone()
    given._interpolate(model, towards * torch.tensor(0.0))
    assert torch.equal(given.module.weight, before)


def test_statistics_of_a_norm_are_undone():
    norm = nn.BatchNorm1d(2)
    before = [buffer.clone() for buffer in norm.buffers()]
    norm(torch.full((4, 2), math.nan))
    restore_buffers(norm.buffers(), before, torch.tensor(0.0))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))
    norm(torch.rand(4, 2))
    restore_buffers(norm.buffers(), before, torch.tensor(1.0))
    assert norm.num_batches_tracked == 1


# Loss scaling. The arithmetic is float32 here; an overflow is made by the scale itself.


def scaled(**options) -> tuple[nn.Parameter, OptimizerStep]:
    weight = nn.Parameter(torch.ones(2))
    scaler = GradScaler("cpu", **options)
    return weight, OptimizerStep({"optimizer": torch.optim.SGD([weight], fused=True)}, 1.0, scaler)


def descend(weight: nn.Parameter, update: OptimizerStep) -> float:
    """By a gradient of (8, 8), whose norm is then clipped to 1."""
    (8 * weight.sum() * update.scale).backward()
    scale = update.scale
    metrics = update({}, {"optimizer": 0.5})
    assert metrics["loss_scale"] == scale
    return metrics["step_applied"].item()


def test_the_scale_falls_after_an_overflow_and_rises_after_a_while():
    """float32 ends below 2^128, which 8 x 2^125 is."""
    weight, update = scaled(init_scale=2.0**127, growth_factor=2.0, growth_interval=3)
    taken = [descend(weight, update) for _ in range(8)]
    assert taken == [0, 0, 0, 1, 1, 1, 0, 1]
    assert update.scale == 2.0**124
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 4 * 0.5 / math.sqrt(2)))


def test_the_scale_is_part_of_the_state():
    weight, update = scaled(init_scale=2.0**10, growth_interval=3)
    descend(weight, update)
    again = scaled(init_scale=1.0, growth_interval=3)
    again[1].load_state_dict(copy.deepcopy(update.state_dict()))
    for _ in range(2):
        assert descend(weight, update) == descend(*again) == 1
    assert again[1].scale == update.scale == 2.0**11
    plain = OptimizerStep({"optimizer": torch.optim.SGD([weight], fused=True)})
    plain.load_state_dict(update.state_dict())  # from then on in another precision
    assert plain.scale == 1


def test_precisions():
    cpu = torch.device("cpu")
    assert Precision(cpu, "fp32").name == "fp32" and Precision(cpu).name in ("bf16", "fp32")
    assert not Precision(cpu, "bf16").scaler().is_enabled()
    with pytest.raises(ValueError, match="--precision fp16 needs a CUDA device"):
        Precision(cpu, "fp16")
    linear = nn.Linear(2, 2)
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        with Precision(cpu, name):
            assert linear(torch.ones(1, 2)).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 is trained on CUDA only")
def test_float16_learns_with_a_scale():
    device = torch.device("cuda")
    precision, model = Precision(device, "fp16"), nn.Linear(8, 1).to(device)
    optimizers = {"optimizer": torch.optim.AdamW(model.parameters(), fused=True)}
    update = OptimizerStep(optimizers, 1.0, precision.scaler())
    losses = []
    for step in range(200):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(step)).to(device)
        with precision:
            loss = (model(x).float() - x.sum(1, keepdim=True)).square().mean()
        (loss * update.scale).backward()
        update({"loss": loss}, {"optimizer": 0.05})
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0] and update.scale > 1
    assert model.weight.dtype == torch.float32
