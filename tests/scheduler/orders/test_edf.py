"""Earliest deadline first: what follows from an SLO."""

import pytest

from framework.core import Request, Sequence
from framework.scheduler.orders.edf import edf
from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served
from tests.scheduler.orders.shipped import shipped_order


def deadline(slo, arrival_time=2.0, num_output_tokens=11, **keywords):
    order = edf(slo=slo, preempts=False, predicted=False, max_wait=None)
    return order.rank(Sequence(Request(0, arrival_time, 4, num_output_tokens, **keywords)))


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ({"ttft": 0.5}, 2.5),
        ({"ttft": 0.5, "tpot": 0.02}, 2.7),
        ({"ttft": 0.5, "tpot": 0.02, "e2e": 0.6}, 2.6),
        ({"normalized_latency": 0.1}, 3.1),
        ({"normalized_latency": 0.1, "e2e": 4.0, "tpot": 0.1}, 3.1),
    ],
)
def test_a_deadline_is_the_latest_end_that_meets_every_limit(slo, expected):
    assert deadline(slo) == pytest.approx(expected)


def test_a_short_answer_that_came_later_may_be_due_before_a_long_one():
    requests = requests_at((0.0, 4, 3), (0.1, 4, 30), (0.2, 4, 2), (0.9, 4, 2))
    log, _ = served(requests, shipped_order("edf"))  # 0.5 s, and 0.02 s for each token after the first
    assert list(dict.fromkeys(ids[0] for _, ids in log)) == [0, 2, 1, 3]


def test_it_may_take_the_place_of_one_that_runs():
    requests = requests_at((0.0, 4, 90), (0.5, 4, 2))
    log, _ = served(requests, shipped_order("edf", preempts=True))
    assert log[:4] == [(0.0, [0]), (1.0, [1]), (2.0, [1]), (2.125, [0])]


@pytest.mark.parametrize("slo", [{}, {"tpot": 0.02}, {"ttft": 0.5, "itl": 0.1}])
def test_an_slo_without_a_deadline_is_refused(slo):
    with pytest.raises(ValueError, match=r"order.slo=\{.*\}: a deadline follows from ttft, tpot, e2e, normalized_lat"):
        edf(slo=slo, preempts=False, predicted=False, max_wait=None)
