"""experiment=sessions as a user calls it, on the smallest model, and what it says of turns."""

import pandas as pd
import pytest

from experiments.sessions.study import describe_turns, often_enough, turn_table
from tests.report.html_page import Page, check_page
from tests.test_config import composed


def make_turns() -> pd.DataFrame:
    """Of two arms; the third turn has too few requests."""
    rows = [
        (arm, turn, num, 100.0 * turn, cached, seconds)
        for arm, turn, num, cached, seconds in [
            ("without", 1, 9, 0.0, 0.1), ("without", 2, 8, 0.0, 0.2), ("without", 3, 3, 0.0, 0.3),
            ("lru", 1, 9, 0.0, 0.1), ("lru", 2, 8, 90.0, 0.05), ("lru", 3, 3, 190.0, 0.05),
        ]
    ]  # fmt: skip
    table = pd.DataFrame(
        rows, columns=["arm", "turn", "num_requests", "num_prompt_tokens", "num_cached_tokens", "ttft_p50"]
    )
    bounds = {"ttft_p50_low": table["ttft_p50"] - 0.01, "ttft_p50_high": table["ttft_p50"] + 0.01}
    return table.assign(load=4.0, offered_rate=7.0, ttft_p90=2 * table["ttft_p50"], **bounds)


def test_turns_of_few_requests_are_not_shown_and_the_others_stand_beside_the_first_arm():
    turns = often_enough(make_turns())
    table = turn_table(turns)
    assert table[["arm", "turn"]].values.tolist() == [["without", 1], ["without", 2], ["lru", 1], ["lru", 2]]
    assert table["computed (tokens)"].tolist() == [100.0, 200.0, 100.0, 110.0]
    assert table["P50 ÷ without"].tolist() == pytest.approx([1, 1, 1, 0.25])
    assert describe_turns(turns) == [
        "without: TTFT P50 100 ms in turn 1, 200 ms in turn 2, of whose 200 prompt tokens 200 are computed",
        "lru: TTFT P50 100 ms in turn 1, 50 ms in turn 2, of whose 200 prompt tokens 110 are computed",
    ]


@pytest.mark.parametrize("load", ["rates=[2,50]", pytest.param("users=[1,3]", marks=pytest.mark.nightly)])
def test_later_turns_find_what_the_turns_before_them_left(cli, smallest, tmp_path, load):
    lengths = ["trace.num_requests=30", "trace.max_prompt_tokens=250", "trace.think_times.median=0.01"]
    code, output = cli(*smallest, "experiment=sessions", "device=cpu", *lengths, load)
    assert code == 0, output
    folder = tmp_path / "outputs/sessions"
    turns = pd.read_csv(folder / "turns.csv")
    assert set(turns["arm"]) == {"without", "lru"}
    assert set(turns["load"]) == ({2.0, 50.0} if load.startswith("rates") else {1.0, 3.0})
    cached = turns[turns["arm"] == "lru"].groupby("turn")["num_cached_tokens"].mean()
    assert cached[1] == 0
    assert (cached[2:] > 16).all()
    assert (turns.loc[turns["arm"] == "without", "num_cached_tokens"] == 0).all()
    points = pd.read_csv(folder / "points.csv")
    assert ("users" in points) == load.startswith("users")
    assert (points["num_completed"] == points["num_requests"]).all()
    check_page(Page(folder / "report.html"), folder)
    assert "lru: TTFT P50" in output
    assert ("sessions, whose starts the rates are, make" in output) == load.startswith("rates")


@pytest.mark.parametrize("trace", ["csv", "bailian", "conversations"])
def test_a_trace_of_ones_own_is_replayed_whole(trace):
    config = composed("experiment=sessions", f"trace={trace}", "trace.path=mine", "tracking=none")
    assert config["trace"]["num_requests"] is None
