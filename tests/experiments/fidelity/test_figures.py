"""The figures, read back."""

import numpy as np
import pandas as pd

from experiments.fidelity.cells import Plan
from experiments.fidelity.figures import OVER_LOAD, distributions, error_over_load, request_by_request

PLAN = Plan(reference="wall", sides=["wall", "virtual"], loads=[0.5, 1.0], seconds=1.0, repeats=2, seed=0)


def requests(factor):
    values = factor * np.array([0.1, 0.2, 0.4])
    return pd.DataFrame({"request_id": [0, 1, 2], "ttft": values, "tpot": values, "e2e": values})


TABLES = {("one", "wall"): [requests(1.0), requests(3.0)], ("one", "virtual"): [requests(2.5)]}


def test_errors_over_the_load():
    rows = [
        {"cell": "one", "load": load, "side": "virtual", "metric": metric, "error": 10 * load, "spread": 1.0}
        for load in (0.5, 1.0)
        for metric in OVER_LOAD
    ]
    axes = error_over_load(pd.DataFrame(rows), ["virtual"]).axes
    assert len(axes) == len(OVER_LOAD)
    assert axes[0].lines[0].get_xydata().tolist() == [[50.0, 5.0], [100.0, 10.0]]


def test_every_repeat_has_its_distribution():
    axes = distributions(TABLES, PLAN.sides).axes[0]
    assert [line.get_xdata().round(6).tolist() for line in axes.lines] == [
        [100.0, 200.0, 400.0],
        [300.0, 600.0, 1200.0],
        [250.0, 500.0, 1000.0],
    ]


def test_requests_over_the_mean_of_their_repeats():
    axes = request_by_request(TABLES, PLAN).axes[0]
    assert axes.lines[0].get_xydata().round(6).tolist() == [[200.0, 250.0], [400.0, 500.0], [800.0, 1000.0]]
