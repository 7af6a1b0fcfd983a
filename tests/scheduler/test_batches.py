"""What a batch computes, and what is left of its sequences then."""

from framework.core import Request, Sequence
from framework.scheduler.batches import make_batch


def make_sequence(num_prompt_tokens, num_computed_tokens, *output, num_padding=0):
    sequence = Sequence(Request(0, 0.0, num_prompt_tokens, 9))
    sequence.num_computed_tokens, sequence.num_padding = num_computed_tokens, num_padding
    sequence.output_token_ids = list(output)
    return sequence


def test_decodes_stand_first_and_a_part_of_a_prompt_samples_nothing():
    decoding = [make_sequence(4, 5, 7, 7)]
    whole, part, padded = make_sequence(4, 0), make_sequence(9, 2), make_sequence(3, 0, num_padding=2)
    batch = make_batch(decoding, [(whole, 4), (part, 6), (padded, 5)])
    assert batch.sequences == [*decoding, whole, part, padded]
    assert (batch.starts, batch.num_tokens) == ([5, 0, 2, 0], [1, 4, 6, 5])
    assert (batch.num_prefill_tokens, batch.num_decode_tokens, batch.phase) == (15, 1, "mixed")
    assert [sequence.num_computed_tokens for sequence in batch.sequences] == [6, 4, 8, 5]
    assert [sequence.num_unscheduled_tokens for sequence in batch.sequences] == [8, 8, 9, 8]


def test_a_recomputed_prompt_ends_with_its_output_so_far():
    sequence = make_sequence(4, 0, 7, 7)
    make_batch([], [(sequence, 4)])
    assert sequence.num_unscheduled_tokens == 9
    make_batch([], [(sequence, 2)])
    assert sequence.num_unscheduled_tokens == 8
