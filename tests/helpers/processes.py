"""Run a function on several ranks, each in a process of its own, as torchrun would start them."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch.distributed as dist

# It imports once what all processes need, also what commands import only when they come to it.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        *("torch._dynamo", "torch.distributed.tensor", "open_clip", "pyarrow.parquet"),
        *("PIL.Image", "tyro.constructors", "tyro._backends", "typeguard"),
        "tests.helpers.hostile",
        *("commands.check", "commands.sample", "commands.evaluate", "commands.export"),
        *("commands.train_clip", "commands.train_vae", "commands.train_ldm"),
    ]
)


def on_ranks(function: Callable, *arguments: Any, count: int = 2) -> list[Any]:
    """Call function(*arguments) on every rank, and return the result of each.

    function: on the top level of a module, so that it can be pickled.

    Raises:
        RuntimeError: it failed on some rank; the message has the traceback.
    """
    processes, pipes, _store = start(call_in_process_group, function, arguments, count)
    results = [receive(pipe) for pipe in pipes]
    for process in processes:
        process.join()
    for rank, (succeeded, value) in enumerate(results):
        if not succeeded:
            raise RuntimeError(f"rank {rank}: {value}")
    return [value for _, value in results]


def exit_statuses(function: Callable, *arguments: Any, count: int = 2) -> list[int | None]:
    """Call a function on every rank that joins the process group itself, as scripts do.

    Returns:
        The exit status of each process; negative for a signal.
    """
    processes, _, _store = start(call_with_rank, function, arguments, count)
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def start(
    target: Callable, function: Callable, arguments: tuple, count: int
) -> tuple[list[ForkServerProcess], list[Connection], dist.Store]:
    """Start the ranks; return their processes, a pipe from each, and the store where they meet.

    Keep the store until they end: as under torchrun, it must outlive them.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes, pipes = [], []
    for rank in range(count):
        receiver, sender = FORKSERVER.Pipe(duplex=False)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        variables["MASTER_PORT"] = store.port
        process = FORKSERVER.Process(target=target, args=(sender, variables, function, arguments))
        process.start()
        sender.close()  # so that the pipe ends when the process does
        processes.append(process)
        pipes.append(receiver)
    return processes, pipes, store


def receive(pipe: Connection) -> tuple[bool, Any]:
    """Wait for the result of a rank: (whether it succeeded, result or traceback)."""
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return False, "died"


def call_in_process_group(
    pipe: Connection, variables: dict[str, int], function: Callable, arguments: tuple
) -> None:
    """Run in a new process: join the other ranks, call the function, send its result."""

    def joined() -> Any:
        from training.distributed import process_group

        with process_group():
            return function(*arguments)

    try:
        result = (True, call_with_rank(pipe, variables, joined, ()))
    except BaseException:
        result = (False, traceback.format_exc())
    pipe.send_bytes(pickle.dumps(result))  # a plain `send` would leave tensors in shared memory


def call_with_rank(
    pipe: Connection, variables: dict[str, int], function: Callable, arguments: tuple
) -> Any:
    """Run in a new process: call the function with the environment that torchrun would set."""
    import torch

    from training import watchdog

    torch.set_num_threads(1)
    watchdog.INTERVAL, watchdog.SILENCE_AFTER_LOSS = 0.1, 1.0  # seconds
    os.environ |= {key: str(number) for key, number in variables.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return function(*arguments)
