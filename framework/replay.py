"""The discrete-event simulation: requests arrive, the server steps, the clock moves by what each step took.

`clock="virtual"` advances simulated time by measured durations, so idle time costs nothing; `clock="wall"` runs the
same two processes in real time. Host work is timed with the engine's own timer, so a modelled engine is deterministic.
While a step launched ahead is in flight every moment counts, so that only an overlap that really happened is free.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Literal

import simpy
from simpy.rt import RealtimeEnvironment

from framework.core import Batch, Engine, Request, Scheduler, Sequence, Step, StepResult

MAX_STEPS_WITHOUT_TOKEN = 100_000  # far above any prompt's number of chunks; beyond it a scheduler is going in circles

Clock = Literal["virtual", "wall"]
Process = Generator[simpy.Event, Any, None]


class Bell:
    """Lets the arrivals wake a sleeping server."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.event = env.event()

    def ring(self) -> None:
        self.event.succeed()
        self.event = self.env.event()


def replay(
    requests: list[Request],
    scheduler: Scheduler,
    engine: Engine,
    clock: Clock = "virtual",
    on_step: Callable[[Step], None] | None = None,
) -> tuple[list[Sequence], list[Step]]:
    """Serve `requests` (sorted by arrival time) to the end; one Sequence per request and one Step per batch.

    Raises ValueError for a request that could never be scheduled and RuntimeError if the scheduler stalls.
    """
    for request in requests:
        scheduler.check(request)
    engine.begin(requests, scheduler.max_num_seqs)
    sequences = [Sequence(request) for request in requests]
    steps: list[Step] = []
    with garbage_collector_paused():
        env, charge = make_clock(clock)
        bell = Bell(env)
        arriving = env.process(arrivals(env, sequences, scheduler, engine, bell))
        env.run(until=env.process(serve(env, scheduler, engine, charge, arriving, bell, recorder(steps, on_step))))
    for sequence in sequences:
        if not sequence.is_finished:
            raise RuntimeError(f"the scheduler lost request {sequence.request.request_id}: it was never finished")
    return sequences, steps


def arrivals(
    env: simpy.Environment, sequences: list[Sequence], scheduler: Scheduler, engine: Engine, bell: Bell
) -> Process:
    for sequence in sequences:
        delay = sequence.request.arrival_time - env.now
        if delay > 0:
            yield env.timeout(delay)
        engine.add(sequence)
        scheduler.add(sequence)
        bell.ring()


def serve(
    env: simpy.Environment,
    scheduler: Scheduler,
    engine: Engine,
    charge: Callable[[float], float],
    arriving: simpy.Process,
    bell: Bell,
    record: Callable[[Step, int], None],
) -> Process:
    timer = engine.timer
    in_flight: deque[tuple[Batch, float]] = deque()  # with the seconds each took to schedule
    charged_until = timer()
    while arriving.is_alive or scheduler.num_unfinished or in_flight:
        started = timer()
        if not in_flight:
            charged_until = started
        batch = scheduler.schedule(env.now)
        schedule = timer() - started
        if batch is not None:
            if not batch.sequences:
                raise RuntimeError(f"the scheduler makes no progress: an empty batch at {env.now:.6f} s")
            engine.launch(batch)
            in_flight.append((batch, schedule))
            if len(in_flight) <= engine.num_steps_ahead:
                continue
        if not in_flight:
            yield sleep(env, scheduler, arriving, bell)
            continue
        batch, schedule = in_flight.popleft()
        result = engine.collect()
        elapsed = (timer() - charged_until) or result.elapsed  # a modelled engine's timer stands still
        charged_until = timer()
        step = describe_step(env.now, elapsed, batch, scheduler, schedule, result)
        charge_adapter_waits(batch, result)
        yield env.timeout(charge(step.elapsed))
        started = timer()
        step.num_output_tokens = scheduler.postprocess(batch, result.token_ids, env.now)
        step.update = timer() - started
        record(step, batch.sequences[0].request.request_id)
        if step.update and not in_flight:
            yield env.timeout(charge(step.update))


def describe_step(
    start_time: float, elapsed: float, batch: Batch, scheduler: Scheduler, schedule: float, result: StepResult
) -> Step:
    return Step(
        start_time=start_time,
        elapsed=elapsed,
        phase=batch.phase,
        num_seqs=len(batch.sequences),
        num_prefill_tokens=batch.num_prefill_tokens,
        num_decode_tokens=batch.num_decode_tokens,
        num_used_blocks=scheduler.num_used_blocks,
        num_waiting=len(scheduler.waiting),
        schedule=schedule,
        prepare=result.prepare,
        device=result.device,
        num_adapter_loads=len(batch.adapter_loads),
        adapter_wait=max(result.adapter_waits.values(), default=0.0),
    )


def charge_adapter_waits(batch: Batch, result: StepResult) -> None:
    """Tell each sequence how long its adapter kept the step waiting."""
    if result.adapter_waits:
        for sequence in batch.sequences:
            sequence.adapter_load_wait += result.adapter_waits.get(sequence.adapter_slot, 0.0)


def recorder(steps: list[Step], on_step: Callable[[Step], None] | None) -> Callable[[Step, int], None]:
    """Appends each step to `steps`; a scheduler that goes in circles is an error rather than an endless replay."""
    num_fruitless = 0

    def record(step: Step, request_id: int) -> None:
        nonlocal num_fruitless
        steps.append(step)
        num_fruitless = 0 if step.num_output_tokens else num_fruitless + 1
        if num_fruitless > MAX_STEPS_WITHOUT_TOKEN or not step.num_prefill_tokens + step.num_decode_tokens:
            raise RuntimeError(
                f"the scheduler makes no progress on request {request_id}: {num_fruitless} steps without a token, "
                f"the last of {step.num_prefill_tokens} prompt and {step.num_decode_tokens} decode tokens"
            )
        if on_step is not None:
            on_step(step)

    return record


def sleep(env: simpy.Environment, scheduler: Scheduler, arriving: simpy.Process, bell: Bell) -> simpy.Event:
    """The event an idle server waits for: the next arrival or the scheduler's wake time."""
    if env.now < scheduler.wake_time < inf:
        return env.any_of([bell.event, env.timeout(scheduler.wake_time - env.now)])
    if not arriving.is_alive or scheduler.wake_time <= env.now:
        stuck = f"request {scheduler.waiting[0].request.request_id} waits" if scheduler.waiting else "none waits"
        raise RuntimeError(
            f"the scheduler stalled at {env.now:.6f} s: it schedules nothing and nothing will wake it, "
            f"{scheduler.num_unfinished} requests are unfinished and {stuck}"
        )
    return bell.event


class PollingEnvironment(RealtimeEnvironment):
    """Waits for the next event awake, as a server does: a process that slept finds a cold processor."""

    def step(self) -> None:
        due = self.real_start + self.peek()
        while due < inf and time.monotonic() < due:
            pass
        super().step()


def make_clock(clock: Clock) -> tuple[simpy.Environment, Callable[[float], float]]:
    """An environment, and how many seconds of its time a measured duration is charged as.

    On the wall clock the simulation has to catch up with real time, whatever was measured.
    """
    if clock == "virtual":
        return simpy.Environment(), lambda measured: measured
    if clock != "wall":
        raise ValueError(f"clock={clock!r} is not one of 'virtual', 'wall'")
    env = PollingEnvironment(strict=False)
    return env, lambda measured: max(0.0, time.monotonic() - env.real_start - env.now)


@contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Sequences and steps only ever grow in number: collecting cycles among them would only disturb the timing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
