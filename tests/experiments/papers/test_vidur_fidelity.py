"""experiment=papers/vidur_fidelity: numbers by hand, and the whole study as a user calls it."""

import json
from functools import partial

import pandas as pd
import pytest

from experiments.papers.comparison import SPREAD
from experiments.papers.figures import bars_beside
from experiments.papers.vidur_fidelity import beside_reported, check_sides, latency_table
from framework.engine.modelled import ModelledEngine
from tests.report.html_page import Page, check_page

ROWS = pd.DataFrame(
    [
        {"workload": "chat", "load": 0.85, "quantile": "median", "reference": 0.010, "value": 0.0102},
        {"workload": "chat", "load": 0.85, "quantile": "P95", "reference": 0.020, "value": 0.019},
        {"workload": "chat", "load": 0.95, "quantile": "median", "reference": 0.012, "value": 0.0126},
        {"workload": "chat", "load": 0.95, "quantile": "P95", "reference": 0.040, "value": 0.034},
    ]
).assign(error=[2.0, -5.0, 5.0, -15.0], spread=[3.0, 1.0, float("nan"), 20.0])


def test_ratios_stand_beside_the_reported_and_near_the_capacity_the_worst():
    measured, spreads = beside_reported(ROWS)
    assert measured["moderate"] == pytest.approx({"chat, median": 1.02, "chat, P95": 0.95})
    assert spreads["moderate"] == pytest.approx({"chat, median": 0.03, "chat, P95": 0.01})
    assert measured["near"] == pytest.approx({"worst": 0.85})
    assert spreads["near"] == pytest.approx({"worst": 0.2})
    assert beside_reported(ROWS[ROWS["load"] < 0.9])[0]["near"] == {}


def test_an_error_is_beyond_the_repeats_or_not():
    table = latency_table(ROWS)
    assert table["beyond the repeats"].tolist() == ["no", "yes", "–", "no"]
    assert table["executed (ms)"].tolist() == [10.0, 20.0, 12.0, 40.0]


def test_a_pair_of_bars_per_workload_and_a_panel_per_load_and_quantile():
    panels = bars_beside(ROWS).axes
    assert [axes.get_title() for axes in panels] == [
        f"{quantile} at {load} of the capacity" for load in ("85%", "95%") for quantile in ("median", "P95")
    ]
    heights = [[bar.get_height() for bar in axes.patches] for axes in panels]
    assert heights == [pytest.approx(pair) for pair in ([10.0, 10.2], [20.0, 19.0], [12.0, 12.6], [40.0, 34.0])]
    assert [text.get_text() for axes in panels for text in axes.texts] == ["+2.0%", "-5.0%", "+5.0%", "-15.0%"]


@pytest.mark.nightly
def test_a_cost_model_is_fitted_and_its_replays_compared(cli, smallest, tmp_path):
    own = [each for each in smallest if not each.startswith("trace.")]
    few = ["seconds=0.05", "repeats=2", "cells.arxiv=null", "cells.book=null", "calibrate.trace.num_requests=8"]
    few += ["calibrate.grid.decode=[1,2]", "calibrate.grid.prefill=[[1,32]]", "calibrate.grid.num_steps=1"]
    few += ["calibrate.grid.mixed=[[8,0,1,64]]", "calibrate.rates.multiples=[0.9]", "scheduler.max_num_seqs=2"]
    few += ["calibrate.arms.continuous.scheduler.max_num_seqs=2"]
    code, output = cli("experiment=papers/vidur_fidelity", "device=cpu", *own, *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/vidur_fidelity"
    table = pd.read_csv(folder / "comparison.csv")
    measured = table.dropna(subset="measured").set_index("of")
    assert measured.index.tolist() == ["chat, median", "chat, P95", "worst"]
    assert (measured[SPREAD] > 0).all()
    rows = pd.read_csv(folder / "normalized_latency.csv")
    assert measured.loc["chat, P95", "measured"] == pytest.approx(rows["value"][1] / rows["reference"][1])
    fitted = json.loads((folder / "calibration/models/vidur.json").read_text())
    assert f"they take what the cost model {fitted['name']} says" in output
    check_page(Page(folder / "report.html"), folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": partial(ModelledEngine)}, "engine=modelled executes nothing"),
        ({"sides": {"executed": {}, "wall": {}}}, "sides are executed, wall: "),
        ({"reference": "modelled"}, "compares modelled with the reference executed"),
    ],
)
def test_what_compares_nothing_is_refused(change, message):
    compared = {
        "sides": {"modelled": {}, "executed": {}, "wall": None},
        "reference": "executed",
        "engine": partial(int),
    }
    check_sides(compared)
    with pytest.raises(ValueError, match=message):
        check_sides(compared | change)
