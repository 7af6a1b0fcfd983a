"""Requests arrive at their own times or after the answer before, and no more sessions than allowed are in progress."""

from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.core import Request
from framework.replay import Server, replay
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.source import TraceSource
from tests.fake_engine import FakeEngine, requests_at


def test_every_request_arrives_at_its_own_time_and_none_follows():
    requests = requests_at((0.0, 4, 1), (0.5, 2, 3))
    source = TraceSource(requests)
    assert source.requests == requests
    first, second = source.begin()
    assert [first.request, second.request] == requests
    assert [first.arrival_time, second.arrival_time] == [0.0, 0.5]
    assert list(source.follow(first, 1.0)) == []


def session(name, start, *turns, first_id=0):
    """(num_prompt_tokens, num_output_tokens, think_time) of each turn."""
    return [
        Request(first_id + index, start, *lengths, session_id=name, turn=index + 1, think_time=think_time)
        for index, (*lengths, think_time) in enumerate(turns)
    ]


def serve(requests, max_concurrency=None, **options):
    """Request id, when it arrived, how long its prompt was, and when its last token came; a step takes 0.125 s."""
    engine = FakeEngine(lambda batch: 0.125)
    server = Server(ContinuousScheduler(1000, 4, **options), engine)
    sequences = replay(TraceSource(requests, max_concurrency), [server], lambda sequence: server)
    events = [
        (one.request.request_id, one.arrival_time, one.request.num_prompt_tokens, one.token_times[-1])
        for one in sequences
    ]
    return events, engine.batches


def test_a_turn_arrives_its_think_time_after_the_last_token_before_it():
    requests = session("a", 0.0, (4, 2, None), (8, 1, 0.5), (12, 3, 0.0))
    events, batches = serve(requests)
    assert events == [(0, 0.0, 4, 0.25), (1, 0.75, 8, 0.875), (2, 0.875, 12, 1.25)]
    prefill, decode = "prefill", "decode"
    assert batches == [(prefill, [0]), (decode, [0]), (prefill, [1]), (prefill, [2]), (decode, [2]), (decode, [2])]


def test_an_answer_that_ends_early_makes_the_next_prompt_shorter():
    """The fake engine answers 0, 1, 2, …: the first turn has two tokens instead of five."""
    first, second = session("a", 0.0, (4, 5, None), (12, 1, 0.0))
    text = {"stop_token_ids": frozenset({1}), "prompt_token_ids": (9, 9, 9, 9)}
    text_of_second = (9, 9, 9, 9, 0, 1, 2, 3, 4, 6, 7, 8)
    requests = [replace(first, **text), replace(second, prompt_token_ids=text_of_second)]
    source = TraceSource(requests)
    (sequence,) = source.begin()
    assert not sequence.append(0, 1.0)
    assert sequence.append(1, 2.0)
    (following,) = source.follow(sequence, 2.0)
    assert following.request.prompt_token_ids == (9, 9, 9, 9, 0, 1, 6, 7, 8)
    assert (following.request.num_prompt_tokens, following.num_history_tokens, following.previous) == (9, 6, sequence)
    assert [event[2] for event in serve(requests)[0]] == [4, 9]


def test_a_turn_that_comes_at_once_is_part_of_the_next_step_beside_others():
    requests = [*session("a", 0.0, (4, 1, None), (8, 2, 0.0)), Request(9, 0.0, 4, 4)]
    events, batches = serve(requests, max_num_seqs=2)
    assert batches == [("prefill", [0, 9]), ("prefill", [1]), ("decode", [9, 1]), ("decode", [9]), ("decode", [9])]
    assert events == [(0, 0.0, 4, 0.125), (9, 0.0, 4, 0.625), (1, 0.125, 8, 0.375)]


def test_no_more_sessions_than_allowed_are_in_progress():
    """A session keeps its place while its user thinks; a request without a session is one of its own."""
    requests = [
        *session("a", 0.0, (4, 1, None), (8, 1, 1.0)),
        Request(5, 0.0, 4, 2),
        *session("b", 0.5, (4, 1, None), (8, 1, 1.0), first_id=10),
        Request(7, 3.0, 4, 1),
    ]
    events, _ = serve(requests, max_concurrency=1)
    assert [event[:2] for event in events] == [(0, 0.0), (1, 1.125), (5, 1.25), (10, 1.5), (11, 2.625), (7, 3.0)]
    events, _ = serve(requests, max_concurrency=2)
    assert [event[:2] for event in events] == [(0, 0.0), (5, 0.0), (10, 0.5), (1, 1.125), (11, 1.625), (7, 3.0)]


def test_a_turn_without_the_one_before_it_is_refused():
    with pytest.raises(ValueError, match=r"request 1, turn 2 of session 'a', has a think time, and there is no turn b"):
        TraceSource(session("a", 0.0, (4, 1, None), (8, 1, 1.0))[1:])


class Forgetful(ContinuousScheduler):
    """Never schedules a second turn."""

    def add(self, sequence):
        if sequence.previous is None:
            super().add(sequence)


def test_a_session_that_never_ends_is_an_error_that_names_it():
    server = Server(Forgetful(1000, 4), FakeEngine())
    requests = session("a", 0.0, (4, 1, None), (8, 1, 1.0))
    with pytest.raises(RuntimeError, match=r"request 1, turn 2 of session 'a', is lost: the scheduler of server 0"):
        replay(TraceSource(requests, 1), [server], lambda sequence: server)


@settings(max_examples=30, deadline=None)
@given(
    sessions=st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 2.0]), st.lists(st.sampled_from([0.0, 0.1, 1.0]), max_size=3)), max_size=8
    ),
    max_concurrency=st.sampled_from([None, 1, 2, 5]),
    num_seqs=st.integers(1, 3),
)
def test_turns_follow_in_order_and_no_more_sessions_than_allowed_are_in_progress(sessions, max_concurrency, num_seqs):
    requests: list[Request] = []
    start = 0.0
    for gap, think_times in sessions:
        start += gap
        turns = [(4 + 6 * index, 2, think_time) for index, think_time in enumerate([None, *think_times])]
        requests += session(f"s{len(requests)}", start, *turns, first_id=len(requests))
    server = Server(ContinuousScheduler(1000, 4, max_num_seqs=num_seqs), FakeEngine(lambda batch: 0.125))
    sequences = replay(TraceSource(requests, max_concurrency), [server], lambda sequence: server) if requests else []
    assert sorted(one.request.request_id for one in sequences) == list(range(len(requests)))
    assert [one.arrival_time for one in sequences] == sorted(one.arrival_time for one in sequences)
    spans: dict[str, list[float]] = {}
    for one in sequences:
        if one.request.turn > 1:
            assert one.arrival_time == one.previous.token_times[-1] + one.request.think_time
            assert one.previous.request.turn == one.request.turn - 1
        else:
            assert one.arrival_time >= one.request.arrival_time
            assert max_concurrency is not None or one.arrival_time == one.request.arrival_time
        spans.setdefault(one.request.session_id, []).extend([one.arrival_time, one.token_times[-1]])
    for begin in [min(times) for times in spans.values()]:
        in_progress = sum(min(times) <= begin < max(times) for times in spans.values())
        assert max_concurrency is None or in_progress <= max_concurrency


@pytest.mark.parametrize("has_text", [False, True])
def test_compact_answers_are_found_in_a_prefix_cache_as_others_are(has_text):
    turns = session("a", 0.0, (4, 6, None), (14, 6, 0.5), (24, 2, 0.5)) + session("b", 0.0, (5, 3, None), first_id=3)
    if has_text:
        turns = [replace(turn, prompt_token_ids=tuple(range(turn.num_prompt_tokens))) for turn in turns]
    plain, compact = (with_prefix_cache(TraceSource(turns, compacts=compacts)) for compacts in (False, True))
    found = [[one.num_cached_tokens for one in sequences] for sequences in (plain, compact)]
    assert found[0] == found[1]
    assert max(found[0]) == 16  # the second turn and most of its answer
    assert [one.output_token_ids for one in plain] == [list(one.output_token_ids) for one in compact]
    assert [one.token_times for one in plain] == [list(one.token_times) for one in compact]
    assert isinstance(compact[0].output_token_ids, array)


def with_prefix_cache(source):
    server = Server(ContinuousScheduler(1000, 4, prefix_cache="lru"), FakeEngine(lambda batch: 0.125))
    return replay(source, [server], lambda sequence: server)
