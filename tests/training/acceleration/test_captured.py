"""Recorded steps, with a stand-in for CUDA that plays a recorded step by calling it again."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from training.acceleration import captured
from training.acceleration.captured import WARM_UP, CapturedStep


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    def pool(self):
        return "pool"

    def replay(self):
        results, step, inputs = self.recorded
        for name, value in step(*inputs).items():
            results[name].copy_(value)


@pytest.fixture
def cuda(monkeypatch):
    """The stand-in; `pools` lists the memory that each recording was given."""
    fake = SimpleNamespace(pools=[], Stream=SimpleNamespace, CUDAGraph=Graph, fails=False, free=20)

    @contextmanager
    def graph(graph, pool, capture_error_mode):
        fake.pools.append(pool)
        yield
        if fake.fails:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    @contextmanager
    def stream(stream):
        yield

    current = SimpleNamespace(wait_stream=lambda other: None)
    fake.graph, fake.stream, fake.current_stream = graph, stream, lambda: current
    fake.Stream = lambda: current
    fake.memory_allocated, fake.max_memory_allocated = lambda device: 10, lambda device: 30
    fake.mem_get_info, fake.memory_reserved = lambda device: (fake.free, 100), lambda device: 30
    monkeypatch.setattr(captured, "torch", SimpleNamespace(cuda=fake, full=torch.full))
    return fake


class Step:
    """Moves a weight by rate times the sum of the batch; counts how often Python runs it."""

    def __init__(self):
        self.weight, self.runs, self.cleared = torch.zeros(()), 0, 0

    def __call__(self, rate, batch, *, sign=1):
        self.runs += 1
        self.weight += sign * rate * batch.sum()
        return {"weight": self.weight.clone()}

    def clear(self):
        self.cleared += 1


@pytest.fixture
def step(monkeypatch):
    """A step whose recordings are kept in the stand-ins of graphs, and undone where they end."""
    step = Step()
    real = CapturedStep.record

    def record(self, kind, tensors, settings):
        weight = step.weight.clone()
        real(self, kind, tensors, settings)
        step.weight.copy_(weight)  # a recording computes nothing
        if kind in self.recorded:
            found = self.recorded[kind]
            found.replay.__self__.recorded = (
                found.results,
                lambda *inputs: Step.__call__(step, *inputs, **settings),
                found.inputs,
            )

    monkeypatch.setattr(CapturedStep, "record", record)
    return step


def run(update, calls):
    return [update(rate, batch, **rest)["weight"] for rate, batch, rest in calls]


def make_calls(count, shape=3, **settings):
    return [(0.1 * k, torch.full((shape,), 1.0 + k), settings) for k in range(count)]


def expected(calls):
    plain = Step()
    return [plain(rate, batch, **rest)["weight"] for rate, batch, rest in calls]


def test_recorded_steps_get_the_numbers_and_batches_of_each_call(cuda, step):
    calls = make_calls(WARM_UP + 4)
    update = CapturedStep(step, step.clear)
    results = run(update, calls)  # results that are kept are not overwritten by later steps
    torch.testing.assert_close(results, expected(calls))
    assert len(update.recorded) == 1 and cuda.pools == [None] and not step.cleared


def test_each_shape_and_each_setting_is_a_graph_of_its_own_in_the_same_memory(cuda, step):
    kinds = [make_calls(6), make_calls(6, shape=5), make_calls(6, sign=-1)]
    calls = [call for calls in zip(*kinds, strict=True) for call in calls]
    update = CapturedStep(step, step.clear)
    torch.testing.assert_close(run(update, calls), expected(calls))
    assert len(update.recorded) == 3 and cuda.pools == [None, "pool", "pool"]


def test_kinds_of_steps_beyond_the_limit_run_as_they_are(cuda, step, monkeypatch):
    monkeypatch.setattr(captured, "MOST_GRAPHS", 1)
    calls = [*make_calls(5), *make_calls(6, shape=5)]
    update = CapturedStep(step, step.clear)
    torch.testing.assert_close(run(update, calls), expected(calls))
    assert len(update.recorded) == 1


def test_where_recording_fails_gradients_are_cleared_and_all_steps_run_as_they_are(
    cuda, step, capsys
):
    cuda.fails = True
    calls = make_calls(WARM_UP + 3)
    update = CapturedStep(step, step.clear)
    torch.testing.assert_close(run(update, calls), expected(calls))
    assert update.failed and step.cleared == 1 and cuda.pools == [None]
    (note,) = capsys.readouterr().err.splitlines()
    assert "operation not permitted" in note


@pytest.mark.parametrize(
    ("free", "always", "graphs"), [(20, False, 1), (19, False, 0), (0, True, 1)]
)
def test_steps_that_would_leave_no_room_for_evaluations_are_not_recorded(
    cuda, step, free, always, graphs
):
    # A step needs 20 beyond the 10 that stay, and a graph and an evaluation need them twice.
    cuda.free = free
    calls = make_calls(WARM_UP + 3)
    update = CapturedStep(step, step.clear, always=always)
    torch.testing.assert_close(run(update, calls), expected(calls))
    assert len(update.recorded) == graphs
