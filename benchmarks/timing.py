"""Times of several calls, measured in turn, so that other load on the machine affects all alike."""

import time
from collections.abc import Callable, Mapping

import torch

CLOCKS: dict[str, Callable[[], float]] = {
    "time": time.perf_counter,
    # CPU time of the process: less disturbed by others; waiting at a barrier counts as work.
    "CPU time": time.process_time,
}


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Measure each call once per round, after a round that warms up.

    The order is reversed in every second round.

    Returns:
        clock -> name of the call -> seconds in each round.
    """
    seconds = {clock: {name: [] for name in calls} for clock in CLOCKS}
    for round_number in range(rounds + 1):
        for name in list(calls) if round_number % 2 else reversed(list(calls)):
            start = {clock: read() for clock, read in CLOCKS.items()}
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            for clock, read in CLOCKS.items():
                if round_number > 0:
                    seconds[clock][name].append(read() - start[clock])
    return seconds
