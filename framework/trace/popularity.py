"""Which request wants which adapter: laws (rng, num_requests) → adapter numbers from 0, and `assign_adapters`.

Number 0 is the most popular; request and number are independent, except in `distinct` and `round_robin`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from framework.checks import positive, whole
from framework.core import Trace
from framework.trace.transforms import per_request, starts

Numbers = npt.NDArray[np.int64]  # (num_requests,)
Law = Callable[[np.random.Generator, int], Numbers]


def assign_adapters(trace: Trace, law: Law, rng: np.random.Generator) -> Trace:
    """Every request with the adapter `adapter-<number>` that the law draws for it; a conversation keeps its own."""
    numbers = per_request(trace, law(rng, len(starts(trace))).tolist())
    drawn = zip(trace.requests, numbers, strict=True)
    return replace(trace, requests=[replace(request, adapter_id=f"adapter-{number}") for request, number in drawn])


def identical(rng: np.random.Generator, num_requests: int) -> Numbers:
    """One adapter for all (Punica's "identical")."""
    return np.zeros(num_requests, dtype=np.int64)


def distinct(rng: np.random.Generator, num_requests: int) -> Numbers:
    """A new adapter for every request (Punica's "distinct")."""
    return np.arange(num_requests)


def round_robin(rng: np.random.Generator, num_requests: int, *, num_adapters: int) -> Numbers:
    """One adapter after the other."""
    return np.arange(num_requests) % whole("num_adapters", num_adapters)


def uniform(rng: np.random.Generator, num_requests: int, *, num_adapters: int | None) -> Numbers:
    """All equally likely; None: as many adapters as the root of the requests (Punica's "uniform")."""
    count = math.isqrt(num_requests - 1) + 1 if num_adapters is None else whole("num_adapters", num_adapters)
    return rng.integers(count, size=num_requests)


def zipf(rng: np.random.Generator, num_requests: int, *, num_adapters: int, alpha: float) -> Numbers:
    """Number k in proportion to (k + 1) ** -alpha."""
    return _drawn(rng, num_requests, np.arange(1, whole("num_adapters", num_adapters) + 1) ** -positive("alpha", alpha))


def geometric(rng: np.random.Generator, num_requests: int, *, num_adapters: int, ratio: float) -> Numbers:
    """Each number `ratio` times as likely as the next one (Punica's "skewed", with 1.5)."""
    return _drawn(rng, num_requests, positive("ratio", ratio) ** -np.arange(whole("num_adapters", num_adapters)))


def power_law(rng: np.random.Generator, num_requests: int, *, num_adapters: int, top: float, share: float) -> Numbers:
    """The most popular `top` of the adapters get `share` of the requests, such as 0.8 for 0.2; and so on within them.

    The first u of the adapters get u ** a of the requests, a = log(share) / log(top); S-LoRA (MLSys 2024) gives a, and
    draws as here: floor(num_adapters * U ** (1 / a)).
    """
    for name, value in (("top", top), ("share", share)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name}={value!r} is not above 0 and below 1")
    exponent = math.log(share) / math.log(top)
    drawn = rng.random(num_requests) ** (1.0 / exponent)
    return np.floor(whole("num_adapters", num_adapters) * drawn).astype(np.int64)


def _drawn(rng: np.random.Generator, num_requests: int, weights: npt.NDArray[np.floating[Any]]) -> Numbers:
    return rng.choice(len(weights), size=num_requests, p=weights / weights.sum())
