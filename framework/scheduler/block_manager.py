"""Hands out the fixed-size blocks of the paged KV cache; a block belongs to at most one sequence.

A PrefixCache in its place shares them.
"""

from framework.core import Batch, Request, Sequence
from framework.scheduler.free_blocks import FreeBlocks


class BlockManager:
    """Free list over `num_blocks` blocks of `block_size` tokens each. Every call costs O(blocks moved)."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, not {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free: list[int] | FreeBlocks = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Those that may be taken, whatever is kept in them."""
        return len(self.free)

    @property
    def num_empty(self) -> int:
        """Free ones that hold nothing."""
        return self.free.num_empty if isinstance(self.free, FreeBlocks) else len(self.free)

    @property
    def num_adapter_blocks(self) -> int:
        """Those that hold adapters, whether sequences use these or not."""
        return self.free.num_in_ranges if isinstance(self.free, FreeBlocks) else 0

    @property
    def num_used(self) -> int:
        """Those of sequences."""
        if isinstance(self.free, FreeBlocks):
            return self.num_blocks - self.num_empty - self.num_cached - self.num_adapter_blocks
        return self.num_blocks - len(self.free) - self.num_cached

    @property
    def num_cached(self) -> int:
        """Free blocks whose contents are kept: none."""
        return 0

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def missing(self, sequence: Sequence) -> tuple[int, int]:
        """How many tokens a sequence without blocks has to compute, and how many of the free blocks it would take."""
        return sequence.num_tokens, self.num_blocks_for(sequence.num_tokens)

    def admit(self, sequence: Sequence) -> None:
        """Give a sequence blocks for all its tokens; the caller has made sure that enough are free.

        Its `num_computed_tokens` are those that it need not compute.
        """
        self.grow(sequence, sequence.num_tokens)

    def take(self) -> int:
        """One of the free blocks, of which the caller has made sure that there is one."""
        return self.free.pop()

    def take_many(self, num_blocks: int) -> list[int]:
        """So many of them, at least one, in the order in which `take` would give them."""
        free = self.free
        if not isinstance(free, list):
            return [free.pop() for _ in range(num_blocks)]
        taken = free[: -num_blocks - 1 : -1]
        del free[-num_blocks:]
        return taken

    def keep(self, batch: Batch) -> None:
        """The step of this batch is over: its full blocks may be shared from now on."""

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Extend the block table to hold `num_tokens`; the caller has made sure that enough blocks are free."""
        num_blocks = self.num_blocks_for(num_tokens) - len(sequence.block_table)
        if num_blocks > 0:
            sequence.block_table += self.take_many(num_blocks)

    def release(self, sequence: Sequence) -> None:
        self.free.extend(reversed(sequence.block_table))
        sequence.block_table.clear()

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""

    def vacate(self, first: int, end: int) -> bool:
        """Evict what is kept in blocks `first` to `end` unless one is in use; whether they are free now.

        Here nothing is kept: one of them is in use.
        """
        return False

    def check(self, request: Request, num_adapter_blocks: int = 0) -> None:
        """Raise ValueError if the request's whole context would not fit into an empty cache beside its adapter."""
        num_blocks = self.num_blocks_for(request.num_prompt_tokens + request.num_output_tokens)
        if num_blocks + num_adapter_blocks > self.num_blocks:
            raise ValueError(
                f"longer than the KV cache, which has {self.describe(num_adapter_blocks)} (raise engine.num_blocks)"
            )

    def describe(self, num_adapter_blocks: int = 0) -> str:
        """How large the cache is, and how much of it an adapter takes."""
        adapter = f", {num_adapter_blocks} of them for its adapter" if num_adapter_blocks else ""
        return f"{self.num_blocks} KV blocks of {self.block_size} tokens{adapter}"
