"""What a page shows of a search for capacity."""

from dataclasses import replace
from math import inf
from types import SimpleNamespace

import pytest

from framework.measure.capacity import Capacity, Probe, Replication
from framework.measure.slo import goals_of
from framework.report.capacity import capacity_notes, capacity_table, probe_rows, probe_table, shares_over_rates
from framework.study.capacity import ArmCapacity

SLO = {"ttft": 0.5, "itl_p99": 0.1}


def probe(rate, shares, growth=0.0):
    ones = [Replication(rate, index, shares, 100, growth + 0.001 * index) for index in range(5)]
    return Probe(rate, tuple(ones), goals_of(SLO))


@pytest.fixture
def searched():
    probes = [probe(2.0, (1.0, 1.0)), probe(3.0, (0.5, 0.9), growth=0.3)]
    known = Capacity(2.5, 2.25, 2.75, goals_of(SLO)[0].label, "smooth", 400.0)
    none = Capacity(shape="not monotonic", problem="the goals hold at a rate above one at which they do not")
    found = {
        "a": ArmCapacity(known, probes, "overloaded, it serves 3 req/s", True),
        "b": ArmCapacity(none, probes, "overloaded, it serves 3 req/s", False),
    }
    return SimpleNamespace(slo=SLO, capacities=found)


def test_an_arm_has_its_capacity_with_an_interval_or_none_and_why(searched):
    table = capacity_table(searched).set_index("arm")
    assert table.loc["a"].tolist()[:5] == [2.5, 2.25, 2.75, "90% of requests within TTFT ≤ 500 ms", "smooth"]
    assert table["capacity (req/s)"].isna().tolist() == [False, True]
    assert table.loc["b", "attainment falls"] == "not monotonically"
    first, second = capacity_notes(searched)
    assert first.startswith("a: capacity 2.5 req/s [2.25, 2.75]; 90% of requests within TTFT ≤ 500 ms binds")
    assert second.startswith("b: no capacity, the goals hold")
    assert "batches" in second


def test_every_probe_is_on_the_page_and_every_replication_in_a_file(searched):
    table = probe_table(searched)
    assert table["rate (req/s)"].tolist() == [2.0, 3.0, 2.0, 3.0]
    assert table["verdict"].tolist() == ["met", "saturated"] * 2
    assert table["ITL P99 ≤ 100 ms (%)"].tolist() == [100.0, 90.0] * 2
    assert len(probe_rows(searched)) == 20


def test_the_figure_has_a_panel_per_goal_with_target_and_capacity(searched):
    figure = shares_over_rates(searched)
    assert len(figure.axes) == 2
    across = [line for axes in figure.axes for line in axes.lines if list(line.get_xdata()) == [2.5, 2.5]]
    assert len(across) == 2
    assert figure.axes[1].get_title() == "ITL P99 ≤ 100 ms"


@pytest.mark.parametrize(
    ("low", "high", "arrows"),
    [(2.25, 2.75, []), (-3.0, 2.75, ["<"]), (2.25, inf, [">"]), (-inf, inf, ["<", ">"])],
)
def test_an_interval_beyond_the_axis_ends_in_an_arrow_there(searched, low, high, arrows):
    found = replace(searched.capacities["a"].capacity, low=low, high=high)
    searched.capacities["a"] = replace(searched.capacities["a"], capacity=found)
    [axes, _] = shares_over_rates(searched).axes
    left, right = axes.get_xlim()
    assert 1.5 < left < 2.0 < 3.0 < right < 3.5  # what was probed, whatever the interval
    assert [line.get_marker() for line in axes.lines if line.get_marker() in ("<", ">")] == arrows
    [band] = axes.patches
    assert band.get_x() == pytest.approx(max(low, left))
    assert band.get_x() + band.get_width() == pytest.approx(min(high, right))
