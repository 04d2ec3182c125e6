"""Batches on their way to the device: the next one is read while a GPU computes the current one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]


class PrefetchedBatches:
    """The batch of each step on the device; call it with the number of the step.

    For a GPU a thread reads one step ahead, into pinned memory, from which the copy does not make
    the host wait. A CPU has no time to spare while it computes, so there nothing is read ahead.
    """

    def __init__(
        self, read: Callable[[int], Batch], device: torch.device, ahead: bool | None = None
    ):
        """
        Args:
            read: returns the batch of a step, on the CPU; it depends on the step alone.
            ahead: whether to read ahead; None: on a GPU.
        """
        self.read, self.device = read, device
        self.ahead = device.type == "cuda" if ahead is None else ahead
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if self.ahead else None
        self.next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> Batch:
        if self.next is not None and self.next[0] == step:
            batch = self.next[1].result()
        else:  # the first step, or one that was not expected
            batch = self.read_pinned(step)
        if self.thread is not None:
            self.next = step + 1, self.thread.submit(self.read_pinned, step + 1)
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def read_pinned(self, step: int) -> Batch:
        batch = self.read(step)
        if self.device.type != "cuda":
            return batch
        return tuple(tensor.pin_memory() for tensor in batch)
