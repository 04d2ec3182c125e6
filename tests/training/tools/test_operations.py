"""The operations of a step, and how many a device does."""

import pytest
import torch
from torch import nn

from training.precision import Precision
from training.tools import operations
from training.tools.memory_estimate import StepWork, estimate_memory
from training.tools.operations import FlopCount, count_operations, estimate_speed

CPU = torch.device("cpu")
FP32 = Precision(CPU, "fp32")


def layer_work(width: int) -> StepWork:
    """Return the work of one square layer whose input needs no gradient."""

    def add_gradients(copies, images, parts, precision):
        for _ in range(min(parts, 2)):
            with precision:
                loss = copies[0](torch.empty(images, width)).sum()
            loss.backward()

    layer = nn.Linear(width, width, bias=False)
    return StepWork(trained=[layer], frozen=[], averaged=0, add_gradients=add_gradients)


def test_a_layer_has_the_products_of_both_passes():
    """Forward, and the gradient of the weights: 2 n^2 for each image."""
    assert count_operations(layer_work(32), 4, FP32) == 2 * 2 * 32**2


def test_operations_are_counted_while_memory_is_estimated():
    counter = FlopCount()
    with_count = estimate_memory(layer_work(32), 4, 3, FP32, counter)
    assert counter.total == 2 * 4 * 2 * 2 * 32**2  # of the two parts that are computed
    assert with_count == estimate_memory(layer_work(32), 4, 3, FP32)


def test_the_speed_is_a_share_of_that_of_products(monkeypatch):
    monkeypatch.setattr(operations, "measure_products", lambda device, dtype: 1e12)
    assert estimate_speed(1e9, CPU, torch.float32) == pytest.approx(350)


def test_products_are_measured():
    assert operations.measure_products(CPU, torch.float32) > 1e8
