"""Batches are doubled until memory or speed ends; a counter stands for the clock."""

import pytest
import torch

from training.tools import find_batch_size as module
from training.tools.find_batch_size import BatchSizeResult, find_batch_size

CPU = torch.device("cpu")


class Machine:
    """A step of b images takes 0.1 s + b * 0.001 s up to `fast` images, in proportion beyond."""

    def __init__(self, fast: int = 10**9, fits: int = 10**9):
        self.fast, self.fits, self.now, self.tried = fast, fits, 0.0, []

    def clock(self) -> float:
        return self.now

    def prepare(self, size: int):
        self.tried.append(size)
        if size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

        def step(number):
            parallel = min(size, self.fast)
            self.now += (0.1 + 0.001 * parallel) * size / parallel

        return step

    def find(self, most: int = 10**6, first: int = 1, needed=lambda size: 0):
        lines = []
        return find_batch_size(
            self.prepare,
            device=CPU,
            needed=needed,
            first=first,
            most=most,
            report=lines.append,
            clock=self.clock,
        ), lines


def test_it_stops_when_a_doubled_batch_is_no_faster():
    machine = Machine(fast=32)
    result, lines = machine.find()
    assert machine.tried == [1, 2, 4, 8, 16, 32, 64] and result.best == 32
    assert len(lines) == 7 and "batch of 32: 242.4 images/s" in lines[5]
    assert "64 images at once are no faster than 32" in result.describe(16)
    assert "--batch-size 32" in result.describe(16) and "recipe has 16" in result.describe(16)


def test_it_stops_when_a_batch_does_not_fit():
    result, _ = Machine(fits=8).find()
    assert list(result.rates) == [1, 2, 4, 8] and result.best == 8
    assert "16 does not fit" in result.describe(16)
    assert "Larger than 8 did not work here" in result.describe(16)


def test_a_size_that_needs_more_than_the_free_memory_is_not_tried_on_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "available_host_memory", lambda: 5_000_000)
    machine = Machine()
    result, _ = machine.find(needed=lambda size: size * 1_000_000)
    assert machine.tried == [1, 2, 4]
    assert "a batch of 8 would need about 8 MB of 5 MB that are free" in result.describe(4)


def test_it_stops_at_the_number_of_images():
    result, _ = Machine().find(most=20, first=2)
    assert list(result.rates) == [2, 4, 8, 16] and "no more than 20 images" in result.reason


def test_the_result_says_so_if_no_size_fits():
    result, _ = Machine(fits=0).find()
    assert "no batch size works here" in result.describe(16)


@pytest.mark.parametrize("gain", [0.0, 0.04])
def test_the_best_size_is_the_smallest_of_about_equal_speed(gain):
    result = BatchSizeResult({8: 100.0, 16: 100.0 * (1 + gain)}, "x")
    assert result.best == 8
