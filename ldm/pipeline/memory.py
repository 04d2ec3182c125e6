"""When memory runs out, less is done at once; that is said aloud."""

import sys

import torch

# Of PyTorch in a RuntimeError, on CPUs and on Apple's GPUs.
MESSAGES = ("can't allocate memory", "not enough memory", "out of memory")


def ran_out(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        message in str(error) for message in MESSAGES
    )


def tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
