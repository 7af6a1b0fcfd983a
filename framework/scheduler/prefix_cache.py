"""Full KV blocks that outlive their sequences: others whose tokens begin the same way need not compute them.

A block is known by the chain of all tokens up to its end, so what a trace calls its prefix blocks, of whatever size,
maps to the cache's own blocks exactly. Blocks are kept in runs, so that most work is per run and not per block.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Literal, get_args

from framework.core import Batch, Request, Sequence
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.free_blocks import FreeBlocks

Eviction = Literal["lru", "lfu", "fifo"]

Names = tuple[Any, ...]  # what tokens are known by

KEY_SIZE = 16  # bytes: two different chains are taken for one with a probability of 2^-128
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
        self.eviction, self.has_adapters = eviction, has_adapters
        self.runs: dict[int, Run] = {}  # by the key of each block
        self.run_of: dict[int, Run] = {}  # by block
        self.places: list[tuple[Any, ...]] = []  # a heap of those of the runs, and of outdated ones
        self.max_places = MIN_PLACES  # beyond it outdated ones are dropped
        self.num_unused = 0  # known blocks without users
        self.keys: dict[Sequence, list[int]] = {}  # of the leading full blocks of unfinished sequences
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

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        num_blocks = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if num_blocks > 0:
            sequence.block_table += self._take(num_blocks)

    def take(self) -> int:
        return self._take(1)[0]

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
        self.keys.pop(sequence, None)

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
        keys = self._keys(sequence, num_blocks)
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
        keys = self._keys(sequence, end)
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

    def _take(self, num_blocks: int) -> list[int]:
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

    def _keys(self, sequence: Sequence, num_blocks: int) -> list[int]:
        """Those of its first `num_blocks` blocks, or more; each is made once."""
        keys = self.keys.get(sequence)
        if keys is None:
            keys = self.keys[sequence] = self._named_keys(sequence)
        while len(keys) < num_blocks:
            start = len(keys) * self.block_size
            parent = keys[-1] if keys else self._root(sequence.request)
            keys.append(key_of(parent, named_tokens(sequence, start, start + self.block_size)))
        return keys

    def _named_keys(self, sequence: Sequence) -> list[int]:
        """Of the leading blocks that the trace's prefix ids name whole: the chain of these ids, plus the block's end.

        Those of a conversation are named in its first turn.
        """
        keys: list[int] = []
        if sequence.request.prompt_token_ids is not None:
            return keys
        chain = self._root(sequence.request)
        while sequence.previous is not None:
            sequence = sequence.previous
        request, size = sequence.request, sequence.request.prefix_block_size
        num_named = min(len(request.prefix_ids) * size, request.num_prompt_tokens)
        for index, prefix_id in enumerate(request.prefix_ids):
            chain = key_of(chain, prefix_id)
            first_end = (index * size // self.block_size + 1) * self.block_size
            keys += map(chain.__add__, range(first_end, min((index + 1) * size, num_named) + 1, self.block_size))
        return keys

    def _root(self, request: Request) -> int:
        """What a chain begins with: the adapter, and how many tokens a name stands for (0: the trace has the text)."""
        adapter_id = request.adapter_id if self.has_adapters else None
        return key_of(0, (adapter_id, request.prefix_block_size if request.prompt_token_ids is None else 0))


def key_of(parent: int, names: object) -> int:
    return int.from_bytes(blake2b(b"%x %r" % (parent, names), digest_size=KEY_SIZE).digest())


def named_tokens(sequence: Sequence, start: int, end: int) -> Names:
    """Names of the tokens at [start, end), equal for equal tokens behind equal ones: (prefix ids, request id, tokens).

    A prompt's tokens are known by their ids where the trace has text; elsewhere by the prefix ids that cover them, and
    those that none covers by the request, as nobody else has them. Output tokens are known by their ids. A conversation
    so far has the names that it had in the turns before.
    """
    if sequence.request.prompt_token_ids is None:
        while sequence.previous is not None and end <= sequence.num_history_tokens:
            sequence = sequence.previous
        if sequence.previous is not None and start < (turn_start := sequence.num_history_tokens):
            return named_tokens(sequence.previous, start, turn_start), named_tokens(sequence, turn_start, end)
    request, size = sequence.request, sequence.request.prefix_block_size
    num_prompt_tokens = request.num_prompt_tokens
    num_named = min(len(request.prefix_ids) * size, num_prompt_tokens)
    first_output, end_output = max(start - num_prompt_tokens, 0), max(end - num_prompt_tokens, 0)
    output = tuple(sequence.output_token_ids[first_output:end_output])
    if request.prompt_token_ids is not None:
        return (), None, request.prompt_token_ids[start:end] + output
    prefix_ids = request.prefix_ids[start // size : -(-min(end, num_named) // size)] if start < num_named else ()
    has_own = max(start, num_named) < min(end, num_prompt_tokens)
    return prefix_ids, request.request_id if has_own else None, output
