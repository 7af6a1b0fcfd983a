"""The sums against a count of every slot; tests/contracts/test_scheduler.py compares them after every decision."""

import pytest

from framework.core import Request, Sequence
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import MemoryUse, num_filled_slots
from framework.scheduler.prefix_cache import PrefixCache
from framework.scheduler.static import StaticScheduler
from tests.fake_engine import requests_at
from tests.scheduler.event_logs import run


def test_blocks_are_counted_as_they_come_and_go():
    blocks, use = BlockManager(10, 4), MemoryUse(4)
    sequence = Sequence(Request(0, 0.0, 6, 4))
    assert num_filled_slots(sequence) == 9
    blocks.admit(sequence)
    use.add(sequence)
    assert use.describe(blocks) == (0, 8, 0, 32)
    sequence.num_computed_tokens = 6
    use.num_computed += 6
    blocks.grow(sequence, 9)
    use.extend(sequence)
    assert use.describe(blocks) == (6, 3, 3, 28)
    use.remove(sequence)
    blocks.release(sequence)
    assert use.describe(blocks) == (0, 0, 0, 40)


def test_a_block_beyond_the_end_is_lost_as_a_whole():
    blocks, use = BlockManager(10, 4), MemoryUse(4)
    sequence = Sequence(Request(0, 0.0, 6, 1))
    blocks.admit(sequence)
    use.add(sequence)
    blocks.grow(sequence, 12)
    use.extend(sequence)
    assert use.describe(blocks) == (0, 6, 6, 28)


def test_shared_blocks_count_once():
    cache, use = PrefixCache(10, 4, "lru", has_adapters=False), MemoryUse(4)
    sequences = [Sequence(Request(index, 0.0, 6, 1)) for index in range(2)]
    for sequence in sequences:
        sequence.block_table, sequence.num_computed_tokens = [0, 1 + sequence.request.request_id], 6
        use.add(sequence)
    cache.free = cache.free[:-3]
    assert use.describe(cache) == (8, 0, 4, 28)


@pytest.mark.parametrize(("first", "tokens"), [((0.0, 5, 3), [8, 10, 12, 6]), ((0.0, 5, 1), [8, 4, 5, 6])])
def test_padding_and_what_finished_seats_hold_is_lost(first, tokens):
    """Two seats for the longest prompt and output."""
    requests = requests_at(first, (0.0, 3, 5))
    _, steps, _ = run(requests, StaticScheduler, num_blocks=10, max_num_seqs=2)
    assert [step.num_token_slots for step in steps][:4] == tokens
    for step in steps:
        used = step.num_token_slots + step.num_reserved_slots + step.num_lost_slots
        assert (used, used + step.num_free_slots) == (4 * step.num_used_blocks, 40)
