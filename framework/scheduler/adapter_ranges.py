"""Adapters in the memory of the KV cache: a slot is a range of its blocks (S-LoRA's unified memory, MLSys 2024).

An adapter that no sequence uses stays as long as nobody needs its blocks, which count as free: like what a prefix cache
keeps. It goes before that does, as it is brought back by a copy.
"""

from framework.core import Sequence
from framework.scheduler.adapter_slots import AdapterSlots
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.free_blocks import FreeBlocks


class FreeRanges:
    """The slots whose blocks are all free, as AdapterSlots takes them: slot s is range s - 1."""

    def __init__(self, blocks: FreeBlocks) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return self.blocks.num_ranges

    def pop(self) -> int:
        return self.blocks.take_range() + 1

    def append(self, slot: int) -> None:
        self.blocks.give_range(slot - 1)


class AdapterRanges(AdapterSlots):
    """Slots 1 … `num_slots` at the beginning of a cache, `blocks_per_adapter` blocks each.

    Where enough blocks are free, but no range, the adapter waits until sequences end: no block is moved. Once none runs
    every range is free. Raises ValueError if the cache has not so many blocks.
    """

    def __init__(self, num_slots: int, max_loras: int | None, blocks: BlockManager, blocks_per_adapter: int) -> None:
        if max_loras is not None and max_loras > num_slots:
            raise ValueError(
                f"max_loras {max_loras} is more than the {num_slots} adapters that have room: lora.num_slots or, with "
                f"lora.memory=unified, the KV cache of {blocks.num_blocks} blocks limits them"
            )
        super().__init__(num_slots, max_loras)
        if num_slots * blocks_per_adapter > blocks.num_blocks:
            raise ValueError(
                f"{num_slots} adapter slots of {blocks_per_adapter} KV blocks are more than the cache's "
                f"{blocks.num_blocks}"
            )
        self.blocks, self.blocks_per_adapter = blocks, blocks_per_adapter
        free = FreeBlocks(blocks.num_blocks, num_slots, blocks_per_adapter, self._num_unused, self.evict)
        blocks.free, self.free = free, FreeRanges(free)

    def can_admit(self, sequence: Sequence) -> bool:
        """What a prefix cache keeps in a range that no sequence uses is evicted where the adapter needs it."""
        return super().can_admit(sequence) and (not self.num_missing_blocks(sequence) or self._has_range(sequence))

    def _has_range(self, sequence: Sequence) -> bool:
        if sequence.request.adapter_id in self.slot_of or self.free or self._num_unused():
            return True
        size = self.blocks_per_adapter
        taken = set(self.slot_of.values())
        slots = (slot for slot in range(1, self.num_slots + 1) if slot not in taken)
        return any(self.blocks.vacate((slot - 1) * size, slot * size) for slot in slots)

    def _num_unused(self) -> int:
        """Adapters on the device that no sequence uses."""
        return len(self.slot_of) - len(self.num_users)


def make_slots(num_slots: int, max_loras: int | None, blocks: BlockManager, blocks_per_adapter: int) -> AdapterSlots:
    """Slots that are ranges of so many of the `blocks`; with 0 they have memory of their own."""
    if not blocks_per_adapter:
        return AdapterSlots(num_slots, max_loras)
    return AdapterRanges(num_slots, max_loras, blocks, blocks_per_adapter)
