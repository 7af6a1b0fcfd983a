"""Keys of blocks: equal for equal tokens behind equal ones, by hand. What a cache finds by them: test_prefix_cache."""

from framework.core import Request, Sequence
from framework.prefixes import BlockKeys, named_tokens


def keys_of(num_blocks, *, block_size=4, has_adapters=True, **fields):
    request = Request(fields.pop("request_id", 0), 0.0, fields.pop("num_prompt_tokens", 12), 4, **fields)
    return BlockKeys(block_size, has_adapters=has_adapters).of(Sequence(request), num_blocks)


def test_a_block_is_known_by_all_tokens_up_to_its_end():
    first = keys_of(3, prompt_token_ids=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12))
    later = keys_of(3, prompt_token_ids=(1, 2, 3, 4, 5, 6, 7, 0, 9, 10, 11, 12), request_id=1)
    assert [one == other for one, other in zip(first, later, strict=True)] == [True, False, False]


def test_prefix_ids_of_another_size_name_the_same_tokens():
    assert (
        keys_of(2, prefix_ids=(7,), prefix_block_size=8)[:2] == keys_of(2, prefix_ids=(7, 9), prefix_block_size=8)[:2]
    )
    assert len(set(keys_of(2, prefix_ids=(7,), prefix_block_size=8))) == 2


def test_unnamed_prompts_are_their_requests_own():
    assert keys_of(1) != keys_of(1, request_id=1)
    assert named_tokens(Sequence(Request(3, 0.0, 8, 1)), 0, 4) == ((), 3, ())


def test_adapters_change_the_keys_where_they_are_served():
    named = {"prefix_ids": (7, 8, 9), "prefix_block_size": 4}
    assert keys_of(1, adapter_id="a", **named) != keys_of(1, **named)
    assert keys_of(1, adapter_id="a", has_adapters=False, **named) == keys_of(1, has_adapters=False, **named)


def test_keys_are_made_once_until_they_are_forgotten():
    keys = BlockKeys(4, has_adapters=False)
    sequence = Sequence(Request(0, 0.0, 12, 4))
    assert keys.of(sequence, 2) is keys.of(sequence, 1)
    keys.forget(sequence)
    assert keys.made == {}
