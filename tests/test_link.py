"""What a copy over a link takes."""

import random

import pytest

from framework.link import Link, Traffic


def test_copies_queue_at_the_sender_and_at_the_receiver():
    traffic = Traffic(Link(bandwidth=10.0))
    assert traffic.carry(0, 1, 20, 1.0) == (1.0, 3.0)
    assert traffic.carry(0, 2, 10, 1.5) == (3.0, 4.0)  # the same sender
    assert traffic.carry(3, 1, 10, 1.5) == (3.0, 4.0)  # the same receiver
    assert traffic.carry(1, 0, 10, 1.5) == (1.5, 2.5)  # the other way
    assert traffic.carry(3, 0, 10, 9.0) == (9.0, 10.0)


@pytest.mark.parametrize("bandwidth", [0, 0.0, -1.0, float("inf"), float("nan"), "fast"])
def test_a_link_of_no_bandwidth_is_refused(bandwidth):
    with pytest.raises(ValueError, match=r"link\.bandwidth=.* is not a finite number above 0"):
        Link(bandwidth=bandwidth)


def test_other_values_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"link\.latency=-1 is not a finite number of at least 0"):
        Link(bandwidth=1.0, latency=-1)
    for slow in ({"bandwidth": 0.5}, {"bandwidth": 1.0, "latency": 4000.0}):
        with pytest.raises(ValueError, match=r"give at least 1 byte/s, and at most 3600 s"):
            Link(**slow)
    with pytest.raises(ValueError, match=r"link\.copy='early' is not one of at_end, layer_by_layer"):
        Link(bandwidth=1.0, copy="early")


@pytest.mark.parametrize("utilization", [0.3, 0.7])
def test_waiting_for_a_link_agrees_with_pollaczek_khinchine(utilization):
    """Copies that take 1 s become ready as a Poisson process: M/D/1."""
    rng, traffic, now, waits = random.Random(0), Traffic(Link(bandwidth=8.0)), 0.0, []
    for _ in range(60_000):
        now += rng.expovariate(utilization)
        waits.append(traffic.carry(0, 1, 8, now)[0] - now)
    assert sum(waits) / len(waits) == pytest.approx(utilization / (2 * (1 - utilization)), rel=0.05)
