"""The simulation against closed formulas of queueing theory, its clocks, and the order of simultaneous events."""

import time
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import count
from operator import attrgetter

import numpy as np
import pytest
from scipy.stats import t as student_t

from framework.build import make_scheduler, replay_trace
from framework.core import Request, Sequence, StepResult
from framework.replay import Server, World, replay
from framework.router.round_robin import round_robin
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.trace.source import TraceSource
from tests.clusters import make_servers, serve
from tests.fake_engine import FakeEngine, requests_at
from tests.thinning import mostly_nightly

SERVICE_TIME = 1.0


def mean_wait(utilization: float, service_time, num_requests: int, seed: int) -> float:
    """Mean seconds in the queue of a server that takes one request at a time."""
    rng = np.random.default_rng(seed)
    arrival_times = np.cumsum(rng.exponential(SERVICE_TIME / utilization, num_requests))
    requests = [Request(index, time, 1, 1) for index, time in enumerate(arrival_times.tolist())]
    engine = FakeEngine(lambda batch: service_time(rng))
    sequences, _ = replay_trace(
        requests, ContinuousScheduler(engine.num_blocks, engine.block_size, max_num_seqs=1), engine
    )
    waits = [sequence.scheduled_time - sequence.request.arrival_time for sequence in sequences]
    return float(np.mean(waits[num_requests // 10 :]))


SERVICES = {  # the time's second moment, and how it is drawn
    "M/D/1": (SERVICE_TIME**2, lambda rng: SERVICE_TIME),
    "M/M/1": (2 * SERVICE_TIME**2, lambda rng: rng.exponential(SERVICE_TIME)),
}


@pytest.mark.parametrize(("service", "utilization"), mostly_nightly([*SERVICES], [0.3, 0.7]))
def test_waiting_time_agrees_with_pollaczek_khinchine(service, utilization):
    second_moment, service_time = SERVICES[service]
    expected = (utilization / SERVICE_TIME) * second_moment / (2 * (1 - utilization))
    means = [mean_wait(utilization, service_time, num_requests=4000, seed=seed) for seed in range(8)]
    half_width = student_t.ppf(0.995, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - expected) < half_width
    assert half_width < 0.25 * expected


def test_simultaneous_arrivals_are_all_seen_by_the_next_step():
    engine = FakeEngine()
    requests = requests_at((1.0, 4, 1), (1.0, 4, 1), (1.0, 4, 1))
    _, steps = replay_trace(requests, ContinuousScheduler(engine.num_blocks, engine.block_size), engine)
    assert [(step.start_time, step.num_seqs) for step in steps] == [(1.0, 3)]


class ListeningEngine(FakeEngine):
    """Keeps what it is told of the batches that will come."""

    def begin(self, requests, max_num_seqs, max_num_batched_tokens=None):
        self.limits = max_num_seqs, max_num_batched_tokens


@pytest.mark.parametrize(
    ("make", "limits"),
    [
        (partial(ContinuousScheduler, max_num_seqs=3, max_num_batched_tokens=32), (3, 32)),
        (partial(StaticScheduler, max_num_seqs=3), (3, None)),
    ],
)
def test_an_engine_is_told_how_large_a_batch_may_be(make, limits):
    engine = ListeningEngine()
    replay_trace(requests_at((0.0, 4, 1)), make_scheduler(make, engine), engine)
    assert engine.limits == limits


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
    sequences, steps = replay_trace(requests, ContinuousScheduler(engine.num_blocks, engine.block_size), engine, clock)
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


@pytest.mark.parametrize("num_steps_ahead", [-1, 2])
def test_schedulers_hold_for_no_more_than_one_step_ahead(num_steps_ahead):
    engine = FakeEngine(num_steps_ahead=num_steps_ahead)
    with pytest.raises(ValueError, match=f"FakeEngine.num_steps_ahead must be 0 or 1, not {num_steps_ahead}"):
        replay_trace(requests_at((0.0, 4, 20)), ContinuousScheduler(1000, 4), engine)


@pytest.mark.timing
@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_only_an_overlap_that_happened_is_free(clock):
    """The scheduler's time adds to every step, or is hidden behind the step before; either way as in real time."""
    durations = {}
    for num_steps_ahead in (0, 1):
        started = time.perf_counter()
        engine = BusyDevice(num_steps_ahead)
        (sequence,), steps = replay_trace(requests_at((0.0, 4, 20)), SlowScheduler(1000, 4), engine, clock)
        took = time.perf_counter() - started
        durations[num_steps_ahead] = sequence.token_times[-1]
        assert 0.7 * took < sequence.token_times[-1] <= took
        assert len(steps) == 20
    assert durations[0] > 20 * 1.5 * BusyDevice.STEP_TIME
    assert 20 * BusyDevice.STEP_TIME < durations[1] < durations[0]


def test_on_step_sees_every_step_after_it_happened():
    engine = FakeEngine()
    seen = []
    _, steps = replay_trace(requests_at((0.0, 4, 3)), ContinuousScheduler(1000, 4), engine, on_step=seen.append)
    assert seen == steps
    assert [step.num_output_tokens for step in steps] == [1, 1, 1]


def log_of(servers):
    """(start, server, phase, number of sequences) of every step, by start."""
    steps = sorted((step for server in servers for step in server.steps), key=lambda step: step.start_time)
    return [(round(step.start_time, 9), step.server, step.phase, step.num_seqs) for step in steps]


def test_servers_keep_their_own_time():
    servers = make_servers(2, step_times=[0.1, 0.25])
    sequences = serve(requests_at((0.0, 4, 3), (0.0, 4, 2), (0.4, 4, 1)), servers, round_robin(servers))
    assert log_of(servers) == [
        (0.0, 0, "prefill", 1),
        (0.0, 1, "prefill", 1),
        (0.1, 0, "decode", 1),
        (0.2, 0, "decode", 1),
        (0.25, 1, "decode", 1),
        (0.4, 0, "prefill", 1),
    ]
    assert [sequence.token_times[-1] for sequence in sequences] == pytest.approx([0.3, 0.5, 0.5])


def test_a_sequence_that_the_router_holds_back_is_offered_again_after_every_step_and_others_wait_behind_it():
    servers = make_servers(2, step_times=[0.1, 0.25], max_num_seqs=1)
    offers = []

    def one_at_a_time(sequence):
        free = [server for server in servers if not server.scheduler.num_unfinished]
        offers.append((sequence.request.request_id, len(free)))
        return free[0] if free else None

    sequences = serve(requests_at((0.0, 4, 1), (0.0, 4, 1), (0.0, 4, 1), (0.05, 4, 1)), servers, one_at_a_time)
    assert offers == [(0, 2), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert [sequence.token_times for sequence in sequences] == [[0.1], [0.25], [0.2], [pytest.approx(0.3)]]


def test_a_sequence_that_no_server_ever_takes_is_a_stall_that_names_it():
    servers = make_servers(2)

    def only_the_first(sequence):
        return servers[0] if sequence.request.request_id == 0 else None

    with pytest.raises(RuntimeError, match=r"stalled at 0\.1.*unfinished requests: 1; request 1 waits at the router"):
        serve(
            requests_at((0.0, 4, 1), (0.0, 4, 1)), servers, lambda one: None if one.request.request_id else servers[0]
        )


class Deaf(ContinuousScheduler):
    """Never schedules."""

    def schedule(self, now):
        return None


def test_a_process_that_only_ticks_keeps_no_stalled_world_alive(monkeypatch):
    def tick(env):
        while True:
            yield env.timeout(1.0)

    class TickingWorld(World):
        def __init__(self, env, *others):
            super().__init__(env, *others)
            env.process(tick(env))

    monkeypatch.setattr("framework.replay.World", TickingWorld)
    with pytest.raises(RuntimeError, match=r"stalled at 2\.0.*request 0 is at server 0"):
        replay_trace(requests_at((0.0, 4, 1), (2.0, 4, 1)), Deaf(1000, 4), FakeEngine())


def test_a_session_that_never_finishes_is_named():
    requests = [
        Request(0, 0.0, 4, 1, session_id="chat"),
        Request(1, 0.0, 6, 1, session_id="chat", turn=2, think_time=1.0),
    ]
    with pytest.raises(RuntimeError, match=r"request 0, turn 1 of session 'chat', is at server 0"):
        replay_trace(requests, Deaf(1000, 4), FakeEngine())


class Snoozing(Deaf):
    """Sets one alarm after the other."""

    @property
    def wake_time(self):
        return next(self.alarms)

    alarms = count(1.0)


def test_a_scheduler_that_only_sets_alarms_is_a_stall(monkeypatch):
    monkeypatch.setattr("framework.replay.MAX_ALARMS_WITHOUT_STEP", 7)
    with pytest.raises(RuntimeError, match=r"server 0 stalled at 7\.0.*after 8 alarms .*request 0 is at server 0"):
        replay_trace(requests_at((0.0, 4, 1)), Snoozing(1000, 4), FakeEngine())


class Echo(TraceSource):
    """Every finished sequence is followed by another, half a second later, up to a number of turns."""

    follows = True

    def __init__(self, requests, num_turns):
        super().__init__(requests)
        self.num_turns = num_turns

    def follow(self, finished, now):
        turn = finished.request.request_id // 10 + 1
        if turn == self.num_turns:
            return ()
        request = replace(finished.request, request_id=finished.request.request_id + 10)
        return [Sequence(request, arrival_time=now + 0.5)]


def test_a_source_is_told_of_finished_sequences_and_may_let_others_follow():
    (server,) = make_servers(1)
    sequences = replay(Echo(requests_at((0.0, 4, 2), (0.25, 4, 1)), 2), [server], lambda sequence: server)
    assert [(one.request.request_id, one.arrival_time, one.token_times[-1]) for one in sequences] == [
        (0, 0.0, pytest.approx(0.2)),
        (1, 0.25, pytest.approx(0.35)),
        (10, pytest.approx(0.7), pytest.approx(0.9)),
        (11, pytest.approx(0.85), pytest.approx(1.0)),
    ]


class Counting(ContinuousScheduler):
    """Counts what it is asked."""

    num_checks = 0

    def check(self, request):
        type(self).num_checks += 1


def test_requests_are_checked_once_for_servers_that_are_alike():
    first, *others = (Counting(1000, 4) for _ in range(4))
    servers = [Server(first, FakeEngine())]
    servers += [Server(one, FakeEngine(), index, like=servers[0]) for index, one in enumerate(others, 1)]
    serve(requests_at((0.0, 4, 2), (0.25, 4, 1)), servers, round_robin(servers))
    assert Counting.num_checks == 2


def test_measured_servers_that_share_no_engine_and_a_wall_clock_of_several_are_refused():
    servers = make_servers(2)
    with pytest.raises(ValueError, match="clock='real' is not one of 'virtual', 'wall'"):
        replay(TraceSource([]), servers, round_robin(servers), clock="real")
    with pytest.raises(ValueError, match="clock=wall serves one server, not 2"):
        replay(TraceSource([]), servers, round_robin(servers), clock="wall")
    measured = [Server(ContinuousScheduler(1000, 4), SleepingEngine(), index) for index in range(2)]
    with pytest.raises(ValueError, match=r"2 measured servers take turns .* timer of SleepingEngine does not"):
        replay(TraceSource([]), measured, round_robin(measured))


def test_steps_count_what_their_rows_attend_to():
    engine = FakeEngine()
    scheduler = ContinuousScheduler(1000, 4, max_num_batched_tokens=6)
    _, steps = replay_trace(requests_at((0.0, 10, 2), (0.0, 3, 2)), scheduler, engine)
    columns = attrgetter("phase", "num_context_tokens", "max_context_tokens", "num_prefill_pairs")
    assert list(map(columns, steps)) == [
        ("prefill", 6, 6, 21),  # 1 + 2 + … + 6
        ("prefill", 10, 10, 34),  # 7 + 8 + 9 + 10
        ("prefill", 3, 3, 6),
        ("decode", 11 + 4, 11, 0),
    ]


def test_padding_is_no_context():
    engine = FakeEngine()
    _, steps = replay_trace(requests_at((0.0, 5, 2), (0.0, 2, 2)), StaticScheduler(1000, 4, max_num_seqs=2), engine)
    columns = attrgetter("num_prefill_tokens", "num_context_tokens", "max_context_tokens", "num_prefill_pairs")
    assert list(map(columns, steps)) == [(10, 5 + 2, 5, 15 + 3), (0, 6 + 3, 6, 0)]
