"""Workers, each with a device of its own: spawned processes of this machine, or Ray actors on any of a cluster.

Both run `work` at the end of a connection; the driver has the other end. When it closes that, or ends, they end.
"""

import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from framework.placement.messages import Offset, WorkerDied, call, measure_offset, value_of
from framework.placement.worker import MakeEngine, work

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class Workers:
    """Connections to workers that have built their engines; they end when nobody refers to this any more."""

    connections: list[Connection]
    device: str  # what each has: cpu or cuda
    keep: object = None  # what they need as long as they are used
    warmed: set[str] = field(default_factory=set)  # what they have been warmed up for

    def __post_init__(self) -> None:
        weakref.finalize(self, close, self.connections)

    def ask(self, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function(worker, *arguments)` returns there. RuntimeError if that worker died."""
        return self.ask_all(function, *arguments, only=[index])[0]

    def ask_all(self, function: Callable[..., Any], *arguments: Any, only: list[int] | None = None) -> list[Any]:
        """As `ask`, of all of them (or `only` these) at once."""
        indices = range(len(self.connections)) if only is None else only
        values = []
        for index in indices:
            with naming(index):
                call(self.connections[index], function, *arguments)
        for index in indices:
            with naming(index):
                values.append(value_of(self.connections[index]))
        return values

    def offsets(self) -> list[Offset]:
        """How far each worker's clock is from this process's."""
        found = []
        for index, connection in enumerate(self.connections):
            with naming(index):
                found.append(measure_offset(connection))
        return found

    def close(self) -> None:
        close(self.connections)


def close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


@contextmanager
def naming(index: int) -> Iterator[None]:
    try:
        yield
    except WorkerDied as error:
        raise RuntimeError(f"the worker of server {index} died") from error


def check_gpus(num_servers: int, num_gpus: int, place: str) -> None:
    """ValueError for more servers than there are GPUs."""
    if num_servers > num_gpus:
        raise ValueError(
            f"{num_servers} servers with a GPU each need {num_servers} GPUs, and {place} has {num_gpus}; device=cpu "
            "gives each a process on the CPU instead"
        )


def spawn_workers(make_engine: MakeEngine, num_servers: int, device: str) -> Workers:
    """Processes of this machine. With device="cuda" worker i has the i-th of the GPUs that this process sees, alone.

    Raises what `make_engine` raises there.
    """
    context = get_context("spawn")
    connections = []
    for index in range(num_servers):
        here, there = context.Pipe()
        process = context.Process(target=run_process, args=(there, make_engine, index), daemon=True)
        with gpu_visible(index) if device == "cuda" else as_it_is():
            process.start()
        there.close()
        connections.append(here)
    return when_ready(Workers(connections, device))


def when_ready(workers: Workers) -> Workers:
    """Wait until every worker has built its engine."""
    try:
        for index, connection in enumerate(workers.connections):
            with naming(index):
                value_of(connection)
    except Exception:
        workers.close()
        raise
    return workers


def run_process(connection: Connection, make_engine: MakeEngine, index: int) -> None:
    """A worker's process: an interruption from the keyboard is the driver's, whose end ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(connection, make_engine, index)


@contextmanager
def gpu_visible(index: int) -> Iterator[None]:
    """A process that is started meanwhile sees one GPU."""
    before = os.environ.get(VISIBLE)
    visible = [] if before is None else before.split(",")
    os.environ[VISIBLE] = visible[index] if before is not None else str(index)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before


@contextmanager
def as_it_is() -> Iterator[None]:
    yield
