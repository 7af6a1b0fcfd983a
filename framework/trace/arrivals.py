"""Arrival processes: functions (rng, num_requests, rate) → sorted arrival times in seconds, the first one at 0.

At another rate the same rng gives the same gaps on another scale (except on_off, whose bursts last as long as told).
A synthetic trace scales them to the rate that was asked for.
"""

import math
import warnings

import numpy as np
import numpy.typing as npt

from framework.checks import positive
from framework.errors import NoRateError

Times = npt.NDArray[np.float64]  # (num_requests,) seconds


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


def all_at_once(rng: np.random.Generator, num_requests: int, rate: float | None) -> Times:
    """Every request at 0 s; there is no rate to choose."""
    if rate is not None:
        raise NoRateError(f"rate={rate!r}: requests that arrive all at once have no arrival rate; set rates=[null]")
    return np.zeros(num_requests)


def given(rate: float | None) -> float:
    if rate is None:
        raise ValueError("rate=None: a synthetic trace has no recorded rate; set rates=[…] in requests/s")
    return positive("rate", rate)


def _from_gaps(gaps: npt.NDArray[np.float64]) -> Times:
    return np.concatenate([[0.0], np.cumsum(gaps)])
