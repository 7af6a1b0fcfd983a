"""What the slots of the KV cache hold, counted as sequences take blocks and give them back: O(1) per call."""

from framework.core import Sequence, SlotUse
from framework.scheduler.block_manager import BlockManager


class MemoryUse:
    """Sums over the sequences that have blocks of `block_size`; those that several of them share are full of tokens."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.num_held = 0  # entries of all block tables
        self.num_computed = 0  # slots whose tokens are computed, or will be when the steps in flight end
        self.num_lost = 0  # slots that no token will ever take

    def add(self, sequence: Sequence) -> None:
        """The sequence has these blocks from now on, and as many computed slots as it says."""
        self._count(sequence, 1)

    def extend(self, sequence: Sequence, num_blocks: int = 1) -> int:
        """The sequence has so many blocks more; how many of their slots are lost."""
        self.num_held += num_blocks
        num_beyond = len(sequence.block_table) * self.block_size - num_filled_slots(sequence)
        num_lost = min(max(num_beyond, 0), num_blocks * self.block_size)
        self.num_lost += num_lost
        return num_lost

    def remove(self, sequence: Sequence) -> None:
        """The sequence is about to give its blocks back."""
        self._count(sequence, -1)

    def describe(self, blocks: BlockManager) -> SlotUse:
        """What all slots of `blocks` are for."""
        size = self.block_size
        num_tokens = self.num_computed - (self.num_held - blocks.num_used) * size
        num_reserved = self.num_held * size - self.num_computed - self.num_lost
        return SlotUse(num_tokens, num_reserved, self.num_lost, blocks.num_empty * size)

    def _count(self, sequence: Sequence, sign: int) -> None:
        num_blocks = len(sequence.block_table)
        self.num_held += sign * num_blocks
        self.num_computed += sign * sequence.num_computed_tokens
        self.num_lost += sign * max(num_blocks * self.block_size - num_filled_slots(sequence), 0)


def num_filled_slots(sequence: Sequence) -> int:
    """Slots that a sequence fills to its end, as its request says: nothing is computed of its last token."""
    request = sequence.request
    return sequence.num_padding + request.num_prompt_tokens + request.num_output_tokens - 1
