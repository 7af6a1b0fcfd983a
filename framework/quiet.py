"""Many decode steps at once, where a scheduler and an engine know them beforehand; what they leave is the same.

Both are options of a Scheduler and an Engine, which a class has only if it says so itself.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Set
from itertools import accumulate
from typing import NamedTuple, Protocol, cast

from framework.contracts import Engine, Scheduler
from framework.core import Batch, Step, StepResult
from framework.loops import describe_step
from framework.step_runs import Growth, StepRun

FEW = 2  # steps that are quicker taken one by one
MANY = 128  # more are not looked at where they may come to an end at any time


class QuietScheduler(Scheduler, Protocol):
    """A Scheduler that knows for how many steps nothing will happen but decoding."""

    def quiet_steps(self, newest: Batch) -> int:
        """How often the next calls of `schedule` would give this batch, the one before, again, one token further each.

        That is as long as nothing is added, no token ends an output, and whatever the time is. In none of these steps
        but the last does a sequence sample its last token, and in none does one wait for a block or lose one. 0 where
        that is not known.
        """

    def skip(self, oldest: Batch, num_steps: int) -> Growth:
        """Do what this many times `postprocess` of the oldest batch in flight and then `schedule` would do.

        The tokens are appended already.
        """


class Foreseen(NamedTuple):
    """Decode steps to come, from the oldest in flight on; seconds as in StepResult, one entry per step.

    Of the last one `elapsed` may be missing, where it depends on the step behind it.
    """

    elapsed: list[float]
    prepare: list[float]
    device: list[float]
    token_id: int  # what every sequence samples in every one
    alone: list[float]  # what each would take whatever comes next


class Ahead(NamedTuple):
    """Steps of a server that are foreseen and not taken yet: when each begins and the last one ends (s), and the first.

    A server whose clock has passed some of them is behind: routers see their tokens all the same.
    """

    foreseen: Foreseen
    times: list[float]
    first: Step
    may_be_cut: bool  # by a sequence that arrives

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    @property
    def end(self) -> float:
        return self.times[-1]

    def num_ended(self, now: float) -> int:
        """How many are over before `now`."""
        return bisect_left(self.times, now, 1) - 1


class QuietEngine(Engine, Protocol):
    """An Engine that measures nothing and knows what steps will take. Its tokens stop no output."""

    def foresee(self, newest: Batch, num_steps: int, duration: float) -> Foreseen:
        """The steps in flight, then `num_steps` repetitions of the newest one, each one token further.

        They may be fewer, as those beyond `duration` (s) are not needed. Nothing is launched.
        """

    def skip(self, foreseen: Foreseen, num_steps: int) -> None:
        """Launch and collect so many of what it has just foreseen: as many as were in flight are so again."""


class Server(Protocol):
    """What of a server is needed here."""

    index: int
    scheduler: Scheduler
    engine: Engine
    in_flight: deque[tuple[Batch, float]]

    def record_run(self, run: StepRun, ends: list[float]) -> None: ...


def knows_beforehand(scheduler: object, engine: object) -> bool:
    """Whether both classes have the option themselves: a class above them may be wrong about what they do."""
    return "quiet_steps" in vars(type(scheduler)) and "foresee" in vars(type(engine))


def look_ahead(server: Server, now: float, horizon: float, arrival_times: Set[float] | None = None) -> Ahead | None:
    """Steps that end before `horizon` (s) and in which nothing happens but decoding; None where these are few.

    It is called with as many steps in flight as there may be: each one taken is finished, and another launched.

    With `arrival_times` (s), those at any server, a sequence may arrive at this one meanwhile. None of the steps ends
    at one of them, since what happens at one time has an order.
    """
    scheduler, engine = cast(QuietScheduler, server.scheduler), cast(QuietEngine, server.engine)
    in_flight = [batch for batch, _ in server.in_flight]
    oldest, newest = in_flight[0], in_flight[-1]
    if len(in_flight) <= engine.num_steps_ahead or not all(map(only_decodes, in_flight)):
        return None
    if oldest.sequences != newest.sequences:
        return None
    num_steps = scheduler.quiet_steps(newest)
    if num_steps < FEW:
        return None
    if arrival_times is not None:
        num_steps = min(num_steps, MANY)
    foreseen = engine.foresee(newest, num_steps, horizon - now)
    times = list(accumulate(foreseen.elapsed, initial=now))  # as one clock would add them
    num_steps = bisect_left(times, horizon, 1, len(foreseen.prepare) - len(in_flight) + 1) - 1
    if arrival_times is not None and not arrival_times.isdisjoint(times[1:]):
        num_steps = min(num_steps, next(index for index, end in enumerate(times[1:]) if end in arrival_times))
    if num_steps < FEW:
        return None
    result = StepResult([], foreseen.elapsed[0], foreseen.prepare[0], foreseen.device[0])
    first = describe_step(now, result.elapsed, 0.0, oldest, result, scheduler, engine, server.index)
    first.num_output_tokens = len(oldest.sequences)
    return Ahead(foreseen, times[: num_steps + 1], first, arrival_times is not None)


def take(server: Server, ahead: Ahead, num_steps: int) -> float:
    """Take so many of the steps that the server has looked at last; when the last one ends."""
    foreseen, times, first, _ = ahead
    if num_steps:
        scheduler, engine = cast(QuietScheduler, server.scheduler), cast(QuietEngine, server.engine)
        oldest, ends = server.in_flight[0][0], times[1 : num_steps + 1]
        for sequence in oldest.sequences:
            sequence.extend(foreseen.token_id, ends)
        growth = scheduler.skip(oldest, num_steps)
        engine.skip(foreseen, num_steps)
        for batch, _ in server.in_flight:
            batch.starts = [start + num_steps for start in batch.starts]
        elapsed, prepare, device = (column[:num_steps] for column in foreseen[:3])
        server.record_run(StepRun(first, times[:num_steps], elapsed, prepare, device, growth), ends)
    return times[num_steps]


def only_decodes(batch: Batch) -> bool:
    """Whether nothing is brought to the device beside it, or away from there."""
    return not (batch.num_prefill_tokens or batch.adapter_loads or batch.swap_out or batch.swap_in)
