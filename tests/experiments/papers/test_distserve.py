"""experiment=papers/distserve as a user calls it, and the rate at which attainment falls below the target."""

from math import isnan

import pandas as pd
import pytest

from experiments.papers.distserve import ARMS, cases, highest_rate, table_2
from experiments.papers.figures import attainment_over_load
from tests.report.html_page import Page, check_page


def curve(*shares):
    return pd.DataFrame({"rate": [1.0, 2.0, 3.0][: len(shares)], "attainment": shares})


def test_the_highest_rate_is_where_the_line_falls_below_the_target():
    assert highest_rate(curve(1.0, 0.8, 0.95), 0.9) == pytest.approx(1.5)
    assert highest_rate(curve(0.9, 0.9, 0.5), 0.9) == pytest.approx(2.0)
    assert isnan(highest_rate(curve(1.0, 0.95), 0.9))
    assert isnan(highest_rate(curve(0.5, 0.95), 0.9))


def test_reported_rates_are_where_table_2_falls_below_the_target():
    """The two quantities of the file are of one table."""
    reported = table_2()
    highest = {}
    for name, arm in ARMS.items():
        rows = reported[reported["arm"] == arm].rename(columns={"load": "rate"})
        highest[name] = highest_rate(rows, 0.9)
    assert highest["vLLM"] == pytest.approx(1.0, abs=0.01)
    assert highest["DistServe"] == pytest.approx(2.3875 / 1.1111, abs=0.01)
    assert len(cases()) == len(reported) == 14


def test_attainment_over_the_load_stands_beside_the_papers():
    curves = pd.DataFrame({"arm": ["colocated"] * 2, "load": [0.5, 1.0], "attainment": [1.0, 0.9]})
    (axes,) = attainment_over_load(curves, table_2(), ARMS, 0.9).axes
    ours, theirs = axes.lines[:2]
    assert list(ours.get_ydata()) == [100.0, 90.0]
    assert theirs.get_ydata()[0] == 97.0
    assert theirs.get_markerfacecolor() == "none"


def test_both_arms_are_replayed_and_compared(cli, tmp_path):
    few = ["trace.num_requests=8", "rates=[2,400]", "slo.ttft=0.1", "trace.lengths.output.mean=20"]
    code, output = cli("experiment=papers/distserve", "tracking=none", *few, "tpot_limits=[0.02]")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/distserve"
    attained = pd.read_csv(folder / "attainment.csv")
    assert attained["rate"].tolist()[:2] == pytest.approx([attained["rate"][2], attained["rate"][3]])
    table = pd.read_csv(folder / "comparison.csv")
    assert len(table) == 16
    check_page(Page(folder / "report.html"), folder)


def test_other_arms_are_refused(cli):
    code, output = cli("experiment=papers/distserve", "tracking=none", "~arms.colocated")
    assert code != 0
    assert "compares the arms colocated and disaggregated, not disaggregated" in " ".join(output.split())
