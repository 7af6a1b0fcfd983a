"""The discrete-event simulation: sequences arrive, servers step, the clock moves by what each step took.

A timeout of what a step took is the only bridge between the host's clock and simulated time; idle time costs nothing.
`clock="wall"` has no simulation: the same requests are served in real time.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from heapq import heappush
from math import inf
from typing import Any, Literal, NamedTuple, Protocol, get_args

import simpy
from simpy.events import NORMAL

from framework.contracts import Engine, HoldingRouter, Router, Scheduler, ServerState, Source
from framework.core import Batch, Sequence, Step, StepResult
from framework.loops import Progress, check_batch, describe_step, get_ready, note_adapter_waits
from framework.quiet import Ahead, knows_beforehand, look_ahead, take
from framework.real_time import RealTime
from framework.server_load import ServerLoad
from framework.step_runs import StepLog, StepRun
from framework.stopwatch import ServerClock, garbage_collector_paused, make_watch

MAX_ALARMS_WITHOUT_STEP = 100_000  # beyond it a scheduler that sets one alarm after the other is going in circles

Clock = Literal["virtual", "wall"]
Process = Generator[simpy.Event, Any, None]


class Environment(simpy.Environment):
    """It has events at a given time, to the last bit, and may move on to a time before which no event is due."""

    def jump(self, time: float) -> None:
        """It is `time` now."""
        self._now: float = time

    def until(self, time: float) -> simpy.Event:
        """It happens at `time`, which is not before now."""
        event = simpy.Event(self)
        event._ok, event._value = True, None
        heappush(self._queue, (time, NORMAL, next(self._eid), event))
        return event


class Server:
    """A scheduler, an engine, the batches in flight, and a stopwatch of its own; `log` has what it did.

    One that is `like` another serves the same requests, which are then checked for that one alone.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        index: int = 0,
        on_step: Callable[[Step | StepRun], None] | None = None,
        view_delay: float = 0.0,
        like: "Server | None" = None,
    ) -> None:
        self.scheduler, self.engine, self.index, self.on_step = scheduler, engine, index, on_step
        self.view_delay, self.like = view_delay, like
        self.ahead: Ahead | None = None  # steps that are not taken yet, though some of them may be over
        num_slots = engine.num_blocks * engine.block_size
        self.load = ServerLoad(scheduler.max_num_seqs, view_delay, num_slots, self.num_tokens_ahead)
        self.watch = make_watch(engine)
        self.in_flight: deque[tuple[Batch, float]] = deque()  # with the seconds each took to schedule
        self.log = StepLog()
        self.progress, self.num_alarms = Progress(index), 0
        self.is_asleep = False  # and no alarm is set
        self.knows_beforehand = knows_beforehand(scheduler, engine)
        self.under_way: UnderWay | None = None

    def open(self, world: "World") -> None:
        """Begin to serve in a world, at its time 0."""
        self.world = world
        self.bell = world.env.event()
        world.env.process(self.serve(world.env))

    @property
    def steps(self) -> list[Step]:
        """What it did."""
        return self.log.steps

    @property
    def state(self) -> ServerState:
        """What a router sees of it."""
        return self.load.seen_at(self.world.env.now) if self.view_delay else self.load

    def num_tokens_ahead(self) -> int:
        """Output tokens of the steps that are over and not taken yet."""
        if self.ahead is None:
            return 0
        num_steps = self.ahead.num_ended(self.world.env.now)
        return num_steps * self.ahead.first.num_output_tokens

    def add(self, sequence: Sequence) -> None:
        self.catch_up()
        self.load.add(sequence, self.world.env.now)
        self.watch.leave_out(lambda: self.engine.add(sequence))
        self.scheduler.add(sequence)
        self.ring()

    def wake(self) -> None:
        """The end of every step counts from now on, that of the one under way too."""
        if self.ahead is not None:
            self.catch_up()
            self.ring()

    def ring(self) -> None:
        """There may be something to do."""
        self.is_asleep = False
        self.bell.succeed()
        self.bell = self.world.env.event()

    def serve(self, env: Environment) -> Process:
        """Launch steps, at most so many ahead as the engine may be; sleep while there is nothing to do."""
        while True:
            batch = self.launch(env.now)
            if self.knows_beforehand and batch is not None and not self.world.heeds_steps:
                self.ahead = self.world.look_ahead(self)
                if self.ahead is not None:
                    yield from self.pass_over(env)
            if len(self.in_flight) > (self.engine.num_steps_ahead if batch else 0):
                yield from self.finish(env)
            elif batch is None:
                yield self.sleep(env)

    def launch(self, now: float) -> Batch | None:
        self.watch.start(self.in_flight)
        batch = self.scheduler.schedule(now)
        schedule_elapsed = self.watch.lap()
        if batch is not None:
            check_batch(batch, now, self.index)
            self.engine.launch(batch)
            self.in_flight.append((batch, schedule_elapsed))
            self.world.launched(self, batch)
        return batch

    def pass_over(self, env: Environment) -> Process:
        """Let the time of the steps ahead pass and take them, unless a sequence that arrives here cuts them short."""
        assert self.ahead is not None
        if self.ahead.may_be_cut:
            yield env.any_of([self.bell, env.until(self.ahead.end)])
        else:
            env.jump(self.ahead.end)
        if self.ahead is not None:
            self.take(self.ahead.num_steps)

    def catch_up(self) -> None:
        """Take those of the steps ahead that are over; something that was not foreseen happens now."""
        if self.ahead is not None:
            self.take(self.ahead.num_ended(self.world.env.now))

    def take(self, num_steps: int) -> None:
        """So many of the steps ahead; the next one is under way."""
        ahead, self.ahead = self.ahead, None
        assert ahead is not None
        step, result, end_time = self.collect(take(self, ahead, num_steps))
        self.under_way = UnderWay(step, result, self.world.env.until(end_time))

    def collect(self, start_time: float) -> tuple[Step, StepResult, float]:
        """Wait for the tokens of the oldest step in flight; when it ends (s)."""
        batch, schedule_elapsed = self.in_flight[0]
        result = self.engine.collect()
        elapsed, schedule_elapsed = self.watch.elapsed(result), schedule_elapsed + result.schedule
        scheduler = self.scheduler
        step = describe_step(start_time, elapsed, schedule_elapsed, batch, result, scheduler, self.engine, self.index)
        note_adapter_waits(batch, result)
        return step, result, start_time + elapsed

    def finish(self, env: Environment) -> Process:
        """Let the time of the oldest step pass, and hand its tokens out."""
        if self.under_way is None:
            step, result, end_time = self.collect(env.now)
            if env.peek() > end_time:
                env.jump(end_time)
            else:
                yield env.until(end_time)
        else:
            (step, result, end), self.under_way = self.under_way, None
            yield end
        batch, _ = self.in_flight.popleft()
        self.watch.start(self.in_flight)
        step.num_output_tokens = self.scheduler.postprocess(batch, result.token_ids, env.now)
        step.update = self.watch.lap() + result.update
        self.record(step, batch)
        self.load.step_ended(step.num_output_tokens, batch.adapter_loads, env.now)
        self.world.step_ended(self, step, batch)
        if step.update and not self.in_flight:
            yield env.timeout(step.update)

    def record(self, step: Step, batch: Batch) -> None:
        """Keep the step."""
        self.log.append(step)
        self.num_alarms = 0
        self.progress.note(step, batch)
        if self.on_step is not None:
            self.on_step(step)

    def record_run(self, run: StepRun, ends: list[float]) -> None:
        """Keep steps that ended at these times (s), each with a token for every sequence."""
        self.log.append(run)
        self.num_alarms = self.progress.num_steps_without_token = 0
        if self.view_delay:
            for end in ends:
                self.load.step_ended(run.first.num_output_tokens, {}, end)
        else:
            self.load.step_ended(run.num_output_tokens, {}, ends[-1])
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


class UnderWay(NamedTuple):
    """A step whose tokens have been collected, and the event of its end."""

    step: Step
    result: StepResult
    end: simpy.Event


class Mover(Protocol):
    """Moves sequences from server to server (framework.handover)."""

    @property
    def num_copying(self) -> int:
        """Sequences that it will bring to a server, whatever else happens."""

    @property
    def heeds_steps(self) -> bool:
        """Whether it may move a sequence at the end of a step in which none finishes, and no prompt is computed."""

    def open(self, world: "World") -> None:
        """Begin, in a world at its time 0."""

    def launched(self, server: Server, batch: Batch) -> None:
        """The server computes this batch from now on."""

    def step_ended(self, server: Server, step: Step) -> None:
        """Its tokens have been handed out, and who has finished is gone."""


class World:
    """The sequences of a replay, from their source to a router, to a server, to their last token.

    Movers take them from one server to another. It is over when all are finished and no step is in flight.
    """

    def __init__(
        self,
        env: Environment,
        source: Source,
        servers: list[Server],
        route: Router,
        movers: Iterable[Mover] = (),
    ) -> None:
        self.env, self.source, self.servers, self.route, self.movers = env, source, servers, route, list(movers)
        self.sequences: list[Sequence] = []
        self.at_router: deque[Sequence] = deque()  # the router named no server for the first of them
        self.unfinished: dict[Sequence, Server | None] = {}  # in the order of arrival, with the server of each
        self.num_arriving = 0  # processes that will bring more
        heeds_others = self.movers or source.follows or isinstance(route, HoldingRouter)
        self.lets_be_behind = len(servers) > 1 and not heeds_others  # with what they have done
        self.arrival_times = {request.arrival_time for request in source.requests} if self.lets_be_behind else set()
        self.over = env.event()

    def look_ahead(self, server: Server) -> Ahead | None:
        """Steps of the server that nothing cuts short, or nothing but a sequence that arrives there."""
        if self.lets_be_behind and not server.view_delay:
            return look_ahead(server, self.env.now, inf, self.arrival_times)
        return look_ahead(server, self.env.now, self.env.peek())

    @property
    def heeds_steps(self) -> bool:
        """Whether the end of a step may change something though no sequence finishes in it."""
        return bool(self.at_router or (self.movers and any(mover.heeds_steps for mover in self.movers)))

    def expect(self, sequences: Iterable[Sequence]) -> None:
        """Let `sequences` arrive at their times; they are in the order of these."""
        self.num_arriving += 1
        self.env.process(self.arrivals(sequences))

    def arrivals(self, sequences: Iterable[Sequence]) -> Process:
        for sequence in sequences:
            if sequence.arrival_time > self.env.now:
                yield self.env.until(sequence.arrival_time)
            self.arrive(sequence)
        self.num_arriving -= 1
        self.end_or_refuse_stall()

    def arrive(self, sequence: Sequence) -> None:
        self.sequences.append(sequence)
        self.unfinished[sequence] = None
        self.at_router.append(sequence)
        if len(self.at_router) == 1:
            self.offer_waiting()
            if self.at_router:  # it is asked after every step from now on
                for server in self.servers:
                    server.wake()

    def offer_waiting(self) -> None:
        """Give those at the router to the servers that it names, in order, up to the first that has to wait on."""
        while self.at_router:
            sequence = self.at_router[0]
            named = self.route(sequence)
            if named is None:
                return
            self.at_router.popleft()
            server = self.unfinished[sequence] = self.servers[named.index]
            sequence.server = server.index
            server.add(sequence)

    def move(self, sequence: Sequence, target: Server) -> None:
        """It is another server's from now on, as routers see it."""
        server = self.unfinished[sequence]
        assert server is not None
        server.load.finish(sequence, self.env.now)
        target.load.add(sequence, self.env.now)
        self.unfinished[sequence] = target
        sequence.server = target.index

    def launched(self, server: Server, batch: Batch) -> None:
        for mover in self.movers:
            mover.launched(server, batch)

    def step_ended(self, server: Server, step: Step, batch: Batch) -> None:
        """Tell the source which sequences of `batch` have finished, and ask the router again for those that wait."""
        self.finish(batch)
        for mover in self.movers:
            mover.step_ended(server, step)
        self.offer_waiting()
        if not self.num_arriving:
            self.end_or_refuse_stall()

    def finish(self, batch: Batch) -> None:
        """Take out who has finished in the batch; what follows them arrives."""
        for sequence in [sequence for sequence in batch.sequences if sequence.is_finished]:
            server = self.unfinished.pop(sequence, None)
            if server is not None:  # a static batch computes the seats of finished sequences on
                server.load.finish(sequence, self.env.now)
                for following in self.source.follow(sequence, self.env.now):
                    if following.arrival_time <= self.env.now:
                        self.arrive(following)  # in time for the next step
                    else:
                        self.expect([following])

    def end_or_refuse_stall(self) -> None:
        """End the world, or raise RuntimeError naming a request that nothing will ever serve."""
        if self.num_arriving or any(server.in_flight for server in self.servers):
            return
        if any(mover.num_copying for mover in self.movers):
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


def replay(
    source: Source, servers: list[Server], route: Router, clock: Clock = "virtual", movers: Iterable[Mover] = ()
) -> list[Sequence]:
    """Serve what comes from `source` to the end; its sequences, in the order of arrival. The steps are the servers'.

    `route` names the server that takes a sequence first, `movers` may take it to others. Raises ValueError for a
    request that could never be scheduled, for an engine that would be more than one step ahead, for several servers on
    the wall clock, and for measured ones that are no replicas; RuntimeError, naming the request and the server, if
    nothing goes on.
    """
    if clock not in get_args(Clock):
        raise ValueError(f"clock={clock!r} is not one of 'virtual', 'wall'")
    check_clock(len(servers), clock)
    check_turns(servers)
    for server in servers:
        get_ready(source, server.scheduler, server.engine, are_checked=server.like is not None)
    if clock == "wall":
        return in_real_time(source, servers[0])
    with garbage_collector_paused():
        env = Environment()
        world = World(env, source, servers, route, movers)
        world.expect(source.begin())
        for mover in world.movers:
            mover.open(world)
        for server in servers:
            server.open(world)
        env.run(until=world.over)
    sequences, world.sequences = world.sequences, []  # servers keep their world
    return sequences


def in_real_time(source: Source, server: Server) -> list[Sequence]:
    """What `replay` does, without a simulation; all sequences go to the one server."""
    served = RealTime(source, server.scheduler, server.engine)
    served.serve()
    for step in served.steps:
        server.log.append(step)
    return served.sequences


def check_clock(num_servers: int, clock: Clock) -> None:
    """Raise ValueError for several servers on the wall clock."""
    if num_servers > 1 and clock == "wall":
        raise ValueError(f"clock=wall serves one server, not {num_servers}: on one device they would share real time")


def check_turns(servers: list[Server]) -> None:
    """Raise ValueError for one of several measured servers that does not know when it is another's turn."""
    for server in servers:
        timer = server.engine.timer
        if len(servers) > 1 and timer is not None and not isinstance(timer, ServerClock):
            raise ValueError(
                f"{len(servers)} measured servers take turns on one device, and the timer of "
                f"{type(server.engine).__name__} does not stand still meanwhile: make_replicas makes engines whose does"
            )
