"""The free KV blocks where adapters take whole ranges of them, in the place of a BlockManager's list of free blocks.

Range r is the blocks from r * range_size on, so all are aligned. Sequences get blocks behind all ranges, then the last
free one of these; adapters get the first free range. They grow towards each other, which keeps ranges whole for long.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush


class FreeBlocks:
    """`num_ranges` ranges of `range_size` blocks at the beginning of `num_blocks`; all of them free at first.

    Ranges that are taken and may be taken back count as free: `num_spare()` is their number, and `give_back()` gives
    one back when no other block is free. A block behind the ranges costs O(1), one of theirs O(log of their number),
    and a range O(num_ranges + range_size).
    """

    def __init__(
        self,
        num_blocks: int,
        num_ranges: int,
        range_size: int,
        num_spare: Callable[[], int],
        give_back: Callable[[], None],
    ) -> None:
        self.range_size, self.num_spare, self.give_back = range_size, num_spare, give_back
        self.is_free = bytearray(b"\1" * num_blocks)
        self.num_free_in = [range_size] * num_ranges
        self.num_empty = num_blocks  # free without those of spare ranges
        self.num_in_ranges = 0  # blocks of ranges that are taken, spare or not
        self.behind = list(range(num_ranges * range_size, num_blocks))  # the free ones of no range
        # All free ones of ranges, negated so that the last comes first; some that were taken with their range, too
        self.heap = [-block for block in range(num_ranges * range_size - 1, -1, -1)]
        self.is_in_heap = bytearray(b"\1" * len(self.heap))

    def __len__(self) -> int:
        return self.num_empty + self.range_size * self.num_spare()

    def pop(self) -> int:
        """One behind the ranges, else the last of theirs; a spare range is given back if there is none."""
        if not self.num_empty:
            self.give_back()
        block = self.behind.pop() if self.behind else self._last_of_ranges()
        self._count(block, -1)
        return block

    def _last_of_ranges(self) -> int:
        while True:
            block = -heappop(self.heap)
            self.is_in_heap[block] = False
            if self.is_free[block]:
                return block

    def append(self, block: int) -> None:
        """This block is free again."""
        assert not self.is_free[block], block
        self._count(block, 1)
        if block >= len(self.is_in_heap):
            self.behind.append(block)
        elif not self.is_in_heap[block]:
            self.is_in_heap[block] = True
            heappush(self.heap, -block)

    def extend(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self.append(block)

    @property
    def num_ranges(self) -> int:
        """Ranges of which all blocks are free."""
        return self.num_free_in.count(self.range_size)

    def take_range(self) -> int:
        """The first of these ranges; there is one."""
        index = self.num_free_in.index(self.range_size)
        self.num_in_ranges += self.range_size
        for block in self._blocks_of(index):
            self._count(block, -1)
        return index

    def give_range(self, index: int) -> None:
        self.num_in_ranges -= self.range_size
        self.extend(self._blocks_of(index))

    def _blocks_of(self, index: int) -> range:
        return range(index * self.range_size, (index + 1) * self.range_size)

    def _count(self, block: int, change: int) -> None:
        """One free block more or less."""
        self.is_free[block] = change > 0
        self.num_empty += change
        index = block // self.range_size
        if index < len(self.num_free_in):
            self.num_free_in[index] += change
