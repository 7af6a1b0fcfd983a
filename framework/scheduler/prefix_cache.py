"""Full KV blocks that outlive their sequences: others whose tokens begin the same way need not compute them.

A block is known by the chain of all tokens up to its end, so what a trace calls its prefix blocks, of whatever size,
maps to the cache's own blocks exactly. Blocks are kept in runs, so that most work is per run and not per block.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Literal, get_args

from framework.core import Batch, Sequence
from framework.prefixes import BlockKeys
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.free_blocks import FreeBlocks

Eviction = Literal["lru", "lfu", "fifo"]

MIN_PLACES = 64  # outdated places that are not worth a clean-up


@dataclass(slots=True, eq=False)
class Run:
    """Known blocks one behind the other, `start` blocks deep in their chain: every user has all of them.

    `keys` stand for the tokens of each block and all before. Times are on the cache's own clock, which counts what
    happens. `num_uses` counts the sequences that had it, a return after a preemption included. Without users it has a
    `place` in the order of eviction; the run is its last entry.
    """

    start: int
    keys: list[int]
    blocks: list[int]
    kept_time: int
    num_users: int = 1
    num_uses: int = 1
    given_back_time: int = 0
    place: tuple[Any, ...] | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.blocks)


class PrefixCache(BlockManager):
    """Blocks that sequences share by a count of their users; without a user a full one stays until it is evicted.

    Of blocks without users the first to go is, by `eviction`, the one that was given back (`lru`) or computed (`fifo`)
    the longest ago, or had the fewest users (`lfu`; among equals the least recent). Of those that one sequence gave
    back or computed at the same time the deepest goes first. Blocks with unknown contents are handed out before any is
    evicted. Two sequences that compute the same block in one step both keep theirs, and the cache knows the first one.

    Adapters change keys and values, so with `has_adapters` a block is known by its adapter too. A look-up costs O(runs)
    once the sequence's keys are made, an eviction O(log runs), and each change O(blocks) of plain list and dict work.
    """

    def __init__(self, num_blocks: int, block_size: int, eviction: Eviction, *, has_adapters: bool) -> None:
        super().__init__(num_blocks, block_size)
        if eviction not in get_args(Eviction):
            allowed = ", ".join(get_args(Eviction))
            raise ValueError(f"scheduler.prefix_cache={eviction!r} is not one of {allowed}; null: no cache")
        self.eviction = eviction
        self.runs: dict[int, Run] = {}  # by the key of each block
        self.run_of: dict[int, Run] = {}  # by block
        self.places: list[tuple[Any, ...]] = []  # a heap of those of the runs, and of outdated ones
        self.max_places = MIN_PLACES  # beyond it outdated ones are dropped
        self.num_unused = 0  # known blocks without users
        self.keys = BlockKeys(block_size, has_adapters=has_adapters)
        self.clock = count()

    @property
    def num_free(self) -> int:
        return len(self.free) + self.num_unused

    @property
    def num_cached(self) -> int:
        return self.num_unused

    def missing(self, sequence: Sequence) -> tuple[int, int]:
        found = self.find(sequence)
        num_found = sum([num for _, num in found])
        num_shared = sum([num for run, num in found if run.num_users])
        num_tokens = sequence.num_tokens - num_found * self.block_size
        return num_tokens, self.num_blocks_for(sequence.num_tokens) - num_shared

    def admit(self, sequence: Sequence) -> None:
        for run, num_blocks in self.find(sequence):
            head = run if num_blocks == len(run.blocks) else self._split(run, num_blocks)
            if not head.num_users:
                head.place = None
                self.num_unused -= num_blocks
            head.num_users += 1
            head.num_uses += 1
            sequence.block_table += head.blocks
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size
        super().admit(sequence)

    def take(self) -> int:
        return self.take_many(1)[0]

    def keep(self, batch: Batch) -> None:
        """Whoever was preempted while the step was in flight has lost its blocks, and what the step wrote there."""
        size = self.block_size
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            first, end = start // size, (start + num_tokens) // size
            if first < end and sequence.block_table:
                self._learn(sequence, first, end)

    def release(self, sequence: Sequence) -> None:
        now, depth = next(self.clock), 0
        table, unknown = sequence.block_table, []
        while depth < len(table):
            run = self.run_of.get(table[depth])
            if run is None:
                unknown.append(table[depth])
                depth += 1
                continue
            depth = run.end
            run.num_users -= 1
            if not run.num_users:
                run.given_back_time = now
                self.num_unused += len(run.blocks)
                self._put(run)
        self.free.extend(reversed(unknown))
        table.clear()
        if len(self.places) > self.max_places:
            self.places = [place for place in self.places if place[-1].place is place]
            heapify(self.places)
            self.max_places = 2 * len(self.places) + MIN_PLACES

    def forget(self, sequence: Sequence) -> None:
        self.keys.forget(sequence)

    def vacate(self, first: int, end: int) -> bool:
        assert isinstance(self.free, FreeBlocks)
        kept = [block for block in range(first, end) if not self.free.is_free[block]]
        if any(block not in self.run_of or self.run_of[block].num_users for block in kept):
            return False
        for block in kept:
            run = self.run_of[block]
            index = run.blocks.index(block)
            if index:
                self._split(run, index)
            self.free.extend(self._evict(run if len(run.blocks) == 1 else self._split(run, 1), 1))
        return True

    def find(self, sequence: Sequence) -> list[tuple[Run, int]]:
        """The longest chain of known blocks that it begins with, as runs and how many blocks of each.

        Its last token is never among them. A key stands for all tokens before it, too: two chains have equal keys up to
        the first difference, and none behind it.
        """
        found, depth = [], 0
        num_blocks = (sequence.num_tokens - 1) // self.block_size
        keys = self.keys.of(sequence, num_blocks)
        while depth < num_blocks and (run := self.runs.get(keys[depth])) is not None:
            assert run.start == depth
            num_equal = min(len(run.blocks), num_blocks - depth)
            if run.keys[num_equal - 1] != keys[depth + num_equal - 1]:
                num_equal = bisect_left(range(num_equal), x=True, key=lambda i: run.keys[i] != keys[depth + i])
            found.append((run, num_equal))
            depth += num_equal
        return found

    def _learn(self, sequence: Sequence, first: int, end: int) -> None:
        """What is in blocks `first` to `end` of the sequence, which are full now; another one may be known for it."""
        now, runs, table = next(self.clock), self.runs, sequence.block_table
        keys = self.keys.of(sequence, end)
        while first < end:
            if keys[first] in runs:
                first += 1
                continue
            stop = next((depth for depth in range(first, end) if keys[depth] in runs), end)
            run = self.run_of.get(table[first - 1]) if first and self.eviction != "fifo" else None
            if run is not None and run.num_users == run.num_uses == 1:  # its only one, ever: it goes on
                run.keys += keys[first:stop]
                run.blocks += table[first:stop]
            else:
                run = Run(first, keys[first:stop], table[first:stop], now)
            self._index(run, keys[first:stop], table[first:stop])
            first = stop

    def _index(self, run: Run, keys: list[int], blocks: list[int]) -> None:
        self.runs.update(dict.fromkeys(keys, run))
        self.run_of.update(dict.fromkeys(blocks, run))

    def _split(self, run: Run, num_blocks: int) -> Run:
        """The first blocks of a run as one of their own, with the same users; `run` is what is behind them."""
        head = replace(run, keys=run.keys[:num_blocks], blocks=run.blocks[:num_blocks])
        self._index(head, head.keys, head.blocks)
        del run.keys[:num_blocks], run.blocks[:num_blocks]
        run.start += num_blocks
        if not run.num_users:
            self._put(head)
            self._put(run)
        return head

    def _put(self, run: Run) -> None:
        """At its place in the order of eviction."""
        given_back_time = run.given_back_time
        order = {"lru": (given_back_time,), "lfu": (run.num_uses, given_back_time), "fifo": (run.kept_time,)}
        run.place = (*order[self.eviction], -run.start, next(self.clock), run)
        heappush(self.places, run.place)

    def take_many(self, num_blocks: int) -> list[int]:
        """Blocks with unknown contents, then the first of the unused; the caller has made sure that enough are free."""
        blocks = [self.free.pop() for _ in range(min(num_blocks, len(self.free)))]
        while len(blocks) < num_blocks:
            run = self.places[0][-1]
            if run.place is self.places[0] and run.blocks:
                blocks += self._evict(run, min(num_blocks - len(blocks), len(run.blocks)))
            else:
                heappop(self.places)
        return blocks

    def _evict(self, run: Run, num_blocks: int) -> list[int]:
        """The last blocks of an unused run, the deepest first: their contents are forgotten."""
        blocks = run.blocks[: -num_blocks - 1 : -1]
        for key, block in zip(run.keys[-num_blocks:], blocks, strict=True):
            del self.runs[key]
            del self.run_of[block]
        del run.keys[-num_blocks:], run.blocks[-num_blocks:]
        self.num_unused -= num_blocks
        return blocks
