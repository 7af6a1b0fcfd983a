"""The rate that a curve sustains, and ratios of such rates, by hand."""

import math

import pandas as pd
import pytest

from experiments.papers.sustained import (
    base_of,
    ratios,
    ratios_over_limits,
    sustained_rate,
    sustained_rates,
    sustained_table,
)

ROWS = pd.DataFrame(
    {
        "arm": ["a", "a", "b", "b"],
        "offered_rate": [1.0, 2.0, 2.0, 8.0],
        "latency": [1.0, 100.0, 1.0, 100.0],
    }
)


def test_between_two_rates_it_is_linear_in_the_logarithm():
    assert sustained_rate([2.0, 1.0], [100.0, 1.0], 10.0) == pytest.approx(1.5)
    assert math.isnan(sustained_rate([1.0, 2.0], [1.0, 2.0], 3.0))  # never passed
    assert math.isnan(sustained_rate([1.0, 2.0], [4.0, 5.0], 3.0))  # always above


def test_ratios_of_every_two_arms():
    rates = sustained_rates(ROWS, "latency", 10.0)
    assert rates == pytest.approx({"a": 1.5, "b": 5.0})
    assert ratios(rates) == pytest.approx({"a ÷ b": 0.3, "b ÷ a": 10 / 3})
    table = ratios_over_limits(ROWS, "latency", ["b ÷ a"])
    assert table["limit ÷ lowest"].tolist() == [1.5, 2.0, 3.0, 4.0, 6.0]
    assert table["b ÷ a"].is_monotonic_increasing
    assert sustained_table(rates, 0.01, 3.0, "a").iloc[0].tolist() == [
        "a",
        10.0,
        pytest.approx(1.5),
        pytest.approx(0.5),
    ]


def test_rates_are_multiples_of_what_the_base_serves():
    points = pd.DataFrame({"rate": [1.0, 6.0]})
    assert base_of({"of": "a", "multiples": [0.5, 3.0]}, points) == ("a", 2.0)
    with pytest.raises(ValueError, match=r"rates=\[1\.0\] are no multiples"):
        base_of([1.0], points)
