"""Every metric on three requests worked out by hand, then what many of them say over rates and seeds."""

import math

import numpy as np
import pandas as pd
import pytest

from framework.core import Request, Sequence, Step
from framework.metrics import (
    aggregate,
    capacity,
    meets_slo,
    metric_names,
    request_table,
    saturation,
    step_table,
    summarize,
    sustained_rates,
)


def sequence(request_id, arrival_time, num_prompt_tokens, token_times, num_preemptions=0, scheduled_time=None):
    result = Sequence(Request(request_id, arrival_time, num_prompt_tokens, len(token_times)))
    result.scheduled_time = arrival_time if scheduled_time is None else scheduled_time
    for time in token_times:
        result.append(7, time)
    result.num_preemptions = num_preemptions
    return result


SEQUENCES = [
    sequence(0, 0.0, 100, [1.0, 1.5, 3.0]),  # ttft 1, tpot 1, gaps 0.5 and 1.5, e2e 3, normalized 1
    sequence(1, 1.0, 50, [4.0], scheduled_time=2.0),  # a one-token output: ttft 3 = e2e, no tpot, no gaps, normalized 3
    sequence(2, 2.0, 10, [4.0, 6.0, 6.5, 10.0], num_preemptions=2),  # ttft 2, tpot 2, e2e 8, normalized 2; preempted
]
STEPS = [
    Step(0.0, 1.0, "prefill", 1, 100, 0, 7, 0, 0, 0, 1.0),
    Step(1.0, 3.0, "decode", 3, 0, 3, 7, 0, 0, 0, 3.0),
]


def test_request_table():
    table = request_table(SEQUENCES)
    assert table["ttft"].tolist() == [1.0, 3.0, 2.0]
    assert table["e2e"].tolist() == [3.0, 3.0, 8.0]
    assert table["tpot"].tolist()[::2] == [1.0, 2.0]
    assert math.isnan(table["tpot"][1])
    assert table["normalized_latency"].tolist() == [1.0, 3.0, 2.0]
    assert table["num_preemptions"].tolist() == [0, 0, 2]
    assert table["scheduled_time"].tolist() == [0.0, 2.0, 2.0]


def test_whole_run():
    numbers = summarize(request_table(SEQUENCES), step_table(STEPS), {"ttft": 2.0, "tpot": 1.0})
    assert numbers["num_requests"] == numbers["num_completed"] == 3
    assert numbers["duration_s"] == 10.0  # first arrival 0 → last completion 10
    assert numbers["request_throughput"] == 0.3
    assert numbers["output_throughput"] == 0.8
    assert numbers["total_throughput"] == (8 + 160) / 10
    assert numbers["ttft_mean"] == 2.0
    assert numbers["ttft_p50"] == 2.0
    assert numbers["ttft_p90"] == pytest.approx(2.8)
    assert numbers["tpot_mean"] == 1.5  # over two requests: the third has none
    assert numbers["itl_mean"] == pytest.approx((0.5 + 1.5 + 2.0 + 0.5 + 3.5) / 5)
    assert numbers["itl_p50"] == 1.5
    assert numbers["e2e_p99"] == pytest.approx(3 + 0.98 * 5)
    assert numbers["normalized_latency_mean"] == 2.0
    assert numbers["normalized_latency_p50"] == 2.0
    assert numbers["slo_attainment"] == pytest.approx(1 / 3)  # 1 misses TTFT; 2 misses TPOT
    assert numbers["goodput"] == 0.1
    assert 0.0 <= numbers["slo_attainment_low"] < 1 / 3 < numbers["slo_attainment_high"] <= 1.0
    assert numbers["mean_batch_size"] == (1 * 1 + 3 * 3) / 4
    assert numbers["num_preemptions"] == 2


def test_steady_window_is_between_warm_up_and_last_arrival():
    numbers = summarize(request_table(SEQUENCES), step_table(STEPS), {"ttft": 2.0}, warmup_fraction=0.25)
    assert numbers["steady_duration_s"] == 1.5  # 0.5 … 2.0
    assert numbers["steady_output_throughput"] == pytest.approx(2 / 1.5)  # the tokens at 1.0 and 1.5
    assert numbers["steady_total_throughput"] == pytest.approx(102 / 1.5)  # and the prompt whose first token is at 1.0
    assert numbers["steady_request_throughput"] == 0.0  # nothing completes in it
    assert numbers["steady_ttft_mean"] == 2.5  # of the two that arrive in it
    assert numbers["steady_slo_attainment"] == 0.5
    assert numbers["steady_mean_batch_size"] == 3.0


def test_all_at_once_has_no_steady_window():
    at_once = [sequence(0, 0.0, 1, [1.0]), sequence(1, 0.0, 1, [2.0])]
    numbers = summarize(request_table(at_once), step_table(STEPS), {})
    assert math.isnan(numbers["steady_output_throughput"])
    assert numbers["output_throughput"] == 1.0
    assert numbers["slo_attainment"] == 1.0
    assert math.isnan(numbers["tpot_mean"])


def test_summary_has_every_column():
    numbers = summarize(request_table(SEQUENCES), step_table(STEPS), {})
    assert set(metric_names()) <= set(numbers)
    assert {f"steady_{name}" for name in metric_names()} <= set(numbers)


def test_slo_errors_name_the_metric_and_the_allowed():
    with pytest.raises(ValueError, match=r"unknown SLO metric 'tbt'; allowed: ttft, tpot, e2e, normalized_latency"):
        summarize(request_table(SEQUENCES), step_table(STEPS), {"tbt": 1.0})
    with pytest.raises(ValueError, match="SLO for ttft must be a positive"):
        summarize(request_table(SEQUENCES), step_table(STEPS), {"ttft": 0.0})


def test_an_undefined_tpot_breaks_no_limit():
    assert meets_slo(request_table(SEQUENCES), {"tpot": 1.5}).tolist() == [True, True, False]


def points(rows):
    table = pd.DataFrame(rows, columns=["arm", "rate", "seed", "slo_attainment", "sustained_throughput"])
    for name in (*metric_names(), *(f"steady_{name}" for name in metric_names())):
        if name not in table:
            table[name] = 1.0
    return table.assign(offered_rate=table["rate"], sustained_arrival_rate=table["rate"])


def test_sustained_rates_leave_out_warm_up_and_drain():
    """Eleven requests one second apart, each done 30 s after it came."""
    requests = pd.DataFrame({"arrival_time": np.arange(11.0), "finish_time": np.arange(11.0) + 30.0})
    rates = sustained_rates(requests)
    assert rates["sustained_arrival_rate"] == pytest.approx(1.0)
    assert rates["sustained_throughput"] == pytest.approx(1.0)
    requests["finish_time"] = 2 * requests["arrival_time"] + 30.0
    assert sustained_rates(requests)["sustained_throughput"] == pytest.approx(0.5)


def test_capacity_and_saturation():
    table = points(
        [("a", 1.0, 0, 1.0, 1.0), ("a", 2.0, 0, 0.92, 1.96), ("a", 4.0, 0, 0.5, 2.5), ("b", 1.0, 0, 0.2, 0.5)]
    )
    assert capacity(table, 0.9)["a"] == 2.0
    assert math.isnan(capacity(table, 0.9)["b"])
    assert capacity(table, 0.4)["a"] == 2.0  # at 4.0 it is saturated: the attainment would fall with a longer trace
    assert saturation(table)["a"] == 2.5
    assert saturation(table)["b"] == 0.5


def test_capacity_is_the_highest_rate_whose_mean_over_seeds_is_at_least_the_target():
    """Attainment need not fall with every step of the rate, and nothing is interpolated between two of them."""
    attainments = {1.0: (1.0, 1.0), 2.0: (0.8, 0.8), 3.0: (0.875, 0.925), 4.0: (0.89, 0.9)}
    table = points(
        [("a", rate, seed, met, rate) for rate, seeds in attainments.items() for seed, met in enumerate(seeds)]
    )
    assert capacity(table, 0.9)["a"] == 3.0
    assert capacity(table, 0.89)["a"] == 4.0


def test_a_rate_is_saturated_or_not_by_the_mean_over_its_seeds():
    """Two seeds of three fall behind; the third alone would meet the target."""
    table = points([("a", 1.0, 0, 0.05, 0.5), ("a", 1.0, 1, 0.1, 0.6), ("a", 1.0, 2, 0.95, 1.0)])
    assert math.isnan(capacity(table, 0.9)["a"])
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
