"""The exponential moving average of the weights."""

import math

import pytest
import torch
from torch import nn

from foundation.errors import UserError
from training.weights.ema import EMA


def test_ema_halves_the_distance_in_its_halflife():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, halflife=50)
    nn.init.ones_(model.weight)
    for step in range(10_000, 10_050):  # past the warm-up
        ema.update(model, step)
    assert ema.module.weight.item() == pytest.approx(0.5, abs=1e-4)


def test_ema_moves_in_float32_when_the_weights_are_bfloat16():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    ema = EMA(model, halflife=1000)
    nn.init.constant_(model.weight, 1.0078125)  # the next bfloat16
    ema.update(model, 10**9)
    moved = ema.module.weight.item() - 1
    assert moved == pytest.approx(0.0078125 * math.log(2) / 1000, rel=0.05)


def test_the_way_for_gpus_gives_the_same_average():
    """There the rate is a tensor, which the host must not wait for. Here it lies on the CPU."""
    model = nn.Linear(2, 2)
    expected, ema = EMA(model, halflife=10), EMA(model, halflife=10)
    nn.init.ones_(model.weight)
    expected.update(model, 100)
    rate = 1 - min(ema.decay, 101 / 110)
    ema._interpolate(model, rate * torch.tensor(1.0))
    torch.testing.assert_close(ema.module.weight, expected.module.weight)
    before = ema.module.weight.clone()
    ema._interpolate(model, rate * torch.tensor(0.0))
    assert torch.equal(ema.module.weight, before)


@pytest.mark.parametrize("halflife", [0, -1])
def test_a_halflife_of_nothing_is_refused(halflife):
    with pytest.raises(UserError, match=str(halflife)):
        EMA(nn.Linear(1, 1), halflife)
