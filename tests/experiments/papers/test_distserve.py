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


FEW = ["engine=modelled", "tracking=none", "trace.num_requests=8", "scheduler.max_num_seqs=2"]


@pytest.mark.nightly
def test_both_arms_are_replayed_and_compared(cli, tmp_path):
    few = ["rates.multiples=[0.05,20]", "scales=[0.2,1,4]", "trace.lengths.output.mean=8"]
    code, output = cli("experiment=papers/distserve", *FEW, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/distserve"
    attained = pd.read_csv(folder / "attainment.csv")
    assert attained["rate"].tolist()[:2] == pytest.approx([attained["rate"][2], attained["rate"][3]])
    scales = pd.read_csv(folder / "scales.csv")
    assert scales[["arm", "scale"]].to_numpy().tolist() == [
        [arm, scale] for arm in ("colocated", "disaggregated") for scale in (0.2, 1, 4)
    ]
    assert (scales["rate"] == scales["rate"][0]).all()
    assert scales.groupby("arm")["attainment"].is_monotonic_increasing.all()
    table = pd.read_csv(folder / "comparison.csv")
    assert len(table) == 18
    assert "a request alone has a median TTFT" in output
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert len(page.table("TPOT ≤ (ms)")) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~arms.colocated", "compares the arms colocated and disaggregated, not disaggregated"),
        ("+limits.itl=2", "limits.itl: give some of ttft, tpot, e2e"),
    ],
)
def test_what_cannot_be_compared_is_refused(cli, override, message):
    code, output = cli("experiment=papers/distserve", *FEW, override)
    assert code == 1
    assert message in " ".join(output.split())
