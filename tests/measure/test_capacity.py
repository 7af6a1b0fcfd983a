"""Capacities of queues whose truth is known, found by the search as it is."""

from math import exp, factorial, log

import numpy as np
import pytest

from framework.measure.capacity import (
    Probe,
    Replication,
    Search,
    estimate,
    least_requests,
    next_rate,
    search_capacity,
)
from framework.measure.slo import Goal


def queue(rate, seed, limit, num_requests, is_random):
    """One server, Poisson arrivals, service of 1 s on average, or always: the share that stays up to `limit`."""
    rng = np.random.default_rng(seed)
    arrival = rng.exponential(1 / rate, num_requests).cumsum()
    service = rng.exponential(1.0, num_requests) if is_random else np.ones(num_requests)
    walk = np.concatenate([[0.0], np.cumsum(service[:-1] - np.diff(arrival))])
    waiting = walk - np.minimum.accumulate(walk)
    third = num_requests // 3
    elapsed = arrival[-third:].mean() - arrival[:third].mean()
    counted = arrival >= 0.2 * arrival[-1]
    share = float((waiting + service <= limit)[counted].mean())
    growth = (waiting[-third:].mean() - waiting[:third].mean()) / elapsed
    return Replication(rate, seed, (share,), int(counted.sum()), growth)


def search(run, limit, share, num_requests, is_random, **keywords):
    def measure(rate, num_before):
        first = 100_000 * run + 5 * num_before
        return [queue(rate, first + index, limit, num_requests, is_random) for index in range(5)]

    return search_capacity(measure, [Goal("stay", (("e2e", limit),), share)], (0.5, 1.0), Search(**keywords))


def capacity_of_mm1(limit, share):
    """A stay is exponential with rate 1 − λ."""
    return 1 + log(1 - share) / limit


def capacity_of_md1(limit, share):
    """Erlang's series for the waiting time of M/D/1, where it is the share."""

    def waits_less(rate):
        terms = range(int(limit - 1) + 1)
        return (1 - rate) * sum(
            (rate * (k - limit + 1)) ** k / factorial(k) * exp(-rate * (k - limit + 1)) for k in terms
        )

    low, high = 0.01, 0.99
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if waits_less(middle) >= share else (low, middle)
    return low


CASES = {
    "M/M/1": ((10, 0.9, 1000, True), capacity_of_mm1(10, 0.9)),
    "M/D/1": ((6, 0.99, 1000, False), capacity_of_md1(6, 0.99)),
}


def num_held(case, runs):
    arguments, truth = CASES[case]
    found = [search(run, *arguments)[0] for run in runs]
    return sum(not capacity.problem and capacity.low <= truth <= capacity.high for capacity in found)


@pytest.mark.parametrize("case", CASES)
def test_intervals_hold_the_capacity_of_a_queue_that_has_a_closed_form(case):
    assert num_held(case, range(12)) >= 10


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES)
def test_nine_of_ten_intervals_hold_the_capacity(case):
    assert num_held(case, range(200)) >= 180


def test_a_search_ends_within_the_tolerance_or_after_its_probes():
    found, probes = search(0, 10, 0.9, 2000, True, tolerance=0.05)
    assert found.is_within(0.05)
    assert found.shape == "smooth"
    assert found.num_effective > least_requests(0.9)
    found, probes = search(0, 10, 0.9, 300, True, max_probes=5)
    assert sum(len(probe.replications) for probe in probes) == 25
    assert not found.is_within(0.025)


@pytest.mark.parametrize("limit", [30, 100, 1e9])
def test_a_saturated_server_whose_replay_was_too_short_is_not_called_capable(limit):
    """A stay of the limit would take longer than the replays: all requests are within it at rates far above 1."""
    for run in range(4):
        found, probes = search(run, limit, 0.9, 400, True)
        assert found.problem or found.low < 1
        assert not any(probe.verdict == "met" for probe in probes if probe.rate > 1.1)
    assert any(probe.is_saturated for probe in probes)


def probe(rate, shares, growth=0.0, num_requests=400, target=0.9):
    wobble = (-0.002, -0.001, 0.0, 0.001, 0.002)
    ones = [
        Replication(rate, index + int(1000 * rate), (share,), num_requests, growth + change)
        for index, (share, change) in enumerate(zip(shares, wobble, strict=True))
    ]
    return Probe(rate, tuple(ones), (Goal("all", (("ttft", 1.0),), target),))


def test_what_a_probe_shows():
    assert probe(1, [1.0] * 5).verdict == "met"
    assert probe(1, [0.99, 0.98, 0.97, 0.98, 0.99]).verdict == "met"
    assert probe(1, [0.6, 0.7, 0.8, 0.7, 0.6]).verdict == "not met"
    assert probe(1, [0.8, 0.99, 0.9, 0.95, 0.99]).verdict == "undecided"
    assert probe(1, [1.0] * 5, growth=0.2).verdict == "saturated"
    assert (
        probe(1, [1.0] * 5, num_requests=50, target=0.99).verdict == "undecided"
    )  # of 299 that P99 needs there are 250
    assert [least_requests(share) for share in (0.9, 0.95, 0.99)] == [29, 59, 299]


def test_requests_that_depend_on_each_other_count_for_fewer():
    spread, close = [0.8, 1.0, 0.9, 0.7, 1.0], [0.88, 0.9, 0.89, 0.91, 0.9]
    assert probe(1, spread).num_effective(0) < 0.05 * probe(1, close).num_effective(0)


def test_a_cliff_a_bracket_and_what_has_no_single_number():
    cliff = [probe(1.0, [1.0] * 5), probe(1.02, [1.0] * 5), probe(1.04, [0.0] * 5)]
    found = estimate(cliff)
    assert (found.low, found.high, found.shape) == (1.02, 1.04, "cliff")
    twice = [probe(1.0, [0.5] * 5), probe(2.0, [1.0] * 5), probe(3.0, [0.4] * 5)]
    assert estimate(twice).shape == "not monotonic"
    assert estimate(twice).problem
    assert next_rate(twice, (1.0, 2.0), Search(), 3) is None
    assert "below" in estimate(twice[:1]).problem
    assert "above" in estimate(cliff[:2]).problem
    level = [probe(1.0, [0.95, 0.9, 0.97, 0.85, 0.93]), probe(1.1, [0.9, 0.7, 0.97, 0.99, 0.8])]
    assert "may as well not fall" in estimate(level).problem


def test_where_the_first_probes_are():
    assert next_rate([], (4.0, 6.0), Search(), 0) == 4.0
    assert next_rate([probe(4.0, [1.0] * 5)], (4.0, 6.0), Search(), 1) == 6.0
    assert next_rate([probe(4.0, [1.0] * 5), probe(6.0, [1.0] * 5)], (4.0, 6.0), Search(), 2) == 7.8
    assert next_rate([probe(4.0, [0.1] * 5)], (4.0, 6.0), Search(), 1) == 2.667
    assert next_rate([probe(4.0, [0.1] * 5)], (400.0, 600.0), Search(), 1) is None


def test_fewer_than_five_replications_are_refused():
    with pytest.raises(ValueError, match=r"^num_seeds=4 is not"):
        Search(num_seeds=4)
