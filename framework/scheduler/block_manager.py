"""Hands out the fixed-size blocks of the paged KV cache; a block belongs to at most one sequence."""

from framework.core import Request, Sequence


class BlockManager:
    """Free list over `num_blocks` blocks of `block_size` tokens each. Every call costs O(blocks moved)."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, not {num_blocks} and {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self.free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self.free)

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Extend the block table to hold `num_tokens`; the caller has made sure that enough blocks are free."""
        for _ in range(self.num_blocks_for(num_tokens) - len(sequence.block_table)):
            sequence.block_table.append(self.free.pop())

    def release(self, sequence: Sequence) -> None:
        self.free.extend(reversed(sequence.block_table))
        sequence.block_table.clear()

    def check(self, request: Request) -> None:
        """Raise ValueError if the request's whole context would not fit into an empty cache."""
        if self.num_blocks_for(request.num_prompt_tokens + request.num_output_tokens) > self.num_blocks:
            raise ValueError(
                f"longer than the KV cache, which has {self.num_blocks} KV blocks of {self.block_size} tokens "
                "(raise engine.num_blocks)"
            )
