"""When memory runs out, less is done at once; that is said aloud."""

import sys

import torch

CPU_MESSAGES = ("can't allocate memory", "not enough memory")  # of PyTorch, in a RuntimeError


def ran_out(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        message in str(error) for message in CPU_MESSAGES
    )


def tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
