"""What an entry of METRICS makes of itself: columns, titles, values and intervals."""

import math

import numpy as np
import pytest

from framework.measure.definitions import DEFINITIONS
from framework.measure.metric import COUNT, MILLISECONDS, Metric
from framework.measure.metrics import METRIC_OF, METRICS
from framework.measure.window import Window
from tests.measure.replayed import SLO, replayed_tables


def test_a_metric_is_named_shown_and_defined_by_its_entry():
    columns = [column for metric in METRICS for column in metric.columns]
    assert len(columns) == len(set(columns)) == len(METRIC_OF)
    [normalized] = [metric for metric in METRICS if metric.name == "normalized_latency"]
    assert normalized.columns == ["normalized_latency_mean", "normalized_latency_p50"]
    assert normalized.header("normalized_latency_mean") == "normalized latency, mean (ms)"
    assert normalized.header("normalized_latency_p50", is_narrow=True) == "norm.\nlatency P50\n(ms)"
    assert METRIC_OF["mean_batch_size"].header("mean_batch_size") == "mean batch"
    assert DEFINITIONS["Normalized latency"] == normalized.definition


def test_values_and_bounds_are_by_column():
    window = Window(*replayed_tables(), SLO, 0.0, 1.0)
    values, low, high = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.5, 2.5]), np.array([1.5, 2.5, 3.5])
    several = Metric(
        "wait", "wait", MILLISECONDS, "", lambda window: values, lambda window: (low, high), ("mean", "p50")
    )
    assert several.values(window) == {"wait_mean": 1.0, "wait_p50": 2.0}
    assert several.interval(window) == {
        "wait_mean_low": 0.5, "wait_mean_high": 1.5, "wait_p50_low": 1.5, "wait_p50_high": 2.5,
    }  # fmt: skip
    assert Metric("one", "one", COUNT, "", lambda window: 7).interval(window) == {}


@pytest.mark.parametrize("is_of_run", [False, True])
def test_a_window_that_lasts_no_time_has_numbers_of_the_run_only(is_of_run):
    window = Window(*replayed_tables(), SLO, 1.0, 1.0)
    [(column, value)] = Metric("one", "one", COUNT, "", lambda window: 7, is_of_run=is_of_run).values(window).items()
    assert column == "one"
    assert value == 7 if is_of_run else math.isnan(value)


def test_a_window_without_a_request_has_no_interval_and_no_share():
    window = Window(*replayed_tables(), SLO, 1e3, 2e3)
    for metric in METRICS:
        assert set(metric.values(window)) == set(metric.columns)
        assert all(math.isnan(bound) for bound in metric.interval(window).values())
    assert math.isnan(METRIC_OF["slo_attainment"].values(window)["slo_attainment"])
    assert METRIC_OF["goodput"].values(window) == {"goodput": 0.0}
