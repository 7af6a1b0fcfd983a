"""A limit to each client's requests: what is over it waits, and the server sleeps until it may go on."""

import pytest

from framework.core import Sequence
from framework.scheduler.orders.rpm import RequestLimit
from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order


def test_what_is_over_the_limit_waits_until_its_time():
    requests = with_fields(requests_at(*[(0.0, 4, 1)] * 5, (0.5, 4, 1)), client_id=list("aaaaab"))
    log, _ = served(requests, shipped_order("rpm", limit=2, window=10.0))
    assert log == [(0.0, [0]), (1.0, [1]), (2.0, [5]), (10.0, [2]), (11.0, [3]), (20.0, [4])]


def test_the_window_slides():
    requests = with_fields(requests_at((0.0, 4, 1), (6.0, 4, 1), (7.0, 4, 1), (7.0, 4, 1)), client_id=list("aaaa"))
    _, sequences = served(requests, shipped_order("rpm", limit=2, window=10.0), max_num_seqs=4)
    assert [one.scheduled_time for one in sequences] == [0.0, 6.0, 10.0, 16.0]


def test_who_is_let_in_first_is_served_first():
    order = RequestLimit(limit=1, window=10.0)
    sequences = list(map(Sequence, with_fields(requests_at(*[(0.0, 4, 1)] * 3, (9.0, 4, 1)), client_id=list("aabc"))))
    for sequence in sequences:
        order.append(sequence)
    order.update(0.0)
    assert order.wake_time == 9.0
    order.update(10.0)
    assert [order.popleft() for _ in range(4)] == [sequences[index] for index in (0, 2, 3, 1)]


def test_who_was_preempted_is_let_in_already():
    requests = with_fields(requests_at((0.0, 4, 6), (0.0, 4, 6)), client_id=list("ab"))
    order = shipped_order("rpm", limit=1, window=100.0)
    _, sequences = served(requests, order, max_num_seqs=2, num_blocks=4, watermark=0.0)
    assert sum(one.num_preemptions for one in sequences) > 0
    assert max(one.token_times[-1] for one in sequences) < 100.0


@pytest.mark.parametrize("key", ["limit", "window"])
def test_its_keys_are_checked(key):
    with pytest.raises(ValueError, match=f"order.{key}=0 is not"):
        shipped_order("rpm", **{key: 0})()
