"""Synthetic traces: statistics of every process and distribution, and what does not change with what."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from framework.core import Request, Trace
from framework.trace.arrivals import all_at_once, constant, gamma, on_off, poisson
from framework.trace.lengths import exponential_capped, fixed, independent, lognormal, repeating, resample, uniform
from framework.trace.synthetic import synthetic

NUM = 20_000
BURSTS = partial(on_off, on_duration=2.0, off_duration=6.0)
PAIR = partial(
    independent, prompt=partial(uniform, low=1, high=900), output=partial(exponential_capped, mean=9, cap=30)
)


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


def test_lengths_have_their_moments() -> None:
    assert fixed(rng(), 3, length=7).tolist() == [7, 7, 7]
    assert np.unique(uniform(rng(), NUM, low=3, high=6)).tolist() == [3, 4, 5, 6]
    assert np.median(lognormal(rng(), NUM, median=200, sigma=0.7)) == pytest.approx(200, rel=0.03)
    assert lognormal(rng(), NUM, mean=200, sigma=0.7).mean() == pytest.approx(200, rel=0.03)
    clipped = lognormal(rng(), NUM, median=200, sigma=2.0, low=50, high=400)
    assert (clipped.min(), clipped.max()) == (50, 400)
    assert exponential_capped(rng(), NUM, mean=128, cap=10**6).mean() == pytest.approx(128, rel=0.03)


@pytest.mark.parametrize("cap", [32, 128, 512, 1536])
def test_exponential_capped_share_at_the_cap(cap: int) -> None:
    lengths = exponential_capped(rng(), NUM, mean=128, cap=cap)
    assert (lengths.min(), lengths.max()) == (1, min(cap, lengths.max()))
    assert (lengths == cap).mean() == pytest.approx(math.exp(-(cap - 0.5) / 128), abs=0.01)


@pytest.mark.parametrize(
    ("draw", "keywords", "message"),
    [
        (fixed, {"length": 0}, "length=0 is not a whole number of at least 1"),
        (fixed, {"length": 2.5}, "length=2.5 is not a whole number of at least 1"),
        (uniform, {"low": 9, "high": 3}, "low=9 is above high=3"),
        (uniform, {"low": 0, "high": 3}, "low=0 is not a whole number of at least 1"),
        (lognormal, {"sigma": 1.0}, "median=None, mean=None: give exactly one"),
        (lognormal, {"sigma": 1.0, "mean": 3, "median": 3}, "median=3, mean=3: give exactly one"),
        (lognormal, {"sigma": -1.0, "mean": 3}, "sigma=-1.0 is not a finite number above 0"),
        (lognormal, {"sigma": 1.0, "mean": 0}, "mean=0 is not a finite number above 0"),
        (lognormal, {"sigma": 1.0, "median": math.nan}, "median=nan is not a finite number above 0"),
        (lognormal, {"sigma": 1.0, "mean": 3, "low": 5, "high": 4}, "low=5 is above high=4"),
        (exponential_capped, {"mean": math.inf, "cap": 3}, "mean=inf is not a finite number above 0"),
        (exponential_capped, {"mean": "many", "cap": 3}, "mean='many' is not a finite number above 0"),
        (exponential_capped, {"mean": 3, "cap": 0}, "cap=0 is not a whole number of at least 1"),
    ],
)
def test_bad_length_parameters(draw: Callable[..., np.ndarray], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(rng(), 5, **keywords)


def test_resample_keeps_pairs_together() -> None:
    source = Trace([Request(index, 0.0, 10 * index + 10, index + 1) for index in range(5)])
    prompts, outputs = resample(rng(), 500, trace=lambda: source)
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == {(10, 1), (20, 2), (30, 3), (40, 4), (50, 5)}


@pytest.mark.parametrize("arrivals", [poisson, partial(gamma, cv=2.0), BURSTS])
def test_every_rate_replays_the_same_requests(arrivals: Callable[..., np.ndarray]) -> None:
    slow, fast = (synthetic(arrivals=arrivals, lengths=PAIR, num_requests=50, rate=rate, seed=3) for rate in (1.0, 8.0))
    for a, b in zip(slow.requests, fast.requests, strict=True):
        assert (a.request_id, a.num_prompt_tokens, a.num_output_tokens) == (
            b.request_id,
            b.num_prompt_tokens,
            b.num_output_tokens,
        )
    assert slow.requests[-1].arrival_time > fast.requests[-1].arrival_time


def test_seed_decides_everything() -> None:
    make = partial(synthetic, arrivals=poisson, lengths=PAIR, num_requests=50, rate=2.0)
    assert make(seed=3) == make(seed=3)
    assert make(seed=3) != make(seed=4)
    gaps = np.diff([request.arrival_time for request in make(seed=3).requests])
    assert gaps == pytest.approx(4 * np.diff([r.arrival_time for r in make(seed=3, rate=8.0).requests]))


def test_synthetic_requests_are_plain_numbers_within_limits() -> None:
    trace = synthetic(
        arrivals=poisson, lengths=PAIR, num_requests=200, max_prompt_tokens=100, max_output_tokens=8, rate=2.0
    )
    assert [request.request_id for request in trace.requests] == list(range(200))
    assert max(request.num_prompt_tokens for request in trace.requests) == 100
    assert max(request.num_output_tokens for request in trace.requests) == 8
    request = trace.requests[1]
    assert [type(request.arrival_time), type(request.num_prompt_tokens), type(request.num_output_tokens)] == [
        float,
        int,
        int,
    ]


@pytest.mark.parametrize("num_requests", [0, -5, 2.5])
def test_synthetic_needs_requests(num_requests: int) -> None:
    with pytest.raises(ValueError, match=f"num_requests={num_requests} is not a whole number of at least 1"):
        synthetic(arrivals=poisson, lengths=PAIR, num_requests=num_requests, rate=1.0)


def test_repeating_takes_the_lengths_in_turn() -> None:
    assert repeating(rng(), 5, lengths=[100, 10]).tolist() == [100, 10, 100, 10, 100]
    with pytest.raises(ValueError, match="lengths is empty"):
        repeating(rng(), 5, lengths=[])
    with pytest.raises(ValueError, match="lengths"):
        repeating(rng(), 5, lengths=[0])
