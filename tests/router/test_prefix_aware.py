"""Prefix-aware routing: by hand, and its record of what was sent."""

from collections import OrderedDict

import pytest

from framework.router.prefix_aware import note, num_known, prefix_aware
from tests.router.seen import State, see, sequence


def prompt(*prefix_ids, num_prompt_tokens=None, **fields):
    """Of blocks of 4 tokens."""
    num_tokens = 4 * len(prefix_ids) if num_prompt_tokens is None else num_prompt_tokens
    return sequence(num_prompt_tokens=num_tokens, prefix_ids=prefix_ids, prefix_block_size=4, **fields)


def test_a_prompt_goes_where_its_beginning_went_although_another_has_less_to_do():
    servers = see(State(0), State(0), State(0))
    route = prefix_aware(servers, block_size=4)
    assert route(prompt(1, 2, 3)).index == 0
    assert route(prompt(7, 8, 9)).index == 1
    servers[0].state.num_unfinished = 5
    assert route(prompt(1, 2, 4)).index == 0
    assert route(prompt(7, 8, 9, 10)).index == 1
    assert route(prompt(1, 5, 6, 7)).index == 2, "1 of 4 blocks is no more than 30%: the shortest record"


def test_other_adapters_have_other_prefixes():
    route = prefix_aware(see(State(), State()), block_size=4)
    assert route(prompt(1, 2, adapter_id="a")).index == 0
    assert route(prompt(1, 2, adapter_id="b")).index == 1


def test_a_server_with_too_much_to_do_loses_its_claim():
    servers = see(State(0), State(0))
    route = prefix_aware(servers, block_size=4, max_excess=2, max_ratio=1.5)
    assert route(prompt(1, 2)).index == 0
    servers[0].state.num_unfinished = 2
    assert route(prompt(1, 2)).index == 0
    servers[0].state.num_unfinished = 3
    assert route(prompt(1, 2)).index == 1
    servers[1].state.num_unfinished = 2
    servers[0].state.num_unfinished = 5
    assert route(prompt(3, 4)).index == 1, "over 1.5 times as many"


def test_a_prompt_shorter_than_a_block_goes_to_the_shortest_record():
    route = prefix_aware(see(State(), State()), block_size=4)
    assert [route(prompt(num_prompt_tokens=3)).index for _ in range(3)] == [0, 1, 0]


def test_what_was_sent_the_longest_ago_is_forgotten_the_deepest_block_first():
    record = OrderedDict()
    note(record, [1, 2, 3], 5)
    note(record, [7, 8], 5)
    note(record, [1, 2], 5)
    assert list(record) == [3, 8, 7, 2, 1]
    note(record, [1, 5], 5)
    assert list(record) == [8, 7, 2, 5, 1]
    assert [num_known(record, keys) for keys in ([1, 2, 3], [7, 8], [9], [])] == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("min_match", -0.1), ("max_ratio", None), ("max_excess", -1), ("block_size", 0), ("max_blocks", 0)],
)
def test_bad_keywords_are_named(keyword, value):
    with pytest.raises(ValueError, match=f"router.{keyword}="):
        prefix_aware(see(State()), **{keyword: value})
