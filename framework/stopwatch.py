"""What the host's clock says of a server's work: the one place where real time is read for the virtual clock."""

import gc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Protocol

from framework.contracts import Engine
from framework.core import StepResult


class Watch(Protocol):
    """What a server asks while it works; all times in seconds."""

    def start(self, in_flight: deque[Any]) -> None:
        """The host begins to work, with these steps in flight."""

    def lap(self) -> float:
        """Since the last `start` or `lap`."""

    def leave_out(self, work: Callable[[], None]) -> None:
        """Do work that another machine would do, such as making a prompt: it is not charged."""

    def elapsed(self, result: StepResult) -> float:
        """What is to be charged for a step whose tokens have just come."""


def make_watch(engine: Engine) -> Watch:
    """A stopwatch on the engine's own timer, or none for an engine that measures nothing."""
    return NoStopwatch() if engine.timer is None else Stopwatch(engine.timer)


class Stopwatch:
    """Reads the host's clock while one server works.

    Without a step in flight, time is charged from the start of a step's schedule. While a step launched ahead is in
    flight, every moment is charged, so that only an overlap that really happened is free. What is left out is charged
    as far as the device needed the time for its step: it did not stand still meanwhile.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self.timer = timer
        self.lap_start = self.charged_until = timer()
        self.left_out = 0.0

    def start(self, in_flight: deque[Any]) -> None:
        self.lap_start = self.timer()
        if not in_flight:
            self.charged_until, self.left_out = self.lap_start, 0.0

    def lap(self) -> float:
        """Seconds since the last `start` or `lap`."""
        before, self.lap_start = self.lap_start, self.timer()
        return self.lap_start - before

    def leave_out(self, work: Callable[[], None]) -> None:
        started = self.timer()
        work()
        self.left_out += self.timer() - started

    def elapsed(self, result: StepResult) -> float:
        """Seconds that are to be charged for a step whose tokens have just come."""
        before, self.charged_until = self.charged_until, self.timer()
        self.lap_start, elapsed = self.charged_until, self.charged_until - before
        left_out, self.left_out = self.left_out, 0.0
        return max(elapsed - left_out, min(elapsed, result.device)) if left_out else elapsed


class NoStopwatch:
    """For an engine that measures nothing: the host's work takes no time, a step what its result says."""

    def start(self, in_flight: deque[Any]) -> None:
        pass

    def lap(self) -> float:
        return 0.0

    def leave_out(self, work: Callable[[], None]) -> None:
        work()

    def elapsed(self, result: StepResult) -> float:
        return result.elapsed


class Turns:
    """Whose turn it is among servers on one device, all of which read the same clock of the host."""

    def __init__(self, timer: Callable[[], float]) -> None:
        self.timer = timer
        self.clock: ServerClock | None = None  # of the server that works

    def end(self) -> None:
        """Nobody works: all their clocks stand still until they are read again."""
        if self.clock is not None:
            self.clock()
        self.clock = None


class ServerClock:
    """The host's clock of one of several servers on a device: seconds, which pass only while that server works.

    It is a `timer` of an engine whose steps run to their end one by one, though in the system that is emulated a step
    runs beside the host's work for the next. So it stands still while a step runs, and goes on to the step's end where
    the host would wait for it: the end of the step before and what the device takes, or, if the device would have been
    idle, as long after the launch as was measured.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.last = turns.timer()  # when it was read last, by the host's clock
        self.behind = 0.0  # seconds, of the host's clock
        self.device_end = -inf  # when the device would be done with all that was launched

    def __call__(self) -> float:
        now = self.turns.timer()
        if self.turns.clock is not self:
            self.turns.clock = self
            self.behind += now - self.last
        self.last = now
        return now - self.behind

    def leave_out(self, work: Callable[[], None]) -> None:
        """Stand still during work that the system that is emulated would not do."""
        started = self()
        work()
        self.behind += self() - started

    def run_alone(self, finish: Callable[[], float]) -> float:
        """Wait for a step that has just been launched; when it would be over.

        `finish` waits, and says for how many seconds the device was busy.
        """
        started = self()
        device = finish()
        ended = self()
        self.behind += ended - started
        self.device_end = max(ended, self.device_end + device)
        return self.device_end

    def go_on_to(self, end: float) -> None:
        """The host waits until then, if it is not later already."""
        self.behind -= max(0.0, end - self())


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
