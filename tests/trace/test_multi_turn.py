"""Synthetic conversations: their laws, that a rate changes nothing but their starts, and what is too long."""

from functools import partial

import numpy as np
import pytest

from framework.trace.arrivals import constant, poisson
from framework.trace.lengths import fixed, geometric, independent, uniform
from framework.trace.multi_turn import lognormal, multi_turn
from framework.trace.source import TraceSource
from framework.trace.transforms import TOO_LONG, mean_rate, starts

LENGTHS = partial(independent, prompt=partial(uniform, low=1, high=50), output=partial(uniform, low=1, high=20))
LAWS = {"num_turns": partial(geometric, mean=4), "think_times": partial(lognormal, median=5.0, sigma=1.0)}
chats = partial(multi_turn, arrivals=poisson, lengths=LENGTHS, **LAWS)


def test_turns_and_think_times_follow_their_laws():
    requests = chats(num_requests=20_000, rate=2.0).requests
    assert len(requests) == 20_000
    num_starts = sum(request.turn == 1 for request in requests)
    assert 20_000 / num_starts == pytest.approx(4.0, rel=0.03)
    thoughts = [request.think_time for request in requests if request.think_time is not None]
    assert len(thoughts) == 20_000 - num_starts
    assert np.median(thoughts) == pytest.approx(5.0, rel=0.03)
    assert np.log(thoughts).std() == pytest.approx(1.0, rel=0.03)
    assert geometric(np.random.default_rng(0), 1000, mean=4, high=3).max() == 3


def test_a_prompt_is_the_conversation_and_new_text():
    pairs = partial(independent, prompt=partial(fixed, length=10), output=partial(fixed, length=3))
    trace = chats(num_requests=7, lengths=pairs, num_turns=partial(fixed, length=3), arrivals=constant, rate=2.0)
    assert [(one.session_id, one.turn, one.num_prompt_tokens, one.arrival_time) for one in trace.requests] == [
        ("session-0", 1, 10, 0.0),
        ("session-0", 2, 23, 0.0),
        ("session-0", 3, 36, 0.0),
        ("session-1", 1, 10, 0.5),
        ("session-1", 2, 23, 0.5),
        ("session-1", 3, 36, 0.5),
        ("session-2", 1, 10, 1.0),
    ]
    TraceSource(trace.requests)
    short = chats(num_requests=7, lengths=pairs, num_turns=partial(fixed, length=3), max_prompt_tokens=30, rate=2.0)
    assert len(starts(short)) == 3
    assert short.dropped == {TOO_LONG: 2}


def test_every_rate_and_every_number_of_users_holds_the_same_conversations():
    slow, fast, loop = (
        chats(num_requests=50, **load) for load in ({"rate": 1.0}, {"rate": 8.0}, {"max_concurrency": 3})
    )
    for trace in (fast, loop):
        for one, other in zip(slow.requests, trace.requests, strict=True):
            assert (one.num_prompt_tokens, one.num_output_tokens) == (other.num_prompt_tokens, other.num_output_tokens)
            assert (one.session_id, one.turn, one.think_time) == (other.session_id, other.turn, other.think_time)
    assert mean_rate(fast) == pytest.approx(8.0)
    assert {one.arrival_time for one in loop.requests} == {0.0}
    assert chats(num_requests=50, rate=1.0, seed=1) != slow == chats(num_requests=50, rate=1.0)


def test_a_mean_below_one_is_refused():
    with pytest.raises(ValueError, match=r"mean=0\.5 is below 1"):
        geometric(np.random.default_rng(0), 10, mean=0.5)
