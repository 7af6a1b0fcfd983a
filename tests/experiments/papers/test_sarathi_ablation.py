"""experiment=papers/sarathi_ablation as a user calls it, by a cost model."""

import pandas as pd
import pytest
import yaml

from tests.report.html_page import Page, check_page


@pytest.mark.nightly
def test_latencies_stand_beside_what_is_reported(cli, tmp_path):
    few = ["trace.num_requests=6", "rates.multiples=[0.6,0.9]"]
    code, output = cli("experiment=papers/sarathi_ablation", "engine=modelled", "tracking=none", *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/sarathi_ablation"
    rows = pd.read_csv(folder / "ablation.csv").set_index(["workload", "arm", "multiple"])
    table = pd.read_csv(folder / "comparison.csv").set_index(["quantity", "of"])
    for metric, name in (("ttft_p50", "TTFT P50"), ("itl_p99", "ITL P99")):
        for workload, multiple in (("openchat", 0.6), ("arxiv", 0.9)):
            own = {arm: rows.loc[(workload, arm, multiple), metric] for arm in ("hybrid_only", "chunk_only", "sarathi")}
            theirs = table.loc[f"{name}, {workload} (s; ÷ hybrid_only)"]
            assert theirs["measured"].to_dict() == pytest.approx(own)
            assert theirs.loc["sarathi", "measured ratio"] == pytest.approx(own["sarathi"] / own["hybrid_only"])
    assert rows.loc[("arxiv", "sarathi", 0.9), "itl_p99"] < rows.loc[("arxiv", "hybrid_only", 0.9), "itl_p99"]
    page = Page(folder / "report.html")
    check_page(page, folder)
    rows_by_load = page.table("load (× what hybrid_only serves at most)")
    assert [row[0] for row in rows_by_load] == ["openchat", "openchat", "arxiv", "arxiv"]


def test_with_the_8b_model_the_sizes_are_the_papers(cli):
    code, output = cli("experiment=papers/sarathi_ablation", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    workloads = config["workloads"]
    assert [workloads[name]["parts"]["trace"]["lengths"]["prompt"]["median"] for name in workloads] == [1730, 7059]
    assert config["arms"]["sarathi"]["scheduler"]["max_num_batched_tokens"] == 1024
    assert config["engine"]["num_blocks"] * config["engine"]["block_size"] == 288_000
