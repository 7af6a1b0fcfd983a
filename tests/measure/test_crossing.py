"""Where shares cross a target: the curve's own data give it back, and dependence widens the interval."""

from math import inf, log

import numpy as np
import pytest

from framework.measure.crossing import Crossing, fieller, find_crossing, mean_interval, sigmoid


def shares_at(rates, rng=None, num=200):
    odds = 10 * (1 - rates) + log(9)
    exact = sigmoid(odds)
    return exact if rng is None else rng.binomial(num, exact) / num


def crossing(rates, shares, clusters, num=200.0):
    return find_crossing(rates, shares, np.full(len(rates), num), np.asarray(clusters), 0.9)


def test_a_logistic_curve_crosses_where_it_does():
    rates = np.repeat([0.8, 0.95, 1.0, 1.1, 1.3], 5)
    found = crossing(rates, shares_at(rates), range(25))
    assert found.rate == pytest.approx(1.0, abs=1e-4)
    assert found.low == pytest.approx(1.0, abs=1e-3)
    assert found.width == pytest.approx(2 * log(3) / 10, rel=0.01)


def test_dependent_replications_widen_the_interval_and_count_for_fewer_requests():
    rates = np.repeat([0.8, 0.95, 1.0, 1.1, 1.3], 5)
    shares = shares_at(rates, np.random.default_rng(0))
    apart = crossing(rates, shares, range(25))
    assert apart.low < 1.0 < apart.high
    twice = crossing(np.tile(rates, 4), np.tile(shares, 4), np.tile(np.arange(25), 4))
    assert twice.high - twice.low == pytest.approx(apart.high - apart.low, rel=0.05)  # four times the same says no more
    as_new = crossing(np.tile(rates, 4), np.tile(shares, 4), np.arange(100))
    assert as_new.high - as_new.low < 0.6 * (apart.high - apart.low)
    assert twice.num_effective < 0.4 * as_new.num_effective


def test_shares_that_do_not_fall_cross_nowhere():
    rates = np.repeat([1.0, 2.0], 5)
    assert crossing(rates, np.repeat([0.5, 0.9], 5), range(10)).rate == Crossing().rate == inf


def test_an_uncertain_slope_leaves_an_end_open():
    assert fieller(1.0, -1.0, np.diag([0.01, 1.0]), 2.0) == (-inf, inf)
    low, high = fieller(1.0, -1.0, np.diag([0.01, 0.0]), 2.0)
    assert (low, high) == pytest.approx((0.8, 1.2))


def test_an_interval_of_the_mean():
    assert mean_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2.0, 2 - 2.484, 2 + 2.484), abs=1e-3)
