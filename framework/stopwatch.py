"""What the host's clock says of a server's work: the one place where real time is read for the virtual clock."""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from framework.core import Engine, StepResult


class Watch(Protocol):
    """What a server asks while it works; all times in seconds."""

    def start(self, in_flight: deque[Any]) -> None:
        """The host begins to work, with these steps in flight."""

    def lap(self) -> float:
        """Since the last `start` or `lap`."""

    def charge(self, result: StepResult) -> float:
        """What is to be charged for a step whose tokens have just come."""


def make_watch(engine: Engine) -> Watch:
    """A stopwatch on the engine's own timer, or none for an engine that measures nothing."""
    return NoStopwatch() if engine.timer is None else Stopwatch(engine.timer)


class Stopwatch:
    """Reads the host's clock while one server works.

    Without a step in flight, time is charged from the start of a step's schedule. While a step launched ahead is in
    flight, every moment is charged, so that only an overlap that really happened is free.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self.timer = timer
        self.lap_start = self.charged_until = timer()

    def start(self, in_flight: deque[Any]) -> None:
        self.lap_start = self.timer()
        if not in_flight:
            self.charged_until = self.lap_start

    def lap(self) -> float:
        """Seconds since the last `start` or `lap`."""
        before, self.lap_start = self.lap_start, self.timer()
        return self.lap_start - before

    def charge(self, result: StepResult) -> float:
        """Seconds that are to be charged for a step whose tokens have just come."""
        before, self.charged_until = self.charged_until, self.timer()
        self.lap_start = self.charged_until
        return self.charged_until - before


class NoStopwatch:
    """For an engine that measures nothing: the host's work takes no time, a step what its result says."""

    def start(self, in_flight: deque[Any]) -> None:
        pass

    def lap(self) -> float:
        return 0.0

    def charge(self, result: StepResult) -> float:
        return result.elapsed
