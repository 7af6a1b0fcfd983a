"""Every metric on three requests worked out by hand, then what many of them say over rates and seeds."""

import json
import math
from pathlib import Path

import pytest

from framework.core import Request, Sequence, Step
from framework.measure.metrics import METRICS, metric_names, summarize
from framework.measure.replay_tables import request_table, step_table
from framework.paths import ROOT
from tests.measure.replayed import SLO, replayed_tables


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
    Step(0.0, 1.0, "prefill", 1, 100, 0, 100, 100, 5050, 7, 0, 0, 0, 1.0),
    Step(1.0, 3.0, "decode", 3, 0, 3, 163, 111, 0, 7, 0, 0, 0, 3.0),
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
    assert numbers["prefix_hits"] == 0.0


def test_prefix_hits_are_tokens_of_the_prompts_that_were_admitted():
    sequences = [sequence(0, 0.0, 100, [1.0]), sequence(1, 1.0, 60, [4.0]), Sequence(Request(2, 2.0, 40, 1))]
    for one, num_cached_tokens in zip(sequences, (0, 48, 0), strict=True):
        one.num_cached_tokens = num_cached_tokens
    table = request_table(sequences, {2: "too long"})
    assert table["num_cached_tokens"].tolist() == [0, 48, 0]
    assert summarize(table, step_table(STEPS), {})["prefix_hits"] == 48 / 160


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


def test_every_number_is_what_it_was_before_metrics_were_one_table():
    """The file has what summarize() made of these tables at commit c73f109."""
    expected = json.loads(Path(__file__).with_name("replayed_metrics.json").read_text())
    numbers = summarize(*replayed_tables(), SLO)
    assert {name: numbers[name] for name in expected} == expected


def test_the_docs_list_every_metric_with_its_definition():
    lines = (ROOT / "docs/method.md").read_text().splitlines()
    for metric in METRICS:
        columns = ", ".join(f"`{column}`" for column in metric.columns)
        assert f"| {columns} | {metric.label} | {metric.definition} |" in lines


def test_summary_has_every_column():
    numbers = summarize(request_table(SEQUENCES), step_table(STEPS), {})
    assert set(metric_names()) <= set(numbers)
    assert {f"steady_{name}" for name in metric_names()} <= set(numbers)


def test_slo_errors_name_the_metric_and_the_allowed():
    with pytest.raises(ValueError, match=r"unknown SLO metric 'tbt'; allowed: ttft, tpot, e2e, normalized_latency"):
        summarize(request_table(SEQUENCES), step_table(STEPS), {"tbt": 1.0})
    with pytest.raises(ValueError, match="SLO for ttft must be a positive"):
        summarize(request_table(SEQUENCES), step_table(STEPS), {"ttft": 0.0})
