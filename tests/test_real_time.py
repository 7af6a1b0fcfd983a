"""The loop in real time: it logs of a fake engine what the simulation logs, and its clock is that on the wall."""

import time
from math import inf

import pytest

from framework.core import Request, Sequence, StepResult
from framework.real_time import RealTime
from framework.replay import Server
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.trace.source import TraceSource
from tests.clusters import serve
from tests.fake_engine import FakeEngine, requests_at


class Sleeper(FakeEngine):
    """Every step takes real time."""

    STEP_TIME = 0.05

    def collect(self):
        time.sleep(self.STEP_TIME)
        return StepResult(super().collect().token_ids, self.STEP_TIME)


class AheadSleeper(Sleeper):
    """A step that is launched ahead begins when the one before it ends."""

    def __init__(self) -> None:
        super().__init__(num_steps_ahead=1)
        self.ends: list[float] = []

    def launch(self, batch):
        super().launch(batch)
        begun = max([time.perf_counter(), *self.ends[-1:]])
        self.ends.append(begun + self.STEP_TIME)

    def collect(self):
        time.sleep(max(0.0, self.ends[len(self.ends) - len(self.in_flight)] - time.perf_counter()))
        return StepResult(FakeEngine.collect(self).token_ids, self.STEP_TIME)


def in_real_time(source, scheduler, engine):
    engine.begin(source.requests, scheduler.max_num_seqs)
    loop = RealTime(source, scheduler, engine)
    loop.serve()
    return loop


ROWS = ((0.0, 4, 3), (0.075, 4, 2), (0.6, 4, 1))
LOG = [("prefill", [0]), ("decode", [0]), ("prefill", [1]), ("decode", [0, 1]), ("prefill", [2])]


@pytest.mark.timing
def test_the_log_of_a_fake_engine():
    """As the simulation has it with steps of so long."""
    loop = in_real_time(TraceSource(requests_at(*ROWS)), ContinuousScheduler(1000, 4), engine := Sleeper())
    assert engine.batches == LOG
    simulated = FakeEngine(lambda batch: Sleeper.STEP_TIME)
    sequences = serve(
        requests_at(*ROWS), [server := Server(ContinuousScheduler(1000, 4), simulated)], lambda one: server
    )
    assert simulated.batches == LOG
    for real, other in zip(loop.sequences, sequences, strict=True):
        assert real.request == other.request
        assert real.token_times == pytest.approx(other.token_times, abs=0.04)
    for real, other in zip(loop.steps, server.steps, strict=True):
        assert (real.phase, real.num_seqs, real.num_used_blocks) == (other.phase, other.num_seqs, other.num_used_blocks)
        assert real.start_time == pytest.approx(other.start_time, abs=0.04)
        assert real.elapsed >= other.elapsed


@pytest.mark.timing
def test_a_step_ahead_is_launched_before_the_tokens_of_the_one_before():
    engine = AheadSleeper()
    loop = in_real_time(TraceSource(requests_at((0.0, 4, 4))), ContinuousScheduler(1000, 4), engine)
    starts = [step.start_time for step in loop.steps]
    ends = [step.start_time + step.elapsed for step in loop.steps]
    assert starts[1:] == pytest.approx(ends[:-1])  # they leave no time between them
    assert loop.sequences[0].token_times == pytest.approx(ends)
    assert 4 * AheadSleeper.STEP_TIME <= ends[-1] < 5 * AheadSleeper.STEP_TIME


class SlowRecords(ContinuousScheduler):
    """What is asked of it for a step's record takes long."""

    @property
    def slot_use(self):
        time.sleep(0.1)
        return super().slot_use


@pytest.mark.timing
def test_what_only_records_take_is_not_in_its_time():
    loop = in_real_time(TraceSource(requests_at((0.0, 4, 3), (0.2, 4, 1))), SlowRecords(1000, 4), Sleeper())
    first, second = loop.sequences
    assert 3 * Sleeper.STEP_TIME <= first.token_times[-1] < 3 * Sleeper.STEP_TIME + 0.05  # of 0.3 s in real time
    assert 0.2 + Sleeper.STEP_TIME <= second.token_times[0] < 0.2 + Sleeper.STEP_TIME + 0.05


def test_turns_follow_the_answers_and_users_take_turns():
    said = [Request(index, 0.0, 4, 1, session_id=f"chat {index}") for index in (0, 1)]
    answers = [Request(2 + index, 0.0, 6, 1, None, 0, f"chat {index}", turn=2, think_time=0.01) for index in (0, 1)]
    source = TraceSource([*said, *answers], max_concurrency=1)
    loop = in_real_time(source, StaticScheduler(1000, 4, max_num_seqs=2), FakeEngine())
    assert [sequence.request.request_id for sequence in loop.sequences] == [0, 2, 1, 3]
    assert all(sequence.is_finished for sequence in loop.sequences)
    by_id = {sequence.request.request_id: sequence for sequence in loop.sequences}
    assert by_id[2].arrival_time == by_id[0].token_times[-1] + 0.01


class Deaf(ContinuousScheduler):
    """Never schedules, or asks to be asked again."""

    def schedule(self, now):
        self.wake_time = inf if now > 0.01 else now + 0.005


def test_a_stall_is_an_error():
    with pytest.raises(RuntimeError, match=r"stalled at 0\.0\d* s, unfinished requests: 1"):
        in_real_time(TraceSource(requests_at((0.0, 4, 1))), Deaf(1000, 4), FakeEngine())


def test_prompts_are_made_before_they_arrive():
    added = []

    class Listening(FakeEngine):
        def add(self, sequence):
            added.append(time.perf_counter())

    begun = time.perf_counter()
    loop = in_real_time(TraceSource(requests_at((0.0, 4, 1), (0.05, 4, 1))), ContinuousScheduler(1000, 4), Listening())
    assert len(added) == 2
    assert max(added) < begun + 0.05
    assert isinstance(loop.sequences[0], Sequence)
