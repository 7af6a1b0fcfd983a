"""Random routing: N servers are N queues of their own (M/M/1), and a seed repeats it."""

import pytest

from framework.router.random import random
from tests.router.queues import exponential_requests, mean_delay
from tests.router.seen import State, see, sequence


def names(seed, num):
    route = random(see(*[State()] * 4), seed=seed)
    return [route(sequence()).index for _ in range(num)]


def test_every_server_is_as_likely():
    counts = [names(0, 4000).count(index) for index in range(4)]
    assert all(900 < count < 1100 for count in counts)


def test_a_seed_repeats_it():
    assert names(1, 50) == names(1, 50) != names(2, 50)


@pytest.mark.nightly
def test_servers_are_queues_of_their_own():
    """M/M/1 at 60% load: a request waits 1.5 service times on average."""
    delays = [mean_delay(exponential_requests(4, 0.6, 8000, seed), 4, random) for seed in range(6)]
    assert sum(delays) / 6 == pytest.approx(1.5, rel=0.06)
