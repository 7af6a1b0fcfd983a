"""What a page says of arms with several servers, and that it says nothing of single ones."""

import json

import numpy as np
import pandas as pd
import pytest

from framework.report.finish import Findings, finish_sweep
from framework.report.servers import in_parts, loads_over_time, server_findings, shown_servers


def table_of(num_servers):
    """Server i has i + 1 requests of 10 tokens, and is busy for as many seconds."""
    numbers = np.arange(1, num_servers + 1)
    tokens = {f"num_{kind}_tokens": 10 * numbers for kind in ("prompt", "output", "computed")}
    return pd.DataFrame(
        {"num_requests": numbers, **tokens, "num_cached_tokens": 0 * numbers, "busy": 1.0 * numbers}
        | {"mean_batch_size": 1.0, "ttft_p50": 0.1 * numbers, "ttft_p99": 0.2}
    )


def test_each_server_has_a_row_and_the_last_is_their_sum():
    shown = shown_servers({"a": table_of(3)})
    assert shown["server"].tolist() == ["0", "1", "2", "all 3"]
    assert shown["requests"].tolist() == [1, 2, 3, 6]
    assert shown["busy (s)"].tolist() == [1.0, 2.0, 3.0, 6.0]
    assert shown["busy ÷ mean"].tolist()[:3] == [0.5, 1.0, 1.5]
    assert shown["TTFT P50 (ms)"].tolist()[:3] == pytest.approx([100, 200, 300])
    assert shown.loc[3, ["busy ÷ mean", "TTFT P50 (ms)", "TTFT P99 (ms)"]].isna().all()
    assert "prefix hits (%)" not in shown
    hits = shown_servers({"a": table_of(2), "b": table_of(2).assign(num_cached_tokens=[5, 0])})
    assert hits["prefix hits (%)"].tolist() == pytest.approx([0, 0, 0, 50, 0, 100 * 5 / 30])


def test_of_many_servers_the_busiest_and_the_idlest_are_shown():
    shown = shown_servers({"a": table_of(9).sample(frac=1, random_state=0).reset_index(drop=True)})
    assert shown["requests"].tolist() == [9, 1, 45]
    assert [name.partition(" ")[2] for name in shown["server"]] == ["(busiest)", "(idlest)", "9"]


def test_a_curve_per_server_and_of_many_what_is_between_the_least_and_the_most():
    few = pd.DataFrame({0: [1, 2], 1: [3, 0]}, index=[0.0, 1.0])
    many = pd.DataFrame({server: [server, 2 * server] for server in range(9)}, index=[0.0, 1.0])
    left, right = loads_over_time({"few": few, "many": many}).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[1, 2], [3, 0]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[4, 8]]
    [band] = right.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0, 16)


def test_loads_are_means_over_parts():
    means = in_parts(pd.DataFrame({0: np.arange(1000.0)}, index=np.linspace(0, 999, 1000)))
    assert (len(means), means[0].tolist()[:2], means.index.tolist()[:2]) == (50, [9.5, 29.5], [0.0, 20.0])


@pytest.mark.usefixtures("placeholders")
def test_a_sweep_shows_the_servers_of_the_arms_that_have_several(study, tmp_path):
    done = study({"one": {}, "two": {"servers": 2}}, [20.0])
    points = done.table()
    assert points["num_servers"].tolist() == [1, 2]
    assert points["imbalance_requests"].isna().tolist() == [True, False]
    finish_sweep(done, "mine", lambda points: Findings())
    page = json.loads((tmp_path / "report.json").read_text())
    overview, servers = page["tables"]
    assert overview["columns"][-1] == "imbalance of busy time"
    assert [row[0] for row in servers["rows"]] == ["two"] * 3
    assert [row[2] for row in servers["rows"]] == [24, 24, 48]
    assert list(page["figures"]) == ["servers"]
    assert server_findings(done, points[:1]) == ({}, {})
