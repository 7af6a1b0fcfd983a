"""Event logs of continuous batching on cases worked out by hand; a prefill takes 1 s and a decode 0.125 s."""

import pytest

from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import requests_at
from tests.scheduler.event_logs import run


def test_continuous_joins_and_leaves_every_step():
    requests = requests_at((0.0, 4, 3), (0.5, 4, 2), (5.0, 4, 1))
    sequences, _, log = run(requests, ContinuousScheduler)
    assert log == [
        (0.0, "prefill", [0]),
        (1.0, "prefill", [1]),  # prefill first
        (2.0, "decode", [0, 1]),
        (2.125, "decode", [0]),  # 1 has left
        (5.0, "prefill", [2]),  # the server slept
    ]
    assert [sequence.token_times for sequence in sequences] == [[1.0, 2.125, 2.25], [2.0, 2.125], [6.0]]
    assert [sequence.scheduled_time for sequence in sequences] == [0.0, 1.0, 5.0]


def test_continuous_keeps_to_its_seats_and_its_token_budget():
    requests = requests_at((0.0, 4, 1), (0.0, 5, 1), (0.0, 3, 2), (0.0, 1, 1))
    _, steps, log = run(requests, ContinuousScheduler, max_num_seqs=3, max_num_batched_tokens=10)
    assert log == [(0.0, "prefill", [0, 1]), (1.0, "prefill", [2, 3]), (2.0, "decode", [2])]
    assert [step.num_prefill_tokens for step in steps] == [9, 4, 0]
    _, _, log = run(requests_at((0.0, 4, 2), (0.0, 4, 1)), ContinuousScheduler, max_num_seqs=1)
    assert log == [(0.0, "prefill", [0]), (1.0, "decode", [0]), (1.125, "prefill", [1])]


def test_continuous_splits_only_a_prompt_above_the_budget():
    requests = requests_at((0.0, 3, 1), (0.0, 10, 2), (0.0, 2, 1))
    sequences, steps, log = run(requests, ContinuousScheduler, max_num_batched_tokens=4)
    assert log == [
        (0.0, "prefill", [0]),
        (1.0, "prefill", [1]),
        (2.0, "prefill", [1]),
        (3.0, "prefill", [1]),
        (4.0, "prefill", [2]),
        (5.0, "decode", [1]),
    ]
    assert [step.num_prefill_tokens for step in steps] == [3, 4, 4, 2, 2, 0]
    assert sequences[1].token_times == [4.0, 5.125]


def test_continuous_recomputes_what_it_preempts():
    requests = requests_at((0.0, 4, 6), (0.0, 4, 6))  # 10 slots each, blocks of 4: two grow to 3 blocks, only 4 exist
    sequences, steps, log = run(requests, ContinuousScheduler, num_blocks=4, watermark=0.0)
    assert log[:6] == [
        (0.0, "prefill", [0, 1]),
        (1.0, "decode", [0, 1]),
        (1.125, "decode", [0, 1]),
        (1.25, "decode", [0, 1]),
        (1.375, "decode", [0, 1]),
        (1.5, "decode", [0]),  # 0 takes the blocks of 1, which came last
    ]
    assert log[6] == (1.625, "prefill", [1])  # prompt and five tokens so far, recomputed
    assert [sequence.num_preemptions for sequence in sequences] == [0, 1]
    assert [sequence.output_token_ids for sequence in sequences] == [[0, 1, 2, 3, 4, 5]] * 2
    assert steps[6].num_prefill_tokens == 4 + 5
    assert max(step.num_used_blocks for step in steps) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens must be at least 1"),
        ({"steps": "mix"}, "scheduler.steps='mix' is not one of prompts_first, mixed, alternate"),
        ({"watermark": 1.0}, r"watermark must be in \[0, 1\), not 1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousScheduler(10, 4, **options)
