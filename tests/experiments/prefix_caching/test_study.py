"""experiment=prefix_caching as a user calls it, on the smallest model."""

import pandas as pd
import pytest

from tests.report.html_page import Page, check_page

QUICK = ["experiment=prefix_caching", "device=cpu", "engine.kv_cache_bytes=null", "trace.max_prompt_tokens=100"]


def test_every_size_and_order_beside_an_infinite_cache(cli, smallest, tmp_path):
    code, output = cli(*smallest, *QUICK, "cache_sizes=[128,1024]", "~arms.fifo", "trace.num_requests=5")
    assert code == 0, output
    folder = tmp_path / "outputs/prefix_caching"
    hits = pd.read_csv(folder / "hits.csv")
    assert hits["arm"].tolist() == ["none", "lru-128", "lru-1024", "lfu-128", "lfu-1024"]
    assert hits["prefix_hits"].tolist()[0] == 0
    assert hits["infinite"].tolist()[1:] == pytest.approx([4 * 96 / 500] * 4)  # all begin with one prefix block
    assert (hits["prefix_hits"] <= hits["infinite"]).tolist()[1:] == [True] * 4
    assert {path.stem for path in (folder / "figures").iterdir()} == {"over_sizes", "batch_and_cache"}
    check_page(Page(folder / "report.html"), folder)


def test_conversations_find_their_own_turns(cli, smallest, tmp_path):
    changed = [
        "preset=multi_turn",
        "trace.max_prompt_tokens=400",
        "cache_sizes=[4096]",
        "~arms.fifo",
        "~arms.lfu",
        "rates=[100]",
    ]
    code, output = cli(*smallest, *QUICK, *changed, "trace.num_requests=8", "trace.think_times.median=0.01")
    assert code == 0, output
    hits = pd.read_csv(next(tmp_path.rglob("hits.csv"))).set_index("base_arm")
    assert hits.loc["lru", "prefix_hits"] == hits.loc["lru", "infinite"] > 0
    assert hits["one_at_a_time"].isna().all()


def test_without_rates_no_engine_is_built(cli, smallest, tmp_path):
    reported = ["reported_hits={lru: [0.5]}", "source=somebody"]
    code, output = cli(*smallest, *QUICK, *reported, "rates=[]", "cache_sizes=[128]", "model.path=nowhere")
    assert code == 0, output
    table = pd.read_csv(tmp_path / "outputs/prefix_caching/one_at_a_time.csv")
    assert table["arm"].tolist() == ["lru", "lfu", "fifo"] * 2
    assert table["reported"].tolist()[0] == 0.5
    assert "reported: somebody" in output


def test_a_size_that_is_no_multiple_of_the_block_is_refused(cli, smallest):
    code, output = cli(*smallest, *QUICK, "cache_sizes=[100]")
    assert code == 1
    assert "cache_sizes=100 is no multiple of arms.none.engine.block_size=16" in output
