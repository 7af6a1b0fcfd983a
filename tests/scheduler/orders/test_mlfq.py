"""Skip-join multi-level feedback queue: levels, quanta, and who sinks."""

from functools import partial

import pytest

from framework.core import Request, Sequence
from framework.scheduler.orders.mlfq import SkipJoin
from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served
from tests.scheduler.orders.shipped import shipped_order

make = partial(SkipJoin, num_levels=3, quantum=2, ratio=2, prompt_tokens_per_step=8, max_wait=None)


def joined(order, num_prompt_tokens, request_id=0):
    sequence = Sequence(Request(request_id, 0.0, num_prompt_tokens, 20))
    order.append(sequence)
    return sequence


def deliver(order, sequence, num_tokens):
    """The level that it has after each of so many tokens."""
    levels = []
    for _ in range(num_tokens):
        sequence.append(7, 0.0)
        order.served([sequence])
        levels.append(order.levels[sequence][0])
    return levels


@pytest.mark.parametrize(("num_prompt_tokens", "level"), [(1, 0), (8, 0), (9, 1), (24, 1), (25, 2), (10_000, 2)])
def test_a_prompt_joins_the_first_level_whose_quantum_it_fits_into(num_prompt_tokens, level):
    order = make()  # quanta of 2, 4 and any number of steps; 8 prompt tokens are one
    sequence = joined(order, num_prompt_tokens)
    assert order.levels[sequence][0] == level


def test_who_has_used_up_a_quantum_sinks_by_one_level():
    order = make()
    assert deliver(order, joined(order, 8), 9) == [1, 1, 1, 1, 2, 2, 2, 2, 2]  # its prompt took both steps of level 0
    assert deliver(order, joined(order, 24), 4) == [2, 2, 2, 2]


def test_several_tokens_at_once_are_as_many_one_by_one():
    orders = [make(), make()]
    one, other = (joined(order, 8) for order in orders)
    deliver(orders[0], one, 9)
    for _ in range(9):
        other.append(7, 0.0)
    orders[1].served([other], 9)
    assert orders[0].levels[one][0] == orders[1].levels[other][0] == 2
    assert orders[0].limits[one] == orders[1].limits[other]


def test_who_came_to_a_level_first_is_first_there():
    order = make()
    early, late = joined(order, 4, 0), joined(order, 4, 1)
    assert list(order) == [early, late]
    order.popleft()
    deliver(order, early, 2)
    assert order.behind(late, [early]) == [early]
    order.popleft()
    deliver(order, late, 2)
    assert order.last([late, early]) is late


def test_a_long_answer_gives_way_to_new_ones_and_comes_back():
    requests = requests_at((0.0, 4, 6), (1.1, 4, 2))
    order = partial(make, quantum=3)
    log, sequences = served(requests, order)
    assert log == [
        (0.0, [0]),
        (1.0, [0]),
        (1.125, [0]),  # its prompt and one token took 2.5 steps of 3
        (1.25, [1]),
        (2.25, [1]),
        (2.375, [0]),
        (3.375, [0]),
        (3.5, [0]),
    ]
    assert [one.num_preemptions for one in sequences] == [1, 0]


def test_who_has_waited_too_long_begins_on_the_first_level_again():
    order = make(max_wait=1.0)
    waiting, other = joined(order, 1000, 0), joined(order, 4, 1)
    assert list(order) == [other, waiting]
    order.update(1.0)
    assert order.levels[waiting][0] == order.levels[other][0] == 0
    assert list(order) == [waiting, other]
    order.popleft()
    assert deliver(order, waiting, 3) == [0, 1, 1]


def test_who_sinks_while_it_waits_is_put_to_its_place():
    """It was preempted with a step in flight, and its token comes later."""
    order = make()
    sequence, other = joined(order, 4, 0), joined(order, 4, 1)
    deliver(order, sequence, 2)
    assert list(order) == [other, sequence]


def test_what_has_ended_is_forgotten():
    _, sequences = served(requests_at((0.0, 4, 6), (1.1, 4, 2)), make)
    assert all(one.is_finished for one in sequences)
    order = make()
    sequence = Sequence(Request(0, 0.0, 4, 1))
    order.append(sequence)
    order.popleft()
    sequence.append(7, 0.0)
    order.served([sequence])
    assert not order.levels
    assert not order.limits


@pytest.mark.parametrize("key", ["num_levels", "quantum", "ratio", "prompt_tokens_per_step"])
def test_its_keys_are_checked(key):
    with pytest.raises(ValueError, match=f"order.{key}=0 is not"):
        shipped_order("mlfq", **{key: 0})()
    with pytest.raises(ValueError, match=r"order.ratio must be at least 1, not 0\.5"):
        make(ratio=0.5)
