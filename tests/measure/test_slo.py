"""Limits per request and on percentiles, and the files of conf/slo."""

import numpy as np
import pandas as pd
import pytest
import yaml

from framework.measure.slo import check_slo, goals_of, meets_slo, share_within
from framework.paths import ROOT

REQUESTS = pd.DataFrame(
    {
        "arrival_time": [0.0, 1.0, 2.0, 3.0],
        "scheduled_time": [0.0, 1.5, 4.0, np.nan],
        "finish_time": [1.0, 3.0, 5.0, np.nan],
        "ttft": [0.1, 0.6, 2.5, np.nan],
        "tpot": [np.nan, 0.2, 0.1, np.nan],
        "token_times": [np.array([0.1]), np.array([1.6, 1.8, 2.4]), np.array([4.5, 4.6]), np.array([])],
    }
)


def test_goals_of_limits_and_percentiles():
    goals = goals_of({"ttft": 0.5, "tpot": 0.02, "attainment": 0.99, "itl_p99": 0.1, "scheduling_delay_p50": 2.0})
    assert [goal.label for goal in goals] == [
        "99% of requests within TTFT ≤ 500 ms and TPOT ≤ 20 ms",
        "ITL P99 ≤ 100 ms",
        "scheduling delay P50 ≤ 2000 ms",
    ]
    assert [goal.share for goal in goals] == [0.99, 0.99, 0.5]
    assert goals_of({"ttft": 0.5})[0].share == 0.9


@pytest.mark.parametrize(
    ("slo", "share"),
    [
        ({"ttft": 0.6}, 0.5),  # what is refused is not within
        ({"ttft_p99": 0.6}, 0.5),
        ({"tpot": 0.15}, 0.5),  # an undefined TPOT breaks no limit
        ({"scheduling_delay_p50": 0.5}, 0.5),
        ({"itl_p99": 0.5}, 0.5),  # gaps of 0.2, 0.6 and 0.1 s, and one request that has none
    ],
)
def test_the_share_within_a_goal(slo, share):
    [goal] = goals_of(slo)
    assert share_within(REQUESTS, goal) == share


def test_an_undefined_tpot_breaks_no_limit():
    assert meets_slo(REQUESTS, {"tpot": 0.15}).tolist() == [True, False, True, False]


def test_only_limits_of_requests_decide_whether_one_meets_the_slo():
    assert meets_slo(REQUESTS, {"ttft_p99": 0.01}).tolist() == [True, True, True, False]
    assert meets_slo(REQUESTS, {"scheduling_delay": 1.0}).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("slo", "message"),
    [
        ({"itl": 0.1}, "unknown SLO metric 'itl'"),
        ({"speed_p99": 0.1}, "unknown SLO metric 'speed_p99'"),
        ({"ttft_p0": 0.1}, "percentile"),
        ({"ttft_p99": 0.0}, "ttft_p99 must be a positive"),
        ({"ttft": 0.5, "attainment": 1.5}, "between 0 and 1"),
        ({"ttft_p99": 0.5, "attainment": 0.9}, "slo has none"),
    ],
)
def test_what_is_no_limit_is_refused(slo, message):
    with pytest.raises(ValueError, match=message):
        check_slo(slo)


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "slo").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_a_target_and_tells_its_source(path):
    text = path.read_text()
    assert text.startswith("# ")
    slo = yaml.safe_load(text)
    check_slo(slo)
    assert goals_of(slo)
