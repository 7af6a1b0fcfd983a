"""experiment=papers/vllm_memory as a user calls it, on the smallest model."""

import pandas as pd
import yaml

from tests.report.html_page import Page, check_page


def test_what_memory_holds_stands_beside_what_is_reported(cli, tmp_path):
    few = ["~arms.pow2", "~arms.oracle_any", "~workloads.alpaca", "workloads.sharegpt.num_requests=20"]
    code, output = cli("experiment=papers/vllm_memory", "engine=modelled", "tracking=none", *few)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/vllm_memory"
    running = pd.read_csv(folder / "memory.csv").set_index("arm")["running"]
    table = pd.read_csv(folder / "comparison.csv").set_index(["quantity", "of"])
    quantity = "running requests, ShareGPT (÷ max)"
    assert table.loc[(quantity, "paged"), "measured"] == running["paged"]
    assert table.loc[(quantity, "oracle"), "reported"] == 13.62
    assert round(running["max"], 6) <= 7 < running["oracle"] < running["paged"]
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.table("ratio of ratios")[0][:3] == ["slots that hold tokens, ShareGPT (%; ÷ max)", "max", "20.4"]


def test_with_the_8b_model_the_sizes_are_the_papers(cli):
    code, output = cli("experiment=papers/vllm_memory", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    assert config["engine"]["num_blocks"] * config["engine"]["block_size"] == 15696
    assert config["workloads"]["sharegpt"]["lengths"]["output"]["mean"] == 338
