"""experiment=cluster as a user calls it, on a modelled engine."""

import json

import pandas as pd


def test_routers_stand_beside_each_other(cli, tmp_path):
    code, output = cli(
        "experiment=cluster", "engine=modelled", "tracking=none", "trace.num_requests=32", "~rates", "+rates=[20,60]",
        "~arms.prefix_aware", "~arms.least_outstanding",
    )  # fmt: skip
    assert code == 0, output
    folder = tmp_path / "outputs/cluster"
    points = pd.read_csv(folder / "points.csv").set_index(["arm", "rate"])
    assert (points["num_servers"] == 4).all()
    assert (points["imbalance_busy"] >= 1).all()
    assert points.loc[("round_robin", 20.0), "imbalance_requests"] == 1.0
    hits = points["prefix_hits"]
    assert (hits["session"] > hits["round_robin"]).all()  # every turn finds the one before it
    page = json.loads((folder / "report.json").read_text())
    assert {"routers", "servers", "latency_cdf"} <= {*page["figures"]}
    [servers] = [table for table in page["tables"] if table["caption"].startswith("Each server")]
    assert [row[1] for row in servers["rows"]] == ["0", "1", "2", "3", "all 4"] * 2


def test_servers_that_share_an_engine_stand_beside_each_other(cli, smallest, tmp_path):
    code, output = cli(
        *smallest, "experiment=cluster", "device=cpu", "servers=2", "~rates", "+rates=[50]", "~arms.prefix_aware",
        "~arms.least_outstanding", "trace.max_prompt_tokens=250",
    )  # fmt: skip
    assert code == 0, output
    points = pd.read_csv(tmp_path / "outputs/cluster/points.csv")
    assert (points["num_completed"] == points["num_requests"]).all()
    assert (points["num_servers"] == 2).all()
