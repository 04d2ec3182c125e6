"""Batches are doubled until memory or speed ends; a counter stands for the clock."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    assert "--batch-size 16 --accumulate 1" in result.describe(16)
    assert "--batch-size 256 --accumulate 8, 32 at once" in result.describe(256)
    whole = result.describe(16, divides=False)
    assert "--batch-size 32" in whole and "recipe has 16" in whole and "accumulate" not in whole


def test_it_stops_when_a_batch_does_not_fit():
    result, _ = Machine(fits=8).find()
    assert list(result.rates) == [1, 2, 4, 8] and result.best == 8
    assert "16 does not fit" in result.describe(16)
    assert "--batch-size 16 --accumulate 2" in result.describe(16)
    assert "More than 8 did not work here" in result.describe(16, divides=False)


@given(
    st.integers(1, 300),
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.just(1.0), min_size=1),
)
def test_the_flags_keep_the_batch_and_its_parts_are_not_larger_than_the_best(batch_size, rates):
    result = BatchSizeResult(rates, "x")
    size, parts = map(
        int, re.search(r"-size (\d+) --accumulate (\d+)", result.describe(batch_size)).groups()
    )
    assert size == batch_size and size % parts == 0 and size // parts <= result.best


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


class BusyMachine(Machine):
    """Every other step takes half as long again."""

    def prepare(self, size: int):
        step = super().prepare(size)

        def disturbed(number):
            step(number)
            self.now += 0.05 * (number % 2) if size == 4 else 0

        return disturbed


def test_times_that_scatter_are_not_trusted(monkeypatch):
    monkeypatch.setattr(module.MachineWatch, "doubts", lambda self: [])
    result, _ = BusyMachine().find(most=8)
    (doubt,) = result.doubts
    assert "batch 4)" in doubt and "15%" in doubt
    assert "not reliable" in result.describe(16)
    assert "reliable" not in Machine().find()[0].describe(8)


@pytest.mark.parametrize(("others", "doubted"), [(0.1, False), (1.5, True)])
def test_other_programs_on_the_processors_are_noticed(monkeypatch, others, doubted):
    now = [100.0]
    monkeypatch.setattr(module, "busy_seconds", lambda: 5 * now[0])
    monkeypatch.setattr(module, "own_seconds", lambda: (5 - others) * now[0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    watch = module.MachineWatch()
    now[0] += 10
    assert bool(watch.doubts()) == doubted
    assert not doubted or "1.5 of 4" in watch.doubts()[0]


def test_where_the_system_says_nothing_nothing_is_doubted(monkeypatch):
    monkeypatch.setattr(module, "busy_seconds", lambda: None)
    assert not module.MachineWatch().doubts()


def test_the_processors_of_this_machine_are_watched():
    assert module.own_seconds() > 0
    busy = module.busy_seconds()
    assert busy is None or busy > module.own_seconds()


@pytest.mark.parametrize("gain", [0.0, 0.04])
def test_the_best_size_is_the_smallest_of_about_equal_speed(gain):
    result = BatchSizeResult({8: 100.0, 16: 100.0 * (1 + gain)}, "x")
    assert result.best == 8
