"""What the simulation and the loop in real time check and write down alike."""

import pytest

from framework.core import Batch, Sequence, Step, StepResult
from framework.loops import Progress, check_batch, check_requests, describe_step, get_ready, note_adapter_waits
from framework.scheduler.continuous import ContinuousScheduler
from framework.trace.source import TraceSource
from tests.fake_engine import FakeEngine, requests_at


def test_a_request_that_never_fits_is_named_before_anything_runs():
    scheduler = ContinuousScheduler(num_blocks=2, block_size=4)
    with pytest.raises(ValueError, match="request 1, of 40 prompt and 2 output tokens: "):
        check_requests(requests_at((0.0, 4, 1), (0.0, 40, 2)), scheduler)


def test_schedulers_hold_for_no_more_than_one_step_ahead():
    engine = FakeEngine(num_steps_ahead=2)
    with pytest.raises(ValueError, match=r"FakeEngine\.num_steps_ahead must be 0 or 1, not 2"):
        get_ready(TraceSource(requests_at((0.0, 4, 2))), ContinuousScheduler(1000, 4), engine)


def test_a_batch_of_nobody_names_its_server():
    with pytest.raises(RuntimeError, match=r"server 3 makes no progress: its batch at 1\.500000 s is empty"):
        check_batch(Batch([], [], [], 0, 0), 1.5, server=3)


def test_sequences_are_told_how_long_their_adapter_took():
    sequences = [Sequence(request) for request in requests_at((0.0, 4, 1), (0.0, 4, 1))]
    sequences[1].adapter_slot = 2
    batch = Batch(sequences, [0, 0], [4, 4], 8, 0)
    note_adapter_waits(batch, StepResult([1, 1], 0.1, adapter_waits={2: 0.05}))
    assert [sequence.adapter_load_wait for sequence in sequences] == [0.0, 0.05]


def test_a_step_is_described_as_it_was_before_its_tokens_are_handed_out():
    scheduler, engine = ContinuousScheduler(1000, 4), FakeEngine()
    for request in requests_at((0.0, 6, 2), (0.0, 3, 1)):
        scheduler.add(Sequence(request))
    batch = scheduler.schedule(0.5)
    step = describe_step(0.5, 0.1, 0.01, batch, StepResult([1, 1], 0.1, 0.02, 0.07), scheduler, engine, server=1)
    assert (step.start_time, step.elapsed, step.schedule, step.prepare, step.device) == (0.5, 0.1, 0.01, 0.02, 0.07)
    assert (step.phase, step.num_seqs, step.num_prefill_tokens, step.num_prefill_pairs) == ("prefill", 2, 9, 21 + 6)
    assert (step.num_used_blocks, step.num_waiting, step.server) == (3, 0, 1)


def test_a_step_that_computes_nothing_is_no_progress():
    batch = Batch([Sequence(requests_at((0.0, 4, 1))[0])], [0], [0], 0, 0)
    step = Step(0.0, 0.1, "decode", 1, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)
    with pytest.raises(RuntimeError, match="server 2 makes no progress on request 0: 1 steps without a token"):
        Progress(2).note(step, batch)
