"""Intervals against known distributions, and of seeds by hand."""

import numpy as np
import pytest

from framework.measure import intervals
from framework.measure.intervals import (
    bootstrap_groups,
    bootstrap_pooled,
    bootstrap_statistics,
    estimate,
    gap_statistics,
    pooled_gaps,
    statistics,
)


def test_bootstrap_covers_the_mean_of_a_normal():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        low, high = bootstrap_statistics(rng.normal(5.0, 1.0, size=80))
        hits += low[0] <= 5.0 <= high[0]
    assert hits >= 50  # 95% nominal; fewer than 50 of 60 has a probability below 1e-4


def test_bootstrap_of_gaps_draws_whole_requests():
    """Gaps that are equal within a request: their interval is as wide as that of one value per request."""
    rng = np.random.default_rng(0)
    gap_of_request = rng.normal(1.0, 0.1, size=50)
    token_times = [np.arange(21) * gap for gap in gap_of_request]
    low, high = bootstrap_pooled(token_times)
    low_of_means, high_of_means = bootstrap_statistics(gap_of_request)
    assert high[0] - low[0] == pytest.approx(high_of_means[0] - low_of_means[0], rel=0.15)
    assert low[0] < np.mean(gap_of_request) < high[0]


def test_groups_of_requests_give_the_intervals_of_single_ones(monkeypatch):
    rng = np.random.default_rng(0)
    token_times = [
        np.cumsum(rng.lognormal(-4.0, 0.3, size)) * rng.lognormal(0.0, 0.2) for size in rng.geometric(1 / 30, 4000)
    ]
    one_by_one = np.array(bootstrap_pooled(token_times))
    monkeypatch.setattr(intervals, "MAX_GAPS", 50_000)
    in_groups = np.array(bootstrap_pooled(token_times))
    widths = one_by_one[1] - one_by_one[0]
    assert (np.abs(in_groups - one_by_one) < 0.25 * widths).all()
    assert (in_groups != one_by_one).all()


def test_groups_know_gaps_that_are_all_alike_and_requests_without_any():
    alike = [np.arange(5) * 0.25] * 10 + [np.array([1.0]), np.empty(0)]
    assert np.array(bootstrap_groups(alike)).ravel() == pytest.approx([0.25] * 10)


def random_times(rng, is_drifting):
    """Gaps that are often alike; where they drift, no sample of requests has their percentiles."""
    sizes = rng.geometric(1 / 20, 300)
    scales = np.linspace(1.0, 50.0, 300) ** 3 if is_drifting else np.ones(300)
    return [
        np.cumsum(np.round(rng.lognormal(-4.0, 1.0, size), 3) * scale)
        for size, scale in zip(sizes, scales, strict=True)
    ]


@pytest.mark.parametrize("is_drifting", [False, True])
@pytest.mark.parametrize("most", [1, 20, 500])
def test_percentiles_of_many_gaps_are_those_of_all_together(monkeypatch, is_drifting, most):
    for seed in range(10):
        token_times = random_times(np.random.default_rng(seed), is_drifting)
        expected = statistics(pooled_gaps(token_times))
        monkeypatch.setattr(intervals, "MAX_GAPS", most)
        found = gap_statistics([*token_times, np.empty(0), np.array([3.0])])
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        assert found[1:].tolist() == expected[1:].tolist()
    monkeypatch.setattr(intervals, "MAX_GAPS", 10**6)
    assert gap_statistics(token_times).tolist() == expected.tolist()
    assert np.isnan(gap_statistics([np.array([3.0])])).all()


def test_intervals_are_undefined_for_a_single_value():
    low, high = bootstrap_statistics(np.array([1.0]))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


@pytest.mark.parametrize("values", [[0.01, 0.4, 0.12], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 400.0]])
def test_of_positive_values_the_interval_is_positive_and_holds_the_mean(values):
    mean, low, high = estimate(np.array(values))
    assert mean == pytest.approx(np.prod(values) ** (1 / len(values)))
    assert 0 < low < mean < high
    assert high / mean == pytest.approx(mean / low)  # as far up as down, as a factor
    inverse = estimate(1 / np.array(values))
    assert inverse == pytest.approx((1 / mean, 1 / high, 1 / low))


def test_intervals_over_seeds_cover_the_mean_of_a_lognormal():
    rng = np.random.default_rng(0)
    draws = [estimate(np.exp(rng.normal(0.0, 1.0, size=3))) for _ in range(200)]
    assert 180 <= sum(low <= 1.0 <= high for _, low, high in draws) <= 199


def test_a_zero_has_no_logarithm_and_a_share_ends_at_one():
    mean, low, high = estimate(np.array([0.0, 1.0, 5.0]))
    assert (mean, low) == (2.0, 0.0)
    assert high == pytest.approx(2.0 + 4.302653 * np.sqrt(7 / 3), rel=1e-5)
    assert estimate(np.array([0.2, 1.0]), is_share=True) == (0.6, 0.0, 1.0)
    assert estimate(np.zeros(3)) == (0.0, 0.0, 0.0)


def test_one_value_is_its_own_mean_without_an_interval():
    mean, *bounds = estimate(np.array([3.0]))
    assert mean == 3.0
    assert np.isnan(bounds).all()
    assert np.isnan(estimate(np.array([]))).all()
