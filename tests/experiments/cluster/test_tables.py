"""The table and the figure of the study of routers, from rows worked out by hand."""

import pandas as pd
import pytest

from experiments.cluster.figures import over_rates
from experiments.cluster.tables import LOADS, SHOWN, router_table


def rows_of(hits=0.0, loads=0.0):
    """Two routers at two rates; the second has half the first one's TTFT."""
    table = pd.DataFrame({"arm": ["a", "a", "b", "b"], "rate": [1.0, 2.0] * 2, "offered_rate": [1.1, 2.1] * 2})
    for name in (*SHOWN, "prefix_hits"):
        values = [0.2, 0.4, 0.1, 0.2] if name.startswith("ttft") else [1.5] * 4
        table[name] = values if name != "prefix_hits" else hits
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.01, table[name] + 0.01
    return table.assign(adapter_loads=loads)


def test_the_table_has_latencies_over_the_first_arm_and_only_what_was_found():
    table = router_table(rows_of(hits=0.25))
    assert table["P99 ÷ a"].tolist() == pytest.approx([1, 1, 0.5, 0.5])
    assert table["TTFT P50 (ms)"].tolist() == pytest.approx([200, 400, 100, 200])
    assert table["prefix hits (%)"].tolist() == [25] * 4
    assert LOADS not in table
    assert "imbalance of busy time_low" not in table
    assert router_table(rows_of(loads=0.5))[LOADS].tolist() == [0.5] * 4


def test_the_figure_has_latency_imbalance_and_what_was_found():
    latency, imbalance, found = over_rates(rows_of(loads=0.5)).axes
    assert [line.get_ydata().tolist() for line in latency.lines[:2]] == [pytest.approx([200, 400])] * 2
    assert [line.get_ydata().tolist() for line in imbalance.lines] == [[1.5, 1.5]] * 4
    assert [line.get_ydata().tolist() for line in found.lines] == [[0.5, 0.5]] * 2
    assert found.get_title() == "adapter loads per request"
    assert len(over_rates(rows_of()).axes) == 2
