"""Event logs of static batching on cases worked out by hand; a prefill takes 1 s and a decode 0.125 s."""

import pytest

from framework.scheduler.static import StaticScheduler
from tests.fake_engine import requests_at
from tests.scheduler.event_logs import run


def test_static_pads_and_keeps_the_seats_of_the_finished():
    requests = requests_at((0.0, 4, 1), (0.0, 8, 3), (0.0, 2, 2))
    sequences, steps, log = run(requests, StaticScheduler, max_num_seqs=2, max_wait=0.5)
    assert log == [
        (0.0, "prefill", [0, 1]),
        (1.0, "decode", [0, 1]),  # 0 has finished but keeps its seat
        (1.125, "decode", [0, 1]),
        (1.25, "prefill", [2]),
        (2.25, "decode", [2]),
    ]
    assert steps[0].num_prefill_tokens == 16  # two seats, padded to 8
    assert sequences[0].num_padding == 4
    assert [step.num_output_tokens for step in steps] == [2, 1, 1, 1, 1]
    assert sequences[0].token_times == [1.0]


def test_static_waits_for_a_full_batch_or_max_wait():
    requests = requests_at((0.0, 4, 1), (0.25, 4, 1), (3.0, 4, 1))
    _, _, log = run(requests, StaticScheduler, max_num_seqs=2, max_wait=0.5)
    assert log == [(0.25, "prefill", [0, 1]), (3.5, "prefill", [2])]
    _, _, log = run(requests, StaticScheduler, max_num_seqs=2, max_wait=0.125)
    assert log == [(0.125, "prefill", [0]), (1.125, "prefill", [1]), (3.125, "prefill", [2])]


def test_static_takes_as_many_seats_as_the_cache_holds():
    requests = requests_at((0.0, 4, 4), (0.0, 8, 4), (0.0, 4, 4))  # the first two need 3 blocks a seat
    _, _, log = run(requests, StaticScheduler, num_blocks=6, max_num_seqs=3)
    assert [ids for _, phase, ids in log if phase == "prefill"] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, not 0"),
        ({"max_wait": float("inf")}, "max_wait must be a finite"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StaticScheduler(10, 4, **options)
