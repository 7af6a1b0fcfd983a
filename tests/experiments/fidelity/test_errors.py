"""Errors, spreads, verdicts and shifts by hand."""

from math import isnan, nan

import numpy as np
import pandas as pd
import pytest

from experiments.fidelity.errors import COLUMNS, AllGoals, Goals, errors, half_width, per_request, shift

GOALS = AllGoals(
    moderate=Goals(throughput=1, p50=1, p99=2, attainment=1),
    saturated=Goals(throughput=3, p50=3, p99=5, attainment=2),
    shift=1,
)


def point(side, load, num_preemptions=0, **metrics):
    values = dict.fromkeys(COLUMNS, 1.0) | metrics
    return {"cell": "one", "side": side, "load": load, "rate": 10 * load, "num_preemptions": num_preemptions} | values


def row_of(found, metric, load=0.5):
    [row] = found[(found["metric"] == metric) & (found["load"] == load)].to_dict("records")
    return row


def test_half_of_the_interval_of_a_mean():
    assert half_width(np.array([1.0, 1.0, 4.0])) == pytest.approx(4.302653 * np.sqrt(3) / np.sqrt(3), rel=1e-6)
    assert isnan(half_width(np.array([1.0])))


def test_an_error_within_the_goal_or_the_spread_is_met():
    repeats = [point("wall", 0.5, ttft_p50=value, ttft_p99=2.0, slo_attainment=0.9) for value in (0.9, 1.0, 1.1)]
    other = point("virtual", 0.5, ttft_p50=1.05, ttft_p99=2.1, tpot_p50=1.009, slo_attainment=0.885, ttft_p95=1.5)
    found = errors(pd.DataFrame([*repeats, other]), "wall", GOALS)
    row = row_of(found, "ttft_p50")
    assert (row["reference"], row["value"], row["error"]) == pytest.approx((1.0, 1.05, 5.0))
    assert row["spread"] == pytest.approx(100 * 4.302653 * 0.1 / np.sqrt(3), rel=1e-6)  # 24.8%
    assert row["is_met"] is True
    assert [row_of(found, "ttft_p99")[name] for name in ("error", "spread", "goal", "is_met")] == [
        pytest.approx(5.0),
        0.0,
        2,
        False,
    ]
    assert row_of(found, "tpot_p50")["is_met"] is True
    assert row_of(found, "slo_attainment")["error"] == pytest.approx(-1.5)  # points
    assert row_of(found, "slo_attainment")["is_met"] is False
    assert pd.isna(row_of(found, "ttft_p95")["is_met"])  # there is no goal for it
    assert isnan(row_of(found, "ttft_p50")["shift"])  # only near the capacity


@pytest.mark.parametrize(("load", "num_preemptions", "goal"), [(0.85, 0, 1), (0.9, 0, 3), (0.5, 4, 3)])
def test_the_goals_are_others_near_saturation_and_in_thrash(load, num_preemptions, goal):
    points = [point("wall", load, num_preemptions), point("virtual", load)]
    assert row_of(errors(pd.DataFrame(points), "wall", GOALS), "ttft_p50", load)["goal"] == goal


def test_near_the_capacity_an_error_is_a_shift_of_the_rate_too():
    reference = [point("wall", load, ttft_p50=value) for load, value in ((0.8, 1.0), (1.0, 2.0), (1.2, 6.0))]
    found = errors(pd.DataFrame([*reference, point("virtual", 1.0, ttft_p50=2.2)]), "wall", GOALS)
    assert row_of(found, "ttft_p50", 1.0)["shift"] == pytest.approx(100 * 0.2 / 4.0 * 0.2)  # of 10 requests/s
    assert isnan(row_of(found, "tpot_p50", 1.0)["shift"])  # the curve is flat


def test_a_shift_is_to_where_the_curve_has_the_value():
    curve = pd.Series([1.0, 2.0, 6.0], index=[8.0, 10.0, 12.0])
    assert shift(curve, 10.0, 1.5) == pytest.approx(-0.1)  # at 9
    assert shift(curve, 10.0, 3.0) == pytest.approx(0.05)  # at 10.5
    assert shift(curve, 12.0, 8.0) == pytest.approx(1 / 12)  # beyond the last rate its slope goes on
    assert isnan(shift(pd.Series([1.0], index=[10.0]), 10.0, 2.0))


def requests(ttft, **columns):
    defaults = {
        "request_id": range(len(ttft)),
        "arrival_time": [0.5 * index for index in range(len(ttft))],
        "num_prompt_tokens": [8] * len(ttft),
        "think_time": nan,
    }
    return pd.DataFrame(defaults | {"ttft": ttft, "tpot": ttft, "e2e": ttft} | columns)


def test_single_requests_beside_the_mean_of_their_repeats():
    found = per_request(
        [requests([1.0, 2.0, 3.0]), requests([3.0, 2.0, 5.0])], [requests([2.2, 1.8, 4.0])], ("wall", "virtual")
    )
    assert found["ttft_mape"] == pytest.approx(100 * (0.1 + 0.1 + 0) / 3)
    assert found["ttft_bias"] == pytest.approx(0.0)
    assert found["ttft_r"] == pytest.approx(np.corrcoef([2, 2, 4], [2.2, 1.8, 4])[0, 1])


@pytest.mark.parametrize("other", [requests([1.0]), requests([1.0, 1.0], num_prompt_tokens=[8, 9])])
def test_requests_of_different_traces_are_refused_with_both_names(other):
    with pytest.raises(ValueError, match="wall and virtual replayed different traces: 2 and"):
        per_request([requests([1.0, 2.0])], [other], ("wall", "virtual"))


def test_when_a_turn_arrives_is_up_to_the_one_before():
    one = requests([1.0, 2.0], think_time=[nan, 1.0])
    per_request([one], [one.assign(arrival_time=[0.0, 0.7])], ("wall", "virtual"))
