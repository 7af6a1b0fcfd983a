"""A server's load: counted by hand, and seen later."""

import pytest

from framework.core import Request, Sequence
from framework.server_load import ServerLoad


def finished(request, *, tokens=0):
    sequence = Sequence(request)
    sequence.output_token_ids = [0] * tokens
    return sequence


def state(load, now):
    seen = load.seen_at(now)
    return seen.num_unfinished, seen.num_tokens, seen.num_free_seats, seen.has_adapter("a")


def run(load):
    """Two requests come, a step gives the first a token and brings an adapter to slot 1, and the first finishes."""
    first, second = finished(Request(0, 0.0, 5, 1, adapter_id="a")), finished(Request(1, 0.0, 7, 9))
    load.add(first, 1.0)
    load.add(second, 2.0)
    first.output_token_ids.append(0)
    load.step_ended(1, {1: "a"}, 3.0)
    load.finish(first, 3.0)


def test_what_it_has_now():
    load = ServerLoad(num_seats=2)
    assert state(load, 0.0) == (0, 0, 2, False)
    run(load)
    assert state(load, 3.0) == (1, 7, 1, True)
    load.step_ended(0, {1: "b"}, 4.0)
    assert not load.has_adapter("a")


def test_an_adapter_counts_from_the_request_that_brings_it():
    load = ServerLoad(num_seats=2)
    sequence = finished(Request(0, 0.0, 5, 1, adapter_id="a"))
    load.add(sequence, 1.0)
    assert load.has_adapter("a")
    load.finish(sequence, 2.0)
    assert not load.has_adapter("a")


@pytest.mark.parametrize("delay", [0.5, 1.0])
def test_a_router_sees_what_was_so_long_ago(delay):
    load = ServerLoad(num_seats=2, view_delay=delay)
    seen = [state(load, now) for now in (0.0, 0.4)]
    run(load)
    seen += [state(load, 2.0 + delay), state(load, 2.9 + delay), state(load, 3.0 + delay)]
    assert seen == [(0, 0, 2, False)] * 2 + [(2, 12, 0, True)] * 2 + [(1, 7, 1, True)]
    assert len(load.reports) == 1
