"""Efficiency and its interval, worked out by hand."""

from types import SimpleNamespace

import pytest

from experiments.scaling.tables import scaling_rows, scaling_table


def found(rate, low, high, problem=""):
    return SimpleNamespace(capacity=SimpleNamespace(rate=rate, low=low, high=high, problem=problem))


CAPACITIES = {
    "one": found(10.0, 9.0, 11.0),
    "random-2": found(15.0, 15.0, 15.0),
    "random-4": found(float("nan"), 0, 0, "no rate meets the goals"),
    "least-outstanding-2": found(20.0, 18.0, 22.0),
}
SERVERS = {"one": 1, "random-2": 2, "random-4": 4, "least-outstanding-2": 2}


def test_efficiency_is_the_capacity_over_as_many_times_that_of_one():
    rows = scaling_rows(CAPACITIES, SERVERS, "one")
    assert rows[["router", "servers"]].values.tolist() == [
        ["random", 1], ["random", 2], ["random", 4], ["least-outstanding", 1], ["least-outstanding", 2]
    ]  # fmt: skip
    assert rows["efficiency"].tolist()[:2] == [1.0, 0.75]
    assert rows["capacity"].isna().tolist() == [False, False, True, False, False]
    assert rows.loc[1, ["efficiency_low", "efficiency_high"]].tolist() == pytest.approx([0.675, 0.825])  # one's ± 10%
    wide = rows.loc[4]
    assert [wide["efficiency_low"], wide["efficiency_high"]] == pytest.approx([1 - 0.02**0.5, 1 + 0.02**0.5])
    assert scaling_table(rows)["efficiency (%)"].tolist()[:2] == [100.0, 75.0]
    assert scaling_rows({**CAPACITIES, "one": CAPACITIES["random-4"]}, SERVERS, "one").empty
