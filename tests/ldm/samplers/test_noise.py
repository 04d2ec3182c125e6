"""Noise of one Brownian path per image: its statistics, and that it depends on the seed alone."""

from itertools import pairwise

import pytest
import torch

from ldm.samplers.noise import SeededNoise

CPU = torch.device("cpu")


def test_increments_are_independent_and_of_unit_variance():
    noise = SeededNoise((4, 32, 32), range(4), CPU)
    levels = [1.0, 0.8, 0.55, 0.2, 0.1, 0.0]
    parts = torch.stack([noise.between(a, b).flatten() for a, b in pairwise(levels)])
    torch.testing.assert_close(parts.mean(dim=1), torch.zeros(5), rtol=0, atol=0.03)
    torch.testing.assert_close(parts.cov(), torch.eye(5), rtol=0, atol=0.04)


def test_increments_of_parts_add_up():
    noise = SeededNoise((4, 8, 8), [3], CPU)
    whole = noise.between(0.9, 0.3)
    parts = [noise.between(0.9, 0.7) * 0.2**0.5, noise.between(0.7, 0.3) * 0.4**0.5]
    torch.testing.assert_close(sum(parts) / 0.6**0.5, whole)


def test_noise_does_not_depend_on_other_images():
    together = SeededNoise((4, 4, 4), [7, 8, 9], CPU)
    alone = SeededNoise((4, 4, 4), [8], CPU)
    assert torch.equal(together.initial()[1], alone.initial()[0])
    assert torch.equal(together.between(0.5, 0.31)[1], alone.between(0.5, 0.31)[0])
    assert not torch.equal(together.between(0.5, 0.31)[0], alone.between(0.5, 0.31)[0])


def test_noise_does_not_depend_on_the_order_of_calls():
    first, second = (SeededNoise((1, 4, 4), [0], CPU) for _ in range(2))
    forward = [first.between(a, a - 0.1) for a in (0.9, 0.5, 0.2)]
    backward = [second.between(a, a - 0.1) for a in (0.2, 0.5, 0.9)][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("gap", [1e-3, 1e-4])
def test_short_steps_have_unit_variance(gap):
    noise = SeededNoise((4, 32, 32), range(4), CPU)
    assert noise.between(0.4 + gap, 0.4).std().item() == pytest.approx(1, abs=0.03)
