"""First come, first served is a plain queue."""

from framework.core import Sequence
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.orders.fcfs import FirstCome
from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served


def test_who_was_preempted_comes_first():
    first, second, third = map(Sequence, requests_at(*[(0.0, 4, 4)] * 3))
    order = FirstCome()
    order.append(first)
    order.append(second)
    assert order.popleft() is first
    order.append(third)
    order.appendleft(first)
    assert list(order) == [first, second, third]


def test_nobody_gives_way_and_the_last_one_loses_its_blocks():
    running = list(map(Sequence, requests_at(*[(0.0, 4, 4)] * 3)))
    order = FirstCome()
    assert not order.preempts
    assert order.behind(running[0], running) == []
    assert order.last(running) is running[-1]
    assert order.has_turn(running[0])


def test_it_is_what_a_scheduler_has():
    assert isinstance(ContinuousScheduler(8, 4).waiting, FirstCome)
    log, _ = served(requests_at((0.0, 4, 2), (0.0, 8, 1), (0.0, 4, 1)), FirstCome)
    assert [ids for _, ids in log] == [[0], [0], [1], [2]]
