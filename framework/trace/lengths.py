"""Request lengths in tokens: distributions (rng, num_requests) → whole numbers of at least 1, and how to pair them.

`independent` and `resample` are what a synthetic trace takes: (rng, num_requests) → (prompt, output) lengths.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from framework.checks import positive, whole
from framework.core import Trace

Lengths = npt.NDArray[np.int64]  # (num_requests,) tokens


def fixed(rng: np.random.Generator, num_requests: int, *, length: int) -> Lengths:
    """The same length for all."""
    return np.full(num_requests, whole("length", length), dtype=np.int64)


def uniform(rng: np.random.Generator, num_requests: int, *, low: int, high: int) -> Lengths:
    """Every length from `low` to `high`, both included, equally likely."""
    _check_bounds(low, high)
    return rng.integers(low, high, size=num_requests, endpoint=True)


def repeating(rng: np.random.Generator, num_requests: int, *, lengths: list[int]) -> Lengths:
    """The given lengths in turn, over and over."""
    if not lengths:
        raise ValueError("lengths is empty: give at least one")
    return np.resize([whole("lengths", length) for length in lengths], num_requests).astype(np.int64)


def lognormal(
    rng: np.random.Generator,
    num_requests: int,
    *,
    sigma: float,
    median: float | None = None,
    mean: float | None = None,
    low: int = 1,
    high: int | None = None,
) -> Lengths:
    """Rounded lognormal lengths, clipped to [low, high]; exactly one of `median` and `mean` is given.

    `sigma` is the standard deviation of ln(length); the mean (before clipping) is median · exp(sigma² / 2).
    """
    if (median is None) == (mean is None):
        raise ValueError(f"median={median!r}, mean={mean!r}: give exactly one of the two")
    _check_bounds(low, high)
    spread = positive("sigma", sigma)
    center = positive("mean", mean) * math.exp(-(spread**2) / 2) if median is None else positive("median", median)
    return _rounded(rng.lognormal(math.log(center), spread, size=num_requests), low, high)


def geometric(rng: np.random.Generator, num_requests: int, *, mean: float, high: int | None = None) -> Lengths:
    """Whole numbers from 1, each the last with probability 1 / `mean`, and none above `high`."""
    if positive("mean", mean) < 1:
        raise ValueError(f"mean={mean} is below 1, the least of a geometric law from 1")
    _check_bounds(1, high)
    return np.clip(rng.geometric(1 / mean, size=num_requests), 1, high).astype(np.int64)


def exponential_capped(rng: np.random.Generator, num_requests: int, *, mean: float, cap: int) -> Lengths:
    """Rounded exponential lengths of the given mean (before capping), at least 1 and at most `cap`.

    Source: Anyscale's continuous-batching study (2023) has outputs of mean 128 with caps from 32 to 1536.
    """
    return _rounded(rng.exponential(positive("mean", mean), size=num_requests), 1, whole("cap", cap))


def independent(
    rng: np.random.Generator,
    num_requests: int,
    *,
    prompt: Callable[[np.random.Generator, int], Lengths],
    output: Callable[[np.random.Generator, int], Lengths],
) -> tuple[Lengths, Lengths]:
    """Prompt and output lengths drawn separately, each from its own stream."""
    prompt_rng, output_rng = rng.spawn(2)
    return prompt(prompt_rng, num_requests), output(output_rng, num_requests)


def resample(rng: np.random.Generator, num_requests: int, *, trace: Callable[[], Trace]) -> tuple[Lengths, Lengths]:
    """(prompt, output) pairs drawn with replacement from the requests of `trace()`; each pair stays together."""
    pairs = np.array([(request.num_prompt_tokens, request.num_output_tokens) for request in trace().requests])
    drawn = pairs[rng.integers(len(pairs), size=num_requests)]  # (num_requests, 2)
    return drawn[:, 0], drawn[:, 1]


def _check_bounds(low: int, high: int | None) -> None:
    whole("low", low)
    if high is not None and whole("high", high) < low:
        raise ValueError(f"low={low} is above high={high}")


def _rounded(values: npt.NDArray[np.float64], low: int, high: int | None) -> Lengths:
    return np.clip(np.rint(values), low, high).astype(np.int64)
