"""The simulation against closed formulas of queueing theory, its clocks, and the order of simultaneous events."""

import time
from collections import deque

import numpy as np
import pytest
from scipy.stats import t as student_t

from framework.core import Request, StepResult
from framework.replay import replay
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine, requests_at

SERVICE_TIME = 1.0


def mean_wait(utilization: float, service_time, num_requests: int, seed: int) -> float:
    """Mean seconds in the queue of a server that takes one request at a time."""
    rng = np.random.default_rng(seed)
    arrival_times = np.cumsum(rng.exponential(SERVICE_TIME / utilization, num_requests))
    requests = [Request(index, time, 1, 1) for index, time in enumerate(arrival_times.tolist())]
    engine = FakeEngine(lambda batch: service_time(rng))
    sequences, _ = replay(requests, ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=1), engine)
    waits = [sequence.scheduled_time - sequence.request.arrival_time for sequence in sequences]
    return float(np.mean(waits[num_requests // 10 :]))


@pytest.mark.parametrize("utilization", [0.3, 0.7])
@pytest.mark.parametrize(
    ("service_time", "second_moment"),
    [(lambda rng: SERVICE_TIME, SERVICE_TIME**2), (lambda rng: rng.exponential(SERVICE_TIME), 2 * SERVICE_TIME**2)],
    ids=["M/D/1", "M/M/1"],
)
def test_waiting_time_agrees_with_pollaczek_khinchine(utilization, service_time, second_moment):
    expected = (utilization / SERVICE_TIME) * second_moment / (2 * (1 - utilization))
    means = [mean_wait(utilization, service_time, num_requests=4000, seed=seed) for seed in range(8)]
    half_width = student_t.ppf(0.995, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - expected) < half_width
    assert half_width < 0.25 * expected


def test_simultaneous_arrivals_are_all_seen_by_the_next_step():
    engine = FakeEngine()
    requests = requests_at((1.0, 4, 1), (1.0, 4, 1), (1.0, 4, 1))
    _, steps = replay(requests, ContinuousScheduler(engine.num_blocks, engine.block_size), engine)
    assert [(step.start_time, step.num_seqs) for step in steps] == [(1.0, 3)]


class SleepingEngine(FakeEngine):
    """Takes real time."""

    def __init__(self) -> None:
        super().__init__()
        self.timer = time.perf_counter

    def collect(self):
        started = time.perf_counter()
        time.sleep(0.01)
        token_ids = super().collect().token_ids
        return StepResult(token_ids, time.perf_counter() - started)


@pytest.mark.timing
@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_both_clocks_charge_what_a_step_takes(clock):
    requests = requests_at((0.0, 4, 3), (0.3, 4, 2))
    engine = SleepingEngine()
    started = time.perf_counter()
    sequences, steps = replay(requests, ContinuousScheduler(engine.num_blocks, engine.block_size), engine, clock)
    took = time.perf_counter() - started
    assert len(steps) == 5
    assert all(step.elapsed >= 0.01 and step.schedule > 0 and step.update > 0 for step in steps)
    assert sequences[0].token_times[-1] >= 0.03
    assert sequences[1].token_times[0] >= 0.31
    if clock == "wall":  # the idle gap really passes; under the virtual clock it costs nothing
        assert took >= sequences[1].token_times[-1] >= 0.32
    else:
        assert took < sequences[1].token_times[-1]


class BusyDevice(FakeEngine):
    """A device that works on while the host does something else, one step after the other."""

    STEP_TIME = 0.01

    def __init__(self, num_steps_ahead: int) -> None:
        super().__init__(num_steps_ahead=num_steps_ahead)
        self.timer = time.perf_counter
        self.times: deque[tuple[float, float]] = deque()  # of the launch and the end of each step in flight
        self.end = 0.0

    def launch(self, batch):
        super().launch(batch)
        launched = time.perf_counter()
        self.end = max(launched, self.end) + self.STEP_TIME
        self.times.append((launched, self.end))

    def collect(self):
        launched, end = self.times.popleft()
        while time.perf_counter() < end:
            pass
        return StepResult(super().collect().token_ids, time.perf_counter() - launched, device=self.STEP_TIME)


class SlowScheduler(ContinuousScheduler):
    """Thinks for as long as half a step takes."""

    def schedule(self, now):
        end = time.perf_counter() + BusyDevice.STEP_TIME / 2
        while time.perf_counter() < end:
            pass
        return super().schedule(now)


@pytest.mark.timing
def test_only_an_overlap_that_happened_is_free():
    """The scheduler's time adds to every step, or is hidden behind the step before; either way as in real time."""
    durations = {}
    for num_steps_ahead in (0, 1):
        started = time.perf_counter()
        engine = BusyDevice(num_steps_ahead)
        (sequence,), steps = replay(requests_at((0.0, 4, 20)), SlowScheduler(1000, 4), engine)
        took = time.perf_counter() - started
        durations[num_steps_ahead] = sequence.token_times[-1]
        assert 0.7 * took < sequence.token_times[-1] <= took
        assert len(steps) == 20
    assert durations[0] > 20 * 1.5 * BusyDevice.STEP_TIME
    assert 20 * BusyDevice.STEP_TIME < durations[1] < durations[0]


def test_on_step_sees_every_step_after_it_happened():
    engine = FakeEngine()
    seen = []
    _, steps = replay(requests_at((0.0, 4, 3)), ContinuousScheduler(1000, 4), engine, on_step=seen.append)
    assert seen == steps
    assert [step.num_output_tokens for step in steps] == [1, 1, 1]
