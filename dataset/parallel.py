"""Work on many items: in threads, ahead of its use, and with a progress bar.

Threads are enough, because Pillow, hashing and reading run outside Python's lock.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 4096  # items handed to the threads at once: a million futures would take gigabytes


@dataclass(frozen=True)
class WorkShare:
    """The place of this process among those that work together.

    Args:
        barrier: returns when all of them have called it.
    """

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], None] = lambda: None


ALONE = WorkShare()


@runtime_checkable
class Progress(Protocol):
    """A progress bar: passes items through while it shows how many have passed."""

    def __call__(self, items: Iterable[Item], title: str, total: int, /) -> Iterable[Item]: ...


def no_progress(items: Iterable[Item], title: str, total: int) -> Iterable[Item]:
    """Pass items through and show nothing."""
    return items


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield function(item) for each item, in order, computed by as many threads as CPU cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), CHUNK):
            yield from pool.map(function, items[start : start + CHUNK])


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], depth: int = 2
) -> Iterator[Result]:
    """Yield function(item) for each item, in order; a thread computes up to `depth` in advance."""
    with ThreadPoolExecutor(1) as pool:
        results: deque[Future[Result]] = deque()
        for item in items:
            results.append(pool.submit(function, item))
            if len(results) > depth:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
