"""What passes through a cache one request at a time, by hand and against sets of beginnings."""

import math

import pytest

from experiments.prefix_caching.offline import found_one_at_a_time, hit_ratio
from framework.core import Request
from framework.paths import ROOT
from framework.trace.files import read_mooncake


def named(index, num_prompt_tokens, *prefix_ids, **keywords):
    return Request(index, 0.0, num_prompt_tokens, 3, prefix_ids=prefix_ids, prefix_block_size=4, **keywords)


def test_each_order_of_eviction_by_hand():
    """Four blocks, of which the answers take none; 7 is computed first, 8 used the longest ago, 9 the fewest times."""
    requests = [named(index, 5, name) for index, name in enumerate([7, 8, 8, 8, 7, 9, 5, 7, 8])]
    found = {order: found_one_at_a_time(requests, 4, 16, order) for order in ("lru", "lfu", "fifo")}
    assert [each[:7] for each in found.values()] == [[0, 0, 4, 4, 4, 0, 0]] * 3
    assert {order: each[7:] for order, each in found.items()} == {"lru": [4, 0], "lfu": [4, 4], "fifo": [0, 0]}


def test_an_answer_is_found_by_the_next_turn_alone():
    first = named(0, 5, 7, session_id="a")
    turns = [first, named(1, 12, session_id="a", turn=2, think_time=1.0), named(2, 12, 7)]
    assert found_one_at_a_time(turns, 1, None) == [0, 7, 4]
    assert math.isnan(hit_ratio(turns, 1, 100))
    assert hit_ratio(turns, 1, None) == pytest.approx(11 / 29)


def test_what_is_longer_than_the_cache_finds_nothing_and_evicts_nothing():
    assert found_one_at_a_time([named(0, 5, 7), named(1, 15, 7), named(2, 5, 7)], 4, 16) == [0, 0, 4]


def test_adapters_share_nothing():
    requests = [named(0, 5, 7), named(1, 5, 7, adapter_id="a"), named(2, 5, 7, adapter_id="a")]
    assert found_one_at_a_time(requests, 4, None, has_adapters=True) == [0, 0, 4]


@pytest.mark.parametrize("block_size", [128, 512])
def test_an_infinite_cache_finds_every_beginning_that_came_before(block_size):
    requests = read_mooncake(ROOT / "traces" / "sample_mooncake.jsonl").requests
    beginnings, found = set(), []
    for request in requests:
        ends = range(block_size, request.num_prompt_tokens + 1, block_size)
        chains = [(request.prefix_ids[: -(-end // 512)], end) for end in ends]
        found.append(
            max((end for ids, end in chains if (ids, end) in beginnings and end < request.num_prompt_tokens), default=0)
        )
        beginnings |= set(chains)
    assert found_one_at_a_time(requests, block_size, None) == found
    assert 0.5 < hit_ratio(requests, block_size, None) < 0.9
