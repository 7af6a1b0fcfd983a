"""Who of the running leaves: as many as make room, and none in vain."""

import pytest

from framework.core import Sequence
from framework.scheduler.giving_way import giving_way
from tests.fake_engine import requests_at
from tests.scheduler.orders.shipped import shipped_order


def sequences(*lengths, start=0):
    """So many output tokens each; running ones have a block per prompt token, of which there are two."""
    made = [Sequence(one) for one in requests_at(*[(0.0, 2, length) for length in lengths])]
    for index, one in enumerate(made):
        one.block_table = [2 * index, 2 * index + 1]
    return made


def leaving(waiting, running, needed=(5, 2), **free):
    order = shipped_order("srpt")()
    for one in waiting:
        order.append(one)
    limits = {"num_seats": 0, "num_blocks": 9, "num_tokens": 100} | free
    gone = giving_way(order, running, lambda one: needed, **limits)
    return [one.request.num_output_tokens for one in gone]


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ({}, [9, 8]),  # a seat for each of those that wait
        ({"num_seats": 1}, [9]),
        ({"num_seats": 2}, []),
        ({"num_seats": 2, "num_blocks": 0}, [9, 8]),  # two blocks for each
        ({"num_seats": 2, "num_blocks": 1}, [9, 8]),  # one lacks, then still one
        ({"num_tokens": 7}, [9]),  # the second prompt does not fit into the step
        ({"num_tokens": 3}, [9]),  # the first one is cut
    ],
)
def test_as_many_leave_as_make_room_in_this_step(free, expected):
    assert leaving(sequences(1, 2), sequences(3, 9, 8), **free) == expected


def test_none_leaves_in_vain():
    assert leaving(sequences(4), sequences(3, 9), needed=(5, 5), num_seats=3, num_blocks=2) == []
    assert leaving(sequences(4), sequences(3, 9), needed=(5, 4), num_seats=3, num_blocks=2) == [9]


def test_none_leaves_for_an_adapter_that_has_no_slot():
    assert leaving(sequences(1), sequences(3, 9), needed=None) == []
