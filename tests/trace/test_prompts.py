"""Requests from prompts' token ids, and the prompts that cannot be served."""

import pytest

from framework.trace.prompts import make_requests


def test_one_request_per_prompt_at_once():
    requests = make_requests([[5, 6, 7], [8]], 4, max_model_len=7, stop_token_ids=frozenset({2}))
    rows = [(one.request_id, one.arrival_time, one.num_prompt_tokens, one.num_output_tokens) for one in requests]
    assert rows == [(0, 0.0, 3, 4), (1, 0.0, 1, 4)]
    assert [one.prompt_token_ids for one in requests] == [(5, 6, 7), (8,)]
    assert {one.stop_token_ids for one in requests} == {frozenset({2})}


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "nothing to generate from"),
        ([[1], []], "prompt 1 is empty"),
        ([[1], [2, 3, 4, 5]], "prompt 1 has 4 tokens; with 4 output tokens .* the model's context of 7"),
    ],
)
def test_bad_prompts_are_named(prompts, message):
    with pytest.raises(ValueError, match=message):
        make_requests(prompts, 4, max_model_len=7, stop_token_ids=frozenset())
