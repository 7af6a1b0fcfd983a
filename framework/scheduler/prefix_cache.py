"""Full KV blocks that outlive their sequences: others whose tokens begin the same way need not compute them.

A block is known by the chain of all tokens up to its end, so what a trace calls its prefix blocks, of whatever size,
maps to the cache's own blocks exactly.
"""

from dataclasses import dataclass
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import Any, Literal, get_args

from framework.core import Batch, Sequence
from framework.scheduler.block_manager import BlockManager

Eviction = Literal["lru", "lfu", "fifo"]
Place = tuple[int, ...]  # in the order of eviction; the last entry is the block

DIGEST_SIZE = 16  # bytes: two different chains are taken for one with a probability of 2^-128
Names = tuple[Any, ...]  # what tokens are known by
MIN_PLACES = 64  # outdated places that are not worth a clean-up


@dataclass(slots=True)
class PrefixBlock:
    """What is in a block: `key` stands for its tokens and all before; `depth` blocks are before it."""

    key: bytes
    depth: int
    kept_time: int  # on the cache's own clock, which counts what happens
    num_uses: int = 1  # sequences that had it, a return after a preemption included


class PrefixCache(BlockManager):
    """Blocks that sequences share by a count of their users; without a user a full one stays until it is evicted.

    Of blocks without users the first to go is, by `eviction`, the one that was given back (`lru`) or computed (`fifo`)
    the longest ago, or had the fewest users (`lfu`; among equals the least recent). Of those that one sequence gave
    back or computed at the same time the deepest goes first. Blocks with unknown contents are handed out before any is
    evicted. Two sequences that compute the same block in one step both keep theirs, and the cache knows the first one.

    Adapters change keys and values, so with `has_adapters` a block is known by its adapter too. A call costs
    O(log blocks) per block of the sequences that it is about.
    """

    def __init__(self, num_blocks: int, block_size: int, eviction: Eviction, *, has_adapters: bool) -> None:
        super().__init__(num_blocks, block_size)
        if eviction not in get_args(Eviction):
            allowed = ", ".join(get_args(Eviction))
            raise ValueError(f"scheduler.prefix_cache={eviction!r} is not one of {allowed}; null: no cache")
        self.eviction, self.has_adapters = eviction, has_adapters
        self.num_users = [0] * num_blocks  # by block
        self.known: dict[int, PrefixBlock] = {}  # by block
        self.block_of: dict[bytes, int] = {}  # by key
        self.unused: dict[int, Place] = {}  # known blocks without users
        self.places: list[Place] = []  # a heap of these, and of outdated ones
        self.keys: dict[Sequence, list[bytes]] = {}  # of the leading full blocks of unfinished sequences
        self.clock = count()

    @property
    def num_free(self) -> int:
        return len(self.free) + len(self.unused)

    @property
    def num_cached(self) -> int:
        return len(self.unused)

    def missing(self, sequence: Sequence) -> tuple[int, int]:
        found = self.find(sequence)
        num_shared = sum([self.num_users[block] > 0 for block in found])
        num_tokens = sequence.num_tokens - len(found) * self.block_size
        return num_tokens, self.num_blocks_for(sequence.num_tokens) - num_shared

    def admit(self, sequence: Sequence) -> None:
        for block in self.find(sequence):
            self.num_users[block] += 1
            self.unused.pop(block, None)
            self.known[block].num_uses += 1
            sequence.block_table.append(block)
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size
        super().admit(sequence)

    def take(self) -> int:
        block = self.free.pop() if self.free else self._evict()
        self.num_users[block] = 1
        return block

    def keep(self, batch: Batch) -> None:
        """Whoever was preempted while the step was in flight has lost its blocks, and what the step wrote there."""
        size = self.block_size
        for sequence, start, num_tokens in zip(batch.sequences, batch.starts, batch.num_tokens, strict=True):
            first, end = start // size, (start + num_tokens) // size
            if first < end and sequence.block_table:
                self._learn(sequence, first, end)

    def release(self, sequence: Sequence) -> None:
        now = next(self.clock)
        for block in reversed(sequence.block_table):
            self.num_users[block] -= 1
            if self.num_users[block]:
                continue
            if block in self.known:
                place = self.unused[block] = self._place(block, now)
                heappush(self.places, place)
            else:
                self.free.append(block)
        sequence.block_table.clear()
        if len(self.places) > 2 * len(self.unused) + MIN_PLACES:
            self.places = list(self.unused.values())
            heapify(self.places)

    def forget(self, sequence: Sequence) -> None:
        self.keys.pop(sequence, None)

    def vacate(self, first: int, end: int) -> bool:
        if any(self.num_users[first:end]):
            return False
        for block in range(first, end):
            if self.unused.pop(block, None) is not None:
                self._unlearn(block)
                self.free.append(block)
        return True

    def find(self, sequence: Sequence) -> list[int]:
        """The longest chain of known blocks that the sequence begins with; its last token is never among them."""
        found = []
        num_blocks = (sequence.num_tokens - 1) // self.block_size
        for key in islice(self._keys(sequence, num_blocks), num_blocks):
            block = self.block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _learn(self, sequence: Sequence, first: int, end: int) -> None:
        """What is in blocks `first` to `end` of the sequence, which are full now."""
        now = next(self.clock)
        keys = self._keys(sequence, end)
        for depth in range(first, end):
            key, block = keys[depth], sequence.block_table[depth]
            if key not in self.block_of:
                assert block not in self.known
                self.block_of[key] = block
                self.known[block] = PrefixBlock(key, depth, now)

    def _keys(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """Those of its first `num_blocks` blocks, or more; each is made once."""
        keys = self.keys.setdefault(sequence, [])
        while len(keys) < num_blocks:
            start = len(keys) * self.block_size
            parent = keys[-1] if keys else repr(self._root(sequence)).encode()
            tokens = named_tokens(sequence, start, start + self.block_size)
            keys.append(blake2b(parent + repr(tokens).encode(), digest_size=DIGEST_SIZE).digest())
        return keys

    def _root(self, sequence: Sequence) -> tuple[str | None, int]:
        """What a chain begins with: the adapter, and how many tokens a name stands for (0: the trace has the text)."""
        request = sequence.request
        adapter_id = request.adapter_id if self.has_adapters else None
        return adapter_id, request.prefix_block_size if request.prompt_token_ids is None else 0

    def _place(self, block: int, now: int) -> Place:
        known = self.known[block]
        if self.eviction == "fifo":
            return known.kept_time, -known.depth, block
        if self.eviction == "lfu":
            return known.num_uses, now, -known.depth, block
        return now, -known.depth, block

    def _evict(self) -> int:
        """The first of the unused blocks; the caller has made sure that there is one."""
        while True:
            place = heappop(self.places)
            block = place[-1]
            if self.unused.get(block) is place:
                del self.unused[block]
                self._unlearn(block)
                return block

    def _unlearn(self, block: int) -> None:
        del self.block_of[self.known.pop(block).key]


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
    if request.prompt_token_ids is None and end <= num_named:  # most blocks of a long trace
        return request.prefix_ids[start // size : (end - 1) // size + 1], None, ()
    first_output, end_output = max(start - num_prompt_tokens, 0), max(end - num_prompt_tokens, 0)
    output = tuple(sequence.output_token_ids[first_output:end_output])
    if request.prompt_token_ids is not None:
        return (), None, request.prompt_token_ids[start:end] + output
    prefix_ids = request.prefix_ids[start // size : -(-num_named // size)] if start < num_named else ()
    has_own = max(start, num_named) < min(end, num_prompt_tokens)
    return prefix_ids, request.request_id if has_own else None, output
