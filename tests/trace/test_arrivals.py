"""Arrival processes: their rates, their variation, and what they refuse."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from framework.core import Request, Trace
from framework.trace.arrivals import all_at_once, constant, draw_times, gamma, of_trace, on_off, poisson, stages

NUM = 20_000
BURSTS = partial(on_off, on_duration=2.0, off_duration=6.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def variation(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [(constant, 0.0), (poisson, 1.0), (partial(gamma, cv=0.5), 0.5), (partial(gamma, cv=3.0), 3.0), (BURSTS, None)],
)
def test_arrivals_have_their_rate_and_variation(arrivals: Callable[..., np.ndarray], cv: float | None) -> None:
    times = arrivals(rng(), NUM, 4.0)
    assert times.shape == (NUM,)
    assert times[0] == 0.0
    assert (np.diff(times) >= 0).all()
    assert (NUM - 1) / times[-1] == pytest.approx(4.0, rel=0.05)
    if cv is not None:
        assert variation(times) == pytest.approx(cv, rel=0.05, abs=1e-9)


def test_constant_and_all_at_once_exactly() -> None:
    assert constant(rng(), 4, 2.0).tolist() == [0.0, 0.5, 1.0, 1.5]
    assert all_at_once(rng(), 3, None).tolist() == [0.0, 0.0, 0.0]


def test_bursts_are_silent_when_off() -> None:
    times = BURSTS(rng(), NUM, 4.0)
    assert (times % 8.0 < 2.0).all()
    inside = np.diff(times)[np.diff(times) < 6.0]
    assert inside.mean() == pytest.approx(1 / 16, rel=0.05)  # 4 requests/s · (2 + 6) / 2 within a burst


def test_one_request_arrives_at_zero() -> None:
    for arrivals in (constant, poisson, partial(gamma, cv=2.0), BURSTS):
        assert arrivals(rng(), 1, 4.0).tolist() == [0.0]


@pytest.mark.parametrize("arrivals", [constant, poisson, partial(gamma, cv=2.0), BURSTS])
@pytest.mark.parametrize("rate", [None, 0.0, -2.0, math.nan, math.inf])
def test_arrivals_need_a_rate(arrivals: Callable[..., np.ndarray], rate: float | None) -> None:
    reason = "a synthetic trace has no recorded rate; set rates" if rate is None else "is not a finite number above 0"
    with pytest.raises(ValueError, match=f"rate={rate}:? {reason}"):
        arrivals(rng(), 5, rate)


def test_all_at_once_has_no_rate() -> None:
    with pytest.raises(ValueError, match=r"rate=4.0: .* set rates=\[null\]"):
        all_at_once(rng(), 5, 4.0)


@pytest.mark.parametrize(
    ("arrivals", "message"),
    [
        (partial(gamma, cv=0.0), "cv=0.0"),
        (partial(on_off, on_duration=0.0, off_duration=1.0), "on_duration=0.0"),
        (partial(on_off, on_duration=1.0, off_duration=math.inf), "off_duration=inf"),
    ],
)
def test_bad_arrival_parameters(arrivals: Callable[..., np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} is not a finite number above 0"):
        arrivals(rng(), 5, 1.0)


def test_stages_and_ramps_have_their_shares_of_the_arrivals() -> None:
    """5 s at a rate of 1, a ramp of 10 s to 3, 5 s of silence: of 25 arrivals a cycle 5 are in the first 5 s, …"""
    shape = [[5, 1], [10, 1, 3], [5, 0]]
    times = stages(rng(), NUM, 1.25, stages=shape)
    assert (np.diff(times) >= 0).all()
    assert (NUM - 1) / times[-1] == pytest.approx(1.25, rel=0.02)
    within = times % 20.0
    shares = np.histogram(within, bins=[0, 5, 10, 15, 20])[0] / NUM
    assert shares == pytest.approx([5 / 25, 7.5 / 25, 12.5 / 25, 0.0], abs=0.01)
    faster = stages(rng(), NUM, 2.5, stages=shape)
    assert (NUM - 1) / faster[-1] == pytest.approx(2.5, rel=0.02)
    assert (faster % 20.0 < 15.0 + 1e-6).all()


@pytest.mark.parametrize("shape", [[], [[5, 0]], [[0, 1]], [[5, -1]], [[5, 1, 2, 3]], [[5, math.inf]], [[5]]])
def test_stages_that_are_none_are_refused(shape: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="stages"):
        stages(rng(), 10, 1.0, stages=shape)


def test_times_of_another_trace_start_at_zero_and_reach_any_rate() -> None:
    requests = [Request(index, 5.0 + index**2, 4, 4) for index in range(4)]
    arrivals = partial(of_trace, trace=lambda: Trace(requests))
    assert draw_times(arrivals, rng(), 3, None).tolist() == [0.0, 1.0, 4.0]
    assert draw_times(arrivals, rng(), 3, 2.0).tolist() == [0.0, 0.25, 1.0]
    with pytest.raises(ValueError, match="has 4, and 5 are needed"):
        draw_times(arrivals, rng(), 5, None)
