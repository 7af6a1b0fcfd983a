"""What a Sequence and a Batch know of themselves."""

from dataclasses import replace

import pytest

from framework.core import Batch, Request, Sequence

REQUEST = Request(3, 1.5, 4, 3, stop_token_ids=frozenset({9}))


def test_a_sequence_ends_with_its_last_token_or_a_stop_token():
    sequence = Sequence(REQUEST)
    assert [sequence.append(token, time) for token, time in ((1, 2.0), (2, 2.5), (3, 3.0))] == [False, False, True]
    assert (sequence.output_token_ids, sequence.token_times) == ([1, 2, 3], [2.0, 2.5, 3.0])
    assert sequence.is_finished
    assert Sequence(REQUEST).append(9, 2.0)
    assert not Sequence(replace(REQUEST, stop_token_ids=frozenset())).append(9, 2.0)


def test_the_known_tokens_are_padding_prompt_and_output():
    sequence = Sequence(REQUEST)
    assert (sequence.num_tokens, sequence.num_unscheduled_tokens, repr(sequence)) == (4, 3, "Sequence(3)")
    sequence.num_padding = 2
    sequence.append(1, 2.0)
    assert sequence.num_tokens == 7


@pytest.mark.parametrize(
    ("num_prefill_tokens", "num_decode_tokens", "phase"), [(4, 0, "prefill"), (0, 2, "decode"), (4, 2, "mixed")]
)
def test_a_batch_says_its_phase(num_prefill_tokens, num_decode_tokens, phase):
    assert Batch([], [], [], num_prefill_tokens, num_decode_tokens).phase == phase
