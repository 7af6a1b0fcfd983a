"""Blocks of host memory, where preempted sequences leave their keys and values, and the copies there and back."""

from typing import Literal, get_args

from framework.core import Batch, Request, Sequence
from framework.scheduler.block_manager import BlockManager

Preemption = Literal["recompute", "swap"]
Copies = list[tuple[int, int]]


class SwapSpace:
    """Host blocks 0 … `num_blocks` − 1, each of at most one sequence; none with "recompute". Costs O(blocks moved).

    `outgoing` (block, host block) and `incoming` (host block, block) are what was decided since it was last taken.
    """

    def __init__(self, preemption: Preemption, num_blocks: int) -> None:
        if preemption not in get_args(Preemption):
            raise ValueError(f"scheduler.preemption={preemption!r} is not one of {', '.join(get_args(Preemption))}")
        self.preemption = preemption
        self.num_blocks = num_blocks if preemption == "swap" else 0
        self.free = list(range(self.num_blocks - 1, -1, -1))
        self.tables: dict[Sequence, list[int]] = {}  # of sequences that are out
        self.outgoing: Copies = []
        self.incoming: Copies = []

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self.tables

    def check(self, request: Request, blocks: BlockManager) -> None:
        """Raise ValueError if the request's whole context would not fit into an empty space."""
        num_blocks = blocks.num_blocks_for(request.num_prompt_tokens + request.num_output_tokens)
        if self.preemption == "swap" and num_blocks > self.num_blocks:
            raise ValueError(
                f"longer than the swap space of scheduler.preemption=swap, which has {self.num_blocks} blocks of "
                f"{blocks.block_size} tokens (raise engine.num_swap_blocks)"
            )

    def put(self, sequence: Sequence, blocks: BlockManager) -> bool:
        """Copy what is computed of the sequence to the host; False, and nothing happens, if there is too little room.

        The caller takes its blocks, which are not written before that is copied.
        """
        num_blocks = blocks.num_blocks_for(sequence.num_computed_tokens)
        if num_blocks > len(self.free):
            return False
        table = self.tables[sequence] = [self.free.pop() for _ in range(num_blocks)]
        self.outgoing += zip(sequence.block_table, table, strict=False)
        sequence.num_swaps += 1
        return True

    def bring(self, sequence: Sequence, blocks: BlockManager) -> None:
        """Give the sequence blocks again, and copy what they do not have of it; the caller knows that they suffice.

        From the next step on it may run, and others find what came back.
        """
        num_computed, sequence.num_computed_tokens = sequence.num_computed_tokens, 0
        blocks.admit(sequence)
        num_found = sequence.num_computed_tokens
        table = self.tables.pop(sequence)
        self.incoming += list(zip(table, sequence.block_table, strict=False))[num_found // blocks.block_size :]
        self.free.extend(reversed(table))
        if num_found < num_computed:
            sequence.num_computed_tokens = num_computed
            blocks.keep(Batch([sequence], [num_found], [num_computed - num_found], 0, 0))

    def drop(self, sequence: Sequence) -> None:
        """It ended with the step that was in flight when it went out."""
        table = self.tables.pop(sequence)
        self.outgoing = [copy for copy in self.outgoing if copy[1] not in table]
        self.free.extend(reversed(table))

    def take_copies(self) -> tuple[Copies, Copies]:
        """What goes out, and what comes back after that."""
        copies = self.outgoing, self.incoming
        self.outgoing, self.incoming = [], []
        return copies
