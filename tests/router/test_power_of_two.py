"""Power of two choices: never the busier of the two, and Mitzenmacher's tail."""

import pytest

from framework.router.power_of_two import power_of_two
from tests.router.queues import exponential_requests, mean_delay
from tests.router.seen import State, see, sequence


def test_the_busiest_of_three_is_never_named():
    servers = see(State(1), State(9), State(2))
    route = power_of_two(servers)
    names = [route(sequence()).index for _ in range(300)]
    assert names.count(1) == 0
    assert 150 < names.count(0) < 250


def test_one_server_is_a_choice_too():
    assert power_of_two(see(State()))(sequence()).index == 0


@pytest.mark.nightly
def test_the_mean_wait_is_that_of_many_servers():
    """With load x, a request's mean time in the system is the sum of x^((2^i - 2)) over i ≥ 1 as N grows."""
    load = 0.8
    expected = sum(load ** (2**i - 2) for i in range(1, 12)) - 1
    delays = [mean_delay(exponential_requests(40, load, 12000, seed), 40, power_of_two) for seed in range(2)]
    assert sum(delays) / 2 == pytest.approx(expected, rel=0.08)
