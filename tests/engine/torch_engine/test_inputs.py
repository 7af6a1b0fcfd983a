"""A step's flattened inputs by hand: prompts, padding, chunks, decode, and steps without a cache."""

import numpy as np
import pytest

from framework.core import Batch, Request, Sequence
from framework.engine.torch_engine.inputs import ON_DEVICE, PAD_TOKEN, block_tables, step_inputs


def sequence(prompt, output=(), num_output_tokens=9, num_padding=0, block_table=(0,), adapter_slot=0):
    one = Sequence(Request(0, 0.0, len(prompt), num_output_tokens))
    one.prompt_token_ids = np.array(prompt, dtype=np.int32)
    for token in output:
        one.append(token, 0.0)
    one.num_padding, one.block_table, one.adapter_slot = num_padding, list(block_table), adapter_slot
    return one


def inputs(sequences, starts, num_tokens, max_model_len=100, use_cache=True, num_decode=0):
    batch = Batch(sequences, starts, num_tokens, sum(num_tokens), 0)
    tables = block_tables(batch, 4) if use_cache else None
    seats = np.arange(len(sequences))
    return step_inputs(batch, tables, seats, max_model_len=max_model_len, num_decode=num_decode)


def test_prompts_and_decodes_lie_one_after_the_other():
    first, second = sequence([5, 6, 7], adapter_slot=2), sequence([8, 9], [3, 4], block_table=(7, 3))
    step = inputs([first, second], [0, 3], [3, 1])
    assert step.token_ids.tolist() == [5, 6, 7, 4]
    assert step.positions.tolist() == [0, 1, 2, 3]
    assert (step.query_lens.tolist(), step.context_lens.tolist()) == ([3, 1], [3, 4])
    assert step.block_tables.tolist() == [[0], [7]]
    assert step.adapter_slots.tolist() == [2, 2, 2, 0]
    assert (step.samples.tolist(), step.sampled_rows.tolist()) == ([True, True], [2, 3])


def test_the_device_has_the_tokens_of_rows_that_decode():
    in_flight, other = sequence([5, 6, 7]), sequence([8, 9], [3, 4], block_table=(7, 3))
    step = inputs([in_flight, other], [3, 0], [1, 4], num_decode=1)
    assert step.token_ids.tolist() == [ON_DEVICE, 8, 9, 3, 4]
    assert step.samples.tolist() == [True, True]


def test_a_chunk_that_does_not_reach_the_end_samples_nothing():
    step = inputs([sequence([1, 2, 3, 4, 5], block_table=(0, 1)), sequence([6])], [1, 0], [3, 1])
    assert step.token_ids.tolist() == [2, 3, 4, 6]
    assert step.positions.tolist() == [1, 2, 3, 0]
    assert (step.samples.tolist(), step.sampled_rows.tolist()) == ([False, True], [3])


def test_padding_stands_before_the_prompt_and_has_no_position():
    step = inputs([sequence([5, 6], num_padding=2)], [0], [4])
    assert step.token_ids.tolist() == [PAD_TOKEN, PAD_TOKEN, 5, 6]
    assert step.positions.tolist() == [0, 0, 0, 1]
    assert [part.tolist() for part in step.lengths] == [[4], [4], [2]]


def test_without_a_cache_every_token_is_computed_anew():
    step = inputs([sequence([5, 6], [3, 4])], [3], [1], use_cache=False)
    assert step.token_ids.tolist() == [5, 6, 3, 4]
    assert step.block_tables is None
    assert step.query_lens.tolist() == step.context_lens.tolist() == [4]


def test_what_was_preempted_is_prompt_and_output():
    assert inputs([sequence([5, 6], [3, 4])], [0], [4]).token_ids.tolist() == [5, 6, 3, 4]


@pytest.mark.parametrize(("start", "num_tokens", "tokens"), [(5, 1, [4]), (3, 3, [4, 4, 4])])
def test_the_seat_of_a_finished_sequence_repeats_its_last_token_at_its_last_position(start, num_tokens, tokens):
    finished = sequence([5, 6], [3, 4], num_output_tokens=2, block_table=(0, 1))
    step = inputs([finished], [start], [num_tokens], max_model_len=4)
    assert step.token_ids.tolist() == tokens
    assert set(step.positions.tolist()) == {3}


def test_a_table_too_short_names_the_sequence():
    with pytest.raises(AssertionError, match=r"Sequence\(0\) needs 2 blocks and has 1"):
        inputs([sequence([1, 2, 3, 4, 5])], [0], [5])
