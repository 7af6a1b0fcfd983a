"""The heap of the waiting: ties, who gives way, and the guard against starvation."""

import random
from functools import partial

import pytest

from framework.core import Request, Sequence
from framework.scheduler.orders.ranked import Ranked
from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served


def by_prompt(**options):
    return partial(Ranked, lambda one: one.request.num_prompt_tokens, **options)


def prompts(*lengths):
    return [Sequence(one) for one in requests_at(*[(0.1 * index, length, 4) for index, length in enumerate(lengths)])]


def test_the_lowest_rank_is_first_and_among_equals_who_came_first():
    sequences = prompts(3, 1, 2, 1, 3)
    order = by_prompt()()
    for sequence in sequences:
        order.append(sequence)
    expected = [sequences[index] for index in (1, 3, 2, 0, 4)]
    assert list(order) == expected
    assert [order.popleft() for _ in range(len(order))] == expected


def test_iteration_equals_what_is_popped():
    rng = random.Random(0)
    order = by_prompt()()
    for index in range(300):
        order.append(Sequence(Request(index, 0.0, rng.randint(1, 9), 1)))
        if index % 3 == 0:
            order.remove(rng.choice(list(order)))
    assert list(order) == [order.popleft() for _ in range(len(order))]


def test_of_those_that_run_the_last_in_the_order_gives_way_and_nobody_of_equal_rank():
    shortest, short, long, longest = prompts(1, 2, 3, 3)
    order = by_prompt(preempts=True)()
    assert order.behind(short, [longest, shortest, long]) == [longest, long]
    assert order.behind(long, [longest, short]) == []
    assert order.last([longest, long, short]) is longest
    assert by_prompt()().behind(shortest, [longest]) == []


def test_who_has_waited_too_long_comes_first_and_never_gives_way():
    sequences = prompts(9, 8, 1, 7)  # they come at 0.0, 0.1, 0.2 and 0.3
    order = by_prompt(preempts=True, max_wait=1.0)()
    for sequence in sequences:
        order.append(sequence)
    order.update(0.999)
    assert order[0] is sequences[2]
    order.update(1.1)
    assert list(order) == [sequences[0], sequences[1], sequences[2], sequences[3]]
    assert order.popleft() is sequences[0]
    assert order.behind(sequences[2], sequences[:1]) == []  # it would have given way
    assert order.behind(sequences[1], [sequences[2], sequences[0]]) == [sequences[2]]
    sequences[0].is_finished = True
    order.served(sequences[:1])
    assert order.overdue == {sequences[1]}


def test_who_was_preempted_waits_anew():
    [sequence] = prompts(4)
    order = by_prompt(max_wait=1.0)()
    order.append(sequence)
    order.popleft()
    order.update(5.0)
    order.appendleft(sequence)
    order.update(5.9)
    assert not order.overdue
    order.update(6.0)
    assert order.overdue == {sequence}


@pytest.mark.parametrize("max_wait", [None, 3.0])
def test_without_a_guard_the_long_starve_and_with_one_they_do_not(max_wait):
    """A short one comes every second and takes one; the long one came first but for one."""
    requests = requests_at((0.0, 1, 1), *[(float(index), 9 if index == 1 else 1, 1) for index in [0, *range(1, 40)]])
    log, sequences = served(requests, by_prompt(max_wait=max_wait))
    long = next(one for one in sequences if one.request.num_prompt_tokens == 9)
    assert long.scheduled_time == (4.0 if max_wait else 40.0)  # it comes at 1.0, and a step ends at every whole second
    assert len(log) == 41


@pytest.mark.parametrize("max_wait", [-1.0, float("inf"), float("nan")])
def test_a_guard_is_a_number_of_seconds(max_wait):
    with pytest.raises(ValueError, match=r"order.max_wait must be a finite number of seconds, at least 0"):
        by_prompt(max_wait=max_wait)()
