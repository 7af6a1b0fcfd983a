"""A worker: a process with an engine on a device of its own, which does what its driver asks for over a connection."""

import time
from collections import deque
from collections.abc import Callable
from math import inf
from multiprocessing.connection import Connection
from typing import Any

from framework.contracts import Engine, Scheduler
from framework.core import Batch, Request, Sequence, Step
from framework.loops import get_ready
from framework.placement.messages import Arrival, End, Finished, StepEnded, Stuck, Value
from framework.real_time import ServingLoop

KEPT = (  # of a finished sequence
    "output_token_ids",
    "token_times",
    "num_cached_tokens",
    "num_preemptions",
    "num_swaps",
    "adapter_load_wait",
    "scheduled_time",
)

MakeEngine = Callable[[], Engine]


class Worker:
    """The engine, which server it is, and the way to the driver."""

    def __init__(self, engine: Engine, index: int, connection: Connection) -> None:
        self.engine, self.index, self.connection = engine, index, connection


def work(connection: Connection, make_engine: MakeEngine, index: int) -> None:
    """Build the engine, say so, and then answer calls until the driver is gone or closes the connection."""
    try:
        built = build(make_engine)
        connection.send(Value(error=built) if isinstance(built, Exception) else Value())
        while not isinstance(built, Exception):
            function, arguments = connection.recv()
            connection.send(answer(Worker(built, index, connection), function, arguments))
    except (EOFError, OSError):
        return


def build(make_engine: MakeEngine) -> Engine | Exception:
    try:
        return make_engine()
    except Exception as error:
        return sendable(error)


def answer(worker: Worker, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Value:
    try:
        return Value(function(worker, *arguments))
    except (EOFError, ConnectionError):
        raise
    except Exception as error:
        return Value(error=sendable(error))


def sendable(error: Exception) -> Exception:
    """What the driver can raise in the error's place, whatever class of whichever library that is of."""
    return ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(f"{type(error).__name__}: {error}")


def get_ready_for(worker: Worker, requests: list[Request], scheduler: Scheduler) -> None:
    """Get ready to serve these; their prompts are made before they arrive."""
    get_ready(Listed(requests), scheduler, worker.engine)


class Listed:
    """A source that is asked for nothing but its requests."""

    follows = False

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests

    def begin(self) -> list[Sequence]:
        return []

    def follow(self, finished: Sequence, now: float) -> list[Sequence]:
        return []


def serve(worker: Worker, requests: list[Request], make_scheduler: Callable[[Engine], Scheduler]) -> list[Step]:
    """Serve what the driver sends, until it says that no more comes; the steps. It first sends when the clock begins.

    `requests` are all that may come, as long as they may be.
    """
    scheduler = make_scheduler(worker.engine)
    get_ready_for(worker, requests, scheduler)
    inbox = FromDriver(worker.connection, worker.engine, requests)
    worker.connection.send(Value())
    inbox.zero = worker.connection.recv()
    loop = ServingLoop(scheduler, worker.engine, inbox, worker.index)
    loop.run()
    return loop.steps


class FromDriver:
    """An inbox at the end of a connection. `zero` is when the clock began (s of this machine's `perf_counter`).

    The driver is told of every step. Nothing is left out of the clock, which all servers share.
    """

    def __init__(self, connection: Connection, engine: Engine, requests: list[Request]) -> None:
        self.connection, self.engine, self.zero = connection, engine, inf
        self.arrived: deque[Sequence] = deque()
        self.num_arrived, self.is_over = 0, False
        self.known = {request.request_id: Sequence(request) for request in requests if request.think_time is None}
        for sequence in self.known.values():
            engine.add(sequence)

    def now(self) -> float:
        return time.perf_counter() - self.zero

    def has_more(self) -> bool:
        return bool(self.arrived) or not self.is_over

    def has_arrived(self) -> bool:
        """By a clock that may be a little behind the driver's, which has sent it."""
        while self.connection.poll():
            self.receive(self.connection.recv())
        return bool(self.arrived) and self.arrived[0].arrival_time <= self.now()

    def receive(self, message: Arrival | End) -> None:
        if isinstance(message, End):
            self.is_over = True
            return
        self.num_arrived += 1
        self.arrived.append(self.sequence_of(message))

    def sequence_of(self, message: Arrival) -> Sequence:
        """With its prompt; the turns before are made as they were where this worker does not have them."""
        previous = None
        for request, output_token_ids in message.history:
            previous = self.sequence(request, None, previous)
            previous.output_token_ids[:] = output_token_ids
        if isinstance(message.request, Request):
            return self.sequence(message.request, message.arrival_time, previous)
        sequence = self.known[message.request]
        sequence.arrival_time = message.arrival_time
        return sequence

    def sequence(self, request: Request, arrival_time: float | None, previous: Sequence | None) -> Sequence:
        if request.request_id not in self.known:
            sequence = self.known[request.request_id] = Sequence(request, arrival_time, previous)
            self.engine.add(sequence)
        return self.known[request.request_id]

    def take(self) -> Sequence:
        return self.arrived.popleft()

    def step_ended(self, step: Step, batch: Batch, now: float) -> None:
        finished = [
            Finished(one.request.request_id, {name: getattr(one, name) for name in KEPT})
            for one in batch.sequences
            if one.is_finished and one.token_times[-1] == now  # now, not before
        ]
        self.connection.send(StepEnded(now, step.num_output_tokens, batch.adapter_loads, finished))

    def leave_out(self, since: float) -> None:
        pass

    def wait(self, wake_time: float, num_unfinished: int) -> None:
        if wake_time == inf and num_unfinished:
            self.connection.send(Stuck(self.num_arrived))
        while not self.has_arrived() and self.has_more() and (delay := wake_time - self.now()) > 0:
            if self.arrived:
                time.sleep(0)  # it is here before its time
            else:
                self.connection.poll(None if delay == inf else delay)
