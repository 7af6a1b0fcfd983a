"""Blocks are handed out whole, to one sequence at a time, and come back."""

import pytest

from framework.core import Sequence
from framework.scheduler.block_manager import BlockManager
from tests.fake_engine import requests_at


def sequences(*num_prompt_tokens):
    return [Sequence(request) for request in requests_at(*[(0.0, num, 1) for num in num_prompt_tokens])]


def test_a_table_grows_by_whole_blocks_and_only_when_it_must():
    manager, (one, other) = BlockManager(5, 4), sequences(5, 8)
    manager.grow(one, 5)
    manager.grow(other, 8)
    assert (one.block_table, other.block_table) == ([0, 1], [2, 3])
    manager.grow(one, 8)
    assert (len(one.block_table), manager.num_used, manager.num_free) == (2, 4, 1)
    manager.grow(one, 9)
    assert (one.block_table, manager.num_free) == ([0, 1, 4], 0)


def test_what_is_released_is_handed_out_again_the_same_way():
    manager, (one, other) = BlockManager(4, 4), sequences(12, 8)
    manager.grow(one, 12)
    table = list(one.block_table)
    manager.release(one)
    assert (one.block_table, manager.num_used) == ([], 0)
    manager.grow(other, 12)
    assert other.block_table == table


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_a_part_of_a_block_is_a_block(num_tokens, num_blocks):
    assert BlockManager(9, 4).num_blocks_for(num_tokens) == num_blocks


def test_a_context_that_fits_no_empty_cache_is_refused_by_name():
    manager = BlockManager(5, 4)
    fitting, too_long = requests_at((0.0, 4, 16), (0.0, 20, 1))
    manager.check(fitting)
    with pytest.raises(ValueError, match=r"longer than the KV cache, which has 5 KV blocks of 4 tokens"):
        manager.check(too_long)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_no_blocks_or_empty_ones(sizes):
    with pytest.raises(ValueError, match=f"must be at least 1, not {sizes[0]} and {sizes[1]}"):
        BlockManager(*sizes)
