"""Sequences on their way from one scheduler to another: each has blocks here, and is in no step.

While its blocks are copied a sequence has blocks at both ends; its block table is that of the end it leaves.
"""

from framework.core import Batch, Sequence
from framework.scheduler.adapter_slots import AdapterSlots
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import MemoryUse


class Moving:
    """Who leaves a scheduler, and who arrives: a seat, an adapter's slot and blocks are kept for each of these."""

    def __init__(self, blocks: BlockManager, use: MemoryUse, adapters: AdapterSlots) -> None:
        self.blocks, self.use, self.adapters = blocks, use, adapters
        self.leaving: list[Sequence] = []
        self.arriving: dict[Sequence, tuple[list[int], int]] = {}  # with the blocks and the adapter's slot kept for it

    def __len__(self) -> int:
        return len(self.leaving) + len(self.arriving)

    def accept(self, sequence: Sequence, num_blocks: int) -> list[int]:
        """Keep so many blocks for it, which this returns; the caller knows that they and its adapter's slot are free.

        At the end that it leaves it has its own block table and adapter's slot still.
        """
        slot = sequence.adapter_slot
        self.adapters.admit(sequence)
        slot, sequence.adapter_slot = sequence.adapter_slot, slot
        blocks = [self.blocks.take() for _ in range(num_blocks)]
        self.arriving[sequence] = blocks, slot
        self.use.num_held += num_blocks
        return blocks

    def join(self, sequence: Sequence) -> None:
        """It has been copied: what was kept for it is its own, and others may share its full blocks."""
        sequence.block_table, sequence.adapter_slot = self.take(sequence)
        self.use.add(sequence)
        self.blocks.keep(Batch([sequence], [0], [sequence.num_computed_tokens], 0, 0))

    def cancel(self, sequence: Sequence) -> None:
        """It ended before it was copied: give back what was kept for it."""
        table, own_slot = sequence.block_table, sequence.adapter_slot
        sequence.block_table, sequence.adapter_slot = self.take(sequence)
        self.adapters.release(sequence)
        self.blocks.release(sequence)
        self.blocks.forget(sequence)
        sequence.block_table, sequence.adapter_slot = table, own_slot

    def take(self, sequence: Sequence) -> tuple[list[int], int]:
        blocks, slot = self.arriving.pop(sequence)
        self.use.num_held -= len(blocks)
        return blocks, slot

    def drop(self, sequence: Sequence) -> None:
        """It has been copied: its blocks and its adapter's slot here are free."""
        self.leaving.remove(sequence)
        self.use.remove(sequence)
        self.adapters.release(sequence)
        self.blocks.release(sequence)
        self.blocks.forget(sequence)
