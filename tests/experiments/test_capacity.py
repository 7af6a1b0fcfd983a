"""The study on a modelled engine, through the command line."""

import pandas as pd

from framework.report.capacity import CAPTION


def test_a_search_ends_in_capacities_and_probes(cli, tmp_path):
    code, output = cli(
        "experiment=capacity", "engine=modelled", "search.max_probes=3", "tracking=none",
        "~arms.static", "price_per_gpu_hour=2", "output_dir=out",
    )  # fmt: skip
    assert code == 0, output
    assert CAPTION in output
    probes = pd.read_csv(tmp_path / "out" / "probes.csv")
    assert probes.groupby("rate").size().eq(5).all()
    assert set(pd.read_csv(tmp_path / "out" / "points.csv")["rate"]) == set(probes["rate"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "cost per million output tokens" in page


def test_a_capacity_needs_limits(cli):
    code, output = cli("experiment=capacity", "~slo.ttft", "~slo.tpot", "~slo.attainment", "tracking=none")
    assert code != 0
    assert "capacity needs limits" in output
