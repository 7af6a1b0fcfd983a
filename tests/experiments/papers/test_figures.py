"""What the papers' figures draw, number by number."""

import pandas as pd

from experiments.papers.figures import capacity_over_limits, latency_over_rate, ratios_of_all, values_of


def test_latency_over_the_rate_has_a_limit_and_an_axis_of_multiples():
    rows = pd.DataFrame({"arm": ["a", "a", "b"], "offered_rate": [1.0, 2.0, 1.0], "latency": [0.1, 0.2, 0.3]})
    figure = latency_over_rate(rows, "latency", "latency (ms)", limit=0.5, capacity=2.0, base="a")
    first, second, limit = figure.axes[0].get_lines()
    assert first.get_xydata().tolist() == [[1.0, 100.0], [2.0, 200.0]]
    assert second.get_xydata().tolist() == [[1.0, 300.0]]
    assert set(limit.get_ydata()) == {500.0}
    [upper] = figure.axes[0].child_axes
    assert upper._functions[0](3.0) == 1.5


def test_ratios_of_all_papers_are_points_but_for_ranges():
    every = pd.DataFrame(
        {
            "paper": ["x, H200", "x, H200", "y, H200"],
            "reported ratio": ["4.0", "2–8", 2.0],
            "measured ratio": [3.0, 5.0, 2.5],
            "same quantity": ["yes", "no", "no"],
        }
    )
    [axes] = ratios_of_all(every).axes
    drawn = [line for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in drawn] == [[[4.0, 3.0]], [[2.0, 2.5]]]
    assert [line.get_markerfacecolor() for line in drawn][1] == "none"


def test_measured_and_reported_are_drawn_side_by_side():
    reported = {"a, 5×": 0.5, "a, 25×": 2.0, "b, 5×": [1.0, 2.0]}
    rows = pd.DataFrame(
        {
            "arm": ["a", "a", "b"],
            "limit": [5.0, 25.0, 5.0],
            "capacity": [3.0, 4.0, float("nan")],
            "low": [2.0, float("-inf"), float("nan")],
            "high": [3.5, float("inf"), float("nan")],
        }
    )
    measured, theirs = capacity_over_limits(rows, reported).axes
    assert measured.get_lines()[0].get_xydata().tolist() == [[5.0, 3.0], [25.0, 4.0]]
    [ends] = measured.collections[0].get_segments()
    assert ends.tolist() == [[5.0, 2.0], [5.0, 3.5]]
    assert [line.get_xydata().tolist() for line in theirs.get_lines()] == [[[5.0, 0.5], [25.0, 2.0]], []]
    assert list(values_of("b", reported)) == []
