"""Shortest job first: by known and by predicted lengths, without preemption."""

import random

from framework.core import Request
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import requests_at
from tests.scheduler.event_logs import run
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order

REQUESTS = requests_at((0.0, 4, 3), (0.5, 4, 4), (0.5, 4, 2), (0.5, 4, 1))


def test_the_shortest_output_is_next_and_who_runs_runs_on():
    log, _ = served(REQUESTS, shipped_order("sjf"))
    assert log == [
        (0.0, [0]),
        (1.0, [0]),
        (1.125, [0]),
        (1.25, [3]),
        (2.25, [2]),
        (3.25, [2]),
        (3.375, [1]),
        (4.375, [1]),
        (4.5, [1]),
        (4.625, [1]),
    ]


def test_predictions_may_be_wrong():
    requests = with_fields(REQUESTS, num_predicted_tokens=[9, 1, 2, 3])
    log, _ = served(requests, shipped_order("sjf", predicted=True))
    firsts = list(dict.fromkeys(ids[0] for _, ids in log))
    assert firsts == [0, 1, 2, 3]


def test_of_requests_that_come_together_the_shorter_begins_first():
    rng = random.Random(3)
    requests = [Request(index, 0.0, rng.randint(1, 9), rng.randint(1, 9)) for index in range(40)]
    sequences, _, _ = run(requests, ContinuousScheduler, max_num_seqs=3, order=shipped_order("sjf"))
    by_length = sorted(sequences, key=lambda one: one.request.num_output_tokens)
    starts = [one.scheduled_time for one in by_length]
    assert starts == sorted(starts)
