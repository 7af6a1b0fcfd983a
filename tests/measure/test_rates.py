"""Over the rates: means over seeds, saturation, and the highest rate within the SLOs."""

import math
from heapq import heappop, heappush

import numpy as np
import pandas as pd
import pytest

from framework.measure.metrics import (
    metric_names,
    sustained_throughput,
    waiting_growth,
)
from framework.measure.rates import MAX_GROWTH, MIN_REQUESTS, aggregate, highest_within, offered_at, saturation


def points(rows):
    """Rows of `arm, rate, seed, slo_attainment, sustained_throughput`; waiting grows by what is not served."""
    table = pd.DataFrame(rows, columns=["arm", "rate", "seed", "slo_attainment", "sustained_throughput"])
    for name in (*metric_names(), *(f"steady_{name}" for name in metric_names())):
        if name not in table:
            table[name] = 1.0
    growth = table["rate"] / table["sustained_throughput"] - 1
    return table.assign(offered_rate=table["rate"], waiting_growth=growth, num_completed=MIN_REQUESTS)


def waited(arrival_time, waiting):
    return pd.DataFrame({"arrival_time": arrival_time, "scheduled_time": arrival_time + waiting})


def test_waiting_grows_by_what_is_more_than_a_server_can_do():
    arrival_time = np.arange(12.0)
    assert waiting_growth(waited(arrival_time, 5.0)) == 0.0  # however long it is
    assert waiting_growth(waited(arrival_time, 0.5 * arrival_time)) == 0.5  # served 1.5 s apart
    assert waiting_growth(waited(arrival_time, 0.5 * arrival_time).iloc[::-1]) == 0.5
    assert waiting_growth(waited(np.zeros(12), arrival_time)) == math.inf


def test_sustained_throughput_leaves_out_warm_up_and_drain():
    finish_time = np.r_[0.0, 9.0 + np.arange(1, 10), 100.0]
    assert sustained_throughput(pd.DataFrame({"finish_time": finish_time})) == 1.0


def queue(arrival_time, duration, num_seats):
    """First come, first served: when each request takes its seat."""
    free, scheduled_time = [0.0] * num_seats, []
    for arrival, held in zip(arrival_time, duration, strict=True):
        scheduled_time.append(max(arrival, heappop(free)))
        heappush(free, scheduled_time[-1] + held)
    return waited(arrival_time, np.array(scheduled_time) - arrival_time)


def test_a_server_of_half_the_load_is_called_saturated_in_less_than_one_replay_of_a_hundred():
    rng, num_seats, num_saturated = np.random.default_rng(0), 4, dict.fromkeys((0.5, 2.0), 0)
    for load in num_saturated:
        for _ in range(500):
            arrival_time = rng.exponential(1 / (load * num_seats), size=MIN_REQUESTS).cumsum()
            requests = queue(arrival_time, rng.lognormal(-0.32, 0.8, size=MIN_REQUESTS), num_seats)  # of 1 s
            num_saturated[load] += waiting_growth(requests) > MAX_GROWTH
    assert num_saturated[0.5] < 5
    assert num_saturated[2.0] > 480


@pytest.mark.parametrize("num_seats", [4, 16])
def test_the_faster_arm_never_gets_the_lower_rate(num_seats):
    rng = np.random.default_rng(0)
    for _ in range(50):
        gaps = rng.exponential(size=MIN_REQUESTS)
        duration = rng.lognormal(-0.32, 0.8, size=MIN_REQUESTS)
        rows = []
        for rate in (0.5, 1.0, 2.0, 4.0, 8.0, 16.0):
            for arm, speed in (("slow", 1.0), ("fast", 1.5)):
                requests = queue(gaps.cumsum() / rate, duration / speed, num_seats)
                growth, met = waiting_growth(requests), (requests["scheduled_time"] - requests["arrival_time"] < 2.0)
                rows.append([arm, rate, rate, 0, met.mean(), growth, 1.0, MIN_REQUESTS])
        columns = [
            "arm",
            "rate",
            "offered_rate",
            "seed",
            "slo_attainment",
            "waiting_growth",
            "sustained_throughput",
            "num_completed",
        ]
        within = highest_within(pd.DataFrame(rows, columns=columns))
        assert within["fast"] >= within["slow"]


def test_highest_rate_within_and_saturation():
    table = points(
        [("a", 1.0, 0, 1.0, 1.0), ("a", 2.0, 0, 0.92, 1.96), ("a", 4.0, 0, 0.5, 2.5), ("b", 1.0, 0, 0.2, 0.5)]
    )
    assert highest_within(table, 0.9)["a"] == 2.0
    assert math.isnan(highest_within(table, 0.9)["b"])
    assert (
        highest_within(table, 0.4)["a"] == 2.0
    )  # at 4.0 it is saturated: the attainment would fall with a longer trace
    assert saturation(table)["a"] == 2.5
    assert saturation(table)["b"] == 0.5


def test_the_highest_rate_within_is_one_that_was_offered_not_the_one_that_was_asked_for():
    table = points([("a", 10.0, 0, 1.0, 10.0), ("a", 10.0, 1, 1.0, 10.0), ("a", 40.0, 0, 0.2, 11.0)])
    table["offered_rate"] = [8.0, 9.0, 60.0]
    assert highest_within(table)["a"] == 8.5
    assert aggregate(table)["offered_rate"].tolist() == [8.5, 60.0]
    assert offered_at(table, 10.0) == 8.5


def test_few_requests_have_no_verdict_unless_all_come_at_once():
    table = points([("a", 1.0, 0, 1.0, 1.0), ("a", 4.0, 0, 1.0, 2.5), ("a", math.inf, 0, 1.0, 2.6)])
    table["num_completed"] = MIN_REQUESTS - 1
    assert aggregate(table)["is_saturated"].tolist() == [pd.NA, pd.NA, True]
    assert math.isnan(highest_within(table)["a"])
    assert saturation(table)["a"] == 2.6


def test_it_is_the_highest_rate_whose_mean_over_seeds_is_at_least_the_target():
    """Attainment need not fall with every step of the rate, and nothing is interpolated between two of them."""
    attainments = {1.0: (1.0, 1.0), 2.0: (0.8, 0.8), 3.0: (0.875, 0.925), 4.0: (0.89, 0.9)}
    table = points(
        [("a", rate, seed, met, rate) for rate, seeds in attainments.items() for seed, met in enumerate(seeds)]
    )
    assert highest_within(table, 0.9)["a"] == 3.0
    assert highest_within(table, 0.89)["a"] == 4.0


def test_a_rate_is_saturated_or_not_by_the_mean_over_its_seeds():
    """Two seeds of three fall behind; the third alone would meet the target."""
    table = points([("a", 1.0, 0, 0.05, 0.5), ("a", 1.0, 1, 0.1, 0.6), ("a", 1.0, 2, 0.95, 1.0)])
    assert math.isnan(highest_within(table, 0.9)["a"])
    assert saturation(table)["a"] == pytest.approx(0.7)
    assert aggregate(table)["is_saturated"].tolist() == [True]


def test_saturation_is_unknown_where_every_rate_was_served():
    assert math.isnan(saturation(points([("a", 1.0, 0, 1.0, 0.98), ("a", 2.0, 0, 1.0, 1.9)]))["a"])


def test_aggregate_has_geometric_means_of_latencies_and_arithmetic_ones_of_shares():
    table = points([("a", 1.0, seed, share, 1.0) for seed, share in enumerate((0.9, 1.0, 1.0))])
    table["ttft_mean"] = [1.0, 2.0, 4.0]
    row = aggregate(table).iloc[0]
    factor = math.exp(4.302653 * math.log(2) / math.sqrt(3))  # Student's t of two degrees of freedom
    assert row["num_seeds"] == 3
    assert row["ttft_mean"] == pytest.approx(2.0)
    assert [row["ttft_mean_low"], row["ttft_mean_high"]] == pytest.approx([2.0 / factor, 2.0 * factor], rel=1e-5)
    assert row["slo_attainment"] == pytest.approx(2.9 / 3)
    assert 0.8 < row["slo_attainment_low"] < 0.9
    assert row["slo_attainment_high"] == 1.0


def test_aggregate_keeps_the_bootstrap_of_a_single_seed():
    table = points([("a", 1.0, 0, 1.0, 1.0)]).assign(ttft_mean_low=0.9, ttft_mean_high=1.2)
    row = aggregate(table).iloc[0]
    assert (row["ttft_mean_low"], row["ttft_mean_high"]) == (0.9, 1.2)
    assert math.isnan(row["output_throughput_low"])
