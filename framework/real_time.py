"""Serving in real time, as a server does: a thread brings what arrives, a loop schedules, launches and collects steps.

The virtual clock is compared with it: it shares no code with the simulation but what is in `loops`. What only its own
records take is cut out of its clock, but where a step runs meanwhile: there it takes no time.
"""

import time
from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf
from threading import Condition, Thread
from typing import Protocol

from framework.contracts import Engine, Scheduler, Source
from framework.core import Batch, Sequence, Step
from framework.loops import Progress, check_batch, describe_step, note_adapter_waits
from framework.stopwatch import garbage_collector_paused

AWAKE = 200e-6  # seconds before the next arrival from which on its thread no longer sleeps: it would wake up too late


class Inbox(Protocol):
    """Where the loop's sequences come from, and its clock."""

    def now(self) -> float:
        """Seconds since the clock began."""

    def has_more(self) -> bool:
        """Whether a sequence is there, or may still come."""

    def has_arrived(self) -> bool:
        """Whether a sequence is there."""

    def take(self) -> Sequence:
        """The first that is there; its prompt is made."""

    def step_ended(self, step: Step, batch: Batch, now: float) -> None:
        """Take note of tokens that came at `now` (s)."""

    def leave_out(self, since: float) -> None:
        """What has passed since then (s) was for records alone, and no step ran."""

    def wait(self, wake_time: float, num_unfinished: int) -> None:
        """Until a sequence is there or `wake_time` (s) comes; RuntimeError if neither ever will."""


class Arrivals(Thread):
    """Puts every sequence that is expected into `inbox` when it is due; its prompt is made before.

    `zero` is when the clock began (s of `perf_counter`), moved on by every pause of it.
    """

    def __init__(self, source: Source, engine: Engine) -> None:
        super().__init__(name="arrivals", daemon=True)
        self.source, self.engine = source, engine
        self.order, self.zero, self.is_over = count(), inf, False
        self.inbox: deque[Sequence] = deque()
        self.coming: list[tuple[float, int, Sequence]] = []  # a heap
        self.changed = Condition()

    def now(self) -> float:
        return time.perf_counter() - self.zero

    def expect(self, sequences: Iterable[Sequence]) -> None:
        with self.changed:
            for sequence in sequences:
                self.engine.add(sequence)
                heappush(self.coming, (sequence.arrival_time, next(self.order), sequence))
            self.changed.notify()

    def bring(self) -> float:
        """Put what is due into the inbox; the seconds until the next one is."""
        while self.coming and (delay := self.coming[0][0] - self.now()) <= 0:
            self.inbox.append(self.coming[0][-1])  # before it is gone from there: it is always somewhere
            heappop(self.coming)
        return delay if self.coming else inf

    def run(self) -> None:
        while not self.is_over:
            with self.changed:
                delay = self.bring()
                if delay > AWAKE:
                    self.changed.wait(None if delay == inf else delay - AWAKE)
            time.sleep(0)  # the loop may run

    def begin(self) -> None:
        """Start the clock; who is there from the start is in the inbox."""
        self.expect(self.source.begin())
        self.zero = time.perf_counter()
        self.bring()
        self.start()

    def end(self) -> None:
        self.is_over = True
        self.expect([])  # wakes it
        self.join()

    def has_more(self) -> bool:
        return bool(self.coming or self.inbox)

    def has_arrived(self) -> bool:
        """Somebody has, and not only by a clock that has been set back since."""
        return bool(self.inbox) and self.inbox[0].arrival_time <= self.now()

    def take(self) -> Sequence:
        return self.inbox.popleft()

    def step_ended(self, step: Step, batch: Batch, now: float) -> None:
        for sequence in batch.sequences:
            if sequence.is_finished and sequence.token_times[-1] == now:  # now, not before
                self.expect(self.source.follow(sequence, now))

    def leave_out(self, since: float) -> None:
        self.zero += self.now() - since

    def wait(self, wake_time: float, num_unfinished: int) -> None:
        """Awake, as a server that polls."""
        if wake_time == inf and not self.has_more():
            raise RuntimeError(f"stalled at {self.now():.6f} s, unfinished requests: {num_unfinished}")
        while not self.has_arrived() and self.now() < wake_time:
            time.sleep(0)


class ServingLoop:
    """Serves what comes into `inbox` with an engine that has begun: `sequences`, as they arrived, and `steps`."""

    def __init__(self, scheduler: Scheduler, engine: Engine, inbox: Inbox, index: int = 0) -> None:
        self.scheduler, self.engine, self.inbox, self.index = scheduler, engine, inbox, index
        self.now, self.progress = inbox.now, Progress(index)
        self.in_flight: deque[tuple[Batch, float, float]] = deque()  # when it began, and what its schedule took
        self.sequences: list[Sequence] = []
        self.steps: list[Step] = []
        self.tokens_time = 0.0  # of the last step

    def run(self) -> None:
        """Until all that comes is served; RuntimeError if nothing goes on."""
        with garbage_collector_paused():
            while self.inbox.has_more() or self.in_flight or self.scheduler.num_unfinished:
                self.take_arrivals()
                batch = self.launch()
                if len(self.in_flight) > (self.engine.num_steps_ahead if batch else 0):
                    self.finish()
                elif batch is None:
                    self.inbox.wait(self.scheduler.wake_time, self.scheduler.num_unfinished)

    def take_arrivals(self) -> None:
        while self.inbox.has_arrived():
            sequence = self.inbox.take()
            sequence.server = self.index
            self.sequences.append(sequence)
            self.scheduler.add(sequence)

    def launch(self) -> Batch | None:
        now = self.now()
        batch = self.scheduler.schedule(now)
        if batch is not None:
            check_batch(batch, now, self.index)
            schedule_elapsed = self.now() - now
            self.engine.launch(batch)
            self.in_flight.append((batch, now, schedule_elapsed))
        return batch

    def finish(self) -> None:
        """Wait for the tokens of the oldest step, and hand them out."""
        batch, begun, schedule_elapsed = self.in_flight.popleft()
        scheduler, engine = self.scheduler, self.engine
        result = engine.collect()
        start, self.tokens_time = max(begun, self.tokens_time), self.now()
        note_adapter_waits(batch, result)
        elapsed = self.tokens_time - start
        step = describe_step(start, elapsed, schedule_elapsed, batch, result, scheduler, engine, self.index)
        self.leave_out(self.tokens_time)
        started = self.now()
        step.num_output_tokens = scheduler.postprocess(batch, result.token_ids, self.tokens_time)
        updated = self.now()
        step.update = updated - started
        self.steps.append(step)
        self.progress.note(step, batch)
        self.inbox.step_ended(step, batch, self.tokens_time)
        self.leave_out(updated)

    def leave_out(self, since: float) -> None:
        """What has passed since then (s) does not count, unless a step runs meanwhile."""
        if not self.in_flight:
            self.inbox.leave_out(since)


class RealTime(ServingLoop):
    """One server, for all that arrives from `source` or follows from what has finished."""

    def __init__(self, source: Source, scheduler: Scheduler, engine: Engine) -> None:
        self.arrivals = Arrivals(source, engine)
        super().__init__(scheduler, engine, self.arrivals)

    def serve(self) -> None:
        """To the end; RuntimeError if nothing goes on."""
        self.arrivals.begin()
        try:
            self.run()
        finally:
            self.arrivals.end()
