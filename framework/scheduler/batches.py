"""The Batch of a step: what it computes counts as computed from then on."""

from collections.abc import Iterable

from framework.core import Batch, Sequence


def make_batch(decoding: list[Sequence], prompts: Iterable[tuple[Sequence, int]] = ()) -> Batch:
    """A batch of one more token of each sequence that decodes, then of so many tokens of each prompt.

    A prompt that is computed to its end samples a token, as do those that decode: they have one fewer unscheduled.
    """
    sequences, num_decode_tokens = decoding.copy(), len(decoding)
    starts, num_tokens = [sequence.num_computed_tokens for sequence in decoding], [1] * num_decode_tokens
    for sequence in decoding:
        sequence.num_computed_tokens += 1
        sequence.num_unscheduled_tokens -= 1
    for sequence, num in prompts:
        sequences.append(sequence)
        starts.append(sequence.num_computed_tokens)
        num_tokens.append(num)
        sequence.num_computed_tokens += num
        if sequence.num_computed_tokens == sequence.num_tokens:
            sequence.num_unscheduled_tokens -= 1
    return Batch(sequences, starts, num_tokens, sum(num_tokens) - num_decode_tokens, num_decode_tokens)
