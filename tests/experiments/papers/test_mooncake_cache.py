"""Blocks found in a cache, by hand; experiment=papers/mooncake_cache as a user calls it."""

import pandas as pd
import pytest

from experiments.papers.mooncake_cache import blocks_found, lfu, lru
from framework.core import Request
from tests.report.html_page import Page, check_page


def test_lru_evicts_the_oldest_and_lfu_the_least_used():
    blocks = [1, 1, 2, 3, 1, 2]
    assert lru(blocks, 2) == 1  # 3 takes the place of 1, which takes that of 2
    assert lfu(blocks, 2) == 2  # 3 takes the place of 2
    assert lru(blocks, 3) == lfu(blocks, 3) == 3
    assert lfu([1, 1, 2, 2, 3, 1, 2], 2) == 3  # of equals 1 goes, then 3 does


def test_every_block_counts_alone_and_answers_do_not():
    requests = [
        Request(index, 0.0, 8, 100, prefix_ids=ids, prefix_block_size=4) for index, ids in enumerate(((1, 2), (3, 2)))
    ]
    assert blocks_found(requests, None, "lru") == blocks_found(requests, None, "lfu") == 0.25


def test_shares_stand_beside_what_is_reported(cli, tmp_path):
    code, output = cli("experiment=papers/mooncake_cache", "num_blocks=[16]")
    assert code == 0, output
    folder = tmp_path / "outputs/papers/mooncake_cache"
    shares = pd.read_csv(folder / "hits.csv").set_index(["order", "num_blocks"])["blocks"]
    assert shares["lru", "16"] < shares["lru", "infinite"] == shares["lfu", "infinite"]
    table = pd.read_csv(folder / "comparison.csv", dtype={"of": str}).set_index(["quantity", "of"])
    assert table.loc[("share of blocks found, LRU (÷ infinite)", "infinite"), "measured"] == pytest.approx(
        shares["lru", "infinite"]
    )
    check_page(Page(folder / "report.html"), folder)
    code, output = cli("experiment=papers/mooncake_cache", "trace=sample")
    assert code == 1
    assert "the trace names no blocks" in output
