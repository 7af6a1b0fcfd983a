"""Routes what arrives to servers in other processes, in real time, and gathers what they did.

A router sees of a server what the driver has sent it, and what that has reported of its steps. The requests of a server
that dies begin anew at others.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from multiprocessing.connection import Connection, wait

from framework.contracts import Engine, Router, Scheduler, ServerState, Source
from framework.core import Request, Sequence, Step
from framework.placement.messages import Arrival, End, Offset, StepEnded, Stuck, Value, WorkerDied, receive
from framework.placement.worker import serve
from framework.placement.workers import Workers
from framework.server_load import ServerLoad
from framework.stopwatch import garbage_collector_paused

AWAKE = 2e-3  # seconds before the next arrival from which on the driver no longer sleeps: a timeout is in milliseconds
MOMENT = 0.05  # seconds until all workers have been told when the clock begins


class PlacedServer:
    """What the driver knows of a server, and what a router sees: all that was sent there and reported."""

    def __init__(self, index: int, num_seats: int, view_delay: float, connection: Connection) -> None:
        self.index, self.view_delay, self.connection = index, view_delay, connection
        self.load = ServerLoad(num_seats, view_delay)
        self.unfinished: dict[int, Sequence] = {}  # by request id
        self.num_sent = 0
        self.is_stuck = False  # it has all that was sent there, and nothing of it can go on
        self.now: Callable[[], float] = lambda: 0.0

    @property
    def state(self) -> ServerState:
        return self.load.seen_at(self.now())

    def send(self, sequence: Sequence, now: float, *, is_known: bool) -> None:
        """WorkerDied if it is not there any more."""
        self.unfinished[sequence.request.request_id] = sequence
        self.num_sent += 1
        self.is_stuck = False
        sequence.server = self.index
        self.load.add(sequence, now)
        request = sequence.request.request_id if is_known else sequence.request
        try:
            self.connection.send(Arrival(request, sequence.arrival_time, history_of(sequence)))
        except OSError as error:
            raise WorkerDied from error


def history_of(sequence: Sequence) -> list[tuple[Request, list[int]]]:
    """The turns before, the first one first, with their answers."""
    history = []
    while sequence.previous is not None:
        sequence = sequence.previous
        history.append((sequence.request, sequence.output_token_ids))
    return history[::-1]


@dataclass
class Served:
    """What a driver gathers: the sequences in the order of arrival, the steps of every server that lives, the dead."""

    sequences: list[Sequence] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    died: list[int] = field(default_factory=list)
    num_rerouted: int = 0  # times that a request began anew
    offsets: list[Offset] = field(default_factory=list)  # of the servers' clocks


class Driver:
    """Serves what comes from `source` on servers that are ready, by a clock that begins at `zero` (perf_counter, s).

    `make_router` is called anew for those that are left when a server dies.
    """

    def __init__(
        self, source: Source, servers: ListOf[PlacedServer], make_router: Callable[..., Router], zero: float
    ) -> None:
        self.source, self.servers, self.make_router, self.zero = source, list(servers), make_router, zero
        self.known = {id(request) for request in source.requests}  # by the workers, from the beginning
        self.route = make_router(self.servers)
        self.order = count()
        self.coming: list[tuple[float, int, Sequence]] = []  # a heap
        self.at_router: deque[Sequence] = deque()
        self.served = Served()
        self.workers: Workers | None = None  # kept as long as they serve
        for server in servers:
            server.now = self.now

    def now(self) -> float:
        return time.perf_counter() - self.zero

    def serve(self) -> Served:
        """To the end. RuntimeError where nothing goes on, where a server fails, or when none is left."""
        self.expect(self.source.begin())
        with garbage_collector_paused():
            while self.coming or self.at_router or any(server.unfinished for server in self.servers):
                self.arrive_due()
                self.hear(self.seconds_to_sleep())
                self.refuse_stall()
        for server in list(self.servers):
            self.end(server)
        self.served.steps.sort(key=lambda step: step.start_time)
        return self.served

    def expect(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            heappush(self.coming, (sequence.arrival_time, next(self.order), sequence))

    def seconds_to_sleep(self) -> float | None:
        """None: until somebody reports."""
        if not self.coming:
            return None
        return max(0.0, self.coming[0][0] - self.now() - AWAKE)

    def arrive_due(self) -> None:
        while self.coming and self.coming[0][0] <= self.now():
            sequence = heappop(self.coming)[-1]
            self.served.sequences.append(sequence)
            self.at_router.append(sequence)
            if len(self.at_router) == 1:
                self.offer_waiting()

    def offer_waiting(self) -> None:
        """Give those at the router to the servers that it names, in order, up to the first that has to wait on."""
        while self.at_router:
            sequence = self.at_router[0]
            named = self.route(sequence)
            if named is None:
                return
            self.at_router.popleft()
            server = next(server for server in self.servers if server.index == named.index)
            try:
                server.send(sequence, self.now(), is_known=id(sequence.request) in self.known)
            except WorkerDied:
                self.bury(server)

    def hear(self, timeout: float | None) -> None:
        """Take what the servers report; wait for it up to `timeout` (s)."""
        ready = wait([server.connection for server in self.servers], timeout)
        for server in [server for server in self.servers if server.connection in ready]:
            try:
                self.take(server, receive(server.connection))
            except WorkerDied:
                self.bury(server)
        if ready:
            self.offer_waiting()

    def take(self, server: PlacedServer, message: StepEnded | Stuck | Value) -> None:
        if isinstance(message, Value):  # it was to serve to the end
            raise message.error or RuntimeError(f"server {server.index} ended before its requests did")
        if isinstance(message, Stuck):
            server.is_stuck = message.num_arrived == server.num_sent
            return
        now, server.is_stuck = self.now(), False
        server.load.step_ended(message.num_output_tokens, message.adapter_loads, now)
        for finished in message.finished:
            sequence = server.unfinished.pop(finished.request_id)
            for name, value in finished.values.items():
                setattr(sequence, name, value)
            sequence.is_finished = True
            server.load.finish(sequence, now)
            self.expect(self.source.follow(sequence, sequence.token_times[-1]))

    def refuse_stall(self) -> None:
        if self.coming or not self.servers:
            return
        stuck = [server for server in self.servers if server.unfinished and server.is_stuck]
        idle = [server for server in self.servers if not server.unfinished]
        waiting = len(self.at_router)
        if len(stuck) + len(idle) == len(self.servers) and (stuck or waiting):
            unfinished = waiting + sum(len(server.unfinished) for server in stuck)
            raise RuntimeError(f"stalled at {self.now():.6f} s, unfinished requests: {unfinished}")

    def bury(self, server: PlacedServer) -> None:
        """A server has died: what it had begins anew, with those behind it at the router."""
        self.servers.remove(server)
        self.served.died.append(server.index)
        if not self.servers:
            num_lost = len(server.unfinished) + len(self.at_router) + len(self.coming)
            raise RuntimeError(f"server {server.index} died, and no other is left; unfinished requests: {num_lost}")
        self.route = self.make_router(self.servers)
        lost = [self.begun_anew(sequence) for sequence in server.unfinished.values()]
        self.served.num_rerouted += len(lost)
        self.at_router.extendleft(reversed(lost))
        self.offer_waiting()

    def begun_anew(self, sequence: Sequence) -> Sequence:
        """Another sequence in its place among those served; its request arrived when it did."""
        anew = Sequence(sequence.request, sequence.arrival_time, sequence.previous)
        self.served.sequences[self.served.sequences.index(sequence)] = anew
        return anew

    def end(self, server: PlacedServer) -> None:
        """Tell it that no more comes, and take its steps; RuntimeError if it fails at that."""
        try:
            server.connection.send(End())
            message = receive(server.connection)
            while not isinstance(message, Value):
                message = receive(server.connection)
        except (WorkerDied, OSError):
            self.served.died.append(server.index)  # all of its requests are served
            return
        if message.error is not None:
            raise message.error
        self.served.steps += message.value


def begin(
    source: Source,
    workers: Workers,
    make_scheduler: Callable[[Engine], Scheduler],
    make_router: Callable[..., Router],
    num_seats: int,
    view_delay: float = 0.0,
) -> Driver:
    """A driver of servers that are ready for what may come from `source`; its clock begins in a moment.

    `make_scheduler` is called by each worker, for its engine; `num_seats` is how many sequences that runs at once.
    Raises what getting ready raises at a worker.
    """
    offsets = workers.offsets()
    workers.ask_all(serve, source.requests, make_scheduler)
    zero = time.perf_counter() + MOMENT
    for connection, offset in zip(workers.connections, offsets, strict=True):
        connection.send(zero + offset.seconds)
    servers = [
        PlacedServer(index, num_seats, view_delay, connection) for index, connection in enumerate(workers.connections)
    ]
    driver = Driver(source, servers, make_router, zero)
    driver.workers, driver.served.offsets = workers, offsets
    return driver
