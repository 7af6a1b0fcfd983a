"""Synthetic traces: statistics of every process and distribution, and what does not change with what."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from framework.trace.arrivals import gamma, on_off, poisson
from framework.trace.lengths import exponential_capped, independent, uniform
from framework.trace.synthetic import synthetic
from framework.trace.transforms import mean_rate

BURSTS = partial(on_off, on_duration=2.0, off_duration=6.0)
PAIR = partial(
    independent, prompt=partial(uniform, low=1, high=900), output=partial(exponential_capped, mean=9, cap=30)
)


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


BURSTS = partial(on_off, on_duration=5.0, off_duration=5.0)


@pytest.mark.parametrize("rate", [0.5, 10.0, 80.0])
@pytest.mark.parametrize("arrivals", [poisson, partial(gamma, cv=4.0), BURSTS])
@pytest.mark.filterwarnings("ignore:on_off")
def test_the_rate_that_is_asked_for_is_offered(arrivals, rate: float) -> None:
    trace = synthetic(arrivals=arrivals, lengths=PAIR, num_requests=256, rate=rate, seed=1)
    assert mean_rate(trace) == pytest.approx(rate, rel=1e-12)
