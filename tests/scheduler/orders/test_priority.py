"""Priorities: the lowest number first; with preemption it takes a running one's place."""

from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order

# Of three that come together the second is the most urgent; the last one, later, is more urgent than all
REQUESTS = with_fields(requests_at(*[(0.0, 4, 3)] * 3, (2.0, 4, 2)), priority=[1, 0, 1, -1])


def test_the_lowest_number_is_served_first():
    log, _ = served(REQUESTS, shipped_order("priority"))
    assert log == [
        (0.0, [1]),
        (1.0, [1]),
        (1.125, [1]),
        (1.25, [0]),
        (2.25, [0]),  # 3 waits for the seat
        (2.375, [0]),
        (2.5, [3]),
        (3.5, [3]),
        (3.625, [2]),
        (4.625, [2]),
        (4.75, [2]),
    ]


def test_with_preemption_it_takes_the_place_of_one_that_runs():
    log, sequences = served(REQUESTS, shipped_order("priority", preempts=True))
    assert log[3:] == [
        (1.25, [0]),
        (2.25, [3]),
        (3.25, [3]),
        (3.375, [0]),  # its prompt and its first token again
        (4.375, [0]),
        (4.5, [2]),
        (5.5, [2]),
        (5.625, [2]),
    ]
    assert [one.num_preemptions for one in sequences] == [1, 0, 0, 0]
    assert all(len(one.output_token_ids) == one.request.num_output_tokens for one in sequences)


def test_when_the_cache_runs_out_the_least_urgent_loses_its_blocks_whenever_it_was_admitted():
    requests = with_fields(requests_at((0.0, 4, 6), (0.0, 4, 6)), priority=[1, 0])
    _, sequences = served(requests, shipped_order("priority"), max_num_seqs=2, num_blocks=4, watermark=0.0)
    assert [one.num_preemptions for one in sequences] == [1, 0]
