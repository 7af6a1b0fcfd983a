"""What a driver and its workers say to each other over a connection, and how their clocks are compared.

A driver has a worker call a function and waits for its value. While a worker serves, both send messages at any time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from framework.core import Request

NUM_READINGS = 100  # of a worker's clock; the quickest one counts


class WorkerDied(RuntimeError):
    """A worker's process ended before its work did."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Driver → worker: a sequence. `request` is its id where the worker has it from the beginning.

    `history` are the turns before, the first one first, with what was answered; they are not told twice.
    """

    request: int | Request
    arrival_time: float
    history: list[tuple[Request, list[int]]]


@dataclass(frozen=True, slots=True)
class End:
    """Driver → worker: no more sequences come."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a worker knows of a sequence that has ended; the fields are those of Sequence."""

    request_id: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepEnded:
    """Worker → driver: tokens came at `time` (s)."""

    time: float
    num_output_tokens: int
    adapter_loads: dict[int, str]
    finished: list[Finished] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stuck:
    """Worker → driver: some of the `num_arrived` sequences that came are unfinished, and only one more could help."""

    num_arrived: int


@dataclass(frozen=True, slots=True)
class Value:
    """Worker → driver: what a called function returned, or what it raised."""

    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Offset:
    """A worker's clock - the driver's (s), known to half of the `round_trip` (s) of the quickest reading."""

    seconds: float
    round_trip: float


def call(connection: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    """Have the worker call `function(worker, *arguments)`; `value_of` waits for it."""
    try:
        connection.send((function, arguments))
    except OSError as error:
        raise WorkerDied from error


def value_of(connection: Connection) -> Any:
    """What the called function returned; what it raised is raised here. WorkerDied if nothing comes any more."""
    answer = receive(connection)
    assert isinstance(answer, Value)
    if answer.error is not None:
        raise answer.error
    return answer.value


def receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError) as error:
        raise WorkerDied from error


def measure_offset(connection: Connection) -> Offset:
    """Of the worker's clock: its reading - the middle of the driver's before and after."""
    readings = []
    for _ in range(NUM_READINGS):
        sent = time.perf_counter()
        call(connection, read_clock)
        there = value_of(connection)
        received = time.perf_counter()
        readings.append(Offset(there - (sent + received) / 2, received - sent))
    return min(readings, key=lambda reading: reading.round_trip)


def read_clock(worker: object) -> float:
    return time.perf_counter()
