"""The KV blocks of running sequences in decode steps in which nothing happens but that they grow."""

from framework.core import Batch, Sequence
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import MemoryUse
from framework.scheduler.prefix_cache import PrefixCache
from framework.step_runs import Growth

KEEP, GROW = 0, 1  # what happens to a sequence's blocks at the end of a step, and in the choice of the next one


def num_steps_with_room(sequences: list[Sequence], blocks: BlockManager, num_steps: int) -> int:
    """That many steps, or fewer: as many as the free blocks surely suffice for."""
    size, num_free = blocks.block_size, blocks.num_free
    if len(sequences) * (num_steps // size + 1) <= num_free:
        return num_steps
    rooms = [len(sequence.block_table) * size - sequence.num_computed_tokens for sequence in sequences]
    while num_steps > 0 and sum([-((room - num_steps) // size) for room in rooms if room < num_steps]) > num_free:
        num_steps //= 2
    return num_steps


def skip_steps(oldest: Batch, num_steps: int, blocks: BlockManager, use: MemoryUse) -> Growth:
    """Do to the sequences' blocks what the steps from `oldest` on do; costs O(sequences + blocks moved)."""
    num_empty, tables = blocks.num_empty, [sequence.block_table for sequence in oldest.sequences]
    lengths = list(map(len, tables))
    found = changes(oldest, num_steps, blocks.block_size, isinstance(blocks, PrefixCache))
    grown = [(index, place) for index, what, place in found if what == GROW]
    if len(grown) < len(found):
        for index, what, place in found:
            if what == GROW:
                tables[place].append(blocks.take())
            else:
                blocks.keep(Batch([oldest.sequences[place]], [oldest.starts[place] + index], [1], 0, 1))
    elif grown:
        for (_, place), block in zip(grown, blocks.take_many(len(grown)), strict=True):
            tables[place].append(block)
    growth = Growth([index for index, _ in grown], [], blocks.block_size, num_empty)
    for place, index in {place: index for index, place in grown}.items():  # slots are lost in the last block only
        num_lost = use.extend(oldest.sequences[place], len(tables[place]) - lengths[place])
        if num_lost:
            growth.lost_at.append((index, num_lost))
    for sequence in oldest.sequences:
        sequence.num_computed_tokens += num_steps
        sequence.num_unscheduled_tokens -= num_steps
    use.num_computed += num_steps * len(oldest.sequences)
    return growth


def changes(oldest: Batch, num_steps: int, block_size: int, is_kept: bool) -> list[tuple[int, int, int]]:
    """What happens to blocks, in this order: (step, KEEP or GROW, place of the sequence in the batch).

    A block is kept when the step that fills it is over.
    """
    found = []
    for place, sequence in enumerate(oldest.sequences):
        first = len(sequence.block_table) * block_size - sequence.num_computed_tokens
        if first < num_steps:
            found += [(index, GROW, place) for index in range(first, num_steps, block_size)]
        first = (-oldest.starts[place] - 1) % block_size
        if is_kept and first < num_steps:
            found += [(index, KEEP, place) for index in range(first, num_steps, block_size)]
    found.sort()
    return found
