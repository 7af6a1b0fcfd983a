"""What must hold for any trace under either scheduler."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.core import Request
from framework.replay import replay
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from tests.fake_engine import FakeEngine, check_blocks

BLOCK_SIZE = 4


@st.composite
def workloads(draw):
    rows = draw(
        st.lists(st.tuples(st.floats(0, 5), st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=25).map(
            sorted
        )
    )
    requests = [Request(index, *row) for index, row in enumerate(rows)]
    largest = max(-(-(prompt + output) // BLOCK_SIZE) for _, prompt, output in rows)
    return requests, largest + draw(st.integers(0, 10))


def checked(scheduler_type):
    """The scheduler, checking after every decision that no block is shared."""

    class Checked(scheduler_type):
        def schedule(self, now):
            batch = super().schedule(now)
            seated = [*self.running, *getattr(self, "ending", [])]
            check_blocks(seated, self.blocks.num_blocks)
            assert self.blocks.num_used == sum(len(sequence.block_table) for sequence in seated)
            assert len(self.running) <= self.max_num_seqs
            return batch

    return Checked


@pytest.mark.parametrize("scheduler_type", [StaticScheduler, ContinuousScheduler])
@settings(max_examples=150, deadline=None)
@given(
    workload=workloads(),
    max_num_seqs=st.integers(1, 6),
    budget=st.integers(1, 30),
    watermark=st.floats(0, 0.5),
    num_steps_ahead=st.integers(0, 1),
    stop=st.integers(0, 15),
)
def test_every_request_completes_once_with_its_tokens(
    scheduler_type, workload, max_num_seqs, budget, watermark, num_steps_ahead, stop
):
    """The fake engine's tokens count from 0, so an output ends with token `stop` if it gets that far."""
    requests, num_blocks = workload
    requests = [replace(request, stop_token_ids=frozenset({stop})) for request in requests]
    engine = FakeEngine(lambda batch: 0.01 * sum(batch.num_tokens), num_blocks, BLOCK_SIZE, num_steps_ahead)
    options = (
        {"max_num_batched_tokens": budget, "watermark": watermark} if scheduler_type is ContinuousScheduler else {}
    )
    scheduler = checked(scheduler_type)(num_blocks, BLOCK_SIZE, max_num_seqs=max_num_seqs, **options)
    sequences, steps = replay(requests, scheduler, engine)
    for sequence in sequences:
        request = sequence.request
        assert sequence.output_token_ids == list(range(min(request.num_output_tokens, stop + 1)))
        times = [request.arrival_time, sequence.scheduled_time, *sequence.token_times]
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(times))
        assert sequence.block_table == []
    assert scheduler.blocks.num_free == num_blocks
    assert sorted(scheduler.blocks.free) == list(range(num_blocks))
    assert sum(step.num_output_tokens for step in steps) == sum(len(one.output_token_ids) for one in sequences)
    assert not engine.in_flight
    ends = [step.start_time + step.elapsed for step in steps]
    assert all(step.start_time >= end - 1e-12 for step, end in zip(steps[1:], ends, strict=False))
    if not any(sequence.num_preemptions for sequence in sequences):
        first_tokens = [sequence.token_times[0] for sequence in sequences]
        assert first_tokens == sorted(first_tokens)
