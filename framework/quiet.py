"""Many decode steps at once, where a scheduler and an engine know them beforehand; what they leave is the same."""

from bisect import bisect_left
from collections import deque
from itertools import accumulate
from typing import Protocol, cast

from framework.core import Batch, Engine, QuietEngine, QuietScheduler, Scheduler, Step, StepResult
from framework.step_log import StepRun

FEW = 4  # steps that are quicker taken one by one


class Server(Protocol):
    """What of a server is needed here."""

    scheduler: Scheduler
    engine: Engine
    in_flight: deque[tuple[Batch, float]]

    def describe(
        self, start_time: float, elapsed: float, batch: Batch, schedule_elapsed: float, result: StepResult
    ) -> Step: ...

    def record_run(self, run: StepRun) -> None: ...


def knows_beforehand(scheduler: object, engine: object) -> bool:
    """Whether both classes have the option themselves: a class above them may be wrong about what they do."""
    return "quiet_steps" in vars(type(scheduler)) and "foresee" in vars(type(engine))


def take_quiet_steps(server: Server, now: float, horizon: float) -> float:
    """Take the steps that end before `horizon` (s) and in which nothing happens but decoding; when the last one ends.

    It is called with as many steps in flight as there may be: each one taken is finished, and another launched.
    """
    scheduler, engine = cast(QuietScheduler, server.scheduler), cast(QuietEngine, server.engine)
    oldest, newest = server.in_flight[0][0], server.in_flight[-1][0]
    if oldest.num_prefill_tokens or oldest.sequences != newest.sequences:
        return now
    in_flight = [batch for batch, _ in server.in_flight]
    if len(in_flight) <= engine.num_steps_ahead or not all(map(only_decodes, in_flight)):
        return now
    num_steps = scheduler.quiet_steps(newest)
    if num_steps < FEW:
        return now
    foreseen = engine.foresee(newest, num_steps, horizon - now)
    times = list(accumulate(foreseen.elapsed, initial=now))  # as one clock would add them
    num_steps = bisect_left(times, horizon, 1, len(times) - len(in_flight)) - 1
    if num_steps < FEW:
        return now
    result = StepResult([], foreseen.elapsed[0], device=foreseen.device[0])
    first = server.describe(now, foreseen.elapsed[0], oldest, 0.0, result)
    first.num_output_tokens = len(oldest.sequences)
    ends = times[1 : num_steps + 1]
    for sequence in oldest.sequences:
        sequence.extend(foreseen.token_id, ends)
    growth = scheduler.skip(oldest, num_steps)
    engine.skip(newest, foreseen, num_steps)
    for batch in in_flight:
        batch.starts = [start + num_steps for start in batch.starts]
    del times[num_steps:], foreseen.elapsed[num_steps:], foreseen.device[num_steps:]
    server.record_run(StepRun(first, times, foreseen.elapsed, foreseen.device, growth))
    return ends[-1]


def only_decodes(batch: Batch) -> bool:
    """Whether nothing is brought to the device beside it, or away from there."""
    return not (batch.num_prefill_tokens or batch.adapter_loads or batch.swap_out or batch.swap_in)
