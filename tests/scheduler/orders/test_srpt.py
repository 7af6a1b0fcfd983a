"""Shortest remaining processing time: a shorter one takes the place of who has more to come."""

from tests.fake_engine import requests_at
from tests.scheduler.orders.logs import served, with_fields
from tests.scheduler.orders.shipped import shipped_order

REQUESTS = requests_at((0.0, 4, 5), (1.125, 4, 2), (1.125, 4, 4))


def test_what_remains_counts_and_not_what_was_asked_for():
    log, sequences = served(REQUESTS, shipped_order("srpt"))
    assert log == [
        (0.0, [0]),
        (1.0, [0]),
        (1.125, [1]),  # 2 to come of it, and 3 of 0
        (2.125, [1]),
        (2.25, [0]),  # 3 to come of it, and 4 of 2
        (3.25, [0]),
        (3.375, [0]),
        (3.5, [2]),
        (4.5, [2]),
        (4.625, [2]),
        (4.75, [2]),
    ]
    assert [one.num_preemptions for one in sequences] == [1, 0, 0]


def test_an_output_longer_than_predicted_has_nothing_left_to_come():
    requests = with_fields(REQUESTS, num_predicted_tokens=[1, 2, 3])
    log, sequences = served(requests, shipped_order("srpt", predicted=True))
    assert list(dict.fromkeys(ids[0] for _, ids in log)) == [0, 1, 2]
    assert [one.num_preemptions for one in sequences] == [0, 0, 0]


def test_nobody_gives_way_in_vain():
    """The third has the fewest tokens to come, and a prompt that the first one's blocks alone make no room for."""
    requests = requests_at((0.0, 4, 9), (0.0, 4, 3), (1.0, 25, 2))
    _, sequences = served(requests, shipped_order("srpt"), max_num_seqs=3, num_blocks=7, watermark=0.0)
    assert sequences[2].scheduled_time == sequences[1].token_times[-1]
    assert [one.num_preemptions for one in sequences] == [1, 0, 0]


def test_with_swap_it_goes_on_where_it_was():
    _, sequences = served(REQUESTS, shipped_order("srpt"), preemption="swap", num_swap_blocks=10)
    assert [(one.num_preemptions, one.num_swaps) for one in sequences] == [(1, 1), (0, 0), (0, 0)]
    assert [len(one.output_token_ids) for one in sequences] == [5, 2, 4]
