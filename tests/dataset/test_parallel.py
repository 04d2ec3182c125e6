"""Threads and prefetching give the results in the order of the items."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from dataset.parallel import map_in_threads, no_progress, prefetch

ITEMS = st.lists(st.integers(), max_size=50)


@given(ITEMS)
def test_threads_return_results_in_order(items):
    assert list(map_in_threads(lambda item: item + 1, items)) == [item + 1 for item in items]


@given(ITEMS, st.integers(0, 5))
def test_prefetching_returns_results_in_order(items, depth):
    assert list(prefetch(lambda item: item + 1, items, depth)) == [item + 1 for item in items]


def test_prefetching_computes_the_next_result_before_it_is_needed():
    second_started = threading.Event()

    def compute(item: int) -> int:
        if item == 1:
            second_started.set()
        return item

    results = prefetch(compute, range(10), depth=2)
    assert next(results) == 0
    assert second_started.wait(timeout=30)


def test_no_progress_passes_the_items_through():
    items = [1, 2]
    assert no_progress(items, "title", 2) is items
