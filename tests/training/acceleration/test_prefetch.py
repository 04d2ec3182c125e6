"""Batches that are read ahead are those of their steps, whatever order is asked for."""

import threading

import pytest
import torch

from training.acceleration.prefetch import PrefetchedBatches


def read(step):
    return torch.tensor([step]), torch.full((2,), step * 10)


@pytest.mark.parametrize("ahead", [False, True])
def test_each_step_gets_its_batch(ahead):
    batches = PrefetchedBatches(read, torch.device("cpu"), ahead)
    for step in (0, 1, 2, 7, 8, 3, 3):
        number, tens = batches(step)
        assert number == step and tens.tolist() == [10 * step] * 2


def test_the_next_batch_is_read_by_another_thread():
    threads = {}

    def read_and_note(step):
        threads[step] = threading.current_thread().name
        return read(step)

    batches = PrefetchedBatches(read_and_note, torch.device("cpu"), ahead=True)
    batches(0)
    batches(1)
    assert threads[0] == threading.current_thread().name and threads[1] != threads[0]


def test_an_error_while_reading_ahead_is_raised_in_its_step():
    def fail_at_one(step):
        if step == 1:
            raise OSError("the disk is gone")
        return read(step)

    batches = PrefetchedBatches(fail_at_one, torch.device("cpu"), ahead=True)
    batches(0)
    with pytest.raises(OSError, match="disk"):
        batches(1)
