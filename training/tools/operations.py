"""How many operations a training step has, and how many a device does in a second.

Together they say how long a training will take before it was ever run.
"""

import time
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from training.tools.find_batch_size import wait_for
from training.tools.memory_estimate import Context, StepWork, without_data

# Of the speed of such products, that trainings reach. GPU: see docs/hardware.md. CPU: 0.26 to 0.5
# were measured, with small and large networks (docs/page.md).
SHARES = {"cpu": 0.35, "cuda": 0.2}
# Sides of the matrices. On a CPU a product is so short that some are not interrupted by others.
SIDES = {"cpu": 512, "cuda": 8192}
LEAST_PRODUCTS, LEAST_SECONDS = 8, 0.5


class FlopCount(TorchDispatchMode):
    """Counts operations by the formulas of PyTorch.

    PyTorch's own counter also follows modules, which does not go with the gradients of pixels that
    stage 1 computes.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            count = flop_registry[func.overloadpacket]
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def count_operations(work: StepWork, images: int, precision: Context) -> float:
    """Return the operations of a step per image: forward and backward pass. Nothing is computed.

    images: of a step; those of a stage that compares the images of a batch need 2 or more.
    """
    counter = FlopCount()
    with FakeTensorMode(allow_non_fake_inputs=True), counter:
        copies = [without_data(module) for module in (*work.trained, *work.frozen)]
        work.add_gradients(copies, images, 1, precision)
    return counter.total / images


@lru_cache
def measure_products(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of a product of large matrices, measured once."""
    side = SIDES.get(device.type, min(SIDES.values()))
    one = torch.rand(side, side, device=device, dtype=dtype)
    times: list[float] = []
    while len(times) < LEAST_PRODUCTS or sum(times) < LEAST_SECONDS:
        wait_for(device)
        start = time.perf_counter()
        torch.mm(one, one)
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def estimate_speed(operations: float, device: torch.device, dtype: torch.dtype) -> float:
    """Return images per second. operations: of a step, per image."""
    share = SHARES.get(device.type, SHARES["cuda"])
    return share * measure_products(device, dtype) / operations
