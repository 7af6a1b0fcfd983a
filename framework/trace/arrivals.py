"""Arrival processes: functions (rng, num_requests, rate) → sorted arrival times in seconds, the first one at 0.

At another rate the same rng gives the same gaps on another scale (except on_off, whose bursts last as long as told).
A synthetic trace scales them to the rate that was asked for.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from framework.checks import positive
from framework.core import Trace
from framework.errors import NoRateError
from framework.trace.transforms import arrive_at, check_span, starts

Times = npt.NDArray[np.float64]  # (num_requests,) seconds
Arrivals = Callable[[np.random.Generator, int, float | None], Times]


def draw_times(arrivals: Arrivals, rng: np.random.Generator, num_requests: int, rate: float | None) -> Times:
    """Times of a process, on such a scale that the mean gap is 1 / `rate` exactly (None: as the process has them).

    What few random gaps offer may be far from it.
    """
    times = arrivals(rng, num_requests, rate)
    if not np.isfinite(times).all():
        raise ValueError(f"the arrival process gives times that are not finite at rate={rate}: check its keys")
    if rate is not None:
        times = at_rate(times, rate)
    check_span(float(times[-1]), f"rate={rate}: {num_requests} requests at this rate")
    return times


def arrive_by(trace: Trace, arrivals: Arrivals, rng: np.random.Generator, rate: float | None) -> Trace:
    """The trace with its starts at times of a process."""
    return arrive_at(trace, draw_times(arrivals, rng, len(starts(trace)), rate))


def at_rate(times: Times, rate: float) -> Times:
    """The same arrivals on another scale: the mean of the gaps becomes 1 / `rate` (s)."""
    span = float(times[-1] - times[0])
    return times * ((len(times) - 1) / (rate * span)) if span > 0 else times


def constant(rng: np.random.Generator, num_requests: int, rate: float | None) -> Times:
    """One arrival every 1 / `rate` seconds."""
    return np.arange(num_requests) / given(rate)


def poisson(rng: np.random.Generator, num_requests: int, rate: float | None) -> Times:
    """A Poisson process of `rate` requests/s: exponential gaps."""
    return _from_gaps(rng.exponential(size=num_requests - 1) / given(rate))


def gamma(rng: np.random.Generator, num_requests: int, rate: float | None, *, cv: float) -> Times:
    """Gamma-distributed gaps of mean 1 / `rate` and coefficient of variation `cv` (1: Poisson; above: bursty)."""
    shape = positive("cv", cv) ** -2
    return _from_gaps(rng.gamma(shape, size=num_requests - 1) / (shape * given(rate)))


def on_off(
    rng: np.random.Generator, num_requests: int, rate: float | None, *, on_duration: float, off_duration: float
) -> Times:
    """Bursts: `on_duration` seconds of Poisson arrivals, then `off_duration` seconds of none, and so on.

    `rate` is the mean over both; within a burst it is rate · (on + off) / on.
    """
    on, off = positive("on_duration", on_duration), positive("off_duration", off_duration)
    burst_rate = given(rate) * (on + off) / on
    busy = _from_gaps(rng.exponential(size=num_requests - 1) / burst_rate)  # the clock of the bursts alone
    if busy[-1] < on:
        needed = math.ceil(burst_rate * 2 * on)
        warnings.warn(
            f"on_off at rate={rate:g}: the {num_requests} requests all fall into the first burst of {on:g} s, so that "
            f"there is no silence; two bursts take {needed} requests",
            stacklevel=2,
        )
    return busy + np.floor(busy / on) * off


def stages(rng: np.random.Generator, num_requests: int, rate: float | None, *, stages: list[list[float]]) -> Times:
    """Poisson arrivals whose rate changes: each stage is [seconds, rate], or [seconds, rate, rate at its end], a ramp.

    The rates of the stages are to each other as given; their mean over time is `rate`. After the last stage the first
    one begins again. An arrival of a process of rate 1 at t comes when the changing rate has added up to t.
    """
    durations, first, last = np.array([check_stage(stage) for stage in stages]).T if stages else np.zeros((3, 0))
    areas = durations * (first + last) / 2  # what the rate adds up to over each stage
    if not areas.sum() > 0:
        raise ValueError(f"stages={stages!r} have no rate above 0: give [seconds, rate], or [seconds, rate, last rate]")
    scale = given(rate) * durations.sum() / areas.sum()
    first, last, areas = first * scale, last * scale, areas * scale
    passed = _from_gaps(rng.exponential(size=num_requests - 1))
    cycles, rest = np.divmod(passed, areas.sum())
    ends = np.cumsum(areas)
    stage = np.minimum(np.searchsorted(ends, rest, side="right"), len(ends) - 1)
    left, slope = rest - (ends - areas)[stage], ((last - first) / durations)[stage]
    # the time t into a stage at which first · t + slope · t² / 2 is what is left
    time = 2 * left / np.maximum(first[stage] + np.sqrt(np.maximum(first[stage] ** 2 + 2 * slope * left, 0.0)), 1e-300)
    times = cycles * durations.sum() + (np.cumsum(durations) - durations)[stage] + time
    return times - times[0]


def check_stage(stage: list[float]) -> tuple[float, float, float]:
    """(seconds, rate at the start, rate at the end) of a stage."""
    if len(stage) not in (2, 3) or not all(math.isfinite(value) and value >= 0 for value in stage) or stage[0] == 0:
        raise ValueError(f"stages has {stage!r}, which is not [seconds, rate] or [seconds, rate, rate at its end]")
    return stage[0], stage[1], stage[-1]


def of_trace(rng: np.random.Generator, num_requests: int, rate: float | None, *, trace: Callable[[], Trace]) -> Times:
    """The first arrival times of the requests of `trace()`, from 0 s on; a session counts by its start."""
    times = np.array([request.arrival_time for request in starts(trace())])
    if len(times) < num_requests:
        raise ValueError(f"the trace whose arrivals are to be used has {len(times)}, and {num_requests} are needed")
    return times[:num_requests] - times[0]


def all_at_once(rng: np.random.Generator, num_requests: int, rate: float | None) -> Times:
    """Every request at 0 s; there is no rate to choose."""
    refuse_rate(rate)
    return np.zeros(num_requests)


def refuse_rate(rate: float | None) -> None:
    """NoRateError for a rate of requests that arrive all at once."""
    if rate is not None:
        raise NoRateError(f"rate={rate!r}: requests that arrive all at once have no arrival rate; set rates=[null]")


def given(rate: float | None) -> float:
    if rate is None:
        raise ValueError("rate=None: a synthetic trace has no recorded rate; set rates=[…] in requests/s")
    return positive("rate", rate)


def _from_gaps(gaps: npt.NDArray[np.float64]) -> Times:
    return np.concatenate([[0.0], np.cumsum(gaps)])
