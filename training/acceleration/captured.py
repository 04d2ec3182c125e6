"""A whole training step as one CUDA graph: the host starts it at once, not kernel by kernel."""

import sys
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foundation import collectives
from foundation.shapes import Scalar
from training.precision import Precision

Argument = Tensor | float
Rate = float | Scalar  # a tensor where the step is recorded
Results = dict[str, Tensor]
Kind = tuple[Hashable, ...]  # what a graph depends on: shapes of the tensors, and settings
WARM_UP = 3  # steps that allocate, compile and choose kernels before one is recorded
MOST_GRAPHS = 16  # kinds of steps that are recorded; further ones run kernel by kernel


def is_recordable(device: torch.device, precision: Precision) -> bool:
    """Return whether the steps of a training can be recorded: those on one GPU, not in fp16.

    DDP and loss scaling do things in a step that a graph cannot hold.
    """
    return device.type == "cuda" and collectives.world_size() == 1 and precision.name != "fp16"


@dataclass
class Recorded:
    """A recorded step: where it reads its arguments, and where it leaves its results."""

    replay: Callable[[], object]
    pool: Any  # names the memory of its intermediate results
    inputs: list[Tensor]
    results: Results


class CapturedStep:
    """A function of tensors and numbers that changes weights in place, recorded on a GPU.

    It must not read a value on the host, and it must not allocate anything that outlives it other
    than in its first calls. Numbers reach it as 0-dim tensors. What else changes its kernels is a
    setting, given by name. Each kind of step, by shapes and settings, is a graph of its own; all
    share the memory of their intermediate results. If recording fails once, all steps run as they
    are.

    Args:
        clear: throws away what a step that was not finished leaves: gradients.
        always: record even if that leaves little memory for evaluations, as graphs keep theirs.
    """

    def __init__(
        self, step: Callable[..., Results], clear: Callable[[], object], always: bool = False
    ):
        self.step, self.clear, self.always = step, clear, always
        self.calls: Counter[Kind] = Counter()
        self.recorded: dict[Kind, Recorded] = {}
        self.failed = False

    def __call__(self, *arguments: Argument, **settings: Hashable) -> Results:
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        tensors = [
            x if isinstance(x, Tensor) else torch.full((), x, device=device) for x in arguments
        ]
        kind = (*(x.shape for x in tensors), *settings.items())
        if kind not in self.recorded and not self.failed:
            if self.calls[kind] < WARM_UP:
                self.calls[kind] += 1
                return self.run_beside(tensors, settings)
            if not (self.always or self.recorded or has_room(device)):
                self.failed = True
            elif len(self.recorded) < MOST_GRAPHS:
                self.record(kind, tensors, settings)
        if kind not in self.recorded:
            return self.step(*tensors, **settings)
        recorded = self.recorded[kind]
        for own, given in zip(recorded.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        recorded.replay()
        # The memory of the results belongs to the graphs, of which the next one may use it.
        return {name: result.clone() for name, result in recorded.results.items()}

    def run_beside(self, tensors: list[Tensor], settings: dict[str, Hashable]) -> Results:
        """Run the step in a stream of its own, as what is to be recorded must have run before."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self.step(*tensors, **settings)
        torch.cuda.current_stream().wait_stream(stream)
        return results

    def record(self, kind: Kind, tensors: list[Tensor], settings: dict[str, Hashable]) -> None:
        """Record the step, without running it."""
        inputs = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        pool = next((each.pool for each in self.recorded.values()), None)
        try:
            # Only this thread's calls are watched: another one may be pinning the next batch.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                results = self.step(*inputs, **settings)
        except RuntimeError as error:
            self.failed = True
            self.recorded.clear()
            self.clear()
            reason = str(error).splitlines()[0]
            print(
                f"note: the step cannot be recorded as a CUDA graph ({reason}); its kernels are "
                "started one by one.",
                file=sys.stderr,
            )
            return
        self.recorded[kind] = Recorded(graph.replay, graph.pool(), inputs, results)


def has_room(device: torch.device) -> bool:
    """Return whether the memory holds the intermediate results of a step twice.

    A graph keeps its own. Evaluations, which run outside of it, then need theirs besides.
    """
    now, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return most + (most - now) <= free + torch.cuda.memory_reserved(device)
