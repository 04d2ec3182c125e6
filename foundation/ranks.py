"""The rank of this process in a distributed training: where it is, without what ranks do together.

Nothing here imports torch, so that command lines are read before it is loaded.
"""

import os
import sys
from typing import Any


def is_initialized() -> bool:
    """Return whether a process group exists, which means that torchrun started this process."""
    dist: Any = sys.modules.get("torch.distributed")  # what was not imported has made no group
    return dist is not None and dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, in 0 ... world_size() - 1."""
    return sys.modules["torch.distributed"].get_rank() if is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return sys.modules["torch.distributed"].get_world_size() if is_initialized() else 1


def local_rank() -> int:
    """Return the number of this process on its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))
