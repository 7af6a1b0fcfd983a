"""What running sequences do to KV blocks in steps in which only decoding happens."""

import pytest

from framework.core import Batch, Request, Sequence
from framework.scheduler.block_manager import BlockManager
from framework.scheduler.memory_use import MemoryUse
from framework.scheduler.quiet_memory import GROW, KEEP, changes, num_steps_with_room, skip_steps
from framework.step_runs import Growth


def running(num_blocks: int, *rows: tuple[int, int]):
    """Blocks of 4, and sequences with so many prompt and output tokens, whose prompts are computed."""
    blocks, use, sequences = BlockManager(num_blocks, 4), MemoryUse(4), []
    for index, (num_prompt, num_output) in enumerate(rows):
        sequence = Sequence(Request(index, 0.0, num_prompt, num_output))
        blocks.admit(sequence)
        sequence.num_computed_tokens, sequence.num_unscheduled_tokens = num_prompt, num_output - 1
        use.add(sequence)
        sequences.append(sequence)
    return blocks, use, sequences


def test_blocks_are_taken_when_a_sequence_has_filled_its_own():
    blocks, use, sequences = running(20, (4, 9), (6, 30))
    batch = Batch(sequences, [3, 5], [1, 1], 0, 2)
    assert changes(batch, 7, 4, is_kept=False) == [(0, GROW, 0), (2, GROW, 1), (4, GROW, 0), (6, GROW, 1)]
    assert changes(batch, 3, 4, is_kept=True) == [(0, KEEP, 0), (0, GROW, 0), (2, KEEP, 1), (2, GROW, 1)]
    # The first one's last block has a slot for 12 computed tokens at most
    assert skip_steps(batch, 7, blocks, use) == Growth([0, 2, 4, 6], [], 4, 17)
    assert [len(sequence.block_table) for sequence in sequences] == [3, 4]
    assert [sequence.num_computed_tokens for sequence in sequences] == [11, 13]
    assert [sequence.num_unscheduled_tokens for sequence in sequences] == [1, 22]


def test_slots_that_no_token_will_take_are_lost_with_their_block():
    blocks, use, sequences = running(20, (4, 3))
    assert skip_steps(Batch(sequences, [3], [1], 0, 1), 2, blocks, use) == Growth([0], [(0, 2)], 4, 19)


@pytest.mark.parametrize(("num_blocks", "num_steps"), [(3, 0), (4, 2), (5, 2), (6, 5), (8, 10)])
def test_only_steps_for_which_there_is_room(num_blocks, num_steps):
    blocks, _, sequences = running(num_blocks, (4, 30), (6, 30))
    assert num_steps_with_room(sequences, blocks, 10) == num_steps
