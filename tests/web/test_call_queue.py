"""Calls wait for each other, in their order, and "Stop" ends them wherever they are."""

import asyncio
import threading

import pytest
import torch

from generation.options import GenerationOptions
from generation.prompts import PromptEntry
from web.call_queue import MOST_WAITING, Caller, CallQueue, Stopped

ONE, TWO = Caller("one", "draw"), Caller("two", "draw")


def test_calls_take_turns_in_their_order():
    queue, order = CallQueue(), []
    with queue.enter(ONE) as first, queue.enter(TWO) as second, queue.enter(ONE) as third:
        assert list(first.wait()) == []
        assert next(second.wait()) == 1 and next(third.wait()) == 2

        def use(turn, name):
            list(turn.wait())
            order.append(name)

        threads = [
            threading.Thread(target=use, args=pair) for pair in ((third, "third"), (second, "2nd"))
        ]
        for thread in threads:
            thread.start()
        queue.turns.remove(first)  # it has ended
        threads[1].join(10)
        assert order == ["2nd"]
        queue.turns.remove(second)
        threads[0].join(10)
        assert order == ["2nd", "third"]
        queue.turns[:0] = [first, second]  # the context managers remove them


def test_a_call_that_waits_is_stopped_and_leaves_the_line():
    queue = CallQueue()
    with queue.enter(ONE) as first:
        with pytest.raises(Stopped), queue.enter(TWO) as second:
            for ahead in second.wait():
                assert ahead == 1
                queue.stop(TWO)
        assert not first.stop.is_set() and queue.turns == [first]


@pytest.mark.parametrize(
    ("caller", "stopped"),
    [
        (Caller("a", "draw"), [True, False, False]),
        (Caller("a", "change"), [False, True, False]),
        (Caller("a"), [True, True, False]),
        (Caller("b"), [False, False, True]),
        (Caller("b", "compare"), [False, False, False]),
        (Caller(""), [False, False, False]),
    ],
)
def test_stop_ends_the_calls_of_its_tab_or_session_alone(caller, stopped):
    queue = CallQueue()
    callers = [Caller("a", "draw"), Caller("a", "change"), Caller("b", "draw")]
    with queue.enter(callers[0]) as x, queue.enter(callers[1]) as y, queue.enter(callers[2]) as z:
        queue.stop(caller)
        assert [turn.stop.is_set() for turn in (x, y, z)] == stopped


def test_a_long_line_takes_no_more_calls():
    queue = CallQueue()
    turns = [queue.enter(ONE) for _ in range(MOST_WAITING + 1)]
    for turn in turns:
        turn.__enter__()
    with pytest.raises(ValueError, match=str(MOST_WAITING)), queue.enter(TWO):
        raise AssertionError("it was taken")
    turns[0].__exit__(None, None, None)
    with queue.enter(TWO):
        assert len(queue.turns) == MOST_WAITING + 1
    for turn in turns[1:]:
        turn.__exit__(None, None, None)
    assert not queue.turns


def test_a_server_that_ends_stops_all_calls_and_those_that_still_come():
    queue = CallQueue()
    with queue.enter(ONE) as first, queue.enter(TWO) as second:
        list(first.wait())
        queue.close()
        with queue.enter(ONE) as third:
            for turn in (second, third):
                with pytest.raises(Stopped):
                    list(turn.wait())
        with pytest.raises(Stopped):
            first.check()


@pytest.fixture
def studio(world, tmp_path):
    pytest.importorskip("gradio")
    from web.open_models import OpenModels
    from web.studio import Studio

    models = OpenModels([world / "ldm"], tmp_path / "runs", torch.device("cpu"))
    return Studio(models, tmp_path / "pictures")


def draw(studio, caller=ONE, **options):
    from web.open_models import ModelChoice

    model = ModelChoice(studio.models.names()[0])
    entry = PromptEntry("red", GenerationOptions(**{"steps": 2} | options))
    return studio.draw(caller, model, entry)


def status(update):
    return update[2]


@pytest.mark.slow  # gradio takes many seconds to load
def test_a_call_that_waits_in_the_line_is_stopped_and_draws_nothing(studio):
    with studio.queue.enter(TWO) as other:
        call = draw(studio)
        assert status(next(call)) == "Waiting: 1 call is before this one."
        studio.queue.stop(ONE)
        assert [status(update) for update in call] == ["Stopped. 0 pictures are finished."]
        assert not other.stop.is_set()
    assert not studio.queue.turns and not studio.models.opened and not studio.folder.exists()


@pytest.mark.slow
def test_a_call_that_opens_its_model_is_stopped_and_draws_nothing(studio, monkeypatch):
    real = studio.models.open

    def open_slowly(choice):
        studio.queue.stop(ONE)  # somebody presses "Stop" meanwhile
        return real(choice)

    monkeypatch.setattr(studio.models, "open", open_slowly)
    found = [status(update) for update in draw(studio)]
    assert found == ["Opening the model ...", "Stopped. 0 pictures are finished."]
    assert not studio.queue.turns and not studio.folder.exists()


@pytest.mark.slow
def test_a_call_that_is_stopped_before_its_first_step_draws_nothing(studio, monkeypatch):
    """After the model was opened, input pictures are read and the options are checked."""
    real = studio.open

    def open_then_stop(model, turn):
        session = real(model, turn)
        studio.queue.stop(ONE)
        return session

    monkeypatch.setattr(studio, "open", open_then_stop)
    *_, last = draw(studio)
    assert status(last) == "Stopped. 0 pictures are finished." and not studio.folder.exists()


@pytest.mark.slow
def test_a_page_that_is_closed_leaves_the_line(studio):
    call = draw(studio, steps=100, count=8)
    for update in call:
        if update[0]:  # a preview or a picture
            break
    call.close()
    assert not studio.queue.turns
    *_, last = draw(studio)
    assert status(last) == "Ready: 1 picture."


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_server_ends_its_calls_before_it_waits_for_them(monkeypatch):
    pytest.importorskip("gradio")
    import uvicorn

    from web.page import PageServer

    queue, closed = CallQueue(), []

    async def shutdown(server, sockets=None):
        closed.append(queue.is_closed)

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    asyncio.run(PageServer(uvicorn.Config(lambda: None), queue).shutdown())
    assert closed == [True]
