"""Blocks and ranges of one memory: the heap against a plain account of what is free."""

import random

from framework.scheduler.free_blocks import FreeBlocks


def make(num_blocks, num_ranges, size):
    return FreeBlocks(num_blocks, num_ranges, size, num_spare=lambda: 0, give_back=lambda: None)


def test_sequences_get_the_last_blocks_and_adapters_the_first_range():
    free = make(8, 2, 3)
    assert (len(free), free.num_ranges, free.take_range()) == (8, 2, 0)
    assert [free.pop() for _ in range(3)] == [7, 6, 5]
    assert (len(free), free.num_ranges) == (2, 0)
    free.extend([5, 7])
    assert free.num_ranges == 1
    free.give_range(0)
    free.extend([6])
    assert [free.pop() for _ in range(len(free))] == [6, 7, 5, 4, 3, 2, 1, 0]


def test_a_spare_range_is_given_back_when_no_other_block_is_free():
    spare = [0]
    free = FreeBlocks(4, 2, 2, num_spare=lambda: len(spare), give_back=lambda: free.give_range(spare.pop()))
    assert (free.take_range(), len(free)) == (0, 4)
    assert [free.pop() for _ in range(2)] == [3, 2]
    assert (spare, len(free)) == ([0], 2)
    assert (free.pop(), spare, len(free)) == (1, [], 1)


def test_it_hands_out_what_a_plain_account_does():
    rng = random.Random(0)
    for _ in range(30):
        num_ranges, size = rng.randint(1, 4), rng.randint(1, 5)
        num_blocks = num_ranges * size + rng.randint(0, 6)
        free, account, blocks, ranges = make(num_blocks, num_ranges, size), set(range(num_blocks)), [], []
        for _ in range(120):
            whole = [r for r in range(num_ranges) if account.issuperset(range(r * size, r * size + size))]
            assert (len(free), free.num_ranges) == (len(account), len(whole))
            choice = rng.random()
            if choice < 0.4 and account:
                block = free.pop()
                assert block in account
                assert block == max(account) or max(account) >= num_ranges * size <= block
                blocks.append(block)
                account.remove(block)
            elif choice < 0.7 and blocks:
                block = blocks.pop(rng.randrange(len(blocks)))
                free.append(block)
                account.add(block)
            elif choice < 0.85 and whole:
                assert free.take_range() == whole[0]
                ranges.append(whole[0])
                account -= set(range(whole[0] * size, whole[0] * size + size))
            elif ranges:
                index = ranges.pop()
                free.give_range(index)
                account |= set(range(index * size, index * size + size))
