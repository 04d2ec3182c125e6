"""What a training says about its compiled code: what it costs, and when it has paid for itself."""

import torch
from torch import nn

from training.acceleration import compiled
from training.acceleration.compiled import compile_and_time, describe_gain


def test_the_words_name_the_step_at_which_it_has_paid():
    # 144 s more at the start, 90 ms less in each step: 1,600 steps of 237 ms.
    text = describe_gain(plain=0.327, first=144.237, compiled=0.237)
    assert all(word in text for word in ("144 s", "0.237 s", "0.327 s", "1,600 steps", "6.3 min"))


def test_code_that_is_slower_is_named_as_such():
    text = describe_gain(plain=0.2, first=10, compiled=0.3)
    assert "gains nothing" in text and "0.3 s" in text and "0.2 s" in text


def test_plain_and_compiled_gradients_are_told_apart(capsys, monkeypatch):
    """With a backend that compiles nothing but counts its calls, and a clock that goes by them."""
    network, calls = nn.Linear(2, 2), []

    def backend(graph, inputs):
        return lambda *arguments: (calls.append(1), graph(*arguments))[1]

    def seconds(call, device):
        before = len(calls)
        call()
        return 0.3 if len(calls) > before else 0.2

    monkeypatch.setattr(compiled, "seconds", seconds)
    compile_and_time(
        lambda: network.compile(backend=backend),
        lambda: network(torch.ones(1, 2)),
        torch.device("cpu"),
    )
    assert len(calls) == 1 + compiled.ROUNDS
    assert describe_gain(0.2, 0.3, 0.3) in capsys.readouterr().out
