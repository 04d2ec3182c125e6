"""A whole training step as one CUDA graph: the host starts it at once, not kernel by kernel."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

Argument = Tensor | float
Results = dict[str, Tensor]
WARM_UP = 3  # steps that allocate, compile and choose kernels before one is recorded


class CapturedStep:
    """A function of tensors and numbers that changes weights in place, recorded on a GPU.

    It must not read a value on the host, and it must not allocate anything that outlives it other
    than in its first calls. Numbers reach it as 0-dim tensors. Arguments of other shapes than those
    that were recorded run as they are. If recording fails, so do all others.
    """

    def __init__(self, step: Callable[..., Results]):
        self.step = step
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.results: Results = {}
        self.failed = False

    def __call__(self, *arguments: Argument) -> Results:
        device = next(x.device for x in arguments if isinstance(x, Tensor))
        tensors = [
            x if isinstance(x, Tensor) else torch.full((), x, device=device) for x in arguments
        ]
        if self.graph is None and not self.failed:
            if self.calls < WARM_UP:
                self.calls += 1
                return self.run_beside(tensors)
            self.record(tensors)
        if self.graph is None or [x.shape for x in tensors] != [x.shape for x in self.inputs]:
            return self.step(*tensors)
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self.graph.replay()
        return {name: result.clone() for name, result in self.results.items()}

    def run_beside(self, tensors: list[Tensor]) -> Results:
        """Run the step in a stream of its own, as what is to be recorded must have run before."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results = self.step(*tensors)
        torch.cuda.current_stream().wait_stream(stream)
        return results

    def record(self, tensors: list[Tensor]) -> None:
        """Record the step, without running it."""
        self.inputs = [tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread's calls are watched: another one may be pinning the next batch.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.results = self.step(*self.inputs)
        except RuntimeError as error:
            self.failed = True
            reason = str(error).splitlines()[0]
            print(
                f"note: the step cannot be recorded as a CUDA graph ({reason}); its kernels are "
                "started one by one.",
                file=sys.stderr,
            )
            return
        self.graph = graph
