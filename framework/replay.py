"""The discrete-event simulation: sequences arrive, servers step, the clock moves by what each step took.

`clock="virtual"` advances simulated time by measured durations, so idle time costs nothing; `clock="wall"` runs the
same processes in real time. `charge` is the only bridge between the host's clock and simulated time.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from math import inf
from typing import Any, Literal

import simpy
from simpy.rt import RealtimeEnvironment

from framework.core import Batch, Engine, Request, Router, Scheduler, Sequence, Source, Step, StepResult
from framework.quiet import knows_beforehand, take_quiet_steps
from framework.step_log import StepLog, StepRun
from framework.stopwatch import garbage_collector_paused, make_watch

MAX_STEPS_WITHOUT_TOKEN = 100_000  # far above any prompt's number of chunks; beyond it a scheduler is going in circles
MAX_ALARMS_WITHOUT_STEP = 100_000  # likewise for a scheduler that sets one alarm after the other

Clock = Literal["virtual", "wall"]
Charge = Callable[[float], float]  # measured seconds → seconds of simulated time
Process = Generator[simpy.Event, Any, None]


class Server:
    """A scheduler, an engine, the batches in flight, and a stopwatch of its own; `steps` are what it did."""

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        index: int = 0,
        on_step: Callable[[Step | StepRun], None] | None = None,
    ) -> None:
        self.scheduler, self.engine, self.index, self.on_step = scheduler, engine, index, on_step
        self.watch = make_watch(engine)
        self.in_flight: deque[tuple[Batch, float]] = deque()  # with the seconds each took to schedule
        self.steps = StepLog()
        self.num_steps_without_token = self.num_alarms = 0
        self.is_asleep = False  # and no alarm is set

    def open(self, world: "World", charge: Charge) -> None:
        """Begin to serve in a world, at its time 0."""
        self.world, self.charge = world, charge
        is_virtual = isinstance(world.env, VirtualEnvironment)
        self.knows_beforehand = is_virtual and knows_beforehand(self.scheduler, self.engine)
        self.bell = world.env.event()
        world.env.process(self.serve(world.env))

    def add(self, sequence: Sequence) -> None:
        self.watch.leave_out(lambda: self.engine.add(sequence))
        self.scheduler.add(sequence)
        self.is_asleep = False
        self.bell.succeed()
        self.bell = self.world.env.event()

    def serve(self, env: simpy.Environment) -> Process:
        """Launch steps, at most so many ahead as the engine may be; sleep while there is nothing to do."""
        while True:
            batch = self.launch(env.now)
            if self.knows_beforehand and batch is not None and not self.world.at_router:
                env.jump(take_quiet_steps(self, env.now, env.peek()))
            if len(self.in_flight) > (self.engine.num_steps_ahead if batch else 0):
                yield from self.finish(env)
            elif batch is None:
                yield self.sleep(env)

    def launch(self, now: float) -> Batch | None:
        self.watch.start(self.in_flight)
        batch = self.scheduler.schedule(now)
        schedule_elapsed = self.watch.lap()
        if batch is not None:
            if not batch.sequences:
                raise RuntimeError(f"server {self.index} makes no progress: its batch at {now:.6f} s is empty")
            self.engine.launch(batch)
            self.in_flight.append((batch, schedule_elapsed))
        return batch

    def finish(self, env: simpy.Environment) -> Process:
        """Wait for the tokens of the oldest step, let its time pass, and hand the tokens out."""
        batch, schedule_elapsed = self.in_flight.popleft()
        result = self.engine.collect()
        step = self.describe(env.now, self.watch.elapsed(result), batch, schedule_elapsed, result)
        note_adapter_waits(batch, result)
        yield env.timeout(self.charge(step.elapsed))
        self.watch.start(self.in_flight)
        step.num_output_tokens = self.scheduler.postprocess(batch, result.token_ids, env.now)
        step.update = self.watch.lap()
        self.record(step, batch)
        self.world.step_ended(batch)
        if step.update and not self.in_flight:
            yield env.timeout(self.charge(step.update))

    def describe(
        self, start_time: float, elapsed: float, batch: Batch, schedule_elapsed: float, result: StepResult
    ) -> Step:
        scheduler = self.scheduler
        num_tokens, num_reserved, num_lost, num_free = scheduler.slot_use
        waits = result.adapter_waits
        return Step(
            start_time=start_time,
            elapsed=elapsed,
            phase=batch.phase,
            num_seqs=len(batch.sequences),
            num_prefill_tokens=batch.num_prefill_tokens,
            num_decode_tokens=batch.num_decode_tokens,
            num_context_tokens=batch.num_context_tokens,
            num_prefill_pairs=batch.num_prefill_pairs if batch.num_prefill_tokens else 0,
            num_used_blocks=scheduler.num_used_blocks,
            num_waiting=len(scheduler.waiting),
            schedule=schedule_elapsed,
            prepare=result.prepare,
            device=result.device,
            num_adapter_loads=len(batch.adapter_loads),
            adapter_wait=max(waits.values()) if waits else 0.0,
            server=self.index,
            num_cached_blocks=scheduler.num_cached_blocks,
            num_token_slots=num_tokens,
            num_reserved_slots=num_reserved,
            num_lost_slots=num_lost,
            num_free_slots=num_free,
            num_adapter_blocks=scheduler.num_adapter_blocks,
            num_swapped_out_blocks=len(batch.swap_out),
            num_swapped_in_blocks=len(batch.swap_in),
            swap_wait=result.swap_wait,
            num_adapters=batch.num_adapters if self.engine.num_adapter_slots else 0,
        )

    def record(self, step: Step, batch: Batch) -> None:
        """Keep the step; a scheduler that goes in circles is an error rather than an endless replay."""
        self.steps.append(step)
        self.num_alarms = 0
        self.num_steps_without_token = 0 if step.num_output_tokens else self.num_steps_without_token + 1
        is_empty = not step.num_prefill_tokens + step.num_decode_tokens
        if self.num_steps_without_token > MAX_STEPS_WITHOUT_TOKEN or is_empty:
            raise RuntimeError(
                f"server {self.index} makes no progress on request {batch.sequences[0].request.request_id}: "
                f"{self.num_steps_without_token} steps without a token, the last of {step.num_prefill_tokens} prompt "
                f"and {step.num_decode_tokens} decode tokens"
            )
        if self.on_step is not None:
            self.on_step(step)

    def record_run(self, run: StepRun) -> None:
        """Keep steps that each had a token for every sequence."""
        self.steps.append_run(run)
        self.num_alarms = self.num_steps_without_token = 0
        if self.on_step is not None:
            self.on_step(run)

    def sleep(self, env: simpy.Environment) -> simpy.Event:
        """Until a sequence arrives or the scheduler's alarm goes off; without an alarm, the world may be over now."""
        wake_time = self.scheduler.wake_time
        if wake_time == inf:
            self.is_asleep = True
            self.world.end_or_refuse_stall()
            return self.bell
        self.num_alarms += 1
        if wake_time <= env.now or self.num_alarms > MAX_ALARMS_WITHOUT_STEP:
            raise RuntimeError(
                f"server {self.index} stalled at {env.now:.6f} s, after {self.num_alarms} alarms without a step its "
                f"wake_time is {wake_time:.6f} s: {self.world.describe_unfinished()}"
            )
        return env.any_of([self.bell, env.timeout(wake_time - env.now)])


class World:
    """The sequences of a replay, from their source to a router, to a server, to their last token.

    It is over when all sequences are finished and no step is in flight.
    """

    def __init__(self, env: simpy.Environment, source: Source, servers: list[Server], route: Router) -> None:
        self.env, self.source, self.servers, self.route = env, source, servers, route
        self.sequences: list[Sequence] = []
        self.at_router: list[Sequence] = []
        self.unfinished: dict[Sequence, Server | None] = {}  # in the order of arrival, with the server of each
        self.num_arriving = 0  # processes that will bring more
        self.over = env.event()

    def expect(self, sequences: Iterable[Sequence]) -> None:
        """Let `sequences` arrive at their times; they are in the order of these."""
        self.num_arriving += 1
        self.env.process(self.arrivals(sequences))

    def arrivals(self, sequences: Iterable[Sequence]) -> Process:
        for sequence in sequences:
            delay = sequence.arrival_time - self.env.now
            if delay > 0:
                yield self.env.timeout(delay)
            self.arrive(sequence)
        self.num_arriving -= 1
        self.end_or_refuse_stall()

    def arrive(self, sequence: Sequence) -> None:
        self.sequences.append(sequence)
        self.offer(sequence)

    def offer(self, sequence: Sequence) -> None:
        """To the server that the router names; it waits while the router names none."""
        named = self.route(sequence)
        server = self.unfinished[sequence] = None if named is None else self.servers[named.index]
        if server is None:
            self.at_router.append(sequence)
        else:
            server.add(sequence)

    def step_ended(self, batch: Batch) -> None:
        """Tell the source which sequences of `batch` have finished, and ask the router again for those that wait."""
        for sequence in [sequence for sequence in batch.sequences if sequence.is_finished]:
            if sequence in self.unfinished:  # a static batch computes the seats of finished sequences on
                del self.unfinished[sequence]
                for following in self.source.follow(sequence, self.env.now):
                    if following.arrival_time <= self.env.now:
                        self.arrive(following)  # in time for the next step
                    else:
                        self.expect([following])
        if self.at_router:
            waiting, self.at_router = self.at_router, []
            for sequence in waiting:
                self.offer(sequence)
        if not self.num_arriving:
            self.end_or_refuse_stall()

    def end_or_refuse_stall(self) -> None:
        """End the world, or raise RuntimeError naming a request that nothing will ever serve."""
        if self.num_arriving or any(server.in_flight for server in self.servers):
            return
        if not self.unfinished and not self.over.triggered:
            self.over.succeed()
        if self.unfinished and all(server.is_asleep for server in self.servers):
            raise RuntimeError(
                f"stalled at {self.env.now:.6f} s, nothing will wake a server: {self.describe_unfinished()}"
            )

    def describe_unfinished(self) -> str:
        """How many requests are unfinished, and where the oldest is."""
        if not self.unfinished:
            return "no request is unfinished"
        sequence, server = next(iter(self.unfinished.items()))
        if server is None:
            place = "waits at the router"
        elif server.scheduler.num_unfinished:
            place = f"is at server {server.index}"
        else:
            place = f"is lost: the scheduler of server {server.index} does not have it"
        request = sequence.request
        session = "" if request.session_id is None else f", turn {request.turn} of session {request.session_id!r},"
        return f"unfinished requests: {len(self.unfinished)}; request {request.request_id}{session} {place}"


def replay(source: Source, servers: list[Server], route: Router, clock: Clock = "virtual") -> list[Sequence]:
    """Serve what comes from `source` to the end; its sequences, in the order of arrival. The steps are the servers'.

    Raises ValueError for a request that could never be scheduled, for an engine that would be more than one step ahead,
    and for several servers that are measured or on the wall clock; RuntimeError, naming the request and the server, if
    nothing goes on.
    """
    for server in servers:
        check_several(len(servers), server.engine, clock)
        check_requests(source.requests, server.scheduler)
        scheduler = server.scheduler
        server.engine.begin(source.requests, scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        check_steps_ahead(server.engine)
    with garbage_collector_paused():
        env, charge = make_clock(clock)
        world = World(env, source, servers, route)
        world.expect(source.begin())
        for server in servers:
            server.open(world, charge)
        env.run(until=world.over)
    return world.sequences


def check_requests(requests: Iterable[Request], scheduler: Scheduler) -> None:
    """Raise ValueError naming the first request that could never be scheduled."""
    for request in requests:
        try:
            scheduler.check(request)
        except ValueError as error:
            lengths = f"{request.num_prompt_tokens} prompt and {request.num_output_tokens} output tokens"
            raise ValueError(f"request {request.request_id}, of {lengths}: {error}") from error


def check_several(num_servers: int, engine: Engine, clock: Clock) -> None:
    """Raise ValueError for what several servers on one device cannot do yet."""
    if num_servers > 1 and clock == "wall":
        raise ValueError(f"clock=wall serves one server, not {num_servers}: on one device they would share real time")
    if num_servers > 1 and engine.timer is not None:
        raise ValueError(
            f"{num_servers} servers need engines that measure nothing; {type(engine).__name__} measures its steps, and "
            "several measured servers on one device are not supported yet"
        )


def check_steps_ahead(engine: Engine) -> None:
    """Raise ValueError for more steps ahead than schedulers can count on: `begin` may have decided how many."""
    if engine.num_steps_ahead not in (0, 1):
        raise ValueError(f"{type(engine).__name__}.num_steps_ahead must be 0 or 1, not {engine.num_steps_ahead}")


def note_adapter_waits(batch: Batch, result: StepResult) -> None:
    """Tell each sequence how long its adapter kept the step waiting."""
    if result.adapter_waits:
        for sequence in batch.sequences:
            sequence.adapter_load_wait += result.adapter_waits.get(sequence.adapter_slot, 0.0)


class VirtualEnvironment(simpy.Environment):
    """Its time may move on to one before which no event is due."""

    def jump(self, time: float) -> None:
        self._now: float = time


class PollingEnvironment(RealtimeEnvironment):
    """Waits for the next event awake, as a server does: a process that slept finds a cold processor."""

    def step(self) -> None:
        due = self.real_start + self.peek()
        while due < inf and time.monotonic() < due:
            pass
        super().step()


def make_clock(clock: Clock) -> tuple[simpy.Environment, Charge]:
    """An environment, and how many seconds of its time a measured duration is charged as.

    On the wall clock the simulation has to catch up with real time, whatever was measured.
    """
    if clock == "virtual":
        return VirtualEnvironment(), lambda measured: measured
    if clock != "wall":
        raise ValueError(f"clock={clock!r} is not one of 'virtual', 'wall'")
    env = PollingEnvironment(strict=False)
    return env, lambda measured: max(0.0, time.monotonic() - env.real_start - env.now)
