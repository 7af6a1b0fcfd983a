"""experiment=papers/vtc as a user calls it, on the smallest model."""

import pandas as pd
import pytest
import yaml

from tests.report.html_page import Page, check_page

FEW = ["engine=modelled", "tracking=none", "trace.num_requests=40", "overload.trace.num_requests=60"]


def test_fairness_stands_beside_what_is_reported(cli, tmp_path):
    arms = ["only=[fcfs,vtc,rpm_5]", "arms.rpm_5.trace.limit=1", "overload.only=[fcfs,vtc]", "engine.num_blocks=80"]
    code, output = cli("experiment=papers/vtc", *FEW, *arms)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/vtc"
    held = pd.read_csv(folder / "apart.csv").set_index("arm")
    assert held["bound"].tolist() == [2 * 2 * 80] * 2
    assert held.loc["vtc", "apart"] < held.loc["vtc", "bound"]
    assert held.loc["vtc", "apart"] < held.loc["fcfs", "apart"] / 3
    table = pd.read_csv(folder / "comparison.csv").set_index(["quantity", "of"])
    of_all = "the same in all of the time (tokens of service; ÷ bound)"
    last = pd.read_csv(folder / "differences.csv").query("arm == 'fcfs'")["difference"].max()
    assert table.loc[(of_all, "fcfs"), "measured"] == last
    throughput = table.loc["tokens of prompts and outputs per second (tokens/s; ÷ fcfs)"]
    assert throughput.loc["vtc", "measured ratio"] == pytest.approx(1.0, abs=0.1)
    assert throughput.loc["rpm_5", "measured ratio"] < 1
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert [row[0] for row in page.table("apart ÷ bound")] == ["fcfs", "vtc"]


def test_with_the_8b_model_the_sizes_are_the_papers(cli):
    code, output = cli("experiment=papers/vtc", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    assert config["engine"]["num_blocks"] * config["engine"]["block_size"] == 10_000
    assert config["overload"]["trace"]["num_requests"] == 2700
    heavy = config["overload"]["trace"]["clients"]["heavy"]
    assert (heavy["share"], heavy["trace"]["lengths"]["output"]["length"]) == (2, 256)
