import numpy as np
import pytest

from framework.core import PREFIX_BLOCK_SIZE, Request, Sequence
from framework.engine.torch_engine.prompt_tokens import check_prompt, prompt_of, prompt_token_ids


def draw(request_id=0, num_prompt_tokens=40, seed=0, vocab_size=1000, **keywords):
    return prompt_token_ids(Request(request_id, 0.0, num_prompt_tokens, 1, **keywords), vocab_size, seed)


def test_random_prompts_depend_on_seed_and_request_alone():
    first = draw()
    assert first.dtype == np.int32
    assert first.shape == (40,)
    assert np.array_equal(first, draw())
    assert not np.array_equal(first, draw(request_id=1))
    assert not np.array_equal(first, draw(seed=1))


def test_the_whole_vocabulary_is_used_and_no_more():
    tokens = draw(num_prompt_tokens=5000, vocab_size=256)
    assert (tokens.min(), tokens.max()) == (0, 255)


def test_equal_prefix_ids_give_equal_tokens():
    block = PREFIX_BLOCK_SIZE
    first = draw(request_id=1, num_prompt_tokens=2 * block + 100, prefix_ids=(5, 6))
    second = draw(request_id=2, num_prompt_tokens=2 * block + 300, prefix_ids=(5, 7))
    assert np.array_equal(first[:block], second[:block])
    assert not np.array_equal(first[block : 2 * block], second[block : 2 * block])
    assert not np.array_equal(first[2 * block :], second[2 * block :][:100])


def test_the_last_prefix_block_may_be_cut():
    whole = draw(num_prompt_tokens=2 * PREFIX_BLOCK_SIZE, prefix_ids=(5, 6))
    cut = draw(request_id=9, num_prompt_tokens=PREFIX_BLOCK_SIZE + 10, prefix_ids=(5, 6))
    assert np.array_equal(cut, whole[: len(cut)])
    assert len(draw(num_prompt_tokens=10, prefix_ids=(5, 6))) == 10


def test_a_prefix_id_and_an_equal_request_id_are_unrelated():
    assert not np.array_equal(draw(request_id=5), draw(request_id=0, prefix_ids=(5,)))


def test_given_tokens_are_kept():
    assert draw(num_prompt_tokens=3, prompt_token_ids=(7, 0, 999)).tolist() == [7, 0, 999]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_prompt_tokens": 2, "prompt_token_ids": (7, 1000)}, "request 0 has prompt token 1000; .* 1000 tokens"),
        ({"num_prompt_tokens": 1, "prompt_token_ids": (-1,)}, "prompt token -1"),
        ({"num_prompt_tokens": 3, "prompt_token_ids": (1,)}, "request 0 says 3 prompt tokens and brings 1"),
        ({"num_prompt_tokens": 0}, "request 0 has 0 prompt tokens"),
    ],
)
def test_bad_prompts(keywords, message):
    with pytest.raises(ValueError, match=message):
        check_prompt(Request(**{"request_id": 0, "arrival_time": 0.0, "num_output_tokens": 1, **keywords}), 1000)


def test_the_prompt_of_a_turn_is_the_conversation_and_new_text():
    first = Sequence(Request(0, 0.0, 5, 3, session_id="a"))
    first.prompt_token_ids = prompt_of(first, 1000, seed=0)
    first.output_token_ids = [1, 2]
    turn = Request(1, 0.0, 11, 3, session_id="a", turn=2, think_time=0.0)
    tokens = prompt_of(Sequence(turn, 1.0, first), 1000, seed=0)
    assert tokens.tolist() == [*draw(0, 5), 1, 2, *draw(1, 4)]
    assert tokens.dtype == np.int32
