"""A shared queue: by hand, and against Erlang's C formula."""

from math import factorial

import pytest

from framework.router.shared_queue import shared_queue
from tests.clusters import make_servers, serve
from tests.fake_engine import requests_at
from tests.router.queues import exponential_requests, mean_delay
from tests.router.seen import SeenServer, State, see, sequence


def erlang_c(num_servers: int, load: float) -> float:
    """The probability to wait in M/M/N."""
    offered = num_servers * load
    waits = offered**num_servers / factorial(num_servers) / (1 - load)
    return waits / (waits + sum(offered**k / factorial(k) for k in range(num_servers)))


def test_a_request_waits_until_a_server_has_a_seat():
    servers = see(State(1, num_free_seats=0), State(1, num_free_seats=0))
    route = shared_queue(servers)
    assert route(sequence()) is None
    servers[1].state.num_free_seats = 1
    assert route(sequence()).index == 1


def test_requests_go_in_order_to_whoever_has_a_seat_first():
    servers = make_servers(2, step_times=[0.1, 0.25], max_num_seqs=1)
    sequences = serve(requests_at(*[(0.0, 4, 1)] * 6), servers, shared_queue(servers))
    assert [one.server for one in sequences] == [0, 1, 0, 0, 1, 0]
    assert [round(one.scheduled_time, 6) for one in sequences] == [0.0, 0.0, 0.1, 0.2, 0.25, 0.3]


def test_an_old_view_is_refused():
    with pytest.raises(ValueError, match=r"router=shared_queue .* view_delay=0.5 must be 0"):
        shared_queue([SeenServer(0, State(), view_delay=0.5)])


@pytest.mark.nightly
def test_it_is_one_queue_for_all_servers():
    delays = [mean_delay(exponential_requests(4, 0.7, 8000, seed), 4, shared_queue) for seed in range(6)]
    assert sum(delays) / 6 == pytest.approx(erlang_c(4, 0.7) / (4 * 0.3), rel=0.08)
