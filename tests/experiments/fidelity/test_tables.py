"""What a page says of errors."""

from math import nan

import pandas as pd

from experiments.fidelity.tables import error_tables, request_table, verdict


def errors(**changes):
    row = {"cell": "one", "load": 1.0, "side": "virtual", "metric": "ttft_p50", "error": 4.0, "spread": 1.0}
    row |= {"goal": 3.0, "is_met": False, "shift": 0.5}
    other = {"metric": "ttft_p95", "error": -1.0, "spread": nan, "goal": nan, "is_met": None, "shift": nan}
    return pd.DataFrame([row | changes, row | other]).astype({"is_met": "boolean"})


def test_an_error_stands_beside_its_spread_with_a_mark_where_there_is_a_goal():
    [(caption, table)] = error_tables(errors()).items()
    assert caption.endswith("one")
    assert table.to_dict("list") == {
        "metric": ["TTFT P50", "TTFT P95"],
        "virtual at 100%": ["+4.00 ± 1.00 ✗", "-1.00"],
        "virtual: shift": ["+0.50", "–"],
    }


def test_a_verdict_names_what_was_missed_and_whether_a_shift_explains_it():
    assert verdict("virtual", errors(is_met=True), 1.0) == "virtual: 1 of 1 goals met"
    assert verdict("virtual", errors(), 1.0) == (
        "virtual: 0 of 1 goals met; missed: one at 100%, TTFT P50 +4.00 ± 1.00% (goal 3), "
        "which a shift of the rate by +0.50% explains"
    )
    assert "explains" not in verdict("virtual", errors(shift=2.0), 1.0)


def test_requests_are_a_row_per_cell_load_and_side():
    numbers = {f"{name}_{end}": 1.5 for name in ("ttft", "tpot", "e2e") for end in ("mape", "r", "bias")}
    [table] = request_table(pd.DataFrame([{"cell": "one", "load": 0.85, "side": "virtual"} | numbers])).values()
    assert table.iloc[0][["load", "TTFT MAPE (%)", "E2E r"]].tolist() == ["85%", 1.5, 1.5]
    assert request_table(pd.DataFrame()) == {}
