"""Event logs of every scheduler in conf/scheduler, by hand: a step with a prompt takes 1 s, one of decodes 0.125 s."""

import pytest

from framework.build import make_scheduler
from framework.core import Request, Sequence
from tests.fake_engine import FakeEngine, requests_at
from tests.scheduler.event_logs import OnlyTheFirst, run_rows
from tests.scheduler.shipped import NAMES, shipped

# A short prompt, and while it decodes a long one and a shorter one
REQUESTS = requests_at((0.0, 4, 4), (0.5, 10, 2), (0.5, 2, 2))
CHUNKED = ("mixed", "sarathi", "chunk_only")


def test_every_scheduler_has_its_log_and_its_budget():
    budgets = {name: shipped(name).keywords.get("max_num_batched_tokens") for name in NAMES}
    assert budgets == {
        "chunk_only": 512,
        "continuous": 2048,
        "hybrid_only": None,
        "mixed": 2048,
        "sarathi": 512,
        "static": None,
    }


def test_continuous_computes_prompts_first():
    _, log = run_rows(REQUESTS, shipped("continuous", max_num_batched_tokens=6))
    assert log == [
        (0.0, [], [(0, 0, 4)]),
        (1.0, [], [(1, 0, 6)]),  # longer than the budget; 0 waits
        (2.0, [], [(1, 6, 10)]),  # alone
        (3.0, [], [(2, 0, 2)]),
        (4.0, [0, 1, 2], []),
        (4.125, [0], []),
        (4.25, [0], []),
    ]


def test_mixed_lets_chunks_ride_along():
    sequences, log = run_rows(REQUESTS, shipped("mixed", max_num_seqs=4, max_num_batched_tokens=6))
    assert log == [
        (0.0, [], [(0, 0, 4)]),
        (1.0, [0], [(1, 0, 5)]),  # what the decode token leaves of the budget
        (2.0, [0], [(1, 5, 10)]),
        (3.0, [0, 1], [(2, 0, 2)]),
        (4.0, [2], []),
    ]
    assert [sequence.token_times for sequence in sequences] == [[1.0, 2.0, 3.0, 4.0], [3.0, 4.0], [4.0, 4.125]]
    assert [sequence.scheduled_time for sequence in sequences] == [0.0, 1.0, 3.0]


def test_sarathi_fills_a_small_budget_with_the_next_prompt():
    _, log = run_rows(REQUESTS, shipped("sarathi", max_num_seqs=3, max_num_batched_tokens=4))
    assert log == [
        (0.0, [], [(0, 0, 4)]),
        (1.0, [0], [(1, 0, 3)]),
        (2.0, [0], [(1, 3, 6)]),
        (3.0, [0], [(1, 6, 9)]),
        (4.0, [], [(1, 9, 10), (2, 0, 2)]),  # a last chunk of one token is a prompt's row, and not the first decode
        (5.0, [1, 2], []),
    ]


class ShortContext(FakeEngine):
    max_model_len = 12


def hybrid_only(num_blocks, block_size):
    return make_scheduler(shipped("hybrid_only", max_num_seqs=4), ShortContext(num_blocks=num_blocks))


def test_hybrid_only_takes_whole_prompts():
    _, log = run_rows(REQUESTS, hybrid_only)
    assert log == [
        (0.0, [], [(0, 0, 4)]),
        (1.0, [0], [(1, 0, 10)]),  # one token of the context's 12 is left: 2 waits
        (2.0, [0, 1], [(2, 0, 2)]),
        (3.0, [0, 2], []),
    ]


def test_hybrid_only_cuts_a_prompt_that_fits_no_step_beside_the_decodes():
    requests = requests_at((0.0, 4, 4), (0.0, 4, 4), (0.5, 11, 1), (0.5, 1, 1))
    _, log = run_rows(requests, hybrid_only)
    assert log == [
        (0.0, [], [(0, 0, 4), (1, 0, 4)]),
        (1.0, [0, 1], [(2, 0, 10)]),
        (2.0, [0, 1], [(2, 10, 11)]),  # and no other prompt
        (3.0, [0, 1], [(3, 0, 1)]),
    ]


def test_chunk_only_takes_turns():
    _, log = run_rows(REQUESTS, shipped("chunk_only", max_num_seqs=4, max_num_batched_tokens=6))
    assert log == [
        (0.0, [], [(0, 0, 4)]),
        (1.0, [0], []),
        (1.125, [], [(1, 0, 6)]),
        (2.125, [0], []),
        (2.25, [], [(1, 6, 10), (2, 0, 2)]),
        (3.25, [0, 1, 2], []),
    ]


def test_chunk_only_goes_on_with_prompts_while_nobody_decodes():
    _, log = run_rows(requests_at((0.0, 10, 1)), shipped("chunk_only", max_num_batched_tokens=8))
    assert log == [(0.0, [], [(0, 0, 8)]), (1.0, [], [(0, 8, 10)])]


def test_a_prompt_in_chunks_is_the_first_to_be_preempted():
    requests = requests_at((0.0, 4, 6), (0.5, 12, 1))  # five blocks of 4: the second prompt needs three
    make = shipped("mixed", max_num_seqs=2, max_num_batched_tokens=3, watermark=0.0)
    sequences, log = run_rows(requests, make, num_blocks=5)
    assert log == [
        (0.0, [], [(0, 0, 3)]),
        (1.0, [], [(0, 3, 4), (1, 0, 2)]),
        (2.0, [0], [(1, 2, 4)]),
        (3.0, [0], [(1, 4, 6)]),
        (4.0, [0], [(1, 6, 8)]),
        (5.0, [0], [(1, 8, 10)]),
        (6.0, [0], []),  # its third block was one of 1's
        (6.125, [], [(1, 0, 3)]),
        (7.125, [], [(1, 3, 6)]),
        (8.125, [], [(1, 6, 9)]),
        (9.125, [], [(1, 9, 12)]),
    ]
    assert [sequence.num_preemptions for sequence in sequences] == [0, 1]


def test_mixed_steps_run_one_ahead():
    requests = requests_at((0.0, 4, 3), (0.5, 10, 1))
    sequences, log = run_rows(requests, shipped("mixed", max_num_seqs=4, max_num_batched_tokens=6), num_steps_ahead=1)
    assert log == [
        (0.0, [], [(0, 0, 4)]),
        (1.0, [0], []),  # scheduled at 0.0, when 1 had not arrived
        (1.125, [0], [(1, 0, 5)]),  # scheduled at 1.0; the last token of 0 is on its way
        (2.125, [], [(1, 5, 10)]),
    ]
    assert [sequence.token_times for sequence in sequences] == [[1.0, 1.125, 2.125], [3.125]]


@pytest.mark.parametrize("name", CHUNKED)
def test_one_prompt_goes_on_before_the_next_begins(name):
    requests = requests_at(*[(0.0, 9, 2)] * 4)
    _, log = run_rows(requests, shipped(name, max_num_seqs=3, max_num_batched_tokens=5))
    chunks = [chunk for _, _, prompts in log for chunk in prompts]
    assert [(request, end) for request, _, end in chunks if end == 9] == [(index, 9) for index in range(4)]
    assert chunks == sorted(chunks)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "static"])
def test_a_step_looks_at_none_that_waits_but_the_first(name):
    scheduler = shipped(name, max_num_seqs=2)(num_blocks=6, block_size=4)
    scheduler.waiting = OnlyTheFirst()
    for index in range(50):
        scheduler.add(Sequence(Request(index, 0.0, 7, 9)))
    for step in range(40):
        batch = scheduler.schedule(float(step))
        scheduler.postprocess(batch, [7] * len(batch.sequences), step + 0.5)
    assert len(scheduler.waiting) < 49
