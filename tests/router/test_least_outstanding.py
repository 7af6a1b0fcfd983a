"""Least outstanding: by hand, with servers of different speed, and between a shared queue and two choices."""

import pytest

from framework.router.least_outstanding import least_outstanding
from framework.router.power_of_two import power_of_two
from framework.router.random import random
from framework.router.shared_queue import shared_queue
from tests.clusters import make_servers, serve
from tests.fake_engine import requests_at
from tests.router.queues import exponential_requests, mean_delay
from tests.router.seen import State, see, sequence


def test_the_server_with_the_fewest_requests_is_named():
    servers = see(State(3), State(1), State(2))
    route = least_outstanding(servers)
    assert route(sequence()).index == 1
    servers[1].state.num_unfinished = 4
    assert route(sequence()).index == 2


def test_a_slow_server_gets_less():
    servers = make_servers(2, step_times=[0.1, 1.0])
    requests = requests_at(*[(0.25 * index, 4, 2) for index in range(12)])
    sequences = serve(requests, servers, least_outstanding(servers))
    assert [one.server for one in sequences] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.nightly
def test_the_more_a_router_knows_the_shorter_the_wait():
    jobs = exponential_requests(8, 0.8, 8000, 0)
    routers = [random, power_of_two, least_outstanding, shared_queue]
    delays = [mean_delay(jobs, 8, router) for router in routers]
    assert delays == sorted(delays, reverse=True)
    assert delays[1] < delays[0] / 2
