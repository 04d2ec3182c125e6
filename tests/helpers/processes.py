"""Runs a function on several ranks, each a process of its own, as torchrun would start them."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

FORKS = multiprocessing.get_context("forkserver")  # PyTorch is imported once, not by every process
FORKS.set_forkserver_preload(["torch._dynamo", "torch.distributed.tensor", "train_ldm"])


def on_ranks(function: Callable, *arguments: Any, count: int = 2) -> list[Any]:
    """function(*arguments) on every rank, by a module's name; what it returned on each.

    Raises:
        RuntimeError: it has failed on some, with the traceback.
    """
    processes, pipes = start(joined_call, function, arguments, count)
    answers = [answer(pipe) for pipe in pipes]
    for process in processes:
        process.join()
    for rank, (good, value) in enumerate(answers):
        if not good:
            raise RuntimeError(f"rank {rank}: {value}")
    return [value for _, value in answers]


def exit_statuses(function: Callable, *arguments: Any, count: int = 2) -> list[int]:
    """The same of a function that joins the others itself, as scripts do; how its processes ended,
    negative for a signal."""
    processes, _ = start(call, function, arguments, count)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def start(how: Callable, function: Callable, arguments: tuple, count: int) -> tuple[list, list]:
    """The processes, and from each a pipe."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, pipes = [], []
    for rank in range(count):
        ours, theirs = FORKS.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": store.port}
        process = FORKS.Process(target=how, args=(theirs, place, function, arguments))
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        process.store = store  # outlives the ranks, as torchrun's does
        processes.append(process)
        pipes.append(ours)
    return processes, pipes


def answer(pipe) -> tuple[bool, Any]:
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return False, "died"


def joined_call(pipe, place: dict[str, int], function: Callable, arguments: tuple) -> None:

    def joining() -> Any:
        from training.distributed import process_group

        with process_group():
            return function(*arguments)

    try:
        result = (True, call(pipe, place, joining, ()))
    except BaseException:
        result = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(result))  # a plain `send` would leave tensors in shared memory


def call(pipe, place: dict[str, int], function: Callable, arguments: tuple) -> Any:
    import torch

    from training import watchdog

    torch.set_num_threads(1)
    watchdog.INTERVAL, watchdog.SILENCE_AFTER_LOSS = 0.1, 1.0
    os.environ |= {key: str(number) for key, number in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return function(*arguments)
