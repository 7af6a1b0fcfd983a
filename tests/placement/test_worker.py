"""A worker at the end of a pipe: it answers calls, and serves what comes in between."""

from multiprocessing import Pipe
from threading import Thread

import pytest

from framework.core import Request
from framework.placement.messages import Arrival, End, StepEnded, Value, call, value_of
from framework.placement.worker import FromDriver, sendable, serve, work
from tests.fake_engine import FakeEngine, requests_at
from tests.placement.engines import continuous


def test_it_serves_between_two_calls():
    here, there = Pipe()
    thread = Thread(target=work, args=(there, FakeEngine, 1))
    thread.start()
    requests = requests_at((0.0, 4, 2))
    assert value_of(here) is None  # the engine is built
    call(here, serve, requests, continuous)
    assert value_of(here) is None  # and ready
    here.send(0.0)  # the clock began long ago
    here.send(Arrival(0, 0.0, []))
    first, second = here.recv(), here.recv()
    assert isinstance(first, StepEnded)
    assert (first.num_output_tokens, first.finished) == (1, [])
    [finished] = second.finished
    assert (finished.request_id, finished.values["output_token_ids"]) == (0, [0, 1])
    assert finished.values["token_times"] == [first.time, second.time]
    here.send(End())
    steps = here.recv()
    assert isinstance(steps, Value)
    assert [(step.server, step.phase) for step in steps.value] == [(1, "prefill"), (1, "decode")]
    here.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


class Telling(FakeEngine):
    """Prompts are told by what was said before."""

    def add(self, sequence):
        before = sequence.previous
        sequence.prompt_token_ids = (
            [sequence.request.request_id]
            if before is None
            else [
                *before.prompt_token_ids,
                *before.output_token_ids,
                sequence.request.request_id,
            ]
        )


def test_a_conversation_is_made_as_it_was_elsewhere():
    first = Request(0, 0.0, 1, 1, session_id="chat")
    turns = [Request(index, 0.0, 2 * index + 1, 1, None, 0, "chat", turn=index + 1, think_time=0.0) for index in (1, 2)]
    inbox = FromDriver(None, Telling(), [first, *turns])
    last = inbox.sequence_of(Arrival(turns[1], 5.0, [(first, [7]), (turns[0], [8])]))
    assert last.prompt_token_ids == [0, 7, 1, 8, 2]
    assert last.arrival_time == 5.0
    assert inbox.sequence_of(Arrival(0, 6.0, [])).arrival_time == 6.0


def test_errors_travel_without_their_classes():
    class Own(ValueError):
        pass

    assert type(sendable(Own("reason"))) is ValueError
    assert str(sendable(KeyError("x"))) == "KeyError: 'x'"
    with pytest.raises(RuntimeError):
        raise sendable(KeyError("x"))
