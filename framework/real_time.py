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

from framework.core import Batch, Engine, Scheduler, Sequence, Source, Step
from framework.loops import Progress, check_batch, describe_step, note_adapter_waits
from framework.stopwatch import garbage_collector_paused

AWAKE = 200e-6  # seconds before the next arrival from which on its thread no longer sleeps: it would wake up too late


class Arrivals(Thread):
    """Puts every sequence that is expected into `inbox` when it is due; its prompt is made before.

    `zero` is when the clock began (s of `perf_counter`), moved on by every pause of it.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(name="arrivals", daemon=True)
        self.engine, self.order, self.zero, self.is_over = engine, count(), inf, False
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


class RealTime:
    """Serves what comes from `source` with an engine that has begun: `sequences`, as they arrived, and `steps`."""

    def __init__(self, source: Source, scheduler: Scheduler, engine: Engine) -> None:
        self.source, self.scheduler, self.engine = source, scheduler, engine
        self.arrivals, self.progress = Arrivals(engine), Progress()
        self.now = self.arrivals.now
        self.in_flight: deque[tuple[Batch, float, float]] = deque()  # when it began, and what its schedule took
        self.sequences: list[Sequence] = []
        self.steps: list[Step] = []
        self.tokens_time = 0.0  # of the last step

    def serve(self) -> None:
        """Until all that arrives or follows from what has finished is served; RuntimeError if nothing goes on."""
        arrivals, scheduler = self.arrivals, self.scheduler
        arrivals.expect(self.source.begin())
        arrivals.zero = time.perf_counter()
        arrivals.bring()  # who is there from the start is there in the first step
        arrivals.start()
        try:
            with garbage_collector_paused():
                while arrivals.coming or arrivals.inbox or self.in_flight or scheduler.num_unfinished:
                    self.take_arrivals()
                    batch = self.launch()
                    if len(self.in_flight) > (self.engine.num_steps_ahead if batch else 0):
                        self.finish()
                    elif batch is None:
                        self.wait()
        finally:
            arrivals.is_over = True
            arrivals.expect([])  # wakes it
            arrivals.join()

    def take_arrivals(self) -> None:
        while self.has_arrived():
            sequence = self.arrivals.inbox.popleft()
            sequence.server = 0
            self.sequences.append(sequence)
            self.scheduler.add(sequence)

    def has_arrived(self) -> bool:
        """Somebody has, and not only by a clock that has been set back since."""
        inbox = self.arrivals.inbox
        return bool(inbox) and inbox[0].arrival_time <= self.now()

    def launch(self) -> Batch | None:
        now = self.now()
        batch = self.scheduler.schedule(now)
        if batch is not None:
            check_batch(batch, now)
            schedule_elapsed = self.now() - now
            self.engine.launch(batch)
            self.in_flight.append((batch, now, schedule_elapsed))
        return batch

    def finish(self) -> None:
        """Wait for the tokens of the oldest step, and hand them out."""
        batch, begun, schedule_elapsed = self.in_flight.popleft()
        result = self.engine.collect()
        start, self.tokens_time = max(begun, self.tokens_time), self.now()
        note_adapter_waits(batch, result)
        elapsed = self.tokens_time - start
        step = describe_step(start, elapsed, schedule_elapsed, batch, result, self.scheduler, self.engine)
        self.cut_out(self.tokens_time)
        started = self.now()
        step.num_output_tokens = self.scheduler.postprocess(batch, result.token_ids, self.tokens_time)
        updated = self.now()
        step.update = updated - started
        self.steps.append(step)
        self.progress.note(step, batch)
        for sequence in batch.sequences:
            if sequence.is_finished and sequence.token_times[-1] == self.tokens_time:  # now, not before
                self.arrivals.expect(self.source.follow(sequence, self.tokens_time))
        self.cut_out(updated)

    def cut_out(self, paused: float) -> None:
        """What has passed since `paused` (s) does not count, unless a step runs meanwhile."""
        if not self.in_flight:
            self.arrivals.zero += self.now() - paused

    def wait(self) -> None:
        """Awake, as a server that polls, until something arrives or the scheduler's alarm goes off."""
        wake_time = self.scheduler.wake_time
        if wake_time == inf and not self.arrivals.coming and not self.arrivals.inbox:
            raise RuntimeError(f"stalled at {self.now():.6f} s, unfinished requests: {self.scheduler.num_unfinished}")
        while not self.has_arrived() and self.now() < wake_time:
            time.sleep(0)
