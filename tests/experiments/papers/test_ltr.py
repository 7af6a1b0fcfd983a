"""experiment=papers/ltr as a user calls it, on the smallest model."""

import pandas as pd
import pytest
import yaml

from tests.report.html_page import Page, check_page

FEW = ["engine=modelled", "tracking=none", "~workloads.lmsys"]
REQUESTS = [f"workloads.{name}.trace.num_requests=30" for name in ("latency", "sharegpt", "guard")]
ARMS = ["workloads.latency.only=[fcfs,oracle,ranking]"]
GUARD = ["workloads.guard.only=[ranking,ranking_guard]", "workloads.guard.rates.of=ranking"]


@pytest.mark.nightly
def test_orders_stand_beside_what_is_reported(cli, tmp_path):
    seats = [f"arms.{arm}.scheduler.max_num_seqs=4" for arm in ("fcfs", "oracle", "ranking", "ranking_guard")]
    code, output = cli("experiment=papers/ltr", *FEW, *REQUESTS, *ARMS, *GUARD, *seats)
    assert code == 0, output
    folder = tmp_path / "outputs/papers/ltr"
    means = pd.read_csv(folder / "waits.csv").set_index(["workload", "arm"])
    latency = means.loc["latency", "latency"]
    assert latency["oracle"] < latency["ranking"] < latency["fcfs"]
    table = pd.read_csv(folder / "comparison.csv").set_index(["quantity", "of"])
    per_token = table.loc["mean latency per output token of a burst of 2,000, ShareGPT (s/token; ÷ oracle)"]
    assert per_token.loc["ranking", "measured"] == latency["ranking"]
    first = table.loc["time to the first tenth of the answers, ShareGPT (s; ÷ fcfs)"]
    assert first.loc["ranking", "measured ratio"] < 1
    [wait] = table.loc["longest wait without a starvation guard over that with one (×)", "measured"]
    longest = means.loc["guard", "longest_wait"]
    assert wait == pytest.approx(longest["ranking"] / longest["ranking_guard"])
    check_page(Page(folder / "report.html"), folder)


def test_with_the_8b_model_the_sizes_are_the_sources(cli):
    code, output = cli("experiment=papers/ltr", "engine=modelled", "model=llama_8b", "--cfg", "job")
    assert code == 0, output
    config = yaml.safe_load(output)
    assert config["workloads"]["sharegpt"]["trace"]["num_requests"] == 10_000
    assert config["arms"]["ranking"]["trace"]["predictions"]["tau"] == 0.54
    schedulers = [arm["scheduler"] for arm in config["arms"].values()]
    assert {(one["max_num_seqs"], one["max_num_batched_tokens"]) for one in schedulers} == {(256, 512)}
