"""What is said of the schedulers over the rates."""

import pandas as pd
import pytest

from experiments.chunked_prefill.tables import (
    against_first,
    check_latencies,
    describe_rates,
    latencies_table,
    limits_table,
)
from framework.measure.metrics import metric_names
from framework.measure.rates import MIN_REQUESTS, aggregate


def make_points(rows) -> pd.DataFrame:
    """Points of (arm, rate, P99 ITL in s, output tokens/s)."""
    table = pd.DataFrame(rows, columns=["arm", "rate", "itl_p99", "output_throughput"])
    others = {name: 1.0 for name in metric_names() if name not in table}
    steady = {f"steady_{name}": 1.0 for name in metric_names()}
    table = table.assign(**others, **steady, seed=0, offered_rate=table["rate"], point="")
    return table.assign(waiting_growth=0.0, sustained_throughput=1.0, num_completed=MIN_REQUESTS)


POINTS = make_points(
    [
        ("whole", 4.0, 0.05, 100.0), ("whole", 8.0, 0.2, 200.0), ("large", 4.0, 0.06, 100.0),
        ("large", 8.0, 0.1, 199.0), ("small", 4.0, 0.04, 98.0), ("small", 8.0, 0.05, 180.0),
    ]
)  # fmt: skip
SUMMARY = aggregate(POINTS)


def test_every_rate_has_every_arm_over_the_first():
    table = against_first(SUMMARY)
    assert table["arm"].tolist() == ["whole", "large", "small"] * 2
    assert table["rate (req/s)"].tolist() == [4.0] * 3 + [8.0] * 3
    assert table["ITL P99 ÷ whole"].tolist() == pytest.approx([1, 1.2, 0.8, 1, 0.5, 0.25])
    assert table["output ÷ whole"].tolist() == pytest.approx([1, 1, 0.98, 1, 0.995, 0.9])


def test_the_sentence_has_the_lowest_of_those_that_serve_no_less_and_of_all():
    assert describe_rates(SUMMARY) == [
        "whole has a P99 ITL of 200 ms at 8 requests/s; of those that serve as many tokens/s, large has the lowest: "
        "0.50× of it; the lowest of all is that of small, 0.25× at 0.90× the tokens/s"
    ]
    assert describe_rates(SUMMARY[SUMMARY["arm"] != "large"])[0].startswith(
        "whole has a P99 ITL of 200 ms at 8 requests/s; every other scheduler serves at least 1% fewer tokens/s; the "
    )
    assert describe_rates(SUMMARY[SUMMARY["arm"] != "small"])[0].endswith("large has the lowest: 0.50× of it")
    assert describe_rates(SUMMARY[SUMMARY["arm"] == "whole"]) == []
    assert describe_rates(SUMMARY.assign(itl_p99=float("nan"))) == []  # outputs of one token


def test_the_sentence_says_so_where_the_first_has_the_shortest_gaps():
    def said(large: float, small: float) -> str:
        at_once = make_points([("whole", 8.0, 0.1, 200.0), ("large", 8.0, large, 201.0), ("small", 8.0, small, 100.0)])
        [sentence] = describe_rates(aggregate(at_once))
        return sentence

    assert said(0.41, 0.5) == (
        "whole has a P99 ITL of 100 ms at 8 requests/s, and no other scheduler has a lower one; the next is that of "
        "large, 4.10× at 1.00× the tokens/s"
    )
    assert said(0.41, 0.05) == (
        "whole has a P99 ITL of 100 ms at 8 requests/s; none that serves as many tokens/s has a lower one; the lowest "
        "of all is that of small, 0.50× at 0.50× the tokens/s"
    )


def test_a_rate_keeps_the_gaps_and_the_delay_within_limits(monkeypatch):
    monkeypatch.setattr("experiments.chunked_prefill.tables.median_delay", lambda study, point: float(point or 0))
    table = limits_table(None, POINTS, [0.05, 0.1]).set_index("arm")
    assert table.loc["whole"].fillna(0).tolist() == [4, 4]
    assert table.loc["large"].fillna(0).tolist() == [0, 8]
    assert table.loc["small"].fillna(0).tolist() == [8, 8]
    at_once = POINTS.assign(offered_rate=[4.0, float("inf")] * 3)
    assert limits_table(None, at_once, [0.1]).set_index("arm")["P99 ITL ≤ 100 ms"].tolist() == [4, 4, 4]
    late = POINTS.assign(point=["3" if rate == 8.0 else "1" for rate in POINTS["rate"]])
    assert limits_table(None, late, [0.1]).set_index("arm")["P99 ITL ≤ 100 ms"].to_dict() == {
        "whole": 4, "large": 4, "small": 4,
    }  # fmt: skip


def test_reported_latencies_stand_beside_the_measured_ones():
    table = latencies_table(SUMMARY, {"whole": {"itl_p99": 0.4}, "small": {"itl_p99": 0.2}, "gone": {"itl_p99": 1.0}})
    at_8 = table[table["rate (req/s)"] == 8.0].set_index("arm")
    assert at_8["measured ÷ reported"].fillna(0).tolist() == pytest.approx([0.5, 0.25, 0])
    assert at_8["reported ÷ whole"].tolist() == [1, 0.5, 2.5]
    assert at_8["measured ÷ whole"].fillna(0).tolist() == pytest.approx([1, 0.25, 0])
    assert set(table["metric"]) == {"ITL P99"}


@pytest.mark.parametrize(
    ("reported", "message"),
    [
        ({"mine": {}}, "reported_latencies has 'mine', which is no arm; allowed: a, b"),
        ({"a": {"goodput": 1.0}}, "reported_latencies.a has 'goodput', which is no latency of points.csv"),
        ({"a": {"ttft_p50": 1.0}, "b": {"itl_p99": 1.0}}, "reported_latencies.b has itl_p99, the first arm ttft_p50"),
    ],
)
def test_what_is_reported_is_checked(reported, message):
    with pytest.raises(ValueError, match=message):
        check_latencies(reported, ["a", "b"])
    check_latencies({}, ["a"])
