"""Clients: by a law, and with a process each."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from framework.core import Trace
from framework.trace.arrivals import constant, on_off
from framework.trace.clients import OVER_LIMIT, assign_clients, of_clients, refusing
from framework.trace.files import read_table
from framework.trace.lengths import fixed, independent
from framework.trace.multi_turn import multi_turn
from framework.trace.popularity import round_robin
from framework.trace.recorded import recorded
from framework.trace.synthetic import synthetic


def sends(output=4, arrivals=constant, **options):
    lengths = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=output))
    return partial(synthetic, arrivals=arrivals, lengths=lengths, **options)


TWO = {"light": {"share": 1, "trace": sends()}, "heavy": {"share": 2.0, "trace": sends(output=9)}}
BURSTY = {"share": 1, "trace": sends(arrivals=partial(on_off, on_duration=1.0, off_duration=1.0))}


def times_of(trace, client):
    return [request.arrival_time for request in trace.requests if request.client_id == client]


def test_each_client_sends_its_share_of_the_rate_and_of_the_requests():
    trace = of_clients(clients=TWO, num_requests=30, rate=3.0)
    assert times_of(trace, "light") == pytest.approx([float(index) for index in range(10)])
    assert times_of(trace, "heavy") == pytest.approx([index / 2 for index in range(20)])
    assert [request.request_id for request in trace.requests] == list(range(30))
    assert {request.client_id: request.num_output_tokens for request in trace.requests} == {"light": 4, "heavy": 9}
    times = [request.arrival_time for request in trace.requests]
    assert times == sorted(times)


def test_lengths_are_clipped_for_all():
    trace = of_clients(clients=TWO, num_requests=30, rate=3.0, max_prompt_tokens=5, max_output_tokens=6)
    assert {(one.num_prompt_tokens, one.num_output_tokens) for one in trace.requests} == {(5, 4), (5, 6)}


def test_a_client_may_have_phases_of_its_own():
    trace = of_clients(clients={"steady": TWO["light"], "bursty": BURSTY}, num_requests=80, rate=4.0)
    steady, bursty = (np.diff(times_of(trace, client)) for client in ("steady", "bursty"))
    assert steady == pytest.approx(0.5)
    assert bursty.max() > 1.0
    assert bursty.mean() == pytest.approx(0.5, rel=0.01)


def test_clients_draw_from_seeds_of_their_own():
    clients = dict.fromkeys("ab", BURSTY)
    first, second = (of_clients(clients=clients, num_requests=20, rate=4.0, seed=seed) for seed in (0, 1))
    drawn = [times_of(trace, client) for trace in (first, second) for client in "ab"]
    assert len({tuple(times) for times in drawn}) == 4
    assert of_clients(clients=clients, num_requests=20, rate=4.0, seed=1) == second


def test_sessions_of_different_clients_are_different_ones():
    conversations = partial(
        multi_turn,
        arrivals=constant,
        lengths=sends().keywords["lengths"],
        num_turns=partial(fixed, length=2),
        think_times=lambda rng, number: np.ones(number),
    )
    clients = {name: {"share": 1, "trace": conversations} for name in "ab"}
    trace = of_clients(clients=clients, num_requests=8, rate=1.0)
    sessions = {(request.client_id, request.session_id) for request in trace.requests}
    assert len(sessions) == len({session for _, session in sessions}) == 4
    for before, turn in zip(trace.requests[::2], trace.requests[1::2], strict=True):
        assert (turn.session_id, turn.turn, turn.client_id) == (before.session_id, 2, before.client_id)


def test_what_a_client_leaves_out_is_told():
    def of_a_file(*, num_requests, rate, seed):
        trace = sends()(num_requests=num_requests, rate=rate, seed=seed)
        return replace(trace, dropped={"failed": 2}, unread=("Model",))

    clients = {name: {"share": 1, "trace": of_a_file} for name in "ab"}
    trace = of_clients(clients=clients, num_requests=8, rate=1.0)
    assert (trace.dropped, trace.unread) == ({"failed": 4}, ("Model",))


@pytest.mark.parametrize(
    ("clients", "problem"),
    [
        ({}, "trace.clients is empty"),
        ({"a": {"share": 0, "trace": sends()}}, "trace.clients.a.share=0 is not a finite number above 0"),
        (
            TWO | {"rare": {"share": 0.01, "trace": sends()}},
            "share=0.01 of 30 requests is none",
        ),
        (
            {"a": {"share": 1, "trace": sends(max_concurrency=3)}},
            "trace.max_concurrency=3: leave it null",
        ),
    ],
)
def test_what_makes_no_trace_is_refused(clients, problem):
    with pytest.raises(ValueError, match=problem):
        of_clients(clients=clients, num_requests=30, rate=3.0)


def test_a_law_gives_any_trace_clients_and_changes_nothing_else():
    law = partial(round_robin, num_adapters=2)
    make = partial(recorded, reader=read_table, path="traces/sample.csv", num_requests=6)
    given, plain = make(clients=law), make()
    assert [request.client_id for request in given.requests] == ["client-0", "client-1"] * 3
    assert [replace(request, client_id=None) for request in given.requests] == plain.requests
    drawn = sends(clients=law)(num_requests=6, rate=2.0).requests
    assert [replace(request, client_id=None) for request in drawn] == sends()(num_requests=6, rate=2.0).requests
    assert assign_clients(plain, None, np.random.default_rng(0)) is plain


def test_an_empty_law_is_none():
    assert assign_clients(Trace([]), None, np.random.default_rng(0)) == Trace([])


def test_a_limit_takes_the_first_of_each_client_in_any_window():
    """Of 0 … 9 s a third is 3 s: the heavy client's requests are 0.5 s apart, the light one's 1 s."""
    trace = partial(of_clients, clients=TWO, num_requests=30)
    taken = refusing(trace=trace, limit=2, window=1 / 3, rate=3.0)
    span = trace(rate=3.0).requests[-1].arrival_time / 3
    for client, gap in (("light", 1.0), ("heavy", 0.5)):
        times = times_of(taken, client)
        assert times[:2] == pytest.approx([0.0, gap])
        assert min(np.subtract(times[2:], times[:-2])) > span
    assert taken.dropped == {OVER_LIMIT: 30 - len(taken.requests)}
    faster = refusing(trace=trace, limit=2, window=1 / 3, rate=300.0)
    assert [one.request_id for one in faster.requests] == [one.request_id for one in taken.requests]


def test_a_limit_needs_to_know_when_requests_come():
    with pytest.raises(ValueError, match=r"trace\.limit needs to know when requests come"):
        refusing(trace=sends(num_requests=4, max_concurrency=1), limit=2, window=0.5)
